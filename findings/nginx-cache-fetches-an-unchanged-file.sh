#!/usr/bin/env bash
# nginx 1.22.1 (Debian 12's package), proxy_cache with its defaults.
# Most would guess: when a cached file has expired and a client that has it asks with If-None-Match, the cache asks the
# origin with it, or with the ETag that it stored, is told 304, and goes on serving the file (RFC 9111 section 4.3).
# Seen: it asks the origin without a condition, fetches the whole file, and tells the client 304. So a refresh that
# costs each client nothing costs the origin the whole file at each expiry; it can't even tell that nobody needed it.
# `proxy_cache_revalidate on` makes it ask with the stored ETag and date.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(cd "$folder"; apt-get download -q 'nginx=1.22.1-9*' 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
dpkg -x "$folder"/nginx_*.deb "$folder/nginx"
chmod 755 "$folder"
python3 - "$folder" <<'END'
import http.client, http.server, pathlib, socket, subprocess, sys, threading, time

SIZE, ETAG = 16 << 20, '"1"'
folder = pathlib.Path(sys.argv[1])
nginx = folder / "nginx/usr/sbin/nginx"
asked, answered, sent = [], 0, 0


class Origin(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global answered, sent
        condition = self.headers["If-None-Match"]
        asked.append(condition)
        self.send_response(304 if condition == ETAG else 200)
        self.send_header("ETag", ETAG)
        self.send_header("Cache-Control", "max-age=1")
        if condition != ETAG:
            self.send_header("Content-Length", str(SIZE))
        self.end_headers()
        if condition != ETAG:
            self.wfile.write(bytes(SIZE))
            sent += SIZE
        answered += 1

    def log_message(self, *_):
        pass


def get(name, **headers):
    connection = http.client.HTTPConnection("nginx")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(folder / "socket"))
    connection.request("GET", name, headers=headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def refresh(name):
    """The statuses of a first request and of three refreshes after the expiry, what the origin was asked, and sent."""
    global answered, sent
    asked.clear()
    answered = sent = 0
    statuses = [get(name)]
    for _ in range(3):
        time.sleep(2.1)  # the lifetime is over
        statuses.append(get(name, **{"If-None-Match": ETAG}))
    while answered < len(asked):  # nginx has the client's answer before it has the file
        time.sleep(0.05)
    print(f"{name}: the client is told {statuses}; the origin is asked with {asked}, and sends {sent / SIZE:.0f} files")
    return statuses, asked[:], sent // SIZE


origin = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Origin)
threading.Thread(target=origin.serve_forever, daemon=True).start()
temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
places = "".join(
    f"location /{name} {{ {option} proxy_pass http://127.0.0.1:{origin.server_port}; }} "
    for name, option in (("defaults", ""), ("revalidate", "proxy_cache_revalidate on;"))
)
(folder / "conf").write_text(
    f"daemon off; pid {folder}/pid; error_log {folder}/errors; events {{}} http {{ access_log off; {temporary} "
    f"client_body_temp_path {folder}/body; proxy_cache_path {folder}/cache keys_zone=cache:1m; proxy_cache cache; "
    f"server {{ listen unix:{folder}/socket; {places} }} }}"
)
print(subprocess.run([nginx, "-v"], capture_output=True, text=True).stderr.strip())
process = subprocess.Popen([nginx, "-e", folder / "errors", "-p", folder, "-c", folder / "conf"])
try:
    while not (folder / "pid").exists():  # it listens by then
        assert process.poll() is None, (folder / "errors").read_text()
        time.sleep(0.05)
    defaults, revalidated = refresh("/defaults"), refresh("/revalidate")
finally:
    process.terminate()
    process.wait()
assert defaults == ([200, 304, 304, 304], [None] * 4, 4), "this has changed"
assert revalidated == ([200, 304, 304, 304], [None, ETAG, ETAG, ETAG], 1)
END
