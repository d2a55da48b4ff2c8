#!/usr/bin/env bash
# Squid 5.7 (Debian 12's package) with its memory cache; a resume, with If-Range, of a file that has changed.
# Most would guess: when the validator no longer matches, the answer is 200 and the whole new file (RFC 9110 section
# 13.1.5), from a cache as from a server. Who is told 200 and gets all of Content-Length has the file.
# Seen: if the file is in the cache and the range begins within its first 4,096 bytes, say at 100, the answer is 200
# with the right length and ETag, and a wrong body: first bytes 100 to 4,095, then from byte 3,996 on the right ones. A
# date as validator does the same. Ranges that begin later, or whose validator matches, are answered rightly. Who has
# less than 4 KB of a file had better fetch it anew, without a range.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('squid=5.7-2*' 'squid-common=5.7-2*' squid-langpack
    libdb5.3 libecap3 libgssapi-krb5-2 libkrb5-3 libldap-2.5-0 libltdl7
    libnetfilter-conntrack3 libnfnetlink0 libsasl2-2 libsystemd0 libtdb1 libxml2 libicu72)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
chmod 777 "$folder"
python3 - "$folder" <<'END'
import http.client, http.server, os, pathlib, socket, subprocess, sys, threading, time

folder = pathlib.Path(sys.argv[1])
squid = folder / "usr/sbin/squid"
libraries = ":".join(map(str, [*folder.glob("lib/*-linux-gnu"), *folder.glob("usr/lib/*-linux-gnu")]))
environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
FILE = b"".join(b"line %010d\n" % number for number in range(10_000))
fetched = []


class Origin(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        fetched.append(self.headers["Range"])
        self.send_response(200)
        for name, value in (("ETag", '"new"'), ("Cache-Control", "max-age=600"), ("Content-Length", len(FILE))):
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(FILE)

    def log_message(self, *arguments):
        pass


def get(**headers):
    """Status, ETag and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.getheader("ETag"), body


origin = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Origin)
threading.Thread(target=origin.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{origin.server_port}/file"
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
(folder / "conf").write_text(
    f"http_port 127.0.0.1:{port}\nhttp_access allow all\npid_filename {folder}/pid\ncache_log {folder}/errors\n"
    f"access_log none\nnetdb_filename none\npinger_enable off\nshutdown_lifetime 0 seconds\ncoredump_dir {folder}\n"
    f"mime_table {folder}/usr/share/squid/mime.conf\nicon_directory {folder}/usr/share/squid/icons\n"
    f"error_directory {folder}/usr/share/squid-langpack/templates\n"
    f"err_page_stylesheet {folder}/etc/squid/errorpage.css\n"
)
said = subprocess.run([squid, "-v"], env=environment, capture_output=True, text=True).stdout
print(said.splitlines()[0])
server = subprocess.Popen([squid, "-N", "-n", f"finding{os.getpid()}", "-f", folder / "conf"], env=environment)
try:
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            assert server.poll() is None, "Squid does not start"
            time.sleep(0.05)
    assert get() == (200, '"new"', FILE)
    found = {}
    for begin in (100, 4000, 4095, 4096, 50_000):
        for validator in ('"old"', "Sat, 01 Aug 2026 10:00:00 GMT"):
            status, etag, body = found[begin, validator] = get(Range=f"bytes={begin}-", If_Range=validator)
            wrong = sum(one != other for one, other in zip(body, FILE))
            print(f"bytes={begin}-, If-Range: {validator}: {status}, {etag}, {len(body)} bytes, {wrong} of them wrong")
    matching = get(Range="bytes=100-", If_Range='"new"')
finally:
    server.terminate()
    server.wait()
assert fetched == [None] and matching == (206, '"new"', FILE[100:])
for (begin, _), (status, etag, body) in found.items():
    assert (status, etag, len(body)) == (200, '"new"', len(FILE))
    if begin < 4096:
        assert body == FILE[begin:4096] + FILE[4096 - begin :], "this has changed"
    else:
        assert body == FILE
END
