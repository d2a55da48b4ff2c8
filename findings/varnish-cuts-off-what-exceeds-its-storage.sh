#!/usr/bin/env bash
# Varnish 7.1.1 (Debian 12's package), defaults, but for a storage of 16 MiB instead of the package's 256 (malloc,256m).
# Most would guess: a file that is larger than the whole cache is passed on without being stored, or at least resumes get
# the rest of it.
# Seen: only what could be stored is passed on. When the storage is full, the connection is closed: 200, the whole length,
# and at most 16 MiB, at each attempt. A resume beyond them is answered with 206 and no byte, since Varnish fetches the
# file from its beginning for it, and stops at the same place. So nobody gets a file that is larger than the storage,
# though each smaller one works. VCL has to pass it, by its Content-Length.
# Needs apt-get and dpkg of Debian 12, a C compiler (Varnish compiles its configuration), and no root.
set -euo pipefail
[ -n "$(command -v gcc)" ] || { echo "gcc is missing" >&2; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('varnish=7.1.1-2*' 'libvarnishapi3=7.1.1-2*' libedit2 libjemalloc2 libpcre2-8-0 libbsd0 libmd0)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
python3 - "$folder" <<'END'
import http.client, http.server, os, pathlib, re, socket, subprocess, sys, threading, time

MIB = 1 << 20
SIZE, STORAGE = 48 * MIB, 16 * MIB
folder = pathlib.Path(sys.argv[1])
program = folder / "usr/sbin/varnishd"
libraries = next(folder.glob("usr/lib/*-linux-gnu"))
environment = {**os.environ, "LD_LIBRARY_PATH": f"{libraries}:{libraries / 'varnish'}"}
asked = []


class Origin(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        asked.append(self.headers["Range"])
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(found[1]) if found else 0
        self.send_response(206 if found else 200)
        if found:
            self.send_header("Content-Range", f"bytes {begin}-{SIZE - 1}/{SIZE}")
        self.send_header("Content-Length", str(SIZE - begin))
        self.send_header("ETag", '"1"')
        self.end_headers()
        try:
            self.wfile.write(bytes(SIZE - begin))
        except OSError:
            pass  # Varnish does not want more

    def log_message(self, *_):
        pass


def get(port, **headers):
    """Status, announced and received bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/model", headers=headers)
    answer = connection.getresponse()
    try:
        body = answer.read()
    except http.client.IncompleteRead as error:
        body = error.partial
    connection.close()
    return answer.status, int(answer.headers["Content-Length"]), len(body)


def through_varnish(name, configuration):
    """A whole file, again, and a resume at 32 MiB."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / f"{name}.vcl").write_text(
        f'vcl 4.1; backend origin {{ .host = "127.0.0.1"; .port = "{origin.server_port}"; }} {configuration}'
    )
    place = ["-n", folder / name, "-f", folder / f"{name}.vcl", "-a", f"127.0.0.1:{port}"]
    with open(folder / "log", "w") as log:
        command = [program, "-F", "-j", "none", "-T", "none", "-s", f"malloc,{STORAGE}", *place]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.05)
        return get(port), get(port), get(port, Range=f"bytes={32 * MIB}-")
    finally:
        process.terminate()
        process.wait()


unit = next(folder.glob("**/systemd/system/varnish.service")).read_text()
assert "malloc,256m" in unit
version = subprocess.run([program, "-V"], env=environment, capture_output=True, text=True).stderr
print(version.splitlines()[0])
origin = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Origin)
threading.Thread(target=origin.serve_forever, daemon=True).start()
uncacheable = "sub vcl_backend_response { if (std.integer(beresp.http.Content-Length, 0) > 8388608) { return (pass); } }"
stored = through_varnish("defaults", "")
passed = through_varnish("marked", uncacheable.replace("sub", "import std; sub", 1))
print(f"{SIZE} bytes, {STORAGE} of storage: status, announced and received bytes {stored[0]}, again {stored[1]}")
print(f"resumed at {32 * MIB}: {stored[2]}")
print(f"with VCL that passes what is larger than 8 MiB: {passed}")
for status, announced, received in stored[:2]:
    assert (status, announced) == (200, SIZE) and 0 < received < STORAGE, "this has changed"
assert stored[2] == (206, SIZE - 32 * MIB, 0), "this has changed"
assert passed == ((200, SIZE, SIZE), (200, SIZE, SIZE), (206, SIZE - 32 * MIB, SIZE - 32 * MIB))
END
