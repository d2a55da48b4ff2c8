#!/usr/bin/env bash
# rclone 1.60.1 and fuse3 3.14.0 (Debian 12's packages), Linux (seen on 6.18), `rclone mount` of a WebDAV server with
# --vfs-cache-mode writes, as its documentation advises for programs that write as to a disk.
# Most would guess: the file is uploaded when it is closed, or when fsync is called; both wait, and fail if the server
# refuses it. Whoever has fsync's 0, for the file and for its directory, and has closed the file without an error, has
# stored it where the mount leads to.
# Seen: fsync, close and fsync of the directory succeed at once; the upload begins 5 s after the close
# (--vfs-write-back). If the server refuses it (507, no space), rclone tries again later, and tells no program; the mount
# goes on showing the file as if it were there. So a pointer that is published by any other way after the files were
# written is there before them, and who deletes the original after `cp` and `sync FILE` has the only copy in rclone's
# cache, unseen by all other hosts. Only rclone's log tells. `rclone copy` waits, and has an exit code.
# Needs root, or a fusermount3 of one's own, and apt-get and dpkg of Debian 12.
set -euo pipefail
folder=$(mktemp -d)
trap 'umount -q "$folder/mounted" || true; rm -rf "$folder"' EXIT
needed=('rclone=1.60.1+dfsg-2*' 'fuse3=3.14.0-4*' 'libfuse3-3=3.14.0-4*')
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
mkdir "$folder/mounted"
uname -r
python3 - "$folder" <<'END'
import http.server, os, pathlib, subprocess, sys, threading, time

folder = pathlib.Path(sys.argv[1])
mounted, rclone = folder / "mounted", folder / "usr/bin/rclone"
stored, attempts, refuses, arrived = {}, [], False, threading.Condition()
ENTRY = (
    "<D:response><D:href>/{}</D:href><D:propstat><D:prop><D:getcontentlength>{}</D:getcontentlength>"
    "<D:getlastmodified>Tue, 14 Nov 2023 22:13:20 GMT</D:getlastmodified><D:resourcetype>{}</D:resourcetype></D:prop>"
    "<D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>"
)


class Server(http.server.BaseHTTPRequestHandler):
    """As much of WebDAV as rclone asks for (RFC 4918)."""

    protocol_version = "HTTP/1.1"

    def answer(self, status, body=b""):
        self.send_response(status)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PROPFIND(self):
        name = self.path.strip("/")
        if name and name not in stored:
            return self.answer(404)
        names = [name] if name else list(stored)
        entries = [ENTRY.format(one, len(stored[one]), "") for one in names]
        if not name:
            entries.insert(0, ENTRY.format("", 0, "<D:collection/>"))
        self.answer(207, f'<D:multistatus xmlns:D="DAV:">{"".join(entries)}</D:multistatus>'.encode())

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if not refuses:
            stored[self.path.strip("/")] = content
        self.answer(507 if refuses else 201)
        with arrived:
            attempts.append(self.path.strip("/"))
            arrived.notify()

    def log_message(self, *_):
        pass


def sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def write(name):
    with open(mounted / name, "wb") as file:
        file.write(b"content")
        file.flush()
        os.fsync(file.fileno())
    sync(mounted)
    subprocess.run(["sync", mounted / name], check=True)


def wait_for(name, times):
    with arrived:
        assert arrived.wait_for(lambda: attempts.count(name) >= times, 60), "this has changed"


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
environment = {"HOME": str(folder), "PATH": f"{folder}/bin:{folder}/usr/bin:{os.environ['PATH']}"}
library = next(folder.glob("lib/*/libfuse3.so.3")).parent
environment["LD_LIBRARY_PATH"] = str(library)
print(subprocess.run([rclone, "version"], env=environment, capture_output=True, text=True).stdout.splitlines()[0])
remote = f":webdav,url='http://127.0.0.1:{server.server_port}':"
options = ["--vfs-cache-mode", "writes", "--cache-dir", folder / "cache", "--log-file", folder / "log"]
mount = subprocess.Popen([rclone, "mount", remote, mounted, *options], env=environment)
try:
    while not os.path.ismount(mounted):
        assert mount.poll() is None, "rclone does not mount"
        time.sleep(0.05)
    begin = time.monotonic()
    write("accepted")
    seconds = time.monotonic() - begin
    print(f"after {seconds:.2f} s fsync and close have succeeded; at the server: {list(stored)}, attempts: {attempts}")
    assert not attempts and not stored, "this has changed"
    wait_for("accepted", 1)
    waited = time.monotonic() - begin
    print(f"after {waited:.1f} s the upload comes")
    assert waited > 4 and stored == {"accepted": b"content"}, "this has changed"
    refuses = True
    write("refused")
    wait_for("refused", 2)
    write("refused2")
    shown = sorted(os.listdir(mounted))
    content = (mounted / "refused").read_bytes()
    said = [line for line in (folder / "log").read_text().splitlines() if "refused" in line and "ERROR" in line]
    print(f"refused with 507, {attempts.count('refused')} attempts; the mount shows {shown}, the server has {list(stored)}")
    print(f"rclone's log: {said[0].partition('ERROR')[2][:110]}")
    assert shown == ["accepted", "refused", "refused2"] and content == b"content", "this has changed"
    assert list(stored) == ["accepted"] and said
finally:
    mount.terminate()
    mount.wait()
END
