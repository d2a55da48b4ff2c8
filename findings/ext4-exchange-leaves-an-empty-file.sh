#!/usr/bin/env bash
# Linux (seen on 6.18), ext4 with its defaults, renameat2(RENAME_EXCHANGE).
# Most would guess: ext4's guard for programs that replace a file without fsync (auto_da_alloc, ext4(5): the new file's
# data are written before the rename is committed, so a crash leaves the old content or the new) holds for an exchange
# too, by which updaters put a new file in place and keep the old one.
# Seen: it does not. The journal is written after 5 s, or when any program calls fsync, the new file's data after 30 s;
# after a crash between the two the name leads to an empty file. The same holds for a rename to a name that is free, and
# for linkat() of an O_TMPFILE file. Whatever puts a file in place has to fsync it first.
# Needs root, for a file system on a loop device.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
folder=$(mktemp -d)
trap 'umount -q "$folder/mounted" || true; rm -rf "$folder"' EXIT
mkdir "$folder/mounted"
truncate -s 256M "$folder/disk"
mkfs.ext4 -q "$folder/disk"
mount -o loop "$folder/disk" "$folder/mounted"
uname -r
python3 - "$folder/mounted" <<'END'
import ctypes, fcntl, os, pathlib, struct, sys

AT_FDCWD, RENAME_EXCHANGE, SYNC_FILE_RANGE_WAIT_BEFORE = -100, 2, 1
SHUTDOWN, WITHOUT_THE_LOG = 0x8004587D, struct.pack("I", 2)  # EXT4_IOC_SHUTDOWN: as a crash, for tests of file systems
OLD, NEW = b"o" * 10_000, b"n" * 10_000
libc = ctypes.CDLL(None, use_errno=True)
os.chdir(sys.argv[1])


def exchange(one, other):
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2")


def link_unnamed(name):
    with open(os.open(".", os.O_TMPFILE | os.O_RDWR), "wb") as file:
        file.write(NEW)
        file.flush()
        os.link(f"/proc/self/fd/{file.fileno()}", name, src_dir_fd=file.fileno())  # so that CPython follows the link


for name in ("replaced", "exchanged"):
    pathlib.Path(name).write_bytes(OLD)
os.sync()
for name in ("new", "new-too", "new-as-well"):
    pathlib.Path(name).write_bytes(NEW)
os.replace("new", "replaced")
exchange("new-too", "exchanged")
os.rename("new-as-well", "added")
link_unnamed("linked")
with open("replaced") as file:  # the rename has begun to write its data; wait for that, and nothing else
    assert not libc.sync_file_range(file.fileno(), ctypes.c_int64(0), ctypes.c_int64(0), SYNC_FILE_RANGE_WAIT_BEFORE)
with open("of-another-program", "wb") as file:
    os.fsync(file.fileno())
    fcntl.ioctl(file, SHUTDOWN, WITHOUT_THE_LOG)
END
umount "$folder/mounted"
mount -o loop "$folder/disk" "$folder/mounted"
(
    cd "$folder/mounted"
    wc -c replaced exchanged added linked
    [ "$(tr -d n <replaced | wc -c) $(wc -c <replaced)" = "0 10000" ] || { echo "replaced: this has changed"; exit 1; }
    for name in exchanged added linked; do
        [ -e $name ] && [ ! -s $name ] || { echo "$name: this has changed"; exit 1; }
    done
)
