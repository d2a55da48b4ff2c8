#!/usr/bin/env bash
# Apache httpd 2.4.71 (Debian 12's package) with mod_deflate and mod_brotli, defaults.
# Most would guess: a client that has a file, and asks with If-None-Match and the ETag that it was given, is told 304, as
# long as the file is the same: compressed or not.
# Seen: to the ETag of what it compresses the server adds "-gzip" or "-br", so that it differs from the plain file's, and
# then doesn't know its own ETag: 200 and the whole content, each time, also if If-Modified-Since would match, which does
# not count beside an ETag (RFC 9110 section 13.1.3). So for all who accept gzip, as most do, refreshing an index or
# repository metadata costs as much as the first time, while asking without gzip costs nothing. `DeflateAlterETag
# NoChange` and `BrotliAlterETag NoChange` bring the 304 back, but then two contents have one strong ETag. (Reported to
# the project as bug 45023.)
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('apache2-bin=2.4.71-1*' libapr1 libaprutil1 libbrotli1 libexpat1 libpcre2-8-0 libuuid1 zlib1g)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
chmod 755 "$folder"
python3 - "$folder" <<'END'
import http.client, os, pathlib, socket, subprocess, sys, time

folder = pathlib.Path(sys.argv[1])
content = b"".join(b'{"name": "package-%d", "version": "1.%d"}\n' % (number, number % 7) for number in range(5000))
(folder / "www").mkdir()
(folder / "www/index.json").write_bytes(content)
os.utime(folder / "www/index.json", (1_700_000_000, 1_700_000_000))
libraries = ":".join(str(next(folder.glob(path))) for path in ("lib/*-linux-gnu", "usr/lib/*-linux-gnu"))
environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
apache2 = folder / "usr/sbin/apache2"
names = ("mpm_event", "authz_core", "mime", "filter", "deflate", "brotli")
modules = "".join(f"LoadModule {name}_module {folder}/usr/lib/apache2/modules/mod_{name}.so\n" for name in names)
(folder / "types").write_text("application/json json\n")


def ask(port, coding, **conditions):
    """Status, ETag, Last-Modified and length of the answer to a request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    fields = {name.replace("_", "-"): value for name, value in conditions.items()}
    connection.request("GET", "/index.json", headers={"Accept-Encoding": coding, **fields})
    answer = connection.getresponse()
    found = answer.status, answer.headers["ETag"], answer.headers["Last-Modified"], len(answer.read())
    assert answer.status == 304 or answer.headers.get("Content-Encoding", "identity") == coding
    connection.close()
    return found


def serve(name, options):
    """For each coding: the length of the first answer, and status and length of what a client that has it gets."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / f"{name}.conf").write_text(
        f"{modules}ServerName here\nListen 127.0.0.1:{port}\nDefaultRuntimeDir {folder}\nPidFile {folder}/pid\n"
        f"ErrorLog {folder}/log\nDocumentRoot {folder}/www\nTypesConfig {folder}/types\n"
        f"AddOutputFilterByType BROTLI_COMPRESS;DEFLATE application/json\n{options}"
    )
    server = subprocess.Popen([apache2, "-X", "-f", folder / f"{name}.conf"], env=environment)
    try:
        while True:
            assert server.poll() is None, (folder / "log").read_text()
            try:
                ask(port, "identity")
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        results = {}
        for coding in ("identity", "gzip", "br"):
            _, etag, date, length = ask(port, coding)
            status, _, _, again = ask(port, coding, If_None_Match=etag)
            assert ask(port, coding, If_None_Match=etag, If_Modified_Since=date)[0] == status
            print(f"{name}, {coding}: 200 with {etag} and {length} bytes; asked with it: {status} and {again} bytes")
            results[coding] = status
        return results
    finally:
        server.terminate()
        server.wait()


print(subprocess.run([apache2, "-v"], env=environment, capture_output=True, text=True).stdout.splitlines()[0])
defaults = serve("defaults", "")
unaltered = serve("NoChange", "DeflateAlterETag NoChange\nBrotliAlterETag NoChange\n")
assert defaults == {"identity": 304, "gzip": 200, "br": 200}, "this has changed"
assert unaltered == {"identity": 304, "gzip": 304, "br": 304}
END
