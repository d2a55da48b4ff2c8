#!/usr/bin/env bash
# nginx 1.22.1 (Debian 12's package) as a proxy without a cache, with its defaults, before another nginx with its defaults;
# here both limits are smaller: proxy_max_temp_file_size 16 MiB instead of 1 GiB, the origin's send_timeout 3 s, not 60.
# Most would guess: a proxy reads as fast as its client does, or takes all of a file and then waits for the client. Either
# way a client that reads steadily gets the file, however large; send_timeout is about clients that take nothing.
# Seen: the proxy takes the file as fast as the origin sends it, into a temporary file for each client, until that has
# proxy_max_temp_file_size, and then nothing until the client has read all of that. If this takes longer than the origin
# waits, the origin closes the connection, and when the client gets there its connection is closed, too. So with the
# defaults a file above 1 GiB breaks off for whoever takes more than a minute for a GiB, always near the same place, and
# smaller files never do; a test from nearby shows nothing. A resume gets the next part, so without ranges nobody slow
# gets the file. With proxy_max_temp_file_size 0 the proxy reads as its client does.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(cd "$folder"; apt-get download -q 'nginx=1.22.1-9*' 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
dpkg -x "$folder"/*.deb "$folder"
chmod 755 "$folder"
python3 - "$folder" <<'END'
import os, pathlib, socket, subprocess, sys, time

MIB = 1 << 20
SIZE, BUFFER, RATE = 48 * MIB, 16 * MIB, 2 * MIB
folder = pathlib.Path(sys.argv[1])
nginx = folder / "usr/sbin/nginx"
(folder / "www").mkdir()
(folder / "www/file").write_bytes(os.urandom(SIZE))
(folder / "www/small").write_bytes(os.urandom(BUFFER))


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def start(name, port, content):
    """An nginx that listens on `port`."""
    temporary = "".join(
        f"{kind}_temp_path {folder}/{name}-{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / name).write_text(
        f"daemon off; pid {folder}/{name}.pid; events {{}} http {{ access_log off; {temporary} "
        f"server {{ listen 127.0.0.1:{port}; {content} }} }}"
    )
    server = subprocess.Popen([nginx, "-e", folder / f"{name}.log", "-p", folder, "-c", folder / name])
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return server
        except ConnectionRefusedError:
            assert server.poll() is None, "nginx does not start"
            time.sleep(0.05)


def get(path, rate=None, begin=0):
    """How many bytes of the content a client gets that reads `rate` bytes each second, from `begin` on."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 << 10)  # else the kernel buffers megabytes
        connection.connect(("127.0.0.1", ports["proxy"]))
        request = f"GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n"
        connection.sendall(f"{request}Range: bytes={begin}-\r\n\r\n".encode())
        received = bytearray()
        began = time.monotonic()
        while part := connection.recv(1 << 16):
            received += part
            if rate:
                time.sleep(max(0, began + len(received) / rate - time.monotonic()))
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 206 "), head
    assert body == (folder / "www" / path.rpartition("/")[2]).read_bytes()[begin:][: len(body)]
    return len(body)


print(subprocess.run([nginx, "-v"], capture_output=True, text=True).stderr.strip())
ports = {name: free_port() for name in ("origin", "proxy")}
to_origin = f"proxy_pass http://127.0.0.1:{ports['origin']}/;"
servers = [
    start("origin", ports["origin"], f"send_timeout 3s; root {folder}/www;"),
    start(
        "proxy",
        ports["proxy"],
        f"location / {{ {to_origin} proxy_max_temp_file_size {BUFFER}; }} "
        f"location /direct/ {{ {to_origin} proxy_max_temp_file_size 0; }}",
    ),
]
try:
    tries = {
        "at once": get("/file"),
        "slowly": get("/file", RATE),
        "slowly, as large as the buffer": get("/small", RATE),
        "slowly, without the buffer": get("/direct/file", RATE),
    }
    tries["slowly, a resume"] = get("/file", RATE, begin=tries["slowly"])
finally:
    for server in servers:
        server.terminate()
        server.wait()
for how, count in tries.items():
    print(f"{how}: {count / MIB:.1f} MiB")
said = (folder / "proxy.log").read_text()
print("proxy's log:", said.count("upstream prematurely closed"), "times that the upstream closed early")
assert tries["at once"] == tries["slowly, without the buffer"] == SIZE, "this has changed"
assert tries["slowly, as large as the buffer"] == BUFFER, "this has changed"
assert BUFFER <= tries["slowly"] < SIZE - BUFFER / 2 and tries["slowly, a resume"] >= BUFFER, "this has changed"
END
