#!/usr/bin/env bash
# CPython's zipfile with mode "a" (seen on 3.11); beside it Zip 3.0, 7-Zip 26.02 and UnZip 6.00 (Debian 12's packages).
# Most would guess: appending adds something behind what is there. Until the new index (central directory) is written and
# the file is closed, the old one is valid, so that others go on reading the archive; and if the program is killed, the
# new member is missing.
# Seen: zipfile puts the new member where the index was. From its first byte on nobody can open the archive, for as long
# as it is open for appending; and if the program is killed, no member can be read any more, old or new, by zipfile, unzip
# or 7-Zip, though the data of all are there. zip and 7-Zip write a new file and rename it: readers see the old archive
# until the end, also when the program is killed. Append to a copy, and rename that. What is built on zipfile does the
# same (zarr's ZipStore with mode "a").
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('zip=3.0-13*' 'unzip=6.0-28*' '7zip=22.01+*')
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
cd "$folder"
python3 - "$folder" <<'END'
import pathlib, platform, random, subprocess, sys, zipfile

folder = pathlib.Path(sys.argv[1])
archive, zip_program, seven = folder / "archive.zip", folder / "usr/bin/zip", folder / "usr/bin/7zz"
MEMBERS = {f"member {number}": random.Random(number).randbytes(5_000) for number in range(10)}
CHUNK = random.Random(10).randbytes(1 << 20)
APPEND = """
import sys, zipfile
with zipfile.ZipFile("archive.zip", "a").open("new", "w") as member:
    while piece := sys.stdin.buffer.read1():
        member.write(piece)
        print(len(piece), flush=True)
"""
ways = {
    "zipfile": [sys.executable, "-c", APPEND],
    "zip": [zip_program, "archive.zip", "-"],
    "7-Zip": [seven, "a", "-tzip", "-sinew", "archive.zip"],
}


def readers():
    """Who can read the ten members."""
    found = []
    try:
        with zipfile.ZipFile(archive) as opened:
            assert all(opened.read(name) == content for name, content in MEMBERS.items())
        found.append("zipfile")
    except zipfile.BadZipFile:
        pass
    for name, command in (("unzip", [folder / "usr/bin/unzip", "-t"]), ("7-Zip", [seven, "t"])):
        if subprocess.run([*command, archive], capture_output=True).returncode == 0:
            found.append(name)
    return found


def append_and_kill(command):
    """Who can read the archive while something is appended to it, and after that program was killed."""
    archive.unlink(missing_ok=True)
    with zipfile.ZipFile(archive, "w") as opened:
        for name, content in MEMBERS.items():
            opened.writestr(name, content)
    assert readers() == ["zipfile", "unzip", "7-Zip"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, cwd=folder) as process:
        process.stdin.write(CHUNK)
        process.stdin.flush()
        if command == ways["zipfile"]:
            read = 0
            while read < len(CHUNK):  # it has written what it was given
                read += int(process.stdout.readline())
        meanwhile = readers()
        process.kill()
    return meanwhile, readers()


print(f"CPython {platform.python_version()}; {len(MEMBERS)} members, one more is being appended")
for program, word in ((zip_program, "This is Zip"), (seven, "7-Zip")):
    said = subprocess.run([program, *(["-v"] if program == zip_program else [])], capture_output=True, text=True).stdout
    print(next(line for line in said.splitlines() if line.startswith(word)))
for name, command in ways.items():
    meanwhile, afterwards = append_and_kill(command)
    print(f"{name} appends: read by {meanwhile or 'nobody'}; after it was killed by {afterwards or 'nobody'}")
    everybody = ["zipfile", "unzip", "7-Zip"]
    if name == "zipfile":
        assert (meanwhile, afterwards) == ([], []), "this has changed"
    else:
        assert meanwhile == afterwards == everybody, name
END
