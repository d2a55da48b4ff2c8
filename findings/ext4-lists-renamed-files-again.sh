#!/usr/bin/env bash
# Linux (seen on 6.18), ext4 with its defaults, a directory that is listed and whose files are renamed meanwhile, as by
# `for entry in os.scandir(folder): os.rename(entry.path, entry.path + ".bak")`.
# Most would guess: each file is met once; POSIX leaves open only whether files that come and go meanwhile are listed.
# Seen: a new name is a new entry, at the place that its hash gives it. If that is still to come, the file is met again,
# under its new name: of 20,000 files some 9,000 are renamed twice and more often, up to `.bak.bak.bak.bak.bak.bak.bak`.
# With a few hundred files nothing happens, since CPython and glibc read the directory in pieces of 32 KiB. The names
# have to be collected before the first rename (os.listdir). On tmpfs each file is met once.
# Needs root, for file systems of its own; mkfs.ext4 and unshare (Debian: e2fsprogs, util-linux).
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
for tool in mkfs.ext4 mount unshare; do
    [ -n "$(command -v $tool)" ] || { echo "$tool is missing" >&2; exit 1; }
done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/ext4" "$folder/tmpfs"
truncate -s 500M "$folder/disk"
mkfs.ext4 -q -b 4096 "$folder/disk"
uname -r
unshare --mount bash -euo pipefail -s "$folder" <<'END'
mount -o loop "$1/disk" "$1/ext4"
mount -t tmpfs tmpfs "$1/tmpfs"
python3 - "$1" <<'PYTHON'
import os, sys

FILES = 20_000


def rename_all(folder, files):
    """How many renames it takes, how many files have more than one suffix, and the most that one has."""
    os.mkdir(folder)
    for number in range(files):
        open(f"{folder}/{number:06}", "x").close()
    renames = 0
    for entry in os.scandir(folder):
        os.rename(entry.path, entry.path + ".bak")
        renames += 1
    suffixes = [name.count(".bak") for name in os.listdir(folder)]
    assert len(suffixes) == files and min(suffixes) == 1
    return renames, sum(number > 1 for number in suffixes), max(suffixes)


for kind in "ext4", "tmpfs":
    for files in 300, FILES:
        renames, again, most = rename_all(f"{sys.argv[1]}/{kind}/{files}", files)
        print(f"{kind}: {files} files, {renames} renames; {again} files have several suffixes, at most {most}")
        if kind == "tmpfs" or files < FILES:
            assert (again, most) == (0, 1)
        else:
            assert again > FILES / 4 and most >= 4, "this has changed"
PYTHON
END
