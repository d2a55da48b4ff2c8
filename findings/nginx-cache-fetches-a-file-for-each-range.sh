#!/usr/bin/env bash
# nginx 1.22.1 (Debian 12's package), proxy_cache with its defaults.
# Most would guess: when a file that is not cached yet is asked for in eight ranges at once, as segmented downloaders do,
# the origin is asked for eight ranges, or once for the file.
# Seen: each of the eight misses fetches the whole file from the origin, of which it passes on an eighth: eight times the
# file. With `proxy_cache_lock on` it is fetched once, if that takes less than 5 s (proxy_cache_lock_timeout); after that
# the others ask the origin too. A client that asks for the file plainly first costs the origin one transfer in either
# case.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(cd "$folder"; apt-get download -q 'nginx=1.22.1-9*' 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
dpkg -x "$folder"/nginx_*.deb "$folder/nginx"
chmod 755 "$folder"
python3 - "$folder" <<'END'
import http.server, pathlib, re, socket, subprocess, sys, threading, time, urllib.request
from concurrent.futures import ThreadPoolExecutor

SIZE, SEGMENTS = 16 << 20, 8
folder = pathlib.Path(sys.argv[1])
nginx = folder / "nginx/usr/sbin/nginx"
asked, sent = [], 0
lock = threading.Lock()


class Origin(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        global sent
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        begin, end = (int(found[1]), int(found[2]) + 1) if found else (0, SIZE)
        asked.append(self.headers.get("Range", "the whole file"))
        time.sleep(1)  # an origin that is far away: all ranges are misses
        self.send_response(206 if found else 200)
        if found:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{SIZE}")
        self.send_header("Content-Length", str(end - begin))
        for name, value in {"Accept-Ranges": "bytes", "ETag": '"1"', "Cache-Control": "max-age=600"}.items():
            self.send_header(name, value)
        self.end_headers()
        for at in range(begin, end, 1 << 16):
            self.wfile.write(bytes(min(1 << 16, end - at)))
            with lock:
                sent += min(1 << 16, end - at)

    def log_message(self, *_):
        pass


def through_nginx(origin, name, option):
    """How often the file was sent by the origin for eight ranges at once."""
    global sent
    asked.clear()
    sent = 0
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = folder / name
    place.mkdir()
    temporary = "".join(f"{kind}_temp_path {place}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    (place / "conf").write_text(
        f"daemon off; pid {place}/pid; error_log {place}/errors; events {{}} http {{ access_log off; {temporary} "
        f"client_body_temp_path {place}/body; proxy_cache_path {place}/cache keys_zone=files:1m; "
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{origin.server_port}; "
        f"proxy_http_version 1.1; proxy_cache files; {option} }} }} }}"
    )
    process = subprocess.Popen([nginx, "-e", place / "errors", "-p", place, "-c", place / "conf"])
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None, (place / "errors").read_text()
                time.sleep(0.05)

        def segment(number):
            begin = number * SIZE // SEGMENTS
            headers = {"Range": f"bytes={begin}-{begin + SIZE // SEGMENTS - 1}"}
            with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/model", headers=headers)) as got:
                return got.status, len(got.read())

        with ThreadPoolExecutor(SEGMENTS) as pool:
            found = set(pool.map(segment, range(SEGMENTS)))
        assert found == {(206, SIZE // SEGMENTS)}, (found, (place / "errors").read_text())
        while origin.busy():
            time.sleep(0.05)
    finally:
        process.terminate()
        process.wait()
    print(f"{name}: the origin was asked {len(asked)} times for {' and '.join(set(asked))}; it sent {sent / SIZE:.1f} times the file")
    return sent / SIZE


class Server(http.server.ThreadingHTTPServer):
    def busy(self):
        before = sent
        time.sleep(0.5)
        return sent != before


origin = Server(("127.0.0.1", 0), Origin)
threading.Thread(target=origin.serve_forever, daemon=True).start()
print(subprocess.run([nginx, "-v"], capture_output=True, text=True).stderr.strip())
default, locked = through_nginx(origin, "defaults", ""), through_nginx(origin, "proxy_cache_lock", "proxy_cache_lock on;")
assert default == 8 and locked == 1, "this has changed"
END
