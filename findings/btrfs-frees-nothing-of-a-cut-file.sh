#!/usr/bin/env bash
# Linux (seen on 6.18), btrfs with its defaults; beside it XFS and ext4.
# Most would guess: a file that is cut to its first block (truncate, ftruncate), or of which all but a block is punched
# out (fallocate -p), takes a block; and writing over a part of a file in place takes no more space in the end.
# Seen: btrfs frees an extent when nothing of it is used any more, and what is written or reserved at once is one extent
# of up to 128 MiB. So 64 MiB of which a block is left still take 64 MiB; and when all but a block of them is written
# anew, in place, as rsync --inplace and databases do, the file takes 128 MiB. ls, du and st_blocks show the block, or
# 64 MiB; only the free space tells. What cuts a half-received file back, gives back what it reserved too much, or frees
# an archive while it unpacks it, gains nothing. XFS and ext4 free all. Copying the block and removing the file helps.
# (btrfs's documentation calls them bookend extents.)
# Needs root, for file systems on a loop device; mkfs.btrfs, mkfs.xfs and mkfs.ext4 (Debian: btrfs-progs, xfsprogs,
# e2fsprogs), fallocate (util-linux).
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
folder=$(mktemp -d)
trap 'umount -q "$folder/mounted" || true; rm -rf "$folder"' EXIT
mkdir "$folder/mounted"
uname -r
for system in btrfs xfs ext4; do
    rm -f "$folder/disk"
    truncate -s 1G "$folder/disk"
    "mkfs.$system" -q "$folder/disk" >/dev/null
    mount -o loop "$folder/disk" "$folder/mounted"
    python3 - "$folder/mounted" "$system" <<'END'
import os, subprocess, sys

SIZE, BLOCK = 64 << 20, 4096
os.chdir(sys.argv[1])
system = sys.argv[2]


def used():
    """What is in use, in MiB."""
    os.sync()
    disk = os.statvfs(".")
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize >> 20


def put(start, end):
    with open("file", "r+b" if start else "wb") as file:
        file.seek(start)
        file.write(os.urandom(end - start))
        file.flush()
        os.fsync(file.fileno())


def reserve():
    with open("file", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, SIZE)
        file.write(os.urandom(BLOCK))


def cut():
    os.truncate("file", BLOCK)


def punch():
    subprocess.run(["fallocate", "-p", "-o", str(BLOCK), "-l", str(SIZE - BLOCK), "file"], check=True)


empty, found = used(), {}
ways = {
    "cut": (lambda: put(0, SIZE), cut),
    "reserved, a block is written, cut": (reserve, cut),
    "punched": (lambda: put(0, SIZE), punch),
    "written anew but for a block": (lambda: put(0, SIZE), lambda: put(BLOCK, SIZE)),
}
for name, (make, change) in ways.items():
    make()
    assert 63 <= used() - empty <= 66
    change()
    blocks = os.stat("file").st_blocks * 512 / (1 << 20)
    found[name] = used() - empty
    subprocess.run(["cp", "--reflink=never", "--sparse=always", "file", "copy"], check=True)
    os.rename("copy", "file")
    copied = used() - empty
    print(f"{system}, {name}: {blocks:.1f} MiB by st_blocks, {found[name]} MiB are taken; {copied} when it was copied")
    assert copied <= (65 if name.startswith("written") else 1)
    os.unlink("file")
    used()
again = found.pop("written anew but for a block")
if system == "btrfs":
    assert all(taken >= 63 for taken in found.values()) and again >= 126, "this has changed"
else:
    assert all(taken <= 1 for taken in found.values()) and again <= 66
END
    umount "$folder/mounted"
done
