#!/usr/bin/env bash
# curl 7.88.1 (Debian 12's package) with --retry, whose output goes to a pipe or a redirected file, as in
# `curl --retry 3 URL > FILE` and `curl --retry 3 URL | tar -x`; the server is busy once (503), or stalls once.
# Most would guess: the output is the answer that succeeded, as with -o FILE; what a failed attempt has brought is
# dropped, or not repeated; if curl cannot do that, it fails.
# Seen: each attempt is written behind the ones before: the text of the 503 and then the file, or half of the file and
# then all of it, and the exit code is 0. With -o FILE the file is cut back first. --fail keeps the text of errors out,
# but not the half. The manual page says so under --retry-all-errors, and means any retry. `wget -O -` repeats nothing.
# Let curl write a file (-o), and read that.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('curl=7.88.1-10*' 'libcurl4=7.88.1-10*' 'wget=1.21.3-1*' libnghttp2-14 librtmp1 libssh2-1 libpsl5 libbrotli1)
needed+=(libldap-2.5-0 libsasl2-2 libpcre2-8-0)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
python3 - "$folder" <<'END'
import collections, concurrent.futures, http.server, os, pathlib, subprocess, sys, threading

folder = pathlib.Path(sys.argv[1])
libraries = ":".join(map(str, [*folder.glob("lib/*-linux-gnu"), *folder.glob("usr/lib/*-linux-gnu")]))
environment = {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": libraries, "HOME": str(folder), "LC_ALL": "C", "no_proxy": "*"}
FILE = b"".join(b"line %08d\n" % number for number in range(10_000))
BUSY = b"<h1>Try again later</h1>\n"
asked = collections.Counter()


class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        asked[self.path] += 1
        first, kind = asked[self.path] == 1, self.path.split("/")[1]
        body = BUSY if first and kind == "busy" else FILE
        self.send_response(503 if body == BUSY else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if first and kind == "stalls":
            self.wfile.write(body[: len(body) // 2])
            self.rfile.read(1)  # until the client has had enough
            self.close_connection = True
        else:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def run(number, kind, command, how):
    """The exit code, and what is in the file at the end."""
    output, path = folder / f"output{number}", f"/{kind}/{number}"
    command = [*command, f"http://127.0.0.1:{server.server_port}{path}"]
    if how == "-o":
        code = subprocess.run([*command, "-o", output], env=environment, stderr=subprocess.DEVNULL).returncode
    elif how == ">":
        with output.open("wb") as file:
            code = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.DEVNULL).returncode
    else:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        code = done.returncode
        output.write_bytes(done.stdout)
    assert asked[path] == 2, asked
    return code, output.read_bytes()


kinds = {
    FILE: "the file",
    BUSY + FILE: "the text of the error and the file",
    FILE[: len(FILE) // 2] + FILE: "half of the file and the file",
}
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
curl = [folder / "usr/bin/curl", "-sS", "--retry", "3", "--retry-delay", "1", "--max-time", "4"]
wget = [folder / "usr/bin/wget", "-q", "--tries=3", "--waitretry=1", "--read-timeout=4"]
for program in (curl[0], wget[0]):
    said = subprocess.run([program, "--version"], env=environment, check=True, capture_output=True, text=True).stdout
    print(said.splitlines()[0])
ways = {
    ("curl", "-o"): curl,
    ("curl", ">"): curl,
    ("curl", "|"): curl,
    ("curl --fail", "-o"): [*curl, "--fail"],
    ("curl --fail", ">"): [*curl, "--fail"],
    ("wget -O -", "|"): [*wget, "--retry-on-http-error=503", "-O", "-"],
}
cases = [(kind, name, how) for kind in ("busy", "stalls") for name, how in ways]
with concurrent.futures.ThreadPoolExecutor(len(cases)) as pool:
    runs = [pool.submit(run, number, kind, ways[name, how], how) for number, (kind, name, how) in enumerate(cases)]
found = {}
for (kind, name, how), done in zip(cases, runs):
    code, content = done.result()
    found[kind, name, how] = kinds.get(content, "something else")
    print(f"the server {kind}, {name} {how}: exit code {code}, {found[kind, name, how]}")
    assert code == 0
both = "the text of the error and the file", "half of the file and the file"
assert [found[kind, "curl", how] for how in ">|" for kind in ("busy", "stalls")] == [*both, *both], "this has changed"
assert found["stalls", "curl --fail", ">"] == both[1], "this has changed"
rest = {what for (_, name, how), what in found.items() if how == "-o" or name == "wget -O -"}
assert rest == {"the file"} and found["busy", "curl --fail", ">"] == "the file"
END
