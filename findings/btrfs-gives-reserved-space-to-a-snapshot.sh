#!/usr/bin/env bash
# Linux (seen on 6.18), btrfs with its defaults and XFS with reflinks, posix_fallocate().
# Most would guess: after posix_fallocate() has returned 0, "subsequent writes to bytes in the specified range are
# guaranteed not to fail because of lack of disk space" (posix_fallocate(3)); so a program that reserves the space first
# fails at once or not at all. Where the space cannot be reserved it says so.
# Seen: on btrfs a snapshot (snapper takes one each hour) or `cp --reflink` of the file, while it is being written,
# shares the space that was reserved, though nothing is in it yet. From then on each write needs other space, and the
# reserved one stays with the snapshot: the download ends with "No space left on device" in the middle. To ask again
# does not help: posix_fallocate() of what is shared returns 0, with a third of the space free, and the writes fail all
# the same. XFS refuses at that point. Exclude directories where files are written from snapshots (a subvolume of their
# own).
# Needs root, for file systems on a loop device; mkfs.btrfs and mkfs.xfs (Debian: btrfs-progs, xfsprogs).
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
for tool in mkfs.btrfs mkfs.xfs btrfs mount unshare; do
    [ -n "$(command -v $tool)" ] || { echo "$tool is missing" >&2; exit 1; }
done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/btrfs" "$folder/xfs"
truncate -s 600M "$folder/btrfs.image" "$folder/xfs.image"
mkfs.btrfs -q "$folder/btrfs.image" >"$folder/made" 2>&1 || { cat "$folder/made"; exit 1; }
mkfs.xfs -q -m reflink=1 "$folder/xfs.image"
uname -r
unshare --mount bash -euo pipefail -s "$folder" <<'END'
mount -o loop "$1/btrfs.image" "$1/btrfs"
mount -o loop "$1/xfs.image" "$1/xfs"
python3 - "$1" <<'PYTHON'
import errno, os, pathlib, random, subprocess, sys

MIB = 1 << 20
folder = pathlib.Path(sys.argv[1])
block = random.Random(1).randbytes(MIB)


def reserve(path, mib):
    """An open file; and whether the space was reserved for it."""
    opened = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.posix_fallocate(opened, 0, mib * MIB)
        return opened, True
    except OSError as error:
        assert error.errno == errno.ENOSPC
        return opened, False


def write(opened, mib):
    """How many MiB can be written before the space runs out."""
    written = 0
    try:
        for number in range(mib):
            os.pwrite(opened, block, number * MIB)
            written += 1
        os.fsync(opened)
    except OSError as error:
        assert error.errno == errno.ENOSPC
    os.close(opened)
    return written


def free(path):
    os.sync()
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize // MIB


def clone(path):
    """A file that takes two thirds of the space, and its clone, for which the space is reserved, if it can be."""
    size = free(path) * 2 // 3
    assert write(os.open(path / "file", os.O_RDWR | os.O_CREAT), size) == size
    subprocess.run(["cp", "--reflink=always", path / "file", path / "clone"], check=True)
    remaining = free(path)
    opened, reserved = reserve(path / "clone", size)
    written = write(opened, size)
    print(f"{path.name}, a clone of {size} MiB, {remaining} MiB free: reserved: {reserved}; {written} MiB written")
    for name in "file", "clone":
        (path / name).unlink()
    return size, reserved, written


for snapshots in 0, 1:
    volume, snapshot = folder / "btrfs/volume", folder / "btrfs/snapshot"
    subprocess.run(["btrfs", "-q", "subvolume", "create", volume], check=True)
    size = free(volume) * 2 // 3
    opened, reserved = reserve(volume / "download", size)
    if snapshots:
        subprocess.run(["btrfs", "-q", "subvolume", "snapshot", "-r", volume, snapshot], check=True)
    written = write(opened, size)
    print(f"btrfs, {size} MiB reserved: {reserved}; snapshots: {snapshots}; {written} MiB could be written")
    assert reserved
    if snapshots:
        assert written < size * 3 // 4, "this has changed"
        subprocess.run(["btrfs", "-q", "subvolume", "delete", "-c", snapshot], check=True)
    else:
        assert written == size
    subprocess.run(["btrfs", "-q", "subvolume", "delete", "-c", volume], check=True)
    subprocess.run(["btrfs", "subvolume", "sync", folder / "btrfs"], check=True, stdout=subprocess.DEVNULL)

size, reserved, written = clone(folder / "btrfs")
assert reserved and written < size, "this has changed"
size, reserved, written = clone(folder / "xfs")
assert not reserved
PYTHON
END
