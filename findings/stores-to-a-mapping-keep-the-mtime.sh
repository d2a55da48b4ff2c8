#!/usr/bin/env bash
# Linux (seen on 6.18), files that are written through mmap (numpy.memmap, LMDB with MDB_WRITEMAP), and rsync 3.2.7
# (Debian 12's package).
# Most would guess: mtime and ctime tell that a file was written after they were last looked at, at the latest when
# msync() or close() returns: they "will be updated after a write to the mapped region, and before a subsequent
# msync(2)" (mmap(2)).
# Seen: only the first store to a page updates them. Later ones do not as long as the page has not been written back, up
# to 30 s on a disk and for ever on tmpfs, and neither do msync() and close(). What looks at a file between two stores
# (rsync -a, make, git, backups) takes the second for nothing: the copy keeps the old bytes until the file is written
# again. msync() and then os.utime() by the writer, or rsync -c, help.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
memory=$(mktemp -d -p /dev/shm)
trap 'rm -rf "$folder" "$memory"' EXIT
(cd "$folder"; apt-get download -q 'rsync=3.2.7-1*' libpopt0 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
libraries=$folder/usr/lib/$(uname -m)-linux-gnu
export PATH=$folder/usr/bin:$PATH LD_LIBRARY_PATH=$libraries
uname -r
rsync --version | sed -n 1p
python3 - "$memory" "$folder" <<'END'
import mmap, os, pathlib, subprocess, sys, time


def rsync(folder):
    """What rsync copies, as it says."""
    command = ["rsync", "-a", "--out-format=%n", folder / "data", folder / "copy"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def two_stores(folder):
    """What rsync copies after each of two stores, whether it has the second, and whether the dates stayed."""
    data = folder / "data"
    data.write_bytes(b"0" * 4096)
    time.sleep(1.1)  # rsync compares whole seconds
    with open(data, "r+b") as file:
        with mmap.mmap(file.fileno(), 0) as mapped:
            mapped[:1] = b"1"
            first, before = rsync(folder), data.stat()
            time.sleep(1.1)
            mapped[:1] = b"2"
            mapped.flush()  # msync(MS_SYNC)
    after = data.stat()
    same = (before.st_mtime_ns, before.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns)
    return first, rsync(folder), (folder / "copy").read_bytes() == data.read_bytes(), same


for folder in map(pathlib.Path, sys.argv[1:]):
    kind = subprocess.run(["stat", "-f", "-c", "%T", folder], check=True, capture_output=True, text=True).stdout.strip()
    for _ in range(10):  # on a disk, the page may be written back just between the stores
        first, second, copied, same = two_stores(folder)
        if same:
            break
    print(f"{kind}: rsync copies {first} after the first store, {second} after the second, msync and close;", end=" ")
    print(f"mtime and ctime as before: {same}; the copy has the second store: {copied}")
    assert first == ["data"] and second == [] and same and not copied, "this has changed"
END
