#!/usr/bin/env bash
# rclone 1.60.1 (`rclone sync` of an http remote) and lftp 4.9.2 (`mirror -e`), Debian 12's packages, of a tree that
# nginx 1.22.1 serves with autoindex; somebody puts an index.html into it, to say what is there, or the server's page
# for maintenance is sent with 200.
# Most would guess: a page that is no listing is an error, or at least not a reason to delete anything: the files are
# all there, and each answers with 200. A tool that gets nothing at all, where there were thousands of files, stops.
# Seen: both take any HTML page for a listing, and the links on it for the directory's content. On a page without links
# nothing is there, so they delete every file of the mirror, say nothing, and end with exit code 0. When the page has
# gone again they fetch everything anew. A page in a subdirectory empties that one. `rclone sync --max-delete 10` stops
# after so many; `lftp mirror` has no such limit. What is mirrored needs a list of its files.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('rclone=1.60.1+dfsg-2*' 'lftp=4.9.2-2*' libreadline8 libtinfo6 'nginx=1.22.1-9*')
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
chmod 755 "$folder"
python3 - "$folder" <<'END'
import os, pathlib, shutil, socket, subprocess, sys, time

folder = pathlib.Path(sys.argv[1])
www, rclone, lftp = folder / "www", folder / "usr/bin/rclone", folder / "usr/bin/lftp"
patterns = ("lib/*-linux-gnu", "usr/lib/*-linux-gnu", "usr/lib/lftp/*")
libraries = ":".join(str(path) for pattern in patterns for path in folder.glob(pattern))
home = folder / "home"
home.mkdir()
(folder / "rclone.conf").touch()
environment = {**os.environ, "LD_LIBRARY_PATH": libraries, "HOME": str(home), "LC_ALL": "C"}
WELCOME = "<html><body><h1>Welcome</h1><p>Models, updated every night.</p></body></html>\n"
for path in "a", "b", "data/c", "data/d":
    (www / path).parent.mkdir(parents=True, exist_ok=True)
    (www / path).write_text(path)


def run(command):
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def files(mirror):
    return sorted(str(path.relative_to(mirror)) for path in mirror.rglob("*") if path.is_file())


def mirror_with(name, command):
    """Exit code, output and files of the mirror: as it is at first, and with a page in `data`, and at the top."""
    mirror = folder / name
    mirror.mkdir()
    found = []
    for page in None, www / "data/index.html", www / "index.html":
        if page:
            page.write_text(WELCOME)
        done = run([part.format(mirror=mirror) if isinstance(part, str) else part for part in command])
        found.append((done.returncode, done.stdout + done.stderr, files(mirror)))
        print(f"{name}, {page.relative_to(www) if page else 'no page'}: exit code {done.returncode}, {found[-1][2]}")
    for page in www.rglob("index.html"):
        page.unlink()
    return found


with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
(folder / "types").write_text("types { text/html html; }")
(folder / "conf").write_text(
    f"daemon off; pid {folder}/pid; error_log {folder}/errors; events {{}} http {{ access_log off; {temporary} include "
    f"{folder}/types; client_body_temp_path {folder}/body; "
    f"server {{ listen 127.0.0.1:{port}; root {www}; autoindex on; }} }}"
)
print(run([rclone, "version"]).stdout.splitlines()[0], run([lftp, "--version"]).stdout.splitlines()[0], sep="; ")
url = f"http://127.0.0.1:{port}/"
nginx = [folder / "usr/sbin/nginx", "-e", folder / "errors", "-p", folder, "-c", folder / "conf"]
process = subprocess.Popen(nginx)
sync = [rclone, "--config", folder / "rclone.conf", "--http-url", url, "sync", ":http:", "{mirror}"]
try:
    while not (folder / "pid").exists():  # it listens by then
        assert process.poll() is None, (folder / "errors").read_text()
        time.sleep(0.05)
    results = [
        mirror_with("rclone sync", sync),
        mirror_with("lftp mirror -e", [lftp, "--norc", "-c", f"open {url}; mirror -e . '{{mirror}}'"]),
    ]
    limited = mirror_with("rclone sync --max-delete 1", [*sync, "--max-delete", "1"])
finally:
    process.terminate()
    process.wait()
for found in results:
    assert found[0][2] == ["a", "b", "data/c", "data/d"]
    assert found[1:] == [(0, "", ["a", "b"]), (0, "", [])], "this has changed"
assert limited[1][0] and limited[2][0]
END
