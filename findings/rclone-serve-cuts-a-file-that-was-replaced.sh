#!/usr/bin/env bash
# rclone 1.60.1 (Debian 12's package), `rclone serve http` of a local directory, its defaults; files that are replaced by
# the next version, by a rename, and others that are added.
# Most would guess: a server looks at a local file when it is asked for it, so the answer is the new version, or, from a
# cache, the old one, with the length and the date that belong to it.
# Seen: names, lengths and dates are those of the last listing of the directory, which is kept for five minutes
# (--dir-cache-time), also of a local one; the bytes are the file's. So a longer version is sent cut off at the old length,
# with 200, the right Content-Length for that, and the old Last-Modified; a resume with that date as If-Range is answered
# with 206 and appends the new version to the old one; a refresh is told 304; a new file is 404. Of a shorter version all
# get a part and a closed connection. `rclone serve webdav` and mounts use the same cache. `--dir-cache-time 0` looks
# each time.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(cd "$folder"; apt-get download -q 'rclone=1.60.1*' 2>"$folder/apt" >/dev/null || { cat "$folder/apt"; exit 1; })
dpkg -x "$folder"/rclone*.deb "$folder"
python3 - "$folder" <<'END'
import http.client, os, pathlib, socket, subprocess, sys, time

OLD, LONGER, SHORTER = b"old " * 1000, b"new " * 5000, b"new " * 100
folder = pathlib.Path(sys.argv[1])
rclone, site = folder / "usr/bin/rclone", folder / "site"
environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "RCLONE_CONFIG": os.devnull}
site.mkdir()


def put(name, content, date):
    """Put a version in place by a rename."""
    (folder / "next").write_bytes(content)
    os.utime(folder / "next", (date, date))
    os.rename(folder / "next", site / name)


def get(name, **fields):
    """Status, body, whether it is whole, and Last-Modified."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", f"/{name}", headers={key.replace("_", "-"): value for key, value in fields.items()})
    answer = connection.getresponse()
    try:
        body, whole = answer.read(), True
    except http.client.IncompleteRead as error:
        body, whole = error.partial, False
    connection.close()
    return answer.status, body, whole, answer.getheader("Last-Modified")


def describe(name, answer):
    status, body, whole, date = answer
    shares = {version: body.count(f"{version} ".encode()) * 4 for version in ("old", "new")}
    print(f"  {name}: {status}, {shares['old']} bytes old, {shares['new']} new{'' if whole else ', and then cut off'}; {date}")
    return answer


def serve(*options):
    """What a client gets before and after an update."""
    global port
    for name in ("longer", "shorter"):
        put(name, OLD, 1_700_000_000)
    (site / "added").unlink(missing_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [rclone, "serve", "http", "--addr", f"127.0.0.1:{port}", *options, site]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stderr=log)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.05)
        print(f"rclone serve http {' '.join(options)}, before:")
        before = describe("longer", get("longer"))
        assert before[:3] == (200, OLD, True) and get("shorter")[:3] == (200, OLD, True) and get("added")[0] == 404
        put("longer", LONGER, 1_750_000_000)
        put("shorter", SHORTER, 1_750_000_000)
        put("added", LONGER, 1_750_000_000)
        print("after the update:")
        half, date = len(OLD) // 2, before[3]
        found = {name: describe(name, get(name)) for name in ("longer", "shorter", "added")}
        found["refresh"] = describe("refresh of longer", get("longer", If_Modified_Since=date))
        found["resume"] = describe("resume of longer", get("longer", Range=f"bytes={half}-", If_Range=date))
    finally:
        server.terminate()
        server.wait()
    return date, {name: answer[:3] for name, answer in found.items()}, found["longer"][3]


print(subprocess.run([rclone, "version"], env=environment, check=True, capture_output=True, text=True).stdout.split("\n")[0])
old_date, found, date = serve()
assert found["longer"] == (200, LONGER[: len(OLD)], True) and date == old_date, "this has changed"
assert found["shorter"] == (200, SHORTER, False) and found["added"][0] == 404, "this has changed"
assert found["refresh"][0] == 304, "this has changed"
assert found["resume"] == (206, LONGER[len(OLD) // 2 : len(OLD)], True), "this has changed"
_, found, _ = serve("--dir-cache-time", "0")
assert found["longer"] == (200, LONGER, True) and found["shorter"] == (200, SHORTER, True)
assert found["added"] == (200, LONGER, True) and found["refresh"][:2] == (200, LONGER)
END
