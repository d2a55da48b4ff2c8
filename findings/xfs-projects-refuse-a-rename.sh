#!/usr/bin/env bash
# Linux (seen on 6.18), XFS, a directory with a project of its own, as project quotas make it (`chattr +P -p 1`), and
# CPython's shutil.move (seen on 3.11).
# Most would guess: what is staged on the same file system (the same st_dev, no mount point between) can be renamed into
# place, also by shutil.move: "if the destination is on the current filesystem, then os.rename() is used".
# Seen: where the projects differ, rename() and link() fail with EXDEV, for root too, and even if no quota is enforced.
# shutil.move then copies without a word: it empties the old file and writes into it, so readers get a mixture, and hard
# links that were to keep the old version get the new one; where the space does not suffice for a copy, which a rename
# does not need, the old file is lost and a part of the new one is in its place. A directory that a project quota limits
# (a user's, a container's, a volume's) needs its staging directory within it.
# Needs root, for a file system on a loop device.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
folder=$(mktemp -d)
device=
trap 'umount -q "$folder/mounted" || true; [ -z "$device" ] || losetup -d "$device"; rm -rf "$folder"' EXIT
mkdir "$folder/mounted"
truncate -s 512M "$folder/disk"
mkfs.xfs -q "$folder/disk"
device=$(losetup -f --show "$folder/disk")
mount -t xfs "$device" "$folder/mounted"
mkdir "$folder/mounted/staging" "$folder/mounted/tree"
chattr -p 1 "$folder/mounted/tree"
chattr +P "$folder/mounted/tree"
uname -r
python3 - "$folder/mounted" <<'END'
import errno, os, pathlib, platform, shutil, sys

SIZE = 64 << 20
os.chdir(sys.argv[1])
staged, current, kept = pathlib.Path("staging/model"), pathlib.Path("tree/model"), pathlib.Path("tree/kept")


def tried(call):
    try:
        call(staged, current)
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]


print(f"CPython {platform.python_version()}")
staged.write_bytes(b"new")
one_device = os.stat("staging").st_dev == os.stat("tree").st_dev
rename, link = tried(os.rename), tried(os.link)
print(f"one device: {one_device}, rename: {rename}, link: {link}")
assert one_device and (rename, link) == ("EXDEV", "EXDEV"), "this has changed"

current.write_bytes(b"old")
os.link(current, kept)  # within the tree links and renames do work
moved = tried(shutil.move)
print(f"shutil.move: {moved}; the file is {current.read_bytes()}, the link that keeps the old one {kept.read_bytes()}")
assert moved == "done" and current.read_bytes() == kept.read_bytes() == b"new", "this has changed"

staged.write_bytes(os.urandom(SIZE))
os.sync()
state = os.statvfs(".")
with open("others", "wb") as others:
    os.posix_fallocate(others.fileno(), 0, state.f_bavail * state.f_frsize - SIZE // 2)
full = tried(shutil.move)
print(f"shutil.move of {SIZE} bytes where half of that is free: {full}; the file has {current.stat().st_size} bytes")
assert full == "ENOSPC" and 0 < current.stat().st_size < SIZE, "this has changed"
END
