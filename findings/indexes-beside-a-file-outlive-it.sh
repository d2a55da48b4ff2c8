#!/usr/bin/env bash
# GDAL 3.10.3 (rasterio 1.4.4's wheel, with numpy 2.4.6) and htslib (pysam 0.24.1's wheel), a GeoTIFF and a FASTA file that
# are replaced by the next version, by a rename, where programs have written something beside them.
# Most would guess: what a reader keeps beside a file (map.tif.ovr, map.tif.aux.xml, ref.fa.fai) is checked against the
# file's date or size before it is used, and made anew; at least something says that it does not fit.
# Seen: neither looks. GDAL goes on showing the old map whenever it is read at a lower resolution, as viewers do, and the
# old statistics; at full resolution it is the new one. htslib cuts the new file at the old offsets: other bases than the
# sequence has, of the old length. No error, no warning. Whoever replaces such a file has to remove what others have put
# beside it (*.ovr, *.msk, *.aux.xml, *.fai, *.gzi), or put each version into a directory of its own.
# Needs no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check rasterio==1.4.4 numpy==2.4.6 pysam==0.24.1
"$folder/venv/bin/python" -W error - "$folder" <<'END'
import os, pathlib, sys, warnings
import numpy, pysam, rasterio

OLD, NEW, SIZE = 50, 200, 1024
os.chdir(sys.argv[1])
print(f"GDAL {rasterio.__gdal_version__} (rasterio {rasterio.__version__}), htslib of pysam {pysam.__version__}")


def publish(name, write, date):
    """Put a new version in place, by a rename, with a date that is later than the last one's."""
    write(f"fresh-{name}")
    os.utime(f"fresh-{name}", (date, date))
    os.replace(f"fresh-{name}", name)


def write_map(value):
    def write(name):
        profile = {"width": SIZE, "height": SIZE, "count": 1, "dtype": "uint8", "crs": "EPSG:32631"}
        transform = rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)
        with rasterio.open(name, "w", driver="GTiff", transform=transform, **profile) as file:
            file.write(numpy.full((1, SIZE, SIZE), value, "uint8"))

    return write


def write_sequences(first, second):
    return lambda name: pathlib.Path(name).write_text(f">chr1\n{first}\n>chr2\n{second}\n")


def look_at_map():
    with rasterio.open("map.tif") as file:
        full, reduced = file.read(1)[0, 0], file.read(1, out_shape=(SIZE // 8, SIZE // 8))[0, 0]
        mean = float(file.tags(1)["STATISTICS_MEAN"])
    print(f"map: full resolution {full}, an eighth {reduced}, mean of the statistics {mean}")
    return int(full), int(reduced), mean


def look_at_sequences():
    with pysam.FastaFile("ref.fa") as file:
        found = {name: file.fetch(name) for name in file.references}
    print(f"sequences: {found}")
    return found


publish("map.tif", write_map(OLD), 1_700_000_000)
with rasterio.Env(TIFF_USE_OVR=True), rasterio.open("map.tif", "r+") as file:  # as `gdaladdo -ro`
    file.build_overviews([2, 4, 8], rasterio.enums.Resampling.average)
with rasterio.open("map.tif") as file, warnings.catch_warnings():  # as `gdalinfo -stats`
    warnings.simplefilter("ignore", rasterio.errors.RasterioDeprecationWarning)
    file.statistics(1)
publish("ref.fa", write_sequences("ACGTACGT", "GGGGCCCC"), 1_700_000_000)
old_map, old_sequences = look_at_map(), look_at_sequences()
print("beside them:", *sorted(set(os.listdir()) - {"map.tif", "ref.fa", "venv"}))
publish("map.tif", write_map(NEW), 4_000_000_000)
publish("ref.fa", write_sequences("ACGTACGTTT", "AAAATTTT"), 4_000_000_000)
new_map, new_sequences = look_at_map(), look_at_sequences()
assert old_map == (OLD, OLD, OLD) and old_sequences == {"chr1": "ACGTACGT", "chr2": "GGGGCCCC"}
assert new_map == (NEW, OLD, OLD), "this has changed"
assert new_sequences["chr2"] != "AAAATTTT", "this, too"
assert len(new_sequences["chr1"]) == 8
END
