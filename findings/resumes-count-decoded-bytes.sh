#!/usr/bin/env bash
# wget2 1.99.1 and curl 7.88.1 (Debian 12's packages), aiohttp 3.14.5's static files with a compressed sidecar (x.json and
# x.json.gz), which are served to those who accept gzip, as wget2 does by default and `curl --compressed`.
# Most would guess: a resume (`wget2 -c`, `curl -C -`) goes on where the transfer broke, or starts again.
# Seen: what is saved is decoded, and its length is asked for as a position in the coded file, which ranges count in
# (RFC 9110 section 14.1.2). Half of a file that shrinks to a fifth lies beyond the end of the coded one, so the answer
# is 416. Both take it for "nothing is missing", keep the half, and end with exit code 0, at this and each later run.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('wget2=1.99.1-2*' 'libwget0=1.99.1-2*' 'curl=7.88.1-10*' 'libcurl4=7.88.1-10*' libassuan0 libbrotli1 libgpgme11
    libldap-2.5-0 libnghttp2-14 libpcre2-8-0 libpsl5 librtmp1 libsasl2-2 libssh2-1)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check aiohttp==3.14.5
"$folder/venv/bin/python" - "$folder" <<'END'
import asyncio, gzip, os, pathlib, sys
import aiohttp
from aiohttp import web

folder = pathlib.Path(sys.argv[1])
content = b"".join(b'{"id": %d, "name": "row %d"}\n' % (number, number * number) for number in range(20_000))
coded = gzip.compress(content, mtime=0)
BREAKS_AFTER = len(coded) // 2
broken = True


async def relay(reader, writer, server_socket):
    """A connection to the server, which breaks after `BREAKS_AFTER` bytes of the answer."""
    from_server, to_server = await asyncio.open_unix_connection(server_socket)
    to_server.write(await reader.readuntil(b"\r\n\r\n"))
    head = await from_server.readuntil(b"\r\n\r\n")
    statuses.append(int(head.split()[1]))
    writer.write(head)
    if broken:
        writer.write(await from_server.readexactly(BREAKS_AFTER))
    else:
        while data := await from_server.read(65536):
            writer.write(data)
            if data.endswith(b"\r\n\r\n"):  # the end of the short page that comes with 416
                break
    await writer.drain()
    writer.close()
    to_server.close()


async def run(name, *arguments):
    environment = {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": str(library), "HOME": str(folder), "no_proxy": "*"}
    pipe = asyncio.subprocess.PIPE
    program = str(folder / "usr/bin" / name)
    process = await asyncio.create_subprocess_exec(
        program, *arguments, cwd=folder / "saved", env=environment, stdout=pipe, stderr=pipe
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def main():
    global broken
    application = web.Application()
    application.router.add_static("/", folder / "site")
    runner = web.AppRunner(application)
    await runner.setup()
    await web.UnixSite(runner, str(folder / "socket")).start()
    proxy = await asyncio.start_server(lambda r, w: relay(r, w, str(folder / "socket")), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}/rows.json"
    print(f"aiohttp {aiohttp.__version__}: {len(content)} bytes, {len(coded)} of them coded")
    saved = folder / "saved/rows.json"
    for name, *options in (
        ("wget2", "--no-config", "-q", "-c", "--tries=1"),
        ("curl", "-q", "-s", "--compressed", "-C", "-", "-O"),
    ):
        _, version = await run(name, "--version")
        print(version.splitlines()[0][:40])
        saved.unlink(missing_ok=True)
        statuses.clear()
        broken = True
        await run(name, *options, url)
        half = saved.read_bytes()
        broken = False
        codes = [(await run(name, *options, url))[0] for _ in range(2)]
        left = saved.stat().st_size
        print(f"  {len(half)} bytes arrive; two resumes: exit codes {codes}, {left} bytes; statuses {statuses}")
        assert content.startswith(half) and len(coded) < len(half) < len(content)
        assert codes == [0, 0] and statuses == [200, 416, 416] and saved.read_bytes() == half, "this has changed"
    proxy.close()
    await runner.cleanup()


statuses = []
library = next(folder.glob("usr/lib/*/libcurl.so.4")).parent
(folder / "site").mkdir()
(folder / "saved").mkdir()
(folder / "site/rows.json").write_bytes(content)
(folder / "site/rows.json.gz").write_bytes(coded)
asyncio.run(main())
END
