#!/usr/bin/env bash
# requests 2.34.2 with urllib3 2.8.0, httpx 0.28.1, aiohttp 3.14.5, curl 7.88.1 and wget2 1.99.1 (Debian 12's packages);
# nginx 1.22.1 (Debian 12's package) with gzip_static, and a .gz beside the file, of which half has been uploaded yet.
# Most would guess: half of a gzip stream is an error, as for gzip itself ("unexpected end of file"): the stream has an
# end mark, a CRC-32 and its length (RFC 1952 section 2.3.1). So with Content-Encoding: gzip whole bodies are verified.
# Seen: none of them looks whether the stream has ended. As the server sends the half with its right Content-Length,
# each gives or saves half of the file and reports success. Ask for Accept-Encoding: identity, or compare a length or a
# checksum; and publish .gz files by a rename. (httpx's and urllib3's decoders are known for it.)
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('nginx=1.22.1-9*' 'wget2=1.99.1-2*' 'libwget0=1.99.1-2*' 'curl=7.88.1-10*' 'libcurl4=7.88.1-10*' libassuan0
    libbrotli1 libgpgme11 libldap-2.5-0 libnghttp2-14 libpcre2-8-0 libpsl5 librtmp1 libsasl2-2 libssh2-1)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
    requests==2.34.2 urllib3==2.8.0 httpx==0.28.1 aiohttp==3.14.5
chmod 755 "$folder"
"$folder/venv/bin/python" - "$folder" <<'END'
import asyncio, gzip, importlib.metadata, os, pathlib, socket, subprocess, sys, time
import aiohttp, httpx, requests

folder = pathlib.Path(sys.argv[1])
(folder / "www").mkdir()
content = b"".join(b"%d,%d\n" % (number, number * number) for number in range(100_000))
coded = gzip.compress(content, mtime=0)
(folder / "www/rows.csv").write_bytes(content)
(folder / "www/rows.csv.gz").write_bytes(coded[: len(coded) // 2])
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
url = f"http://127.0.0.1:{port}/rows.csv"
temporary = "".join(
    f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)
(folder / "conf").write_text(
    f"daemon off; pid {folder}/pid; error_log {folder}/errors; events {{}} http {{ access_log off; {temporary} "
    f"server {{ listen 127.0.0.1:{port}; root {folder}/www; gzip_static on; }} }}"
)
library = next(folder.glob("usr/lib/*/libcurl.so.4")).parent
environment = {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": str(library), "HOME": str(folder), "no_proxy": "*"}


def run(name, *arguments):
    return subprocess.run([folder / "usr/bin" / name, *arguments], env=environment, capture_output=True, check=True)


def by_requests():
    return requests.get(url).content


def by_httpx():
    return httpx.get(url).content


def by_aiohttp():
    async def get():
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return await answer.read()

    return asyncio.run(get())


def by_curl():
    return run("curl", "-q", "-s", "-S", "-f", "--compressed", url).stdout


def by_wget2():
    return run("wget2", "--no-config", "-q", "-O", "-", url).stdout


names = ("requests", "urllib3", "httpx", "aiohttp")
print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in names))
for name, word in (("curl", "--version"), ("wget2", "--version")):
    print(run(name, word).stdout.decode().splitlines()[0][:40])
server = subprocess.Popen([folder / "usr/sbin/nginx", "-e", folder / "errors", "-p", folder, "-c", folder / "conf"])
try:
    while not (folder / "pid").exists():
        assert server.poll() is None, (folder / "errors").read_text()
        time.sleep(0.05)
    found = {get.__name__[3:]: get() for get in (by_requests, by_httpx, by_aiohttp, by_curl, by_wget2)}
    with requests.get(url, headers={"Accept-Encoding": "identity"}) as answer:
        assert answer.content == content
finally:
    server.terminate()
    server.wait()
gunzip = subprocess.run(["gzip", "-dc"], input=coded[: len(coded) // 2], capture_output=True)
print(f"gzip: exit code {gunzip.returncode}, {gunzip.stderr.decode().strip()}")
for name, body in found.items():
    print(f"{name}: success, {len(body)} of {len(content)} bytes")
assert gunzip.returncode != 0
assert all(content.startswith(body) and 0 < len(body) < len(content) for body in found.values()), "this has changed"
END
