#!/usr/bin/env bash
# GNU tar 1.34, bsdtar 3.6.2, BusyBox 1.35.0 (Debian 12's packages) and CPython's tarfile (seen on 3.11), an archive of
# files that were hard links to each other (snapshots by `cp -al` or rsync --link-dest, /usr/lib/git-core, uv's
# environments), of which one is extracted where an earlier version lies: `tar -xf backup.tar b`.
# Most would guess: what is extracted has the archive's content, or extracting it fails.
# Seen: the second name has no content in the archive, only the first one's name, and all four make a link to what has
# that name on the disk. If that is the old version, the new name has the old content, with exit code 0 and no word; and
# both are one file from then on, so that what is written into one changes the other. `--exclude=a` does the same, and
# so does --skip-old-files, with nothing but the archive named. Only where the first name does not exist is it an error
# (tarfile takes the content from the archive then). Extract into an empty directory, all names, and move the file from
# there.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('tar=1.34+dfsg-1*' 'libarchive-tools=3.6.2-1*' 'libarchive13=3.6.2-1*' 'busybox=1:1.35.0-4*')
needed+=(libacl1 libnettle8 libxml2 libicu72)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
python3 - "$folder" <<'END'
import os, pathlib, platform, shutil, subprocess, sys, tarfile

folder = pathlib.Path(sys.argv[1])
archive, tree = folder / "backup.tar", folder / "tree"
libraries = ":".join(map(str, [*folder.glob("lib/*-linux-gnu"), *folder.glob("usr/lib/*-linux-gnu")]))
environment = {**os.environ, "LD_LIBRARY_PATH": libraries, "LC_ALL": "C"}
gnu, bsd, busybox = folder / "bin/tar", folder / "usr/bin/bsdtar", folder / "bin/busybox"
extract = ["-x", "-f", archive, "-C", tree]
ways = {
    "GNU tar -x b": [gnu, *extract, "b"],
    "GNU tar -x --exclude=a": [gnu, *extract, "--exclude=a"],
    "GNU tar -x --skip-old-files": [gnu, *extract, "--skip-old-files"],
    "bsdtar -x b": [bsd, *extract, "b"],
    "bsdtar -x --exclude a": [bsd, *extract, "--exclude", "a"],
    "BusyBox tar -x b": [busybox, "tar", *extract, "b"],
    "tarfile.extract('b')": None,
}


def put(has_old):
    """The tree, with the old version of `a`, or with nothing."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    if has_old:
        (tree / "a").write_text("old")


def take(command):
    """Exit code and output of an extraction, the content of `b`, and whether it is the same file as `a`."""
    if command is None:
        with tarfile.open(archive) as opened:
            opened.extract("b", tree)
        result = (0, "")
    else:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        result = (done.returncode, done.stdout + done.stderr)
    a, b = tree / "a", tree / "b"
    return *result, b.read_text() if b.exists() else None, a.exists() and b.exists() and a.samefile(b)


put(True)
(tree / "a").write_text("new")
os.link(tree / "a", tree / "b")
subprocess.run([gnu, "-c", "-f", archive, "-C", tree, "a", "b"], env=environment, check=True)
for command in ([gnu, "--version"], [bsd, "--version"], [busybox]):
    print(subprocess.run(command, env=environment, capture_output=True, text=True).stdout.splitlines()[0])
print(f"CPython {platform.python_version()}")
for way, command in ways.items():
    put(True)
    found = take(command)
    print(f"{way}, where an old `a` is: exit code {found[0]}, b is {found[2]!r}, the same file as `a`: {found[3]}")
    assert found == (0, "", "old", True), "this has changed"
for way in "GNU tar -x b", "bsdtar -x b", "BusyBox tar -x b":
    put(False)
    found = take(ways[way])
    print(f"{way}, in an empty directory: exit code {found[0]}")
    assert found[0] and found[2] is None
END
