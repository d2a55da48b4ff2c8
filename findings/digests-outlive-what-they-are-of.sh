#!/usr/bin/env bash
# nginx 1.22.1, Apache httpd 2.4.71, HAProxy 2.6.12 and Varnish 7.1.1 (Debian 12's packages) before a server that sends
# Repr-Digest and Content-Digest (RFC 9530) with each file, so that clients can verify what they get.
# Most would guess: who changes a body drops the fields that have its digest, or makes them anew, as it does with
# Content-Length and the ETag; so what these fields say is true or missing, and where they differ, something is damaged.
# Seen: all four pass them on as they are. nginx, Apache and HAProxy compress the body, and keep both digests of the plain
# one, though both are of the content as it is coded. Varnish asks for gzip whatever the client accepts, unpacks it for
# those who don't, and keeps the digests of the gzip data. nginx and Varnish answer a range from their cache with the
# Content-Digest of the whole file; Repr-Digest is right there. So a client that verifies refuses a file that is right:
# behind Varnish just the one that asks for no coding, to get the file as it is. Where digests are to be verified,
# proxies must not change codings (Varnish: http_gzip_support=off), and Content-Digest is of no use behind a cache.
# Needs apt-get and dpkg of Debian 12, a C compiler (Varnish compiles its configuration), and no root.
set -euo pipefail
[ -n "$(command -v gcc)" ] || { echo "gcc is missing" >&2; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('nginx=1.22.1-9*' 'apache2-bin=2.4.71-1*' libapr1 libaprutil1 libbrotli1 libexpat1 libuuid1 zlib1g
    'haproxy=2.6.12-1*' liblua5.3-0 libopentracing-c-wrapper0 libopentracing1 libsystemd0
    'varnish=7.1.1-2*' 'libvarnishapi3=7.1.1-2*' libedit2 libjemalloc2 libpcre2-8-0 libbsd0 libmd0)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
chmod 777 "$folder"
python3 - "$folder" <<'END'
import base64, gzip, hashlib, http.client, http.server, os, pathlib, socket, subprocess, sys, threading, time

folder = pathlib.Path(sys.argv[1])
plain = b"".join(b'{"name": "package-%d", "version": "1.%d"}\n' % (number, number % 7) for number in range(5000))
packed = gzip.compress(plain, mtime=0)
libraries = [*folder.glob("lib/*-linux-gnu"), *folder.glob("usr/lib/*-linux-gnu"), *folder.glob("usr/lib/*/varnish")]
environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, libraries))}


def digest(content):
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


class Origin(http.server.BaseHTTPRequestHandler):
    """Has each file plainly, and those whose name begins with z by gzip for who accepts that."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        coded = "/z" in self.path and "gzip" in self.headers.get("Accept-Encoding", "")
        content = packed if coded else plain
        self.send_response(200)
        for name, value in (
            ("Content-Type", "application/json"), ("Content-Length", str(len(content))), ("Vary", "Accept-Encoding"),
            ("ETag", '"packed"' if coded else '"plain"'), ("Cache-Control", "max-age=600"),
            ("Accept-Ranges", "bytes"),
            ("Repr-Digest", digest(content)), ("Content-Digest", digest(content)),
        ):
            self.send_header(name, value)
        if coded:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *arguments):
        pass  # connections that a proxy closes when it ends


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def get(port, path, **headers):
    """Status, coding, ETag, and whether Content-Digest and Repr-Digest are there and right."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest("GET", path, skip_accept_encoding=True)
    for name, value in {"Accept_Encoding": "identity", **headers}.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    whole = gzip.decompress(body) if answer.headers["Content-Encoding"] else body
    assert whole == (plain[:100] if answer.status == 206 else plain)
    representation = plain if answer.status == 206 else body
    right = {None: "missing", digest(body): "right"}.get(answer.headers["Content-Digest"], "wrong")
    also = {None: "missing", digest(representation): "right"}.get(answer.headers["Repr-Digest"], "wrong")
    return answer.status, answer.headers["Content-Encoding"], answer.headers["ETag"], right, also


origin = Server(("127.0.0.1", 0), Origin)
threading.Thread(target=origin.serve_forever, daemon=True).start()
at = f"127.0.0.1:{origin.server_port}"
ports = {name: free_port() for name in ("nginx", "Apache", "HAProxy", "Varnish", "plain Varnish")}
temporary = "".join(
    f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)
