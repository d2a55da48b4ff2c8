#!/usr/bin/env bash
# Linux (seen on 6.18), nginx 1.22.1 (Debian 12's package) with `sendfile on`, as Debian's nginx.conf has it, and rsync
# 3.2.7 --inplace (Debian 12's package).
# Most would guess: what the server has sent is sent. A file that is written in place after its transfer has ended in
# nginx's log no longer matters to a client that has yet to read what the kernel holds for it.
# Seen: sendfile() puts no copy but the file's pages into the socket. Until the client has read them, each write to the
# file is a write to what it gets: 200, the old length and ETag, the log has it as complete, and the client reads the
# new version, though the server is done with the file. With `sendfile off` it reads the old one, and so it does if the
# file is replaced by a rename. sendfile(2) warns of it in its notes. A file of 256 KiB and a client that is slow to
# read are enough; so what is served must not be written in place, however small it is.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('nginx=1.22.1-9*' 'rsync=3.2.7-1*' liblz4-1 libpopt0 libxxhash0 libzstd1)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
chmod 755 "$folder"
python3 - "$folder" <<'END'
import http.client, os, pathlib, platform, socket, subprocess, sys, time

SIZE = 256 << 10
OLD, NEW = b"old " * (SIZE // 4), b"new " * (SIZE // 4)
folder = pathlib.Path(sys.argv[1])
nginx, file, other, log = (folder / name for name in ("usr/sbin/nginx", "www/file", "new", "log"))
file.parent.mkdir()
libraries = ":".join(map(str, [*folder.glob("lib/*-linux-gnu"), *folder.glob("usr/lib/*-linux-gnu")]))
environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
ports = {}
for option in ("on", "off"):
    with socket.create_server(("127.0.0.1", 0)) as free:
        ports[option] = free.getsockname()[1]
temporary = "".join(
    f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)
servers = "".join(
    f"server {{ listen 127.0.0.1:{port}; root {folder}/www; sendfile {option}; }} " for option, port in ports.items()
)
(folder / "conf").write_text(
    f"daemon off; pid {folder}/pid; error_log {folder}/errors; events {{}} "
    f"http {{ access_log {log}; {temporary} {servers} }}"
)


def in_place():
    command = [folder / "usr/bin/rsync", "--inplace", "--ignore-times", other, file]
    subprocess.run(command, env=environment, check=True)


def by_rename():
    os.rename(other, file)


def get(option, replace):
    """What a client reads that begins to read when nginx has logged the transfer and the file has been replaced."""
    file.write_bytes(OLD)
    other.write_bytes(NEW)
    log.write_text("")
    connection = http.client.HTTPConnection("127.0.0.1", ports[option], timeout=30)
    connection.request("GET", "/file")
    while '" 200 ' not in log.read_text():
        time.sleep(0.01)
    replace()
    body = connection.getresponse().read()
    connection.close()
    assert len(body) == SIZE and file.read_bytes() == NEW and f'" 200 {SIZE} ' in log.read_text()
    return "old" if body == OLD else "new" if body == NEW else "mixture"


version = subprocess.run([nginx, "-v"], capture_output=True, text=True).stderr.strip()
rsync = subprocess.run([folder / "usr/bin/rsync", "--version"], env=environment, capture_output=True, text=True).stdout
print(f"Linux {platform.release()}, {version}, {rsync.splitlines()[0]}")
server = subprocess.Popen([nginx, "-e", folder / "errors", "-p", folder, "-c", folder / "conf"])
try:
    while not (folder / "pid").exists():
        assert server.poll() is None, (folder / "errors").read_text()
        time.sleep(0.05)
    found = {
        (option, replace.__name__): get(option, replace) for option in ports for replace in (in_place, by_rename)
    }
finally:
    server.terminate()
    server.wait()
for (option, replaced), content in found.items():
    print(f"sendfile {option}, replaced {replaced} after the transfer was logged: the client reads the {content} one")
assert found["on", "in_place"] != "old", "this has changed"
assert all(content == "old" for key, content in found.items() if key != ("on", "in_place"))
END
