#!/usr/bin/env bash
# HAProxy 2.6.12 (Debian 12's package) with maxconn, against nginx 1.22.1 with worker_connections.
# Most would guess: where a proxy serves only so many connections at once, one that is idle between two requests makes
# room for one that has a request. nginx does so: it closes idle connections when it has too few.
# Seen: HAProxy serves the idle ones until `timeout http-keep-alive`. A further connection is accepted by the kernel, so
# the client is connected and has sent its request, and waits all that time for the first byte, while nothing is under
# way. A client that downloads over more connections than that, and keeps them, waits for itself. It has to close
# connections that it does not use when an answer takes long.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('haproxy=2.6.12-1*' 'nginx=1.22.1-9*' liblua5.3-0 libopentracing-c-wrapper0 libopentracing1)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
chmod 755 "$folder"
python3 - "$folder" <<'END'
import http.client, os, pathlib, socket, subprocess, sys, time

SERVED, KEPT_S = 4, 3
folder = pathlib.Path(sys.argv[1])
library = next(folder.glob("usr/lib/*/liblua5.3.so.0")).parent
environment = {**os.environ, "LD_LIBRARY_PATH": str(library)}
haproxy, nginx = folder / "usr/sbin/haproxy", folder / "usr/sbin/nginx"
(folder / "haproxy.conf").write_text(
    f"defaults\n mode http\n timeout client 60s\n timeout http-keep-alive {KEPT_S}s\n"
    f"frontend here\n maxconn {SERVED}\n bind unix@{folder}/haproxy.socket\n"
    " http-request return status 200 content-type text/plain string x\n"
)
temporary = "".join(
    f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)
(folder / "nginx.conf").write_text(
    f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/errors; "
    f"events {{ worker_connections {SERVED + 2}; }} "  # the listening socket and the master take two
    f"http {{ access_log off; {temporary} keepalive_timeout {KEPT_S}s; "
    f"server {{ listen unix:{folder}/nginx.socket; return 200 x; }} }}"
)


def connect(server):
    connection = http.client.HTTPConnection("here")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(folder / f"{server}.socket"))
    return connection


def seconds(connection):
    """How long the answer to a request takes. The connection is kept."""
    began = time.monotonic()
    connection.request("GET", "/")
    assert connection.getresponse().read() == b"x"
    return time.monotonic() - began


def is_open(connection):
    connection.sock.setblocking(False)
    try:
        return connection.sock.recv(1) != b""
    except BlockingIOError:
        return True


def measure(server, *command):
    """The times of the connections that are served at once, and of one more, while all of them are idle; and how many
    of them are open afterwards.
    """
    running = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        while not (folder / f"{server}.socket").exists():
            assert running.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        kept = [connect(server) for _ in range(SERVED)]
        served, further = max(map(seconds, kept)), seconds(connect(server))
        return served, further, sum(map(is_open, kept))
    finally:
        running.terminate()
        running.wait()


for version in ([haproxy, "-v"], [nginx, "-v"]):
    said = subprocess.run(version, env=environment, capture_output=True, text=True)
    print((said.stdout or said.stderr).splitlines()[0])
served, further, _ = measure("haproxy", haproxy, "-db", "-f", folder / "haproxy.conf")
print(f"HAProxy: {SERVED} connections, {served:.2f} s each; one more, while these are idle: {further:.2f} s")
assert served < 1 < KEPT_S - 1 < further, "this has changed"
served, further, still = measure("nginx", nginx, "-e", folder / "errors", "-p", folder, "-c", folder / "nginx.conf")
print(f"nginx: {SERVED} connections, {served:.2f} s each; one more, while these are idle: {further:.2f} s,")
print(f"  after which {still} of these are open")
assert max(served, further) < 1 and still < SERVED
END
