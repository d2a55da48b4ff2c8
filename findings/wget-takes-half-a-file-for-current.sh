#!/usr/bin/env bash
# wget 1.21.3, wget2 1.99.1 and curl 7.88.1 (Debian 12's packages), with the options for keeping a file current:
# `wget -N`, `wget2 -N`, `curl -R -z FILE -o FILE`.
# Most would guess: when a transfer breaks, the tool fails, and the next run, which finds half of a file, fetches it.
# Seen: the half has the time of its last write, which is later than Last-Modified; wget2 even gives it Last-Modified.
# Either is what the next run sends as If-Modified-Since, so it is answered with 304, ends with exit code 0, and keeps
# the half, until the server gets a newer version. wget2 ends with 0 also when the transfer breaks. A script has to fetch
# under another name, and rename after exit code 0 (with wget2, after a look at the size or a checksum).
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('wget=1.21.3-1*' 'wget2=1.99.1-2*' 'libwget0=1.99.1-2*' 'curl=7.88.1-10*' 'libcurl4=7.88.1-10*' libassuan0 libbrotli1
    libgpgme11 libldap-2.5-0 libnghttp2-14 libpcre2-8-0 libpsl5 librtmp1 libsasl2-2 libssh2-1 libuuid1)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
python3 - "$folder" <<'END'
import email.utils, http.server, os, pathlib, subprocess, sys, threading

SIZE, MODIFIED = 1 << 20, 1_700_000_000
folder = pathlib.Path(sys.argv[1])
broken = False


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        since = self.headers["If-Modified-Since"]
        unchanged = since and email.utils.parsedate_to_datetime(since).timestamp() >= MODIFIED
        self.send_response(304 if unchanged else 200)
        self.send_header("Last-Modified", email.utils.formatdate(MODIFIED, usegmt=True))
        if not unchanged:
            self.send_header("Content-Length", str(SIZE))
        self.end_headers()
        if not unchanged:
            self.wfile.write(bytes(SIZE // 2 if broken else SIZE))  # the connection is closed after it

    def log_message(self, *_):
        pass


def refresh(command, name):
    """Exit code, and the size of the file after it."""
    program = folder / "usr/bin" / command[0]
    code = subprocess.run([program, *command[1:], url + name], cwd=folder, env=environment, capture_output=True).returncode
    return code, (folder / name).stat().st_size


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/"
library = next(folder.glob("usr/lib/*/libcurl.so.4")).parent
environment = {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": str(library), "HOME": str(folder), "no_proxy": "*"}
for name, first_code, command in (
    ("wget", 4, ["wget", "--no-config", "-q", "--tries=1", "-N"]),
    ("wget2", 0, ["wget2", "--no-config", "-q", "--tries=1", "-N"]),
    ("curl", 18, ["curl", "-q", "-s", "-R", "-z", "curl", "-o", "curl"]),
):
    version = subprocess.run([folder / "usr/bin" / name, "--version"], env=environment, capture_output=True, text=True)
    broken = True
    first = refresh(command, name)
    broken = False
    later = [refresh(command, name) for _ in range(2)]
    print(version.stdout.splitlines()[0][:40])
    print(f"  {SIZE} bytes that break off: exit code and size {first}; the next two runs, with a sound server: {later}")
    assert first == (first_code, SIZE // 2) and later == [(0, SIZE // 2)] * 2, "this has changed"
END
