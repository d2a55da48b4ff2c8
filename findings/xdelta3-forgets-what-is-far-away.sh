#!/usr/bin/env bash
# xdelta3 3.0.11 and zstd 1.5.4 --patch-from (Debian 12's packages), defaults, an old file of 80 MiB.
# Most would guess: a delta has what is new, wherever in the old file the rest lies. So when space or something else is
# put in near the beginning (a partition, a table of contents, an archive's first member), the delta has just that.
# Seen: xdelta3 looks into 64 MiB of the old file around the place that it has reached in the new one. What is put in
# moves all that follows, and as soon as that is more than 32 MiB nothing is found behind the first 64 MiB: 31 MiB of
# zeros make a delta of some bytes, 33 MiB of zeros one of 16 MiB. -B with the file's size (and so much memory) finds
# all, and so does zstd --patch-from, by itself. Nothing says that a limit was reached.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('xdelta3=3.0.11-dfsg-1*' 'zstd=1.5.4+dfsg2-5*' liblz4-1 liblzma5 libzstd1)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
python3 - "$folder" <<'END'
import os, pathlib, subprocess, sys

MIB, SIZE = 1 << 20, 80
folder = pathlib.Path(sys.argv[1])
old, new, delta = (folder / name for name in ("old", "new", "delta"))
libraries = ":".join(map(str, [*folder.glob("lib/*-linux-gnu"), *folder.glob("usr/lib/*-linux-gnu")]))
environment = {**os.environ, "LD_LIBRARY_PATH": libraries, "LC_ALL": "C"}


def run(name, *arguments):
    command = [folder / "usr/bin" / name, *arguments]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


def by_xdelta3(*options):
    return run("xdelta3", "-e", "-f", "-1", *options, "-s", old, new, delta)  # -1: as large here, and faster


def by_zstd():
    return run("zstd", "-qf", "--patch-from", old, new, "-o", delta)


print(run("xdelta3", "-V").splitlines()[0][:21], run("zstd", "--version").strip(), sep="; ")
content = os.urandom(SIZE * MIB)
old.write_bytes(content)
found = {}
for added, ways in (
    (31, {"xdelta3": by_xdelta3}),
    (33, {"xdelta3": by_xdelta3, "xdelta3 -B": lambda: by_xdelta3("-B", str(SIZE * MIB)), "zstd": by_zstd}),
):
    new.write_bytes(bytes(added * MIB) + content)
    for name, make in ways.items():
        said = make()
        found[name, added] = delta.stat().st_size
        print(f"{added} MiB of zeros before {SIZE}: the delta by {name} has {found[name, added]} bytes", said.strip())
        assert name == "zstd" or not said
assert found["xdelta3", 31] < MIB and found["xdelta3", 33] > 15 * MIB, "this has changed"
assert found["xdelta3 -B", 33] < MIB and found["zstd", 33] < MIB
END
