#!/usr/bin/env bash
# requests 2.34.2, urllib3 2.8.0.
# Most would guess: with allow_redirects=False and stream=True, the body of a redirect stays on the wire until it is read.
# Seen: Session.send prepares the next request all the same, and for that reads the whole body, 32 MiB here, before it
# returns. A client that follows redirects by its own rules pays for every body that a redirect carries; overriding
# Session.get_redirect_target avoids it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check requests==2.34.2 urllib3==2.8.0
"$folder/venv/bin/python" - <<'END'
import http.server, threading
import requests, urllib3

SIZE = 32 << 20
sent = 0


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global sent
        sent = 0
        self.send_response(302)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(SIZE))
        self.end_headers()
        try:
            for _ in range(SIZE >> 16):
                self.wfile.write(bytes(1 << 16))
                sent += 1 << 16
        except OSError:
            pass

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/"


def read_before_return(session):
    with session.get(url, allow_redirects=False, stream=True) as response:
        assert response.status_code == 302
        return response.raw.tell()


plain, other = requests.Session(), requests.Session()
other.get_redirect_target = lambda response: None
print(f"requests {requests.__version__}, urllib3 {urllib3.__version__}")
usual, without = read_before_return(plain), read_before_return(other)
print(f"bytes of the redirect's body read before get() returned: {usual}; without a redirect target: {without}")
assert (usual, without) == (SIZE, 0), "this has changed"
END
