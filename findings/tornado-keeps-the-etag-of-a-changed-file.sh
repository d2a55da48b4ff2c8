#!/usr/bin/env bash
# tornado 6.6.1, StaticFileHandler with its defaults.
# Most would guess: when a static file is replaced by another one, with another size and date, its strong ETag changes
# (RFC 9110 section 8.8.1), and a request with If-None-Match and the old ETag is answered with the new file.
# Seen: the hash is cached by path until the process ends. The new bytes come with the old strong ETag, and whoever asks
# with it gets 304, whose Last-Modified is that of the new file; so browsers and caches keep the old file, and two
# ranges of two versions pass for one (If-Range is not looked at).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check tornado==6.6.1
"$folder/venv/bin/python" - "$folder" <<'END'
import asyncio, os, pathlib, sys
import tornado
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, StaticFileHandler

folder = pathlib.Path(sys.argv[1], "www")
folder.mkdir()


def put(text, date):
    fresh = folder / "fresh"
    fresh.write_text(text)
    os.utime(fresh, (date, date))
    fresh.replace(folder / "rules.txt")


async def main():
    sock, port = bind_unused_port()
    server = HTTPServer(Application([("/(.*)", StaticFileHandler, {"path": str(folder)})]))
    server.add_socket(sock)

    async def get(**headers):
        url = f"http://127.0.0.1:{port}/rules.txt"
        return await AsyncHTTPClient().fetch(url, headers=headers, raise_error=False)

    put("first version\n", 1_700_000_000)
    first = await get()
    put("the second version, longer\n", 1_750_000_000)
    plain = await get()
    conditional = await get(**{"If-None-Match": first.headers["ETag"]})
    part = await get(**{"If-Range": '"of-no-version"', "Range": "bytes=4-9"})
    server.stop()
    return first, plain, conditional, part


first, plain, conditional, part = asyncio.run(main())
print(f"tornado {tornado.version}")
for name, answer in (("first", first), ("changed", plain), ("If-None-Match", conditional), ("If-Range", part)):
    headers = answer.headers
    print(f"{name}: {answer.code} {headers['ETag']} {headers['Last-Modified']} {answer.body!r}")
assert plain.body == b"the second version, longer\n"
assert plain.headers["ETag"] == first.headers["ETag"], "this has changed"
assert conditional.code == 304 and conditional.headers["Last-Modified"] != first.headers["Last-Modified"], "this, too"
assert part.code == 206, "and this"
END