(folder / "nginx.conf").write_text(
    f"daemon off; pid {folder}/nginx.pid; events {{}} http {{ access_log off; {temporary} "
    f"proxy_cache_path {folder}/nginx-cache keys_zone=cache:1m; gzip on; gzip_proxied any; gzip_types *; "
    f"server {{ listen 127.0.0.1:{ports['nginx']}; location / {{ proxy_pass http://{at}; proxy_cache cache; }} }} }}"
)
names = ("mpm_event", "authz_core", "filter", "deflate", "proxy", "proxy_http")
modules = "".join(f"LoadModule {name}_module {folder}/usr/lib/apache2/modules/mod_{name}.so\n" for name in names)
(folder / "apache.conf").write_text(
    f"{modules}ServerName here\nListen 127.0.0.1:{ports['Apache']}\nDefaultRuntimeDir {folder}\n"
    f"PidFile {folder}/apache.pid\nErrorLog {folder}/apache.log\nProxyPass / http://{at}/\n"
    f"AddOutputFilterByType DEFLATE application/json\n"
)
(folder / "haproxy.conf").write_text(
    "defaults\n mode http\n timeout connect 9s\n timeout client 9s\n timeout server 9s\n"
    f"listen here\n bind 127.0.0.1:{ports['HAProxy']}\n compression algo gzip\n compression type application/json\n"
    f" server origin {at}\n"
)
programs = {
    "nginx": ["usr/sbin/nginx", "-e", folder / "nginx.log", "-p", folder, "-c", folder / "nginx.conf"],
    "Apache": ["usr/sbin/apache2", "-X", "-f", folder / "apache.conf"],
    "HAProxy": ["usr/sbin/haproxy", "-q", "-f", folder / "haproxy.conf"],
}
for name, options in (("Varnish", []), ("plain Varnish", ["-p", "http_gzip_support=off"])):
    place = ["-n", folder / name.replace(" ", "-"), "-a", f"127.0.0.1:{ports[name]}", "-s", "malloc,64m", "-b", at]
    programs[name] = ["usr/sbin/varnishd", "-F", *place, *options]
for name, version in (("nginx", "-v"), ("Apache", "-v"), ("HAProxy", "-v"), ("Varnish", "-V")):
    said = subprocess.run([folder / programs[name][0], version], env=environment, capture_output=True, text=True)
    print((said.stdout + said.stderr).splitlines()[0])
servers = {
    name: subprocess.Popen([folder / program, *options], env=environment, stderr=subprocess.DEVNULL)
    for name, (program, *options) in programs.items()
}
found = {}
try:
    for name, server in servers.items():
        while True:
            assert server.poll() is None, f"{name} does not start"
            try:
                socket.create_connection(("127.0.0.1", ports[name])).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
    for name in ("nginx", "Apache", "HAProxy"):
        found[name, "as it comes"] = get(ports[name], "/file")
        found[name, "compressed by it"] = get(ports[name], "/gzip", Accept_Encoding="gzip")
    for name in ("Varnish", "plain Varnish"):
        found[name, "asked for gzip"] = get(ports[name], "/z", Accept_Encoding="gzip")
        found[name, "asked for no coding"] = get(ports[name], "/z")
    for name in ("nginx", "Varnish"):
        get(ports[name], "/range")
        found[name, "a range from its cache"] = get(ports[name], "/range", Range="bytes=0-99")
finally:
    for server in servers.values():
        server.terminate()
        server.wait()
for (name, what), (status, coding, etag, of_content, of_representation) in found.items():
    said = f"Content-Digest {of_content}, Repr-Digest {of_representation}"
    print(f"{name}, {what}: {status}, {coding or 'no coding'}, ETag {etag}, {said}")
for name in ("nginx", "Apache", "HAProxy"):
    assert found[name, "as it comes"] == (200, None, '"plain"', "right", "right"), "this has changed"
    assert found[name, "compressed by it"][1] == "gzip", "this has changed"
    assert found[name, "compressed by it"][3:] == ("wrong", "wrong"), "this has changed"
assert found["Varnish", "asked for gzip"][3:] == ("right", "right"), "this has changed"
assert found["Varnish", "asked for no coding"][3:] == ("wrong", "wrong"), "this has changed"
assert found["plain Varnish", "asked for no coding"][3:] == ("right", "right"), "this has changed"
for name in ("nginx", "Varnish"):
    assert found[name, "a range from its cache"] == (206, None, '"plain"', "wrong", "right"), "this has changed"
END
