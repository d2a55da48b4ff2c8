#!/usr/bin/env bash
# zarr 3.1.6 (with numpy 2.4.6; over HTTP with fsspec 2026.9.0 and aiohttp 3.14.5), arrays with the defaults.
# Most would guess: where a file of an array is missing, since it has not arrived yet or was lost, reading that part is an
# error: the metadata have the shape and the chunks, so it is known which files there have to be.
# Seen: a chunk without a file is one that was never written, and is read as the fill value, 0. Neither a missing file nor
# a 404 gives an error or a warning: a transfer that is half done is an array of full shape, half of it zeros, and a
# mirror that has lost one file of many yields other means. Counting does not tell, since chunks of zeros get no file
# (write_empty_chunks), and no checksum in a chunk does. A list of the files with their hashes has to come with the
# array, be compared before it is opened, and be put in place last; or choose a fill value that is no data, as NaN.
# Needs no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check zarr==3.1.6 numpy==2.4.6 fsspec==2026.9.0 aiohttp==3.14.5
"$folder/venv/bin/python" -W error - "$folder" <<'END'
import functools, http.server, pathlib, sys, threading
import numpy, zarr

LENGTH, CHUNK, LOST = 1000, 100, 3
folder = pathlib.Path(sys.argv[1])
statuses = {}


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_request(self, code="-", size="-"):
        statuses[self.path] = int(code)

    def log_message(self, format, *arguments):
        pass


def look(name, place):
    array = zarr.open_array(place, mode="r")
    values = array[:]
    start = LOST * CHUNK
    print(f"{name}: shape {values.shape}, mean {values.mean()}, at the chunk's beginning {values[start - 2 : start + 2]}")
    return values


path = folder / "prices.zarr"
array = zarr.create_array(path, shape=(LENGTH,), chunks=(CHUNK,), dtype="float32")
array[:] = numpy.arange(1, LENGTH + 1)
sparse = zarr.create_array(folder / "sparse.zarr", shape=(LENGTH,), chunks=(CHUNK,), dtype="float32")
sparse[:] = numpy.arange(LENGTH) < CHUNK
print(f"zarr {zarr.__version__}, numpy {numpy.__version__}")
whole = look("whole", path)
(path / "c" / str(LOST)).unlink()
lost = look("one file is missing", path)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
threading.Thread(target=server.serve_forever, daemon=True).start()
remote = look("the same by HTTP", f"http://127.0.0.1:{server.server_port}/prices.zarr")
server.shutdown()
server.server_close()
print(f"of {sparse.nchunks} whole chunks of which one is not all zeros, {sparse.nchunks_initialized} has a file")
assert whole.mean() == (LENGTH + 1) / 2
assert statuses[f"/prices.zarr/c/{LOST}"] == 404
for values in (lost, remote):
    there = numpy.ones(LENGTH, bool)
    there[LOST * CHUNK : (LOST + 1) * CHUNK] = False
    assert (values[there] == whole[there]).all() and not values[~there].any(), "this has changed"
assert sparse.nchunks_initialized == 1
END
