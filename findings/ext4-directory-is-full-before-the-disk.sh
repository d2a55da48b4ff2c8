#!/usr/bin/env bash
# Linux (seen on 6.18), ext4 with its defaults on a disk below 512 MB, for which mkfs.ext4 takes blocks of 1 KiB.
# Most would guess: a directory takes names as long as there are space and inodes; "No space left on device" means that
# one of them has run out.
# Seen: a directory is a tree of two levels. With blocks of 1 KiB and names of 64 characters (SHA-256, as in a cache or
# object store without subdirectories) it is full with about 90,000 names: ENOSPC with 90 % of the space and a quarter of
# the inodes free, and only the kernel's log says why. Another directory still takes files; the option large_dir adds a
# level. With the blocks of 4 KiB of larger disks the limit is about ten million.
# Needs root, for a file system on a loop device.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
folder=$(mktemp -d)
trap 'umount -q "$folder/mounted" || true; rm -rf "$folder"' EXIT
mkdir "$folder/mounted"
truncate -s 500M "$folder/disk"
mkfs.ext4 -q "$folder/disk"
mount -o loop "$folder/disk" "$folder/mounted"
uname -r
python3 - "$folder/mounted" <<'END'
import errno, hashlib, os, sys

os.chdir(sys.argv[1])
os.mkdir("objects")
number, code = 0, None
while code is None:
    try:
        open(f"objects/{hashlib.sha256(str(number).encode()).hexdigest()}", "xb").close()
        number += 1
    except OSError as error:
        code = error.errno
state = os.statvfs(".")
free, inodes = state.f_bavail / state.f_blocks, state.f_favail / state.f_files
print(f"blocks of {state.f_bsize} bytes: {number} files, then {errno.errorcode[code]}")
print(f"free: {free:.0%} of the space, {inodes:.0%} of the inodes")
open("another", "xb").close()
assert code == errno.ENOSPC and number < 110_000 and free > 0.8 and inodes > 0.1, "this has changed"
END
