#!/usr/bin/env bash
# zstd 1.5.4 --patch-from and xdelta3 3.0.11 (Debian 12's packages), defaults, an old file of 64 MiB and a new one that is
# much shorter: a part that is shipped alone from now on, an archive or a database from which most was removed.
# Most would guess: a patch has what is new, wherever in the old file the rest lies; zstd holds all of the old file in
# memory for that, and says so when it can't. The shorter the new file, the less there is to patch.
# Seen: window and tables are made for the length of the new file, and the old one goes through them from its beginning.
# What they still know in the end is the last part, of a few times the new file's length. 4 MiB out of the beginning or
# the middle make a patch of 4 MiB, with all of the data in it, 4 MiB out of the end one of some hundred bytes; 32 MiB
# out of the beginning are found. --long=28 does not help, and nothing is said. xdelta3 needs some ten bytes for each.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('xdelta3=3.0.11-dfsg-1*' 'zstd=1.5.4+dfsg2-5*' liblz4-1 liblzma5 libzstd1)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
python3 - "$folder" <<'END'
import os, pathlib, random, subprocess, sys

MIB = 1 << 20
folder = pathlib.Path(sys.argv[1])
zstd, xdelta3 = folder / "usr/bin/zstd", folder / "usr/bin/xdelta3"
libraries = ":".join(map(str, [*folder.glob("lib/*-linux-gnu"), *folder.glob("usr/lib/*-linux-gnu")]))
environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
old, new, patch, made = (folder / name for name in ("old", "new", "patch", "made"))
content = random.Random(1).randbytes(64 * MIB)
old.write_bytes(content)


def run(*command):
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)


def sizes(begin, length):
    """Of the patches by zstd, by zstd --long=28 and by xdelta3, in bytes; each makes the new file."""
    new.write_bytes(content[begin:][:length])
    results = []
    for options in ((), ("--long=28",)):
        run(zstd, "-q", "-f", *options, f"--patch-from={old}", new, "-o", patch)
        run(zstd, "-q", "-f", "-d", *options, f"--patch-from={old}", patch, "-o", made)
        assert made.read_bytes() == new.read_bytes()
        results.append(patch.stat().st_size)
    run(xdelta3, "-f", "-e", "-s", old, new, patch)
    run(xdelta3, "-f", "-d", "-s", old, patch, made)
    assert made.read_bytes() == new.read_bytes()
    return *results, patch.stat().st_size


for program, option in ((zstd, "--version"), (xdelta3, "-V")):
    said = subprocess.run([program, option], env=environment, capture_output=True, text=True)
    print((said.stdout + said.stderr).splitlines()[0])
found = {}
for begin, length in ((0, 4), (30, 4), (60, 4), (0, 32)):
    plain, long, other = found[begin, length] = sizes(begin * MIB, length * MIB)
    print(f"{length} MiB at {begin} of 64 MiB: zstd {plain} bytes, with --long=28 {long}, xdelta3 {other}")
for (begin, length), (plain, long, other) in found.items():
    if (begin, length) in ((0, 4), (30, 4)):
        assert min(plain, long) > 4 * MIB * 0.99, "this has changed"
    else:
        assert max(plain, long) < 10_000, "this has changed"
    assert other < 1_000, "this has changed"
END
