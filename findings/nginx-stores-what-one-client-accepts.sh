#!/usr/bin/env bash
# nginx 1.22.1 (Debian 12's package) with proxy_store, configured as its documentation shows for a mirror that fetches
# files at their first request, before another nginx with gzip.
# Most would guess: what is stored is the file; or what was compressed for one client is sent as such to others, or not
# stored.
# Seen: the body is stored as it came, and no header. If the first client accepts gzip, the copy is gzip data under the
# file's name, and is sent to everybody, for good, with 200, a new ETag, the type of its name and no Content-Encoding. If
# the first client doesn't accept it, all is well, so a test by curl shows nothing. `proxy_set_header Accept-Encoding ""`
# asks the origin for the file itself.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(cd "$folder"; apt-get download -q 'nginx=1.22.1-9*' 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
dpkg -x "$folder"/nginx_*.deb "$folder/nginx"
chmod 755 "$folder"
python3 - "$folder" <<'END'
import gzip, http.client, pathlib, socket, subprocess, sys, time

folder = pathlib.Path(sys.argv[1])
nginx = folder / "nginx/usr/sbin/nginx"
content = b"".join(b'{"name": "package-%d"}\n' % number for number in range(5000))
(folder / "origin").mkdir()
(folder / "copies").mkdir()
(folder / "copies").chmod(0o777)  # for the worker, which is nobody if this runs as root
for name in ("one", "other", "mended"):
    (folder / f"origin/{name}.json").write_bytes(content)


def get(name, coding):
    """Status, Content-Type, Content-Encoding and content of an answer."""
    connection = http.client.HTTPConnection("nginx")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(folder / "mirror.socket"))
    connection.request("GET", f"/{name}.json", headers={"Accept-Encoding": coding})
    answer = connection.getresponse()
    found = answer.status, answer.headers["Content-Type"], answer.headers["Content-Encoding"], answer.read()
    connection.close()
    return found


def say(name, answer):
    status, kind, coding, body = answer
    what = "the file" if body == content else "gzip data" if body[:2] == b"\x1f\x8b" else "something else"
    print(f"{name}: {status}, {kind}, Content-Encoding {coding}, {what}")


temporary = "".join(
    f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)
fetch = f"proxy_pass http://unix:{folder}/origin.socket:; proxy_store on; proxy_store_access user:rw group:rw all:r;"
(folder / "conf").write_text(
    f"daemon off; pid {folder}/pid; error_log {folder}/errors; events {{}} "
    f"http {{ access_log off; {temporary} types {{ application/json json; }} "
    f"server {{ listen unix:{folder}/origin.socket; root {folder}/origin; "
    "gzip on; gzip_types application/json; gzip_http_version 1.0; gzip_proxied any; } "
    f"server {{ listen unix:{folder}/mirror.socket; root {folder}/copies; log_not_found off; error_page 404 = @fetch; "
    f"location @fetch {{ {fetch} }} "
    f"location = /mended.json {{ error_page 404 = @fetch_plain; }} "
    f'location @fetch_plain {{ {fetch} proxy_set_header Accept-Encoding ""; }} }} }}'
)
version = subprocess.run([nginx, "-v"], capture_output=True, text=True).stderr.strip()
server = subprocess.Popen([nginx, "-e", folder / "errors", "-p", folder, "-c", folder / "conf"])
try:
    while not (folder / "pid").exists() or not (folder / "mirror.socket").exists():
        assert server.poll() is None, (folder / "errors").read_text()
        time.sleep(0.05)
    compressed, after_compressed = get("one", "gzip"), get("one", "identity")
    plain, after_plain = get("other", "identity"), get("other", "gzip")
    mended, after_mended = get("mended", "gzip"), get("mended", "identity")
finally:
    server.terminate()
    server.wait()
print(version)
say("first, by who accepts gzip", compressed)
say("then, by who does not", after_compressed)
say("first, by who does not accept gzip", plain)
say("then, by who does", after_plain)
say("with Accept-Encoding taken out, first by who accepts gzip", mended)
assert compressed[2] == "gzip" and gzip.decompress(compressed[3]) == content
assert after_compressed == (200, "application/json", None, compressed[3]), "this has changed"
assert plain == after_plain == mended == after_mended == (200, "application/json", None, content)
END
