#!/usr/bin/env bash
# starlette 1.10.0 (FastAPI is built on it), StaticFiles behind GZipMiddleware, asked by httpx 0.28.1 in one process.
# Most would guess: what is compressed has another ETag than the plain file, or a weak one, since a strong one is for one
# sequence of bytes, with its coding (RFC 9110 section 8.8.3.3). So a client that resumes with If-Range gets the rest of
# what it has, or all of it anew.
# Seen: both have the same strong ETag. A resume by the same client, which accepts gzip as before, is answered with 206,
# that ETag, and the plain file's bytes from that position on: half of a gzip stream, and then text. Only that the second
# answer has no Content-Encoding tells. Caches that join parts by their strong ETags have the same reason to. What is to be
# resumed must not go through GZipMiddleware, or be asked for with Accept-Encoding: identity from the start.
# Needs no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check starlette==1.10.0 httpx==0.28.1
"$folder/venv/bin/python" - "$folder" <<'END'
import asyncio, importlib.metadata, pathlib, sys, zlib
import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

folder = pathlib.Path(sys.argv[1], "www")
folder.mkdir()
content = b"".join(b'{"name": "package-%d", "version": "1.%d"}\n' % (number, number % 7) for number in range(5000))
(folder / "index.json").write_bytes(content)
app = Starlette(routes=[Mount("/", StaticFiles(directory=folder))], middleware=[Middleware(GZipMiddleware)])


async def main():
    headers = {"Accept-Encoding": "gzip"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here", headers=headers) as client:

        async def get(**fields):
            named = {name.replace("_", "-"): value for name, value in fields.items()}
            async with client.stream("GET", "/index.json", headers=named) as answer:
                body = b"".join([part async for part in answer.aiter_raw()])
            print(f"{named}: {answer.status_code}, ETag {answer.headers['ETag']}, Content-Encoding "
                  f"{answer.headers.get('Content-Encoding')}, {len(body)} bytes {answer.headers.get('Content-Range', '')}")
            return answer, body

        first, coded = await get()
        plain, _ = await get(Accept_Encoding="identity")
        half = len(coded) // 2
        rest, body = await get(Range=f"bytes={half}-", If_Range=first.headers["ETag"])
        return first, plain, rest, coded, coded[:half], body


print(f"starlette {importlib.metadata.version('starlette')}, a file of {len(content)} bytes")
first, plain, rest, coded, half, body = asyncio.run(main())
assert first.headers["Content-Encoding"] == "gzip" and zlib.decompress(coded, wbits=31) == content
assert first.headers["ETag"] == plain.headers["ETag"] == rest.headers["ETag"], "this has changed"
assert not first.headers["ETag"].startswith("W/"), "this has changed"
assert rest.status_code == 206 and body == content[len(half) :], "this has changed"
try:
    zlib.decompress(half + body, wbits=31)
except zlib.error as error:
    print(f"the half and the rest together: {error}")
else:
    raise AssertionError("they fit")
END
