#!/usr/bin/env bash
# pyarrow 26.0.1, parquet.write_table; deltas by rsync 3.2.7 and zstd 1.5.4 (Debian 12's packages).
# Most would guess: a row that is inserted changes the pages that it is in, a few KB of each column; the rest of a file that
# is compressed page by page stays as it is, and a delta is small.
# Seen: pages are cut by counting rows, so each one after the row holds other rows than before, and no byte of it stays:
# with compression="zstd" a delta has two thirds of the file. With use_content_defined_chunking=True pages are cut where
# the values say, and a fifth is left: the new value also gets a number in the column's dictionary, which moves those of
# all later values. With use_dictionary=False, too, it is a tenth. A row at the end changes little in either case.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('rsync=3.2.7-1*' 'zstd=1.5.4+dfsg2-5*' liblz4-1 liblzma5 libpopt0 libzstd1)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pyarrow==26.0.1
"$folder/venv/bin/python" - "$folder" <<'END'
import os, pathlib, random, re, shutil, subprocess, sys
import pyarrow
from pyarrow import parquet

ROWS, INSERTED_AT = 400_000, 1000
folder = pathlib.Path(sys.argv[1])
old, new, delta, received = (folder / name for name in ("old", "new", "delta", "received"))
libraries = ":".join(map(str, [*folder.glob("lib/*-linux-gnu"), *folder.glob("usr/lib/*-linux-gnu")]))
environment = {**os.environ, "LD_LIBRARY_PATH": libraries, "LC_ALL": "C"}
source = random.Random(1)
table = pyarrow.table(
    {
        "id": [source.randrange(1 << 40) for _ in range(ROWS)],
        "price": [source.random() for _ in range(ROWS)],
        "name": [f"name {source.randrange(1 << 30)}" for _ in range(ROWS)],
    }
)
row = pyarrow.table({"id": [7], "price": [0.5], "name": ["name 7"]})
longer = pyarrow.concat_tables([table.slice(0, INSERTED_AT), row, table.slice(INSERTED_AT)])


def run(name, *arguments):
    command = [folder / "usr/bin" / name, *arguments]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def shares(**options):
    """What rsync sends, and what zstd --patch-from makes, as a share of the file."""
    parquet.write_table(table, old, **options)
    parquet.write_table(longer, new, **options)
    shutil.copy(old, received)
    said = run("rsync", "--no-whole-file", "--ignore-times", "--stats", new, received)
    assert received.read_bytes() == new.read_bytes() and parquet.read_table(received).equals(longer)
    sent = int(re.search(r"Literal data: ([\d,]+)", said)[1].replace(",", ""))
    run("zstd", "-qf", f"--patch-from={old}", new, "-o", delta)
    size = new.stat().st_size
    return sent / size, delta.stat().st_size / size


print(f"pyarrow {pyarrow.__version__}, {run('rsync', '--version').splitlines()[0]}")
defaults = shares(compression="zstd")
chunked = shares(compression="zstd", use_content_defined_chunking=True)
direct = shares(compression="zstd", use_content_defined_chunking=True, use_dictionary=False)
print(f"one row is inserted into {ROWS}")
for name, (sent, patch) in (
    ("defaults", defaults),
    ("content-defined chunking", chunked),
    ("that, and no dictionary", direct),
):
    print(f"{name}: rsync sends {sent:.1%} of the file, a patch by zstd has {patch:.1%}")
assert min(defaults) > 0.5 and max(chunked) < 0.3, "this has changed"
assert max(direct) < 0.12
END
