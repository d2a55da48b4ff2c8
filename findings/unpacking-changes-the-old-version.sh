#!/usr/bin/env bash
# CPython's tarfile, zipfile and shutil.unpack_archive (seen on 3.11) and BusyBox 1.35.0's unzip; beside them GNU tar
# 1.34, bsdtar 3.6.2, UnZip 6.00 and 7-Zip (Debian 12's packages); a new version that is unpacked over the current one,
# of which a copy was made before by hard links (`cp -al`, rsync --link-dest), to go back to.
# Most would guess: an unpacker replaces a file that exists, as tar has always done (it removes the old one first), so
# the copy keeps the old version, as it does when rsync updates the tree.
# Seen: tar, bsdtar, unzip and 7-Zip do so. Python's modules and BusyBox's unzip empty the file that is there and write
# into it, so the copy's file is the new version, too: there is no old version any more to go back to, and programs that
# have the old file open or mapped see the new bytes. Unpack into an empty directory, and rename; or copy by reflink
# (`cp -a --reflink`) instead of by link.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('tar=1.34+dfsg-1*' 'libarchive-tools=3.6.2-1*' 'libarchive13=3.6.2-1*' 'busybox=1:1.35.0-4*' 'unzip=6.0-28*')
needed+=('7zip=22.01+*' 'rsync=3.2.7-1*' libacl1 libnettle8 libxml2 libicu72 libbz2-1.0 libpopt0 libxxhash0 libzstd1
    liblz4-1)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
python3 - "$folder" <<'END'
import os, pathlib, platform, shutil, subprocess, sys, tarfile, zipfile

folder = pathlib.Path(sys.argv[1])
new, current, backup = folder / "new", folder / "current", folder / "backup"
tar, zipped = folder / "version.tar", folder / "version.zip"
libraries = ":".join(map(str, [*folder.glob("lib/*-linux-gnu"), *folder.glob("usr/lib/*-linux-gnu")]))
environment = {**os.environ, "LD_LIBRARY_PATH": libraries, "LC_ALL": "C"}
bsdtar, seven, busybox = folder / "usr/bin/bsdtar", folder / "usr/bin/7zz", folder / "bin/busybox"


def by_tarfile():
    with tarfile.open(tar) as opened:
        opened.extractall(current)


def by_zipfile():
    with zipfile.ZipFile(zipped) as opened:
        opened.extractall(current)


replacing = {
    "rsync": [folder / "usr/bin/rsync", "-rI", f"{new}/", current],
    "GNU tar": [folder / "bin/tar", "-x", "-f", tar, "-C", current],
    "bsdtar, a tar": [bsdtar, "-x", "-f", tar, "-C", current],
    "bsdtar, a zip": [bsdtar, "-x", "-f", zipped, "-C", current],
    "UnZip": [folder / "usr/bin/unzip", "-q", "-o", zipped, "-d", current],
    "7-Zip": [seven, "x", "-y", f"-o{current}", zipped],
    "BusyBox tar": [busybox, "tar", "-x", "-f", tar, "-C", current],
}
writing = {
    "BusyBox unzip": [busybox, "unzip", "-q", "-o", zipped, "-d", current],
    "tarfile": by_tarfile,
    "zipfile": by_zipfile,
    "shutil.unpack_archive": lambda: shutil.unpack_archive(zipped, current),
}


def update(unpack):
    """The contents of the current version and of its copy by hard links, after the update."""
    for path in current, backup:
        shutil.rmtree(path, ignore_errors=True)
    current.mkdir()
    (current / "config").write_text("old")
    shutil.copytree(current, backup, copy_function=os.link)
    if callable(unpack):
        unpack()
    else:
        subprocess.run(unpack, env=environment, check=True, stdout=subprocess.DEVNULL)
    return (current / "config").read_text(), (backup / "config").read_text()


new.mkdir()
(new / "config").write_text("new")
with tarfile.open(tar, "w") as made:
    made.add(new / "config", "config")
with zipfile.ZipFile(zipped, "w") as made:
    made.write(new / "config", "config")
print(f"CPython {platform.python_version()}")
tar_program, unzip = replacing["GNU tar"][0], replacing["UnZip"][0]
for command in ([busybox], [tar_program, "--version"], [bsdtar, "--version"], [unzip, "-v"], [seven]):
    said = subprocess.run(command, env=environment, capture_output=True, text=True).stdout
    print(said.strip().splitlines()[0])
for ways, expected in ((replacing, "old"), (writing, "new")):
    for way, unpack in ways.items():
        found = update(unpack)
        print(f"{way}: the current file is {found[0]}, and that of the copy is {found[1]}")
        assert found == ("new", expected), "this has changed"
END
