#!/usr/bin/env bash
# nginx 1.22.1 with proxy_cache and Varnish 7.1.1 (Debian 12's packages), defaults; a HEAD for a file that is not
# cached.
# Most would guess: a HEAD costs a round trip. So tools ask by HEAD for size, date and ETag before they decide, monitors
# ask by HEAD whether files are there, and a cache passes it on.
# Seen: the origin gets a GET and sends the whole file, though the client is answered at once and nobody has asked for
# the content. nginx does so for each HEAD that comes before the file is in the cache: eight at once cost the origin
# eight times the file. Varnish fetches it once for all. A client that wants the file had better ask for it straight
# away. With `proxy_cache_convert_head off` nginx asks by HEAD; as documented, $request_method then belongs into
# proxy_cache_key.
# Needs apt-get and dpkg of Debian 12, a C compiler (Varnish compiles its configuration), and no root.
set -euo pipefail
[ -n "$(command -v gcc)" ] || { echo "gcc is missing" >&2; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('nginx=1.22.1-9*' 'varnish=7.1.1-2*' 'libvarnishapi3=7.1.1-2*' libedit2 libjemalloc2 libpcre2-8-0 libbsd0
    libmd0)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
chmod 755 "$folder"
python3 - "$folder" <<'END'
import collections, http.client, http.server, os, pathlib, socket, subprocess, sys, threading, time

SIZE, AT_ONCE = 16 << 20, 8
folder = pathlib.Path(sys.argv[1])
nginx, varnish = folder / "usr/sbin/nginx", folder / "usr/sbin/varnishd"
libraries = next(folder.glob("usr/lib/*-linux-gnu"))
environment = {**os.environ, "LD_LIBRARY_PATH": f"{libraries}:{libraries / 'varnish'}"}
asked, sent = collections.Counter(), collections.Counter()


class Origin(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        asked[self.command, self.path] += 1
        time.sleep(1)  # a slow origin, so that all requests are under way before the first has its answer
        self.send_response(200)
        self.send_header("Content-Length", str(SIZE))
        self.send_header("ETag", '"1"')
        self.send_header("Cache-Control", "max-age=600")
        self.end_headers()
        if self.command == "GET":
            for _ in range(SIZE >> 20):
                self.wfile.write(bytes(1 << 20))
                sent[self.path] += 1 << 20

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *arguments):
        pass  # connections that a cache closes early


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def head(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("HEAD", path)
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("Content-Length"), answer.read()) == (200, str(SIZE), b"")
    connection.close()


def settled(path):
    """What the origin has sent of it in all, when that no longer grows."""
    before = -1
    while sent[path] != before:
        before = sent[path]
        time.sleep(1)
    return before


origin = Server(("127.0.0.1", 0), Origin)
threading.Thread(target=origin.serve_forever, daemon=True).start()
ports = {name: free_port() for name in ("nginx", "varnish")}
temporary = "".join(
    f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)
origin_at = f"127.0.0.1:{origin.server_port}"
to_origin = f"proxy_pass http://{origin_at};"
by_method = "proxy_cache_convert_head off; proxy_cache_key $request_method$request_uri;"
(folder / "conf").write_text(
    f"daemon off; pid {folder}/pid; error_log {folder}/errors; events {{}} http {{ access_log off; {temporary} "
    f"proxy_cache_path {folder}/cache keys_zone=cache:1m; proxy_cache cache; "
    f"server {{ listen 127.0.0.1:{ports['nginx']}; location / {{ {to_origin} }} "
    f"location /asked {{ {by_method} {to_origin} }} }} }}"
)
for program, option in ((nginx, "-v"), (varnish, "-V")):
    said = subprocess.run([program, option], env=environment, capture_output=True, text=True)
    print((said.stdout + said.stderr).splitlines()[0])
options = ["-F", "-n", folder / "varnish", "-a", f"127.0.0.1:{ports['varnish']}", "-s", "malloc,256m", "-b", origin_at]
servers = [
    subprocess.Popen([nginx, "-e", folder / "errors", "-p", folder, "-c", folder / "conf"]),
    subprocess.Popen([varnish, *options], env=environment, stderr=subprocess.DEVNULL),
]
found = {}
try:
    for server, port in zip(servers, ports.values()):
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert server.poll() is None, "a server does not start"
                time.sleep(0.05)
    for name, port in ports.items():
        for kind, number in (("one", 1), ("many", AT_ONCE)):
            path = f"/{name}/{kind}"
            threads = [threading.Thread(target=head, args=(port, path)) for _ in range(number)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            found[name, kind] = settled(path) / SIZE, asked["GET", path], asked["HEAD", path]
            files, gets, heads = found[name, kind]
            print(f"{name}: {number} HEAD at once: the origin gets {gets} GET, {heads} HEAD, sends {files:g} files")
    head(ports["nginx"], "/asked")
finally:
    for server in servers:
        server.terminate()
        server.wait()
assert asked["HEAD", "/asked"] == 1 and not sent["/asked"]
assert found["nginx", "one"] == found["varnish", "one"] == (1, 1, 0), "this has changed"
assert found["nginx", "many"][0] > AT_ONCE / 2 and found["varnish", "many"][0] == 1, "this has changed"
END
