#!/usr/bin/env bash
# nginx 1.22.1 (Debian 12's package) on Linux (seen on 6.18), send_timeout (here 5 s instead of 60), a client that limits
# its rate by reading slowly, as `curl --limit-rate` and other downloaders do.
# Most would guess: send_timeout ends a transfer when the client takes nothing for so long; one that reads something
# several times a second is safe, however slow it is.
# Seen: nginx does not see the client but the kernel's send buffer, which has to drain by about a third before the kernel
# says that there is room (poll, epoll). Buffers of megabytes are filled at once where the network is fast, so at
# 100 KB/s nothing is reported for more than 5 s, and at 20 KB/s for more than 60 s: the connection is closed in the
# middle, and when the client has read what the buffers hold, the file ends early. A low limit needs a client that
# resumes; where the server has no ranges, no attempt gets further than the buffers.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(cd "$folder"; apt-get download -q 'nginx=1.22.1-9*' 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
dpkg -x "$folder"/nginx_*.deb "$folder/nginx"
chmod 755 "$folder"
python3 - "$folder" <<'END'
import http.client, os, pathlib, platform, socket, subprocess, sys, time

SIZE, TIMEOUT_S, RATE = 64 << 20, 5, 100_000
folder = pathlib.Path(sys.argv[1])
nginx, errors = folder / "nginx/usr/sbin/nginx", folder / "errors"
(folder / "www").mkdir()
with open(folder / "www/model", "wb") as file:
    file.truncate(SIZE)
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
temporary = "".join(
    f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)
(folder / "conf").write_text(
    f"daemon off; pid {folder}/pid; error_log {errors} info; events {{}} http {{ access_log off; {temporary} "
    f"send_timeout {TIMEOUT_S}s; server {{ listen 127.0.0.1:{port}; root {folder}/www; }} }}"
)
print(subprocess.run([nginx, "-v"], capture_output=True, text=True).stderr.strip(), f"on Linux {platform.release()}")
process = subprocess.Popen([nginx, "-e", errors, "-p", folder, "-c", folder / "conf"])
try:
    while not (folder / "pid").exists():  # it listens by then
        assert process.poll() is None, errors.read_text()
        time.sleep(0.05)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/model")
    answer = connection.getresponse()
    began, read, longest = time.monotonic(), 0, 0.0
    while "timed out" not in errors.read_text():
        assert time.monotonic() - began < 60, "this has changed"
        before = time.monotonic()
        read += len(answer.read(RATE // 10))
        longest = max(longest, time.monotonic() - before)
        time.sleep(max(0, began + read / RATE - time.monotonic()))
    seconds = time.monotonic() - began
    rest = 0
    while data := answer.read(1 << 20):
        rest += len(data)
finally:
    process.terminate()
    process.wait()
print(f"a client that reads {RATE // 10} bytes ten times a second, never waiting longer than {longest:.1f} s for them,")
print(f"  is timed out after {seconds:.0f} s and {read} bytes; {rest} more come from the buffers, of {SIZE}")
assert longest < 1 and read > 2 * RATE and read + rest < SIZE, "this has changed"
END
