#!/usr/bin/env bash
# Apache httpd 2.4.71 and nginx 1.22.1, wget 1.21.3 and curl 7.88.1 (Debian 12's packages), a file whose date is some
# hours ahead: the machine that built or packed it has its clock or time zone set wrong, or the server's clock was set
# back.
# Most would guess: the date is odd, and that is all: Last-Modified is the file's date or at least stays the same, the
# ETag is as strong as any, and clients see an unchanged file.
# Seen: with nginx it is so. Apache sends the time of the request as Last-Modified, as it has to (RFC 9110 section
# 8.8.2.1), so another one each second, and takes a file of the future for one that has just been written, whose ETag it
# marks as weak. So until that date has come, for a file that nobody touches: a resume with If-Range, by the ETag or by
# the date, starts from the beginning, each time; `wget -N` and `curl -R -z FILE`, by date, fetch the file again
# whenever they ask; two ranges cannot be told to be of one version. `touch` the files when they are put on the server
# (rsync without -t, tar -m).
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('apache2-bin=2.4.71-1*' libapr1 libaprutil1 libbrotli1 libexpat1 libpcre2-8-0 libuuid1 zlib1g)
needed+=('nginx=1.22.1-9*' 'wget=1.21.3-1*' libpsl5 'curl=7.88.1-10*' 'libcurl4=7.88.1-10*')
needed+=(libldap-2.5-0 libnghttp2-14 librtmp1 libsasl2-2 libssh2-1)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
chmod 755 "$folder"
python3 - "$folder" <<'END'
import http.client, os, pathlib, socket, subprocess, sys, time

SIZE, AHEAD_S = 1 << 20, 3 * 3600
folder = pathlib.Path(sys.argv[1])
libraries = ":".join(str(next(folder.glob(path))) for path in ("lib/*-linux-gnu", "usr/lib/*-linux-gnu"))
environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
apache2, nginx = folder / "usr/sbin/apache2", folder / "usr/sbin/nginx"
wget, curl = folder / "usr/bin/wget", folder / "usr/bin/curl"
(folder / "www").mkdir()
(folder / "www/model").write_bytes(bytes(SIZE))
os.utime(folder / "www/model", times=(time.time() + AHEAD_S,) * 2)
modules = "".join(
    f"LoadModule {name}_module {folder}/usr/lib/apache2/modules/mod_{name}.so\n" for name in ("mpm_event", "authz_core")
)
temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))


def ask(port, **fields):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/model", headers={name.replace("_", "-"): value for name, value in fields.items()})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


def refreshes(name, command, port):
    """The status of each of three runs, a second and more apart, in a directory of their own."""
    own = folder / name / pathlib.Path(command[0]).name
    own.mkdir(parents=True)
    results = []
    for _ in range(3):
        command_line = [*command, f"http://127.0.0.1:{port}/model"]
        done = subprocess.run(command_line, cwd=own, env=environment, capture_output=True, text=True)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        results.append(304 if "304 Not Modified" in said else 200)
        time.sleep(1.2)
    return results


def serve(name, command, port):
    server = subprocess.Popen(command, env=environment)
    try:
        while True:
            assert server.poll() is None
            try:
                first = ask(port)
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        time.sleep(1.2)
        second = ask(port)
        etags, dates = ([answer.headers[field] for answer in (first, second)] for field in ("ETag", "Last-Modified"))
        resumed = [ask(port, Range="bytes=1000-", If_Range=validator[1]).status for validator in (etags, dates)]
        wgets = refreshes(name, [wget, "--no-config", "-N", "-nv", "-S"], port)
        curls = refreshes(name, [curl, "-q", "-sv", "-R", "-z", "model", "-o", "model"], port)
        print(f"{name}: ETag {etags}, Last-Modified {dates}")
        print(f"  resumes, by ETag and by date: {resumed}; wget -N: {wgets}; curl -z: {curls}")
        return etags, dates, resumed, wgets, curls
    finally:
        server.terminate()
        server.wait()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


port = free_port()
(folder / "apache.conf").write_text(
    f"{modules}ServerName here\nListen 127.0.0.1:{port}\nDefaultRuntimeDir {folder}\nPidFile {folder}/pid\n"
    f"ErrorLog {folder}/log\nDocumentRoot {folder}/www\n"
)
print(subprocess.run([apache2, "-v"], env=environment, capture_output=True, text=True).stdout.splitlines()[0])
etags, dates, resumed, wgets, curls = serve("Apache", [apache2, "-X", "-f", folder / "apache.conf"], port)
assert etags[0] == etags[1] and etags[0].startswith("W/") and dates[0] != dates[1], "this has changed"
assert resumed == [200, 200] and wgets == curls == [200, 200, 200], "this has changed"

port = free_port()
(folder / "nginx.conf").write_text(
    f"daemon off; pid {folder}/nginx.pid; error_log {folder}/errors; events {{}} http {{ access_log off; {temporary} "
    f"client_body_temp_path {folder}/body; server {{ listen 127.0.0.1:{port}; root {folder}/www; }} }}"
)
print(subprocess.run([nginx, "-v"], capture_output=True, text=True).stderr.strip())
command = [nginx, "-e", folder / "errors", "-p", folder, "-c", folder / "nginx.conf"]
etags, dates, resumed, wgets, curls = serve("nginx", command, port)
assert etags[0] == etags[1] and not etags[0].startswith("W/") and dates[0] == dates[1]
assert resumed == [206, 206] and wgets == curls == [200, 304, 304]
END
