#!/usr/bin/env bash
# zarr 3.1.6 (with numpy 2.4.6), a group with consolidated metadata (zarr.consolidate_metadata; xarray writes them by
# default), formats 2 and 3, and a program that opens the group each day and appends to an array in it.
# Most would guess: consolidated metadata are a copy for readers; a reader may see the array too short until they are made
# again. Who opens the group for writing, and appends, appends behind what is there.
# Seen: zarr.open_group uses the copy also with mode "r+". append() writes the array's own metadata and not the copy, so
# the next program that opens the group gets the old length, and its append() begins there: it overwrites what was
# appended since, chunk by chunk, with no error and no warning, and the length comes out as one day's. Each day replaces
# the day before. zarr.open_array of the array itself, and open_group(..., use_consolidated=False), append behind. Whoever
# appends has to open without the copy, and to make it anew afterwards.
# Needs no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check zarr==3.1.6 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import shutil, numpy, zarr

DAYS, LENGTH = (2, 3, 4), 5
STORE = "store.zarr"


def append_daily(zarr_format, open_array):
    """The array after a day's values were appended on each of three days, by a program that opens it each time."""
    shutil.rmtree(STORE, ignore_errors=True)
    array = zarr.open_group(STORE, mode="w", zarr_format=zarr_format).create_array(
        "values", shape=(LENGTH,), chunks=(LENGTH,), dtype="i4"
    )
    array[:] = 1
    zarr.consolidate_metadata(STORE)
    for day in DAYS:
        open_array().append(numpy.full(LENGTH, day, "i4"))
    seen = zarr.open_group(STORE, mode="r")["values"][:].tolist()
    return zarr.open_array(f"{STORE}/values", mode="r")[:].tolist(), seen


print(f"zarr {zarr.__version__}, numpy {numpy.__version__}")
ways = {
    "open_group": lambda: zarr.open_group(STORE, mode="r+")["values"],
    "open_group(use_consolidated=False)": lambda: zarr.open_group(STORE, mode="r+", use_consolidated=False)["values"],
    "open_array": lambda: zarr.open_array(f"{STORE}/values", mode="r+"),
}
first, everything = [1] * LENGTH, [day for day in (1, *DAYS) for _ in range(LENGTH)]
for zarr_format in (2, 3):
    for name, open_array in ways.items():
        stored, seen = append_daily(zarr_format, open_array)
        print(f"format {zarr_format}, {name}: stored is {stored}; open_group shows {seen}")
        assert seen == first
        if name == "open_group":
            assert stored == first + [DAYS[-1]] * LENGTH, "this has changed"
        else:
            assert stored == everything
END
