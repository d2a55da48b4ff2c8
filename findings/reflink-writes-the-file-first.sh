#!/usr/bin/env bash
# Linux (seen on 6.18), XFS and btrfs, ioctl FICLONE (`cp --reflink=always`).
# Most would guess: a reflink shares what there is, also in the page cache, and costs a few blocks of metadata.
# Seen: what was just written is written to the disk first, all of it, and the call waits for that: a clone of 64 MiB that
# are still in memory writes 64 MiB, a second clone next to nothing. A tool that stages new files and then reflinks them
# pays for a flush of each at that moment; cloning files that have been on disk for a while is cheap.
# Needs root, for a file system on a loop device.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
folder=$(mktemp -d)
device=
trap 'umount -q "$folder/mounted" || true; [ -z "$device" ] || losetup -d "$device"; rm -rf "$folder"' EXIT
mkdir "$folder/mounted"
uname -r
for kind in xfs btrfs; do
    truncate -s 512M "$folder/disk"
    mkfs.$kind -q -f "$folder/disk" >/dev/null 2>&1
    device=$(losetup -f --show "$folder/disk")
    mount -t $kind "$device" "$folder/mounted"
    python3 - "$folder/mounted" "$device" $kind <<'END'
import fcntl, os, sys

FICLONE, SIZE = 0x40049409, 64 << 20
folder, device, kind = sys.argv[1:]


def written():
    with open(f"/sys/block/{os.path.basename(device)}/stat") as file:
        return int(file.read().split()[6]) * 512


def clone(source, name):
    before = written()
    with open(os.path.join(folder, name), "wb") as copy:
        fcntl.ioctl(copy, FICLONE, source.fileno())
    return written() - before


os.sync()
with open(os.path.join(folder, "staged"), "w+b") as file:
    file.write(os.urandom(SIZE))
    file.flush()
    first, second = clone(file, "first"), clone(file, "second")
print(f"{kind}: a clone of 64 MiB just written writes {first / 2**20:.1f} MiB, another {second / 2**20:.1f} MiB")
assert first >= SIZE and second < SIZE / 8, "this has changed"
END
    umount "$folder/mounted"
    losetup -d "$device"
    device=
    rm "$folder/disk"
done
