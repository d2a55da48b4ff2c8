#!/usr/bin/env bash
# httpx 0.28.1, wget2 1.99.1, aria2 1.36.0 and curl 7.88.1 (Debian 12's packages), `Content-Encoding: gzip` whose content
# has several members, as bgzip (genomes), logs that are appended to, and `cat a.gz b.gz` make them.
# Most would guess: the members' contents are concatenated, as by gzip itself ("a gzip file consists of a series of
# members", RFC 1952 section 2.2; the content coding is that format, RFC 9110 section 8.4.1.3), or it is an error.
# Seen: httpx, wget2 and `aria2c --http-accept-gzip` save the first member, say nothing, and succeed; of a file by bgzip
# that is its first 64 KB. curl --compressed saves the first member, too, and fails. requests has the whole.
# A server sends such an answer when it takes .gz for a coding of what is within (AddEncoding, S3's Content-Encoding) or
# has a file and its .gz beside each other (gzip_static).
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('wget2=1.99.1-2*' 'libwget0=1.99.1-2*' 'aria2=1.36.0-1*' 'libaria2-0=1.36.0-1*' 'curl=7.88.1-10*' 'libcurl4=7.88.1-10*'
    libassuan0 libbrotli1 libc-ares2 libgpgme11 libicu72 libldap-2.5-0 libnghttp2-14 libpcre2-8-0 libpsl5 librtmp1
    libsasl2-2 libsqlite3-0 libssh2-1 libxml2)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check httpx==0.28.1 requests==2.34.2 urllib3==2.8.0
"$folder/venv/bin/python" - "$folder" <<'END'
import gzip, http.server, os, pathlib, subprocess, sys, threading
import httpx, requests

folder = pathlib.Path(sys.argv[1])
members = [f"{number:09}\n".encode() * 6000 for number in range(5)]
content, coded = b"".join(members), b"".join(map(gzip.compress, members))


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        for name, value in {"Content-Encoding": "gzip", "Content-Length": len(coded), "ETag": '"1"'}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(coded)

    def log_message(self, *_):
        pass


def run(name, *options):
    """Exit code, and what is saved."""
    program = folder / "usr/bin" / name
    version = subprocess.run([program, "--version"], env=environment, capture_output=True, text=True).stdout
    file = folder / f"by-{name}"
    command = [program, *options, f"http://127.0.0.1:{server.server_port}/{file.name}"]
    code = subprocess.run(command, cwd=folder, env=environment, capture_output=True).returncode
    print(f"{' '.join(version.split()[:3])}: exit code {code}, {file.stat().st_size} bytes")
    return code, file.read_bytes()


(folder / "by-gzip.gz").write_bytes(coded)
assert subprocess.run(["gzip", "-dc", folder / "by-gzip.gz"], capture_output=True, check=True).stdout == content
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/"
library = next(folder.glob("usr/lib/*/libcurl.so.4")).parent
environment = {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": str(library), "HOME": str(folder), "no_proxy": "*"}
print(f"{len(content)} bytes in {len(members)} members of {len(members[0])}")
wget2 = run("wget2", "--no-config", "-q")
aria2 = run("aria2c", "--no-conf", "-q", "--http-accept-gzip=true")
curl = run("curl", "-q", "-s", "--compressed", "-O")
with httpx.Client(trust_env=False) as client:
    answer = client.get(url)
    by_httpx = answer.status_code, answer.content
with requests.Session() as session:
    session.trust_env = False
    by_requests = session.get(url).content
print(f"httpx {httpx.__version__}: status {by_httpx[0]}, {len(by_httpx[1])} bytes")
print(f"requests {requests.__version__}: {len(by_requests)} bytes")
assert by_httpx == (200, members[0]) and wget2 == aria2 == (0, members[0]), "this has changed"
assert curl == (23, members[0]) and by_requests == content, "this has changed"
END
