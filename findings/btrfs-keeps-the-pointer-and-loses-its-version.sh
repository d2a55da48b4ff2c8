#!/usr/bin/env bash
# Linux (seen on 6.18), btrfs, XFS and ext4 with their defaults; a version that was staged and is on the disk for a while
# is put in place by renames, and then a small file (`current`, an index, a journal's last record) is written beside it,
# with fsync of the file and of its directory, to say that it is complete.
# Most would guess: what was done before an fsync, in other directories too, is on the disk after it, since a file system's
# log is written in order: a crash may lose the last changes, never an earlier one alone. If the pointer is new, so is
# what it points to.
# Seen: so it is on ext4 and XFS. The fsync of btrfs writes a log of the file or directory that it is called for, without
# the rest. After a crash `current` names the new version, durably, and all that was done before in other directories is
# undone: the file has its old content, the new directory is missing, and so are the link and the new directory that
# were made; what was removed is there again. It remains so until the next commit of the file system, after up to 30 s.
# Each directory that was changed has to be fsynced before the pointer is written, or all of them by syncfs().
# Needs root, for file systems on loop devices; mkfs.btrfs, mkfs.xfs and mkfs.ext4 (Debian: btrfs-progs, xfsprogs,
# e2fsprogs).
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
for tool in mkfs.btrfs mkfs.xfs mkfs.ext4 mount unshare; do
    [ -n "$(command -v $tool)" ] || { echo "$tool is missing" >&2; exit 1; }
done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/mounted"
uname -r
unshare --mount python3 - "$folder" <<'END'
import os, pathlib, subprocess, sys

folder = pathlib.Path(sys.argv[1])
mounted, disk, crashed = folder / "mounted", folder / "disk", folder / "crashed"
OLD = {"current": "1", "data": "1", "next is in place": False, "link": False, "directory": False, "old file": True}
NEW = {"current": "2", "data": "2", "next is in place": True, "link": True, "directory": True, "old file": False}


def prepare():
    for name in "files", "versions", "links", "old":
        (mounted / name).mkdir()
    (mounted / "files/next").mkdir()
    for name, content in {"current": "1", "files/data": "1", "files/data.new": "2", "files/next/a": "2", "old/a": "1"}.items():
        (mounted / name).write_text(content)


def sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def update(all_directories):
    os.rename(mounted / "files/data.new", mounted / "files/data")
    os.rename(mounted / "files/next", mounted / "versions/2")
    (mounted / "links/a").symlink_to("../versions/2/a")
    (mounted / "versions/3").mkdir()
    (mounted / "old/a").unlink()
    if all_directories:
        for name in "files", "versions", "links", "old":
            sync(mounted / name)
    (mounted / "current.new").write_text("2")
    sync(mounted / "current.new")
    os.rename(mounted / "current.new", mounted / "current")
    sync(mounted)


def found():
    return {
        "current": (mounted / "current").read_text(),
        "data": (mounted / "files/data").read_text(),
        "next is in place": (mounted / "versions/2/a").exists(),
        "link": (mounted / "links/a").is_symlink(),
        "directory": (mounted / "versions/3").exists(),
        "old file": (mounted / "old/a").exists(),
    }


def after_crash(kind, all_directories):
    """What there is when the device is read as it is just after the last fsync."""
    disk.unlink(missing_ok=True)
    with disk.open("wb") as file:
        file.truncate(512 << 20)
    subprocess.run([f"mkfs.{kind}", "-q", disk], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["mount", "-o", "loop", disk, mounted], check=True)
    prepare()
    subprocess.run(["sync", "-f", mounted], check=True)
    update(all_directories)
    subprocess.run(["cp", "--sparse=always", disk, crashed], check=True)
    assert found() == NEW
    subprocess.run(["umount", mounted], check=True)
    disk.unlink()  # btrfs takes two devices with one UUID for one file system
    subprocess.run(["mount", "-o", "loop", crashed, mounted], check=True)
    result = found()
    subprocess.run(["umount", mounted], check=True)
    return result


for kind in "ext4", "xfs", "btrfs":
    for all_directories in False, True:
        result = after_crash(kind, all_directories)
        print(f"{kind}, {'each directory' if all_directories else 'only that of `current`'} fsynced: {result}")
        lost = kind == "btrfs" and not all_directories
        assert result == ({**OLD, "current": "2"} if lost else NEW), "this has changed"
END
