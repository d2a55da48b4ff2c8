#!/usr/bin/env bash
# nginx 1.22.1 (Debian 12's package), proxy_cache with slices, configured as the slice module's documentation shows.
# Most would guess: when a file is replaced, the cache sends the old file until that has expired, and then the new one;
# or it sees that the ETags of two slices differ, and fetches the older one again.
# Seen: it sends neither file. Slices that are cached are of the old version, the others come from the new one, and
# where they meet nginx closes the connection: status 200, the old ETag, the whole length, and a part of the file, at
# each attempt, for the hour that the slice is valid. Cache-Control: no-cache does not help; a resume with If-Range gets
# no answer at all. One range that was asked for before the change is enough; segmented downloads, readers of zip
# indexes and transfers that broke leave such slices. What is replaced under its name must not be served through slices.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(cd "$folder"; apt-get download -q 'nginx=1.22.1-9*' 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
dpkg -x "$folder"/nginx_*.deb "$folder/nginx"
chmod 755 "$folder"
python3 - "$folder" <<'END'
import http.client, http.server, pathlib, re, socket, subprocess, sys, threading, time

MIB = 1 << 20
SIZE = 4 * MIB
folder = pathlib.Path(sys.argv[1])
nginx = folder / "nginx/usr/sbin/nginx"
version = "old"


class Origin(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        begin, end = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{end}/{SIZE}")
        self.send_header("Content-Length", str(end + 1 - begin))
        self.send_header("ETag", f'"{version}"')
        self.end_headers()
        try:
            self.wfile.write(version[:1].encode() * (end + 1 - begin))
        except OSError:
            pass  # nginx does not want it

    def log_message(self, *_):
        pass


def get(**headers):
    """Status, ETag, announced and received bytes, and whose they are."""
    connection = http.client.HTTPConnection("nginx")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(folder / "socket"))
    connection.request("GET", "/model", headers={name.replace("_", "-"): value for name, value in headers.items()})
    try:
        answer = connection.getresponse()
    except http.client.RemoteDisconnected:
        return "closed without an answer"
    try:
        body = answer.read()
    except http.client.IncompleteRead as error:
        body = error.partial
    finally:
        connection.close()
    letters = "".join(sorted(set(body.decode())))
    return answer.status, answer.headers["ETag"], int(answer.headers["Content-Length"]), len(body), letters


origin = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Origin)
threading.Thread(target=origin.serve_forever, daemon=True).start()
temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
(folder / "conf").write_text(
    f"daemon off; pid {folder}/pid; error_log {folder}/errors; events {{}} http {{ access_log off; {temporary} "
    f"client_body_temp_path {folder}/body; proxy_cache_path {folder}/cache keys_zone=cache:1m; "
    f"server {{ listen unix:{folder}/socket; location / {{ slice 1m; proxy_cache cache; "
    "proxy_cache_key $uri$is_args$args$slice_range; proxy_set_header Range $slice_range; proxy_cache_valid 200 206 1h; "
    f"proxy_pass http://127.0.0.1:{origin.server_port}; }} }} }}"
)
print(subprocess.run([nginx, "-v"], capture_output=True, text=True).stderr.strip())
process = subprocess.Popen([nginx, "-e", folder / "errors", "-p", folder, "-c", folder / "conf"])
try:
    while not (folder / "pid").exists():  # it listens by then
        assert process.poll() is None, (folder / "errors").read_text()
        time.sleep(0.05)
    first = get(Range="bytes=0-99")
    while not any(path.is_file() for path in (folder / "cache").rglob("*")):
        time.sleep(0.05)
    version = "new"
    plain = [get() for _ in range(3)]
    uncached, resumed = get(Cache_Control="no-cache"), get(Range=f"bytes={MIB}-", If_Range='"old"')
finally:
    process.terminate()
    process.wait()
print("100 bytes of the old file:", first)
print("then the new file, three times:", *plain, sep="\n  ")
print("with no-cache:", uncached)
print("resumed after the first MiB:", resumed)
assert first == (206, '"old"', 100, 100, "o")
for status, etag, announced, received, letters in (*plain, uncached):
    assert (status, etag, announced, letters) == (200, '"old"', SIZE, "o") and received <= MIB, "this has changed"
assert resumed == "closed without an answer", "and this"
END
