#!/usr/bin/env bash
# Varnish 7.1.1 (Debian 12's package), defaults, before nginx 1.22.1 with gzip_static and a .gz of several members
# beside the file, as bgzip (genomes), appending to logs, and `cat a.gz b.gz` make them.
# Most would guess: a cache passes on what the server sends; at most a client that does not accept gzip gets trouble.
# And such a file is valid: "a gzip file consists of a series of members" (RFC 1952 section 2.2), and `gzip -t` accepts
# it.
# Seen: Varnish asks for gzip whatever the client accepts, tests what it gets while it passes it on, and takes what
# comes after the first member for junk. So no client gets the file, with gzip or without: 503, or 200 with the right
# length and the connection closed early, at each attempt, though each gets it from the server itself, and the same
# content in one member from Varnish. Write sidecars as one member (gzip, pigz), or have Varnish ask for the file itself
# (`unset bereq.http.Accept-Encoding` in vcl_backend_fetch).
# Needs apt-get and dpkg of Debian 12, a C compiler (Varnish compiles its configuration), and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('nginx=1.22.1-9*' 'varnish=7.1.1-2*' 'libvarnishapi3=7.1.1-2*' libedit2 libjemalloc2 libpcre2-8-0 libbsd0
    libmd0)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
chmod 755 "$folder"
python3 - "$folder" <<'END'
import gzip, http.client, os, pathlib, random, socket, subprocess, sys, time

STEP = 65280  # as bgzip cuts
folder = pathlib.Path(sys.argv[1])
nginx, varnish, www = folder / "usr/sbin/nginx", folder / "usr/sbin/varnishd", folder / "www"
libraries = next(folder.glob("usr/lib/*-linux-gnu"))
environment = {**os.environ, "LD_LIBRARY_PATH": f"{libraries}:{libraries / 'varnish'}"}
content = random.Random(1).randbytes(1 << 21).hex().encode()
www.mkdir()
for name, cuts in (
    ("one", [0]),
    ("bgzip", range(0, len(content), STEP)),
    ("appended", [0, len(content) * 9 // 10]),
):
    ends = [*cuts[1:], len(content)]
    (www / name).write_bytes(content)
    (www / f"{name}.gz").write_bytes(b"".join(gzip.compress(content[begin:end]) for begin, end in zip(cuts, ends)))
    subprocess.run(["gzip", "-t", www / f"{name}.gz"], check=True)


def get(port, name, **fields):
    """Status, announced and received length, and whether the content is right."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", f"/{name}", headers={key.replace("_", "-"): value for key, value in fields.items()})
    answer = connection.getresponse()
    try:
        body, whole = answer.read(), True
    except http.client.IncompleteRead as error:
        body, whole = error.partial, False
    connection.close()
    if whole and answer.headers["Content-Encoding"] == "gzip":
        right = gzip.decompress(body) == content
    else:
        right = whole and body == content
    return answer.status, answer.headers["Content-Length"], len(body), right


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def start(command, port):
    server = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return server
        except ConnectionRefusedError:
            assert server.poll() is None, "a server does not start"
            time.sleep(0.05)


ports = {name: free_port() for name in ("nginx", "Varnish", "Varnish that asks for the file")}
temporary = "".join(
    f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)
(folder / "conf").write_text(
    f"daemon off; pid {folder}/pid; error_log {folder}/errors; events {{}} http {{ access_log off; {temporary} "
    f"gzip_static on; gzip_vary on; gzip_proxied any; server {{ listen 127.0.0.1:{ports['nginx']}; root {www}; }} }}"
)
for program, option in ((nginx, "-v"), (varnish, "-V")):
    said = subprocess.run([program, option], env=environment, capture_output=True, text=True)
    print((said.stdout + said.stderr).splitlines()[0])
(folder / "vcl").write_text(
    f'vcl 4.1; backend default {{ .host = "127.0.0.1"; .port = "{ports["nginx"]}"; }} '
    "sub vcl_backend_fetch { unset bereq.http.Accept-Encoding; }"
)
servers, found = [], {}
try:
    servers.append(start([nginx, "-e", folder / "errors", "-p", folder, "-c", folder / "conf"], ports["nginx"]))
    for number, name in enumerate(list(ports)[1:]):
        configuration = ["-f", folder / "vcl"] if number else ["-b", f"127.0.0.1:{ports['nginx']}"]
        at = ["-n", folder / f"varnish{number}", "-a", f"127.0.0.1:{ports[name]}", "-s", "malloc,64m"]
        servers.append(start([varnish, "-F", *at, *configuration], ports[name]))
    for server, port in ports.items():
        for name in "one", "bgzip", "appended":
            for coding in "gzip", "identity":
                for _ in range(3):
                    result = get(port, name, Accept_Encoding=coding)
                    found.setdefault((server, name), []).append(result[3])
                status, announced, received, right = result
                print(f"{server}, {name}, {coding}: {status}, {received} of {announced} bytes, right: {right}")
finally:
    for server in servers:
        server.terminate()
        server.wait()
for (server, name), rights in found.items():
    if server == "Varnish" and name != "one":
        assert not any(rights), "this has changed"
    else:
        assert all(rights), (server, name)
END
