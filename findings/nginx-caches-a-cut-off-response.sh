#!/usr/bin/env bash
# nginx 1.22.1 (Debian 12's package) with proxy_cache, before gunicorn 27.0.1; defaults, but for a shorter time-out.
# Most would guess: when gunicorn ends a worker in the middle of a download, as it does when a response takes over 30 s,
# nginx notices that the response is cut off, closes the client's connection too, and caches nothing.
# Seen: nginx asks by HTTP/1.0, in which a response without Content-Length ends where its connection ends. So the half
# becomes a whole response: status 200, a last chunk, nothing in nginx's error log, and it is cached for as long as
# Cache-Control says, for all hosts. Archives packed while they are sent have no Content-Length; only a checksum tells.
# With `proxy_http_version 1.1` gunicorn sends chunks, nginx misses the last one, and the next host gets the whole file.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(cd "$folder"; apt-get download -q 'nginx=1.22.1-9*' 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
dpkg -x "$folder"/nginx_*.deb "$folder/nginx"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check gunicorn==27.0.1
chmod 755 "$folder"
cat >"$folder/app.py" <<'END'
import pathlib, time

PART, PARTS = bytes(32 << 10), 32


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/x-tar"), ("Cache-Control", "max-age=600")])
    return pack(pathlib.Path(environ["PATH_INFO"].replace("/", "was-slow-")))


def pack(was_slow):
    for number in range(PARTS):
        if number == PARTS // 2 and not was_slow.exists():
            was_slow.touch()
            time.sleep(60)  # the first time the store that the members come from is slow
        yield PART
END
"$folder/venv/bin/python" - "$folder" <<'END'
import http.client, importlib.metadata, pathlib, socket, subprocess, sys, time

SIZE = 1 << 20
folder = pathlib.Path(sys.argv[1])
nginx = folder / "nginx/usr/sbin/nginx"


def get(name):
    """Status and size of what a client takes for the whole file, or what it says about the connection."""
    connection = http.client.HTTPConnection("nginx")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(folder / "nginx.socket"))
    connection.request("GET", name)
    answer = connection.getresponse()
    try:
        return answer.status, len(answer.read())
    except http.client.IncompleteRead:
        return "cut off"
    finally:
        connection.close()


temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
places = "".join(
    f"location /{name} {{ {option} proxy_pass http://unix:{folder}/gunicorn.socket; }} "
    for name, option in (("default", ""), ("newer", "proxy_http_version 1.1;"))
)
(folder / "conf").write_text(
    f"daemon off; pid {folder}/pid; error_log {folder}/errors; events {{}} http {{ access_log off; {temporary} "
    f"client_body_temp_path {folder}/body; proxy_cache_path {folder}/cache keys_zone=cache:1m; proxy_cache cache; "
    f"server {{ listen unix:{folder}/nginx.socket; {places} }} }}"
)
version = subprocess.run([nginx, "-v"], capture_output=True, text=True).stderr.strip()
print(f"{version}, gunicorn {importlib.metadata.version('gunicorn')}")
options = ["--timeout", "3", "--no-control-socket", "--log-level", "critical"]
gunicorn = [folder / "venv/bin/gunicorn", *options, "--bind", f"unix:{folder}/gunicorn.socket", "app:app"]
servers = [
    subprocess.Popen(gunicorn, cwd=folder),
    subprocess.Popen([nginx, "-e", folder / "errors", "-p", folder, "-c", folder / "conf"]),
]
try:
    while not (folder / "gunicorn.socket").exists() or not (folder / "pid").exists():
        assert all(server.poll() is None for server in servers), (folder / "errors").read_text()
        time.sleep(0.05)
    default = [get("/default") for _ in range(3)]
    errors = (folder / "errors").read_text()
    newer = [get("/newer") for _ in range(3)]
finally:
    for server in servers:
        server.terminate()
        server.wait()
print(f"{SIZE} bytes, the worker ends after half of them: three clients get {default}; nginx's error log: {errors!r}")
print(f"the same with proxy_http_version 1.1: {newer}")
assert default == [(200, SIZE // 2)] * 3 and not errors, "this has changed"
assert newer == ["cut off", (200, SIZE), (200, SIZE)]
END
