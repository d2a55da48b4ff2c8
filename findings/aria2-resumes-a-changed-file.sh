#!/usr/bin/env bash
# aria2 1.36.0 (Debian 12's package), defaults, one connection.
# Most would guess: FILE.aria2, the control file of an unfinished download, says which version the bytes are of, so that
# a file that has changed on the server is fetched anew.
# Seen: it keeps the length and which pieces there are, neither ETag nor Last-Modified. The next run first asks for the
# whole file, so it sees both, and that they differ from the first run's; then it asks for the rest, without If-Range,
# appends that to the old version's bytes, deletes the control file, says (OK), and ends with exit code 0. Files that
# change without changing their length (databases, disk images, weights) become mixtures; only a checksum tells.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('aria2=1.36.0-1*' 'libaria2-0=1.36.0-1*' libc-ares2 libicu72 libsqlite3-0 libssh2-1 libxml2)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
python3 - "$folder" <<'END'
import http.server, os, pathlib, re, subprocess, sys, threading

SIZE = 1 << 20
folder = pathlib.Path(sys.argv[1])
file, control = folder / "model", folder / "model.aria2"
requests = []
version, date, broken = "old", "Tue, 14 Nov 2023 22:13:20 GMT", True


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        begin, end = (int(found[1]), int(found[2]) + 1) if found else (0, SIZE)
        requests.append((self.headers["Range"], self.headers["If-Range"], self.headers["If-Match"]))
        self.send_response(206 if found else 200)
        if found:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{SIZE}")
        for name, value in {"ETag": f'"{version}"', "Last-Modified": date, "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        try:
            self.wfile.write(version[:1].encode() * (SIZE // 2 if broken else end - begin))
        except OSError:
            pass  # aria2 does not want the whole file
        self.close_connection = True

    def log_message(self, *_):
        pass


def aria2(*options):
    command = [folder / "usr/bin/aria2c", "--no-conf", "--max-tries=1", "--no-proxy=*", *options]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/model"
library = next(folder.glob("usr/lib/*/libaria2.so.0")).parent
environment = {**os.environ, "LD_LIBRARY_PATH": str(library)}
print(aria2("--version").stdout.splitlines()[0])
first = aria2(url).returncode
print(f"of {SIZE} bytes half arrives: exit code {first}, {file.stat().st_size} bytes, control file: {control.exists()}")
assert first and control.exists() and file.stat().st_size == SIZE // 2
requests.clear()
version, date, broken = "new", "Wed, 15 Nov 2023 22:13:20 GMT", False
second = aria2(url).returncode
content = file.read_bytes()
kept = content.count(b"o")
print(f"replaced on the server; requests (Range, If-Range, If-Match): {requests}")
print(f"exit code {second}, control file: {control.exists()}, old bytes: {kept}, new bytes: {content.count(b'n')}")
assert second == 0 and not control.exists() and len(content) == SIZE and kept == SIZE // 2, "this has changed"
assert (None, None, None) in requests and (f"bytes={kept}-{SIZE - 1}", None, None) in requests, "this has changed"
END
