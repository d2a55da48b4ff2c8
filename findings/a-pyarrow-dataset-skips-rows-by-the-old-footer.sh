#!/usr/bin/env bash
# pyarrow 26.0.1, a pyarrow.dataset of Parquet files that a program keeps, as servers do, and whose file is replaced by
# the next version, by a rename.
# Most would guess: a dataset is a list of files and a schema; each query opens the files, so it sees the new version, or
# the old one if the files are kept open.
# Seen: a file is opened for each query, but its footer is kept from the first one. So row groups are chosen by the old
# version's smallest and largest values: a filter for values that only the new version has finds nothing, count_rows() is
# the old number, without an error, while what is read of row groups lies at the old offsets: another error each time, or,
# if the two versions have the same layout, the new rows. So queries of one dataset contradict each other.
# cache_metadata=False counts and reads the new version, but its filters find no more. Make the dataset anew after each
# update (pyarrow.dataset.dataset), or give new versions new names.
# Needs no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pyarrow==26.0.1
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import os, pyarrow, pyarrow.dataset, pyarrow.parquet

ROWS, NEW_FROM = 1000, 5000
is_new = pyarrow.dataset.field("id") >= NEW_FROM
os.mkdir("data")


def put(begin, rows, **options):
    table = pyarrow.table({"id": pyarrow.array(range(begin, begin + rows), "int64")})
    pyarrow.parquet.write_table(table, "next", **options)
    os.rename("next", "data/part.parquet")


def ask(dataset, **options):
    """How many new rows a filter finds, how many rows are counted, and how many of those that are read are new."""
    try:
        found = dataset.to_table(filter=is_new, **options).num_rows
        read = dataset.to_table(**options)["id"].to_pylist()
        return found, dataset.count_rows(**options), sum(value >= NEW_FROM for value in read)
    except OSError as error:
        return found, dataset.count_rows(**options), str(error).split(":")[0]


print(f"pyarrow {pyarrow.__version__}")
found = {}
plain = {"use_dictionary": False, "compression": "none"}
for layout, rows, write in (("another layout", ROWS * 3 // 2, {}), ("the same layout", ROWS, plain)):
    for name, options in (("default", {}), ("cache_metadata=False", {"cache_metadata": False})):
        put(0, ROWS, **write)
        dataset = pyarrow.dataset.dataset("data")
        before = ask(dataset, **options)
        assert before == (0, ROWS, 0)
        put(NEW_FROM, rows, **write)
        kept, fresh = found[layout, name] = ask(dataset, **options), ask(pyarrow.dataset.dataset("data"))
        print(f"{layout}, {name}: a filter finds {kept[0]} new rows, {kept[1]} are counted, read: {kept[2]}; fresh: {fresh}")
        assert fresh == (rows, rows, rows)
assert {kept[0] for kept, _ in found.values()} == {0}, "this has changed"
assert found["another layout", "default"][0][1] == ROWS, "this has changed"
assert found["the same layout", "default"][0] == (0, ROWS, ROWS), "this has changed"
END
