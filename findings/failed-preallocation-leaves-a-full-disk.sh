#!/usr/bin/env bash
# Linux (seen on 6.18), posix_fallocate() of more than there is space for, on ext4, XFS, btrfs and tmpfs.
# Most would guess: a preallocation that fails changes nothing. So a program that reserves the space before it downloads
# gets "No space left on device" at once, and whatever else writes to the disk never notices.
# Seen: on ext4 it keeps what it has allocated until the space ran out, and the file has grown as far: the disk is full,
# other programs' writes fail, and the file looks like half of a download that is all zeros. XFS, btrfs and tmpfs give
# all back. A program has to cut the file to its earlier length, or remove it, when fallocate() fails, and must not take
# a file's length for what it has received.
# Needs root, for file systems on a loop device.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
folder=$(mktemp -d)
trap 'umount -q "$folder/mounted" || true; rm -rf "$folder"' EXIT
mkdir "$folder/mounted"
uname -r
for kind in ext4 xfs btrfs tmpfs; do
    truncate -s 512M "$folder/disk"
    case $kind in
        tmpfs) mount -t tmpfs -o size=512M none "$folder/mounted" ;;
        ext4) mkfs.ext4 -q "$folder/disk" && mount -o loop "$folder/disk" "$folder/mounted" ;;
        *) mkfs.$kind -q -f "$folder/disk" >/dev/null 2>&1 && mount -o loop "$folder/disk" "$folder/mounted" ;;
    esac
    python3 - "$folder/mounted" $kind <<'END'
import errno, os, pathlib, sys

WANTED, MIB = 1 << 30, 1 << 20
folder, kind = pathlib.Path(sys.argv[1]), sys.argv[2]


def free():
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


before = free()
with open(folder / "download", "wb") as file:
    try:
        os.posix_fallocate(file.fileno(), 0, WANTED)
    except OSError as failure:
        assert failure.errno == errno.ENOSPC
    else:
        raise AssertionError("there was space for all")
    status = os.fstat(file.fileno())
try:
    with open(folder / "of-another-program", "wb") as other:
        other.write(bytes(MIB))
        other.flush()
        os.fsync(other.fileno())
    outcome = "is written"
except OSError as failure:
    outcome = f"fails: {failure.strerror}"
left = free()
print(f"{kind}: {before // MIB} MiB free, {WANTED // MIB} wanted: ENOSPC; after that the file has a length of "
      f"{status.st_size // MIB} MiB and takes {status.st_blocks * 512 // MIB}, {left // MIB} are free; "
      f"another file of 1 MiB {outcome}")
if kind == "ext4":
    assert status.st_size > before * 0.9 and status.st_blocks * 512 >= status.st_size and left < MIB, "this has changed"
    assert outcome != "is written"
else:
    assert status.st_size == status.st_blocks == 0 and outcome == "is written", "this has changed"
END
    umount "$folder/mounted"
    rm -f "$folder/disk"
done
