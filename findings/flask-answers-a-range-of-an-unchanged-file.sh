#!/usr/bin/env bash
# flask 3.1.3 with werkzeug 3.1.9, send_file with its defaults.
# Most would guess: a request with If-None-Match and the current ETag is answered with 304, also if it has a Range: the
# condition comes first (RFC 9110 section 13.2.2).
# Seen: with a Range it is answered with 206 and the bytes. A client that begins every download with `Range: bytes=0-`, to
# learn whether the server has ranges, fetches each unchanged file again at every refresh.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check flask==3.1.3 werkzeug==3.1.9
"$folder/venv/bin/python" - "$folder" <<'END'
import importlib.metadata, pathlib, sys
import flask

path = pathlib.Path(sys.argv[1], "rules.txt")
path.write_bytes(b"0123456789" * 1000)
app = flask.Flask(__name__)
app.add_url_rule("/rules.txt", view_func=lambda: flask.send_file(path))
client = app.test_client()
etag = client.get("/rules.txt").headers["ETag"]
plain = client.get("/rules.txt", headers={"If-None-Match": etag})
ranged = client.get("/rules.txt", headers={"If-None-Match": etag, "Range": "bytes=0-"})
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("flask", "werkzeug")))
print(f"without Range: {plain.status_code}, {len(plain.data)} bytes")
print(f"with Range: bytes=0-: {ranged.status_code}, {len(ranged.data)} bytes")
assert plain.status_code == 304
assert (ranged.status_code, len(ranged.data)) == (206, 10_000), "this has changed"
END
