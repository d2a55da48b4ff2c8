#!/usr/bin/env bash
# httpx 0.28.1 with http2=True (httpcore 1.0.9, h2 4.4.1), nginx 1.22.1 (Debian 12's package) with its defaults.
# Most would guess: a client that fetches thousands of small files from a healthy server gets them all; when the server
# wants to end a connection, the answers that are under way still come, and the next request takes another connection.
# Seen: nginx ends each HTTP/2 connection after 1,000 requests (keepalive_requests), by GOAWAY, which names the last
# request that it answers (RFC 9113 section 6.8). h2 takes GOAWAY for the end and refuses the frames that follow: so
# even a client that asks for one file after the other fails at each thousandth, with LocalProtocolError, although the
# answer arrives. With 20 at once up to 20 fail each time. `retries=3` does not help, since it is for connecting only.
# Over HTTP/1.1 none fails. What fetches many files by HTTP/2 has to repeat such requests itself. (Reported to httpx as
# issue 828.)
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(cd "$folder"; apt-get download -q 'nginx=1.22.1-9*' 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
dpkg -x "$folder"/nginx_*.deb "$folder/nginx"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check httpx==0.28.1 httpcore==1.0.9 h2==4.4.1
chmod 755 "$folder"
"$folder/venv/bin/python" - "$folder" <<'END'
import asyncio, collections, importlib.metadata, pathlib, subprocess, sys, time
import httpx

REQUESTS, AT_ONCE = 3500, 20
folder = pathlib.Path(sys.argv[1])
nginx = folder / "nginx/usr/sbin/nginx"
(folder / "www").mkdir()
(folder / "www/file").write_bytes(bytes(1000))
temporary = "".join(
    f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)
(folder / "conf").write_text(
    f"daemon off; pid {folder}/pid; error_log {folder}/errors; events {{}} http {{ access_log off; {temporary} "
    f"server {{ listen unix:{folder}/1; root {folder}/www; }} "
    f"server {{ listen unix:{folder}/2 http2; root {folder}/www; }} }}"
)


def one_by_one(version):
    """Which of the requests failed, counted from one, and how."""
    failed = {}
    transport = httpx.HTTPTransport(uds=f"{folder}/{version}", http1=version == 1, http2=version == 2, retries=3)
    with httpx.Client(transport=transport) as client:
        for number in range(1, REQUESTS + 1):
            try:
                assert len(client.get("http://nginx/file").content) == 1000
            except httpx.TransportError as error:
                failed[number] = type(error).__name__
    return failed


async def at_once():
    """How many of the requests failed, by kind."""
    failed = collections.Counter()
    turns = asyncio.Semaphore(AT_ONCE)
    transport = httpx.AsyncHTTPTransport(uds=f"{folder}/2", http1=False, http2=True)

    async def get(client):
        async with turns:
            try:
                await client.get("http://nginx/file")
            except httpx.TransportError as error:
                failed[type(error).__name__] += 1

    async with httpx.AsyncClient(transport=transport) as client:
        await asyncio.gather(*(get(client) for _ in range(REQUESTS)))
    return dict(failed)


version = subprocess.run([nginx, "-v"], capture_output=True, text=True).stderr.strip()
print(f"{version}, {', '.join(f'{name} {importlib.metadata.version(name)}' for name in ('httpx', 'httpcore', 'h2'))}")
server = subprocess.Popen([nginx, "-e", folder / "errors", "-p", folder, "-c", folder / "conf"])
try:
    while not (folder / "pid").exists():
        assert server.poll() is None, (folder / "errors").read_text()
        time.sleep(0.05)
    old, new = one_by_one(1), one_by_one(2)
    many = asyncio.run(at_once())
finally:
    server.terminate()
    server.wait()
print(f"{REQUESTS} requests one after the other over HTTP/1.1: {old or 'none fails'}")
print(f"the same over HTTP/2: {new}")
print(f"{AT_ONCE} at once over HTTP/2: {many}")
assert not old
assert list(new) == [1000, 2000, 3000] and sum(many.values()) > 3, "this has changed"
END
