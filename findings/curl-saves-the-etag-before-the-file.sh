#!/usr/bin/env bash
# curl 7.88.1 (Debian 12's package), --etag-compare with --etag-save, the pair for keeping a file current.
# Most would guess: the ETag is saved when the file is there. If the transfer breaks, curl says so, and the next run,
# which has no ETag yet or an older one, fetches the file.
# Seen: the ETag is saved as soon as its header arrives. A transfer that breaks after that leaves half of the file with
# the whole file's ETag: each later run is answered with 304, ends with exit code 0, and keeps the half. With
# --remove-on-error, which is to prevent half files, the file is gone, the ETag is not, and no later run fetches it.
# A script has to save the ETag under another name, and rename it only after exit code 0.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=(libcurl4=7.88.1-10* libbrotli1 libldap-2.5-0 libnghttp2-14 libpsl5 librtmp1 libsasl2-2 libssh2-1)
(cd "$folder"; apt-get download -q 'curl=7.88.1-10*' "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
python3 - "$folder" <<'END'
import http.server, os, pathlib, subprocess, sys, threading

SIZE, ETAG = 1 << 20, '"1"'
folder = pathlib.Path(sys.argv[1])
library = next(folder.glob("usr/lib/*/libcurl.so.4")).parent
broken = False


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        unchanged = self.headers["If-None-Match"] == ETAG
        self.send_response(304 if unchanged else 200)
        self.send_header("ETag", ETAG)
        if not unchanged:
            self.send_header("Content-Length", str(SIZE))
        self.end_headers()
        if not unchanged:
            self.wfile.write(bytes(SIZE // 2 if broken else SIZE))  # the connection is closed after it

    def log_message(self, *_):
        pass


def refresh(name, *options):
    """Exit code of curl, size of the file (None: there is none), and the ETag that is remembered."""
    file, etag = folder / name, folder / f"{name}.etag"
    options = [*options, "--etag-compare", etag, "--etag-save", etag, "-o", file]
    url = f"http://127.0.0.1:{server.server_port}/{name}"
    command = [folder / "usr/bin/curl", "-q", "-sf", "--noproxy", "*", *options, url]
    code = subprocess.run(command, env=environment).returncode
    return code, file.stat().st_size if file.exists() else None, etag.read_text().strip()


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
environment = {**os.environ, "LD_LIBRARY_PATH": str(library)}
version = subprocess.run([folder / "usr/bin/curl", "-V"], env=environment, capture_output=True, text=True).stdout
print(" ".join(version.split()[:4]))
assert refresh("whole") == (0, SIZE, ETAG)
for name, options, left in (("half", [], SIZE // 2), ("removed", ["--remove-on-error"], None)):
    broken = True
    first = refresh(name, *options)
    broken = False
    later = [refresh(name, *options) for _ in range(2)]
    print(f"{name}: a transfer of {SIZE} bytes breaks: exit code, size and ETag {first}; the next two runs: {later}")
    assert first == (18, left, ETAG) and later == [(0, left, ETAG)] * 2, "this has changed"
END
