#!/usr/bin/env bash
# requests 2.34.2 and urllib3 2.8.0 on CPython's http.client (seen on 3.11), and wget2 1.99.1 (Debian 12's package), behind
# HAProxy 2.6.12 (Debian 12's package), which is told to send Early Hints (RFC 8297): `http-request early-hint`.
# Most would guess: 103 is an interim response like 100, and the answer follows. A client has to be able to parse any
# number of them, though it does not expect them (RFC 9110 section 15.2).
# Seen: http.client passes over 100, and nothing else. For requests 103 is the answer: `ok` is true, raise_for_status()
# is content, and the body is empty, so what is saved is an empty file; urllib.request raises an error. wget2 ends with 0
# and saves no file. curl, httpx and aiohttp have the file. Send no hints where Python fetches files (RFC 8297
# section 3 warns of such clients); a client should take nothing but 200 or 206 for a file.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('haproxy=2.6.12-1*' 'wget2=1.99.1-2*' 'libwget0=1.99.1-2*' 'curl=7.88.1-10*' 'libcurl4=7.88.1-10*' liblua5.3-0
    libopentracing-c-wrapper0 libopentracing1 libassuan0 libbrotli1 libgpgme11 libldap-2.5-0 libnghttp2-14 libpcre2-8-0
    libpsl5 librtmp1 libsasl2-2 libssh2-1)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check requests==2.34.2 urllib3==2.8.0 httpx==0.28.1 aiohttp==3.14.5
"$folder/venv/bin/python" - "$folder" <<'END'
import asyncio, functools, http.server, os, pathlib, platform, socket, subprocess, sys, threading, time, urllib.request
import aiohttp, httpx, requests, urllib3

folder = pathlib.Path(sys.argv[1])
content = os.urandom(100_000)
(folder / "www").mkdir()
(folder / "www/file").write_bytes(content)
libraries = ":".join(map(str, [*folder.glob("lib/*-linux-gnu"), *folder.glob("usr/lib/*-linux-gnu")]))
environment = {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": libraries, "HOME": str(folder), "no_proxy": "*"}
os.environ["no_proxy"] = "*"


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *arguments):
        pass


class Backend(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        pass  # a client that has taken 103 for the answer, and closes the connection


async def by_aiohttp():
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, len(await answer.read())


def by_requests():
    answer = requests.get(url)
    answer.raise_for_status()
    return answer.status_code, len(answer.content)


def by_urllib():
    try:
        with urllib.request.urlopen(url) as answer:
            return answer.status, len(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, "an error"


def by_httpx():
    answer = httpx.get(url)
    return answer.status_code, len(answer.content)


def by(program):
    saved = folder / f"by-{program}"
    options = {"curl": ["-sSo", saved], "wget2": ["-qO", saved]}[program]
    ended = subprocess.run([folder / "usr/bin" / program, *options, url], env=environment).returncode
    return f"exit code {ended}", saved.stat().st_size if saved.exists() else "no file"


backend = Backend(("127.0.0.1", 0), functools.partial(Handler, directory=folder / "www"))
threading.Thread(target=backend.serve_forever, daemon=True).start()
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
url = f"http://127.0.0.1:{port}/file"
(folder / "haproxy.conf").write_text(
    "defaults\n mode http\n timeout connect 60s\n timeout client 60s\n timeout server 60s\n"
    f"frontend here\n bind 127.0.0.1:{port}\n http-request early-hint Link \"</style.css>; rel=preload; as=style\"\n"
    f" default_backend there\nbackend there\n server there 127.0.0.1:{backend.server_port}\n"
)
proxy = subprocess.Popen([folder / "usr/sbin/haproxy", "-db", "-f", folder / "haproxy.conf"], env=environment)
try:
    while True:
        assert proxy.poll() is None
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    found = {
        "requests": by_requests(),
        "urllib.request": by_urllib(),
        "httpx": by_httpx(),
        "aiohttp": asyncio.run(by_aiohttp()),
        "curl": by("curl"),
        "wget2": by("wget2"),
    }
finally:
    proxy.terminate()
    proxy.wait()
version = subprocess.run([folder / "usr/sbin/haproxy", "-v"], env=environment, capture_output=True, text=True).stdout
print(f"{version.split(' - ')[0]}, requests {requests.__version__}, urllib3 {urllib3.__version__}, "
      f"CPython {platform.python_version()}; a file of {len(content)} bytes")
for name, what in found.items():
    print(f"{name}: {what[0]}, {what[1]}")
assert found["requests"] == (103, 0) and found["urllib.request"] == (103, "an error"), "this has changed"
assert found["wget2"] == ("exit code 0", "no file"), "this has changed"
assert found["httpx"] == found["aiohttp"] == (200, len(content)) and found["curl"] == ("exit code 0", len(content))
END
