#!/usr/bin/env bash
# nginx 1.22.1 (Debian 12's package) with two workers and open_file_cache, whose entries are looked at again after
# open_file_cache_valid, 60 s by default (here 4 s); a file that is replaced by a rename.
# Most would guess: the option makes an update visible up to a minute late; until then all get the old version, and from
# then on all get the new one.
# Seen: each worker has a cache of its own. One that has not sent the file lately sends the new version at once, the others
# send the old one, and which worker takes a connection is chance. So for up to a minute, on one server, old and new
# versions alternate: who has the new one is given the old one at the next refresh, both with 200 and their strong
# ETags; a client with several connections gets parts of both, and with If-Range each change of worker starts the
# download from the beginning. A new index and the old one are sent in turn in the same way, so a client may be told of
# a release, and then that it is not there. Leave the option off for what is replaced, or give each version a new name.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(cd "$folder"; apt-get download -q 'nginx=1.22.1-9*' 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
chmod 755 "$folder"
python3 - "$folder" <<'END'
import collections, http.client, os, pathlib, socket, subprocess, sys, time

VALID = 4
folder = pathlib.Path(sys.argv[1])
nginx, www = folder / "usr/sbin/nginx", folder / "www"
www.mkdir()
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
temporary = "".join(
    f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)


def get(name, **fields):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", f"/{name}", headers={key.replace("_", "-"): value for key, value in fields.items()})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body[:3].decode(), answer.headers["ETag"]


def replace(name, content):
    (www / "next").write_text(content)
    os.rename(www / "next", www / name)


def run(cache):
    """The answers just after files were replaced, and to resumes, and the versions sent when the entries are invalid."""
    (folder / "conf").write_text(
        f"daemon off; worker_processes 2; pid {folder}/pid; error_log {folder}/errors; events {{}} "
        f"http {{ access_log off; {temporary} {cache} server {{ listen 127.0.0.1:{port}; root {www}; }} }}"
    )
    server = subprocess.Popen([nginx, "-e", folder / "errors", "-p", folder, "-c", folder / "conf"])
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert server.poll() is None, "nginx does not start"
                time.sleep(0.05)
        soon = collections.Counter()
        resumes = collections.Counter()
        for number in range(40):  # each file is in the cache of the worker that sent it, and in no other
            name = f"file{number}"
            replace(name, "old" * 1000)
            assert get(name)[1] == "old"
            replace(name, "new" * 1001)
            answers = [get(name) for _ in range(4)]
            versions = "".join(sorted({version for _, version, _ in answers}))
            changes = sum(one != other for one, other in zip(answers, answers[1:]))
            soon[versions] += 1
            soon["changes"] += changes
            for _ in range(4):
                resumes[get(name, Range="bytes=3-", If_Range=answers[0][2])[0]] += 1
        time.sleep(VALID + 1)
        late = {get(f"file{number}")[1] for number in range(40) for _ in range(4)}
        return soon, resumes, late
    finally:
        server.terminate()
        server.wait()


print(subprocess.run([nginx, "-v"], capture_output=True, text=True).stderr.strip())
cached = f"open_file_cache max=1000; open_file_cache_valid {VALID}s;"
for cache in "", cached:
    soon, resumes, late = run(cache)
    print(f"{cache or 'no open_file_cache'}")
    print(f"  asked four times just after the rename, files by what was sent: {dict(soon)}")
    print(f"  statuses of resumes with the ETag of the first answer: {dict(resumes)}; later all get: {late}")
    assert late == {"new"}
    if cache:
        assert soon["newold"] > 3 and soon["changes"] > 5 and resumes[200] > 5 and resumes[206] > 5, "this has changed"
    else:
        assert soon == {"new": 40, "changes": 0} and set(resumes) == {206}
END
