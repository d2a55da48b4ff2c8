#!/usr/bin/env bash
# rsync 3.2.7 (Debian 12's package) with --inplace from one directory to another, on XFS with reflinks (Linux; seen on
# 6.18); the target has a copy by `cp --reflink`, which shares its blocks as a snapshot does.
# Most would guess: --inplace writes what differs, and leaves the rest of the file alone, which is what it is for beside
# snapshots: "it can also help keep a copy-on-write filesystem snapshot from diverging the entire contents of a file that
# only has minor changes" (rsync(1)).
# Seen: if both paths are local (so also on an NFS mount, a USB disk, a volume of a container), rsync does not compare:
# --whole-file is the default then. One byte in 64 MiB, and all 64 MiB are written; the snapshot shares nothing any more,
# and the file takes its size once more at each run. With --no-whole-file 4 KiB are written. The manual page tells the
# default elsewhere, at -W; --stats shows it ("Literal data").
# Needs root, for a file system on a loop device; mkfs.xfs (Debian: xfsprogs), apt-get and dpkg of Debian 12.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
folder=$(mktemp -d)
trap 'umount -q "$folder/mounted" || true; rm -rf "$folder"' EXIT
(
    cd "$folder"
    apt-get download -q 'rsync=3.2.7-1*' libpopt0 libxxhash0 libzstd1 liblz4-1 2>apt >/dev/null || { cat apt; exit 1; }
)
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder/debian"; done
mkdir "$folder/mounted"
truncate -s 512M "$folder/disk"
mkfs.xfs -q "$folder/disk"
mount -o loop "$folder/disk" "$folder/mounted"
uname -r
python3 - "$folder" <<'END'
import os, pathlib, subprocess, sys

SIZE = 64 << 20
folder = pathlib.Path(sys.argv[1])
source, target, snapshot = folder / "source", folder / "mounted/file", folder / "mounted/snapshot"
rsync = folder / "debian/usr/bin/rsync"
libraries = ":".join(map(str, (folder / "debian/usr/lib").glob("*-linux-gnu")))
environment = {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": libraries, "LC_ALL": "C"}


def used():
    os.sync()
    disk = os.statvfs(target)
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize


def run(*options):
    """What the file system has to keep more after one byte has changed, and what rsync says that it sent."""
    source.write_bytes(os.urandom(SIZE))
    target.write_bytes(source.read_bytes())
    subprocess.run(["cp", "--reflink=always", target, snapshot], check=True)
    before = used()
    with source.open("r+b") as file:
        file.seek(SIZE // 3)
        byte = file.read(1)[0]
        file.seek(SIZE // 3)
        file.write(bytes([byte ^ 1]))
    command = [rsync, "--ignore-times", "--inplace", "--stats", *options, source, target]
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert target.read_bytes() == source.read_bytes()
    literal = next(line for line in said.splitlines() if line.startswith("Literal data"))
    return used() - before, literal


said = subprocess.run([rsync, "--version"], env=environment, check=True, capture_output=True, text=True).stdout
print(said.splitlines()[0])
plain, delta = run(), run("--no-whole-file")
for name, (more, literal) in (("--inplace", plain), ("--inplace --no-whole-file", delta)):
    print(f"{name}: one byte of {SIZE >> 20} MiB: {more / (1 << 20):.2f} MiB more are in use; {literal}")
assert plain[0] >= SIZE, "this has changed"
assert delta[0] < 1 << 20
END
