#!/usr/bin/env bash
# lighttpd 1.4.69, Apache httpd 2.4.71 and nginx 1.22.1 (Debian 12's packages), defaults, one request with many ranges,
# as a client by deltas sends for the blocks that it lacks.
# Most would guess: the answer has a part for each range, or it is not 206.
# Seen: lighttpd answers the first ten ranges, with 206, and says nothing of the others; a client has to look which parts
# there are (RFC 9110 section 15.3.7). Apache sends the whole file, with 200, when there are more than 200. nginx answers
# all, as long as the head fits into its buffers of 8 KB. What works with each of them is ten ranges in a request.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('lighttpd=1.4.69-1*' 'apache2-bin=2.4.71-1*' 'nginx=1.22.1-9*' libapr1 libaprutil1 libexpat1 libnettle8 libpcre2-8-0
    libuuid1 libxxhash0)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
chmod 755 "$folder"
python3 - "$folder" <<'END'
import http.client, os, pathlib, re, socket, subprocess, sys, time

BLOCK = 4096
folder = pathlib.Path(sys.argv[1])
(folder / "www").mkdir()
(folder / "www/disk.img").write_bytes(os.urandom(1000 * BLOCK))
libraries = ":".join(str(next(folder.glob(path))) for path in ("lib/*-linux-gnu", "usr/lib/*-linux-gnu"))
environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
programs = {name: folder / f"usr/sbin/{name}" for name in ("lighttpd", "apache2", "nginx")}
ports = {}
for name in programs:
    with socket.create_server(("127.0.0.1", 0)) as free:
        ports[name] = free.getsockname()[1]
(folder / "lighttpd.conf").write_text(
    f'server.document-root = "{folder}/www"\nserver.bind = "127.0.0.1"\nserver.port = {ports["lighttpd"]}\n'
    f'server.modules = ()\nserver.errorlog = "{folder}/lighttpd.log"\n'
)
modules = "".join(
    f"LoadModule {name}_module {folder}/usr/lib/apache2/modules/mod_{name}.so\n" for name in ("mpm_event", "authz_core")
)
(folder / "apache2.conf").write_text(
    f"{modules}ServerName here\nListen 127.0.0.1:{ports['apache2']}\nDefaultRuntimeDir {folder}\n"
    f"PidFile {folder}/apache2.pid\nErrorLog {folder}/apache2.log\nDocumentRoot {folder}/www\n"
)
temporary = "".join(
    f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)
(folder / "nginx.conf").write_text(
    f"daemon off; pid {folder}/pid; error_log {folder}/nginx.log; events {{}} http {{ access_log off; {temporary} "
    f"server {{ listen 127.0.0.1:{ports['nginx']}; root {folder}/www; }} }}"
)
commands = {
    "lighttpd": ["-D", "-m", next(folder.glob("usr/lib/lighttpd")), "-f", folder / "lighttpd.conf"],
    "apache2": ["-X", "-f", folder / "apache2.conf"],
    "nginx": ["-e", folder / "nginx.log", "-p", folder, "-c", folder / "nginx.conf"],
}


def ask(name, number):
    """The status of a request for `number` blocks, and how many come, or how many bytes of the file."""
    connection = http.client.HTTPConnection("127.0.0.1", ports[name], timeout=30)
    wanted = ",".join(f"{2 * block * BLOCK}-{2 * block * BLOCK + 9}" for block in range(number))
    connection.request("GET", "/disk.img", headers={"Range": f"bytes={wanted}"})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, len(re.findall(rb"(?i)\ncontent-range:", body)) if answer.status == 206 else len(body)


def start(name):
    process = subprocess.Popen([programs[name], *commands[name]], env=environment, stderr=subprocess.DEVNULL)
    while True:
        try:
            socket.create_connection(("127.0.0.1", ports[name])).close()
            return process
        except ConnectionRefusedError:
            assert process.poll() is None, f"{name} does not start: {(folder / f'{name}.log').read_text()}"
            time.sleep(0.05)


found = {}
for name in programs:
    said = subprocess.run([programs[name], "-v"], env=environment, capture_output=True, text=True)
    print((said.stdout or said.stderr).splitlines()[0])
    process = start(name)
    try:
        found[name] = {number: ask(name, number) for number in (10, 11, 200, 201, 450)}
    finally:
        process.terminate()
        process.wait()
    for number, (status, came) in found[name].items():
        print(f"  {number} ranges: {status}, {came} {'parts' if status == 206 else 'bytes'}")
assert all(answers[10] == (206, 10) for answers in found.values())
assert all(found["lighttpd"][number] == (206, 10) for number in (11, 200, 201, 450)), "this has changed"
assert found["apache2"][200] == (206, 200) and found["apache2"][201] == (200, 1000 * BLOCK), "this has changed"
assert found["nginx"][450] == (206, 450), "this has changed"
END
