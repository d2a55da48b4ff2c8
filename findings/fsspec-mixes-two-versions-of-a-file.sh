#!/usr/bin/env bash
# fsspec 2026.9.0 over HTTP, as pandas, Dask, xarray and zarr use it; the server is aiohttp 3.14.5, which has ETags.
# Most would guess: a file that is read in pieces, as zip, Parquet, HDF5 and GeoTIFF are, is of one version, or reading
# fails. And filecache with check_files=True, "whether to explicitly see if the UID of the remote file matches the
# stored one before using", sees that a file was replaced, by its ETag, Last-Modified or length.
# Seen: ranges are asked for without If-Range or If-Match, and the ETag that each answer has is not looked at. So what
# is read after the replacement comes from the new version: a mixture, in silence. For filecache the UID over HTTP is
# made of the URL alone: it serves the old content without a request until it expires (a week). The same option sees
# changes of local files; its documentation says that HTTP can't tell reliably. Give each version a name of its own, or
# download the file before it is read.
# Needs no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check aiohttp==3.14.5 fsspec==2026.9.0
"$folder/venv/bin/python" - "$folder" <<'END'
import asyncio, os, pathlib, sys, threading
import aiohttp, fsspec
from aiohttp import web

SIZE, PIECE = 8 << 20, 1 << 20
OLD, NEW = b"old " * (SIZE // 4), b"new " * (SIZE // 4)
folder = pathlib.Path(sys.argv[1])
file = folder / "site/file"
file.parent.mkdir()
requests = []


def put(content):
    (folder / "next").write_bytes(content)
    os.rename(folder / "next", file)


def read_cached(protocol, name):
    """The first bytes, by a file system of its own, as in another process."""
    options = {"check_files": True, "cache_storage": str(folder / protocol), "skip_instance_cache": True}
    with fsspec.filesystem("filecache", target_protocol=protocol, **options).open(name) as opened:
        return opened.read(3).decode()


async def noted(request, response):
    conditions = [name for name in ("If-Match", "If-Range", "If-None-Match") if name in request.headers]
    requests.append((request.method, response.status, "ETag" in response.headers, conditions))


async def serve():
    application = web.Application()
    application.on_response_prepare.append(noted)
    application.router.add_static("/", file.parent)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner.addresses[0][1]


loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()
url = f"http://127.0.0.1:{asyncio.run_coroutine_threadsafe(serve(), loop).result()}/file"
print(f"fsspec {fsspec.__version__}, aiohttp {aiohttp.__version__}")
found = {}
for protocol, name in (("http", url), ("file", str(file))):
    put(OLD)
    first = read_cached(protocol, name)
    requests.clear()
    put(NEW + b"longer")
    found[protocol] = [first, read_cached(protocol, name)]
    print(f"filecache of {protocol} with check_files: {found[protocol]}, requests for the second: {requests}")
assert found["file"] == ["old", "new"]
assert found["http"] == ["old", "old"], "this has changed"

put(OLD)
requests.clear()
with fsspec.open(url, block_size=PIECE) as opened:
    content = opened.read(PIECE)
    put(NEW)
    content += opened.read()
shares = [content.count(word) * 4 / SIZE for word in (b"old ", b"new ")]
print(f"read in pieces: {shares[0]:.0%} of the old version and {shares[1]:.0%} of the new one; {requests}")
assert len(content) == SIZE and all(shares) and sum(shares) == 1, "this has changed"
assert all(has_etag and not conditions for _, _, has_etag, conditions in requests)
END
