#!/usr/bin/env bash
# CPython's http.client by requests 2.34.2 and urllib3 2.8.0.
# Most would guess: an answer whose connection ends in the middle of its headers is an error.
# Seen: it is a 200 with an empty body and without the headers that did not arrive, so a downloader that trusts the status
# saves an empty file. The blank line that ends a head (RFC 9112 section 2.1) is not required.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check requests==2.34.2 urllib3==2.8.0
"$folder/venv/bin/python" - <<'END'
import platform, socket, threading
import requests, urllib3

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"  # "Content-Length: 1000" was still to come


def answer(listener):
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(HEAD)


with socket.create_server(("127.0.0.1", 0)) as listener:
    thread = threading.Thread(target=answer, args=(listener,))
    thread.start()
    response = requests.get(f"http://127.0.0.1:{listener.getsockname()[1]}/model.bin", timeout=10)
    thread.join()
print(f"CPython {platform.python_version()}, requests {requests.__version__}, urllib3 {urllib3.__version__}")
print(f"status {response.status_code}, ok: {response.ok}, {len(response.content)} bytes, headers {dict(response.headers)}")
assert response.ok and response.content == b"", "this has changed"
END
