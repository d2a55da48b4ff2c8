#!/usr/bin/env bash
# rsync 3.2.7 (Debian 12's package) with -P or --partial, which are to keep what an interrupted transfer has received.
# Most would guess: the half is kept beside the file, for the next run; the old file stays until the new one is whole, as
# it does without the option.
# Seen: the half takes the place of the old file, under its name, with a date of 1970. `rsync -aP site/ host:/srv/site/`,
# interrupted or cut off, has replaced a good file by the beginning of another one, which the web server then sends with
# its length, 200 and an ETag, to everybody, until the next run has ended. With --partial-dir the old file stays.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(cd "$folder"; apt-get download -q 'rsync=3.2.7-1*' libpopt0 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
LD_LIBRARY_PATH=$(echo "$folder"/usr/lib/*-linux-gnu) python3 - "$folder" <<'END'
import os, pathlib, subprocess, sys, time

SIZE = 32 << 20
folder = pathlib.Path(sys.argv[1])
rsync = folder / "usr/bin/rsync"


def interrupt(number, *options):
    """What the name leads to after a transfer that was ended in the middle, and its year."""
    source, target = folder / f"source{number}", folder / f"target{number}"
    source.mkdir()
    target.mkdir()
    (source / "model.bin").write_bytes(b"new " * (SIZE // 4))
    (target / "model.bin").write_bytes(b"old " * (SIZE // 4))
    os.utime(target / "model.bin", (1_700_000_000, 1_700_000_000))
    command = [rsync, "-a", "--bwlimit=4m", *options, f"{source}/", f"{target}/"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not any(path.stat().st_size > SIZE // 8 for path in target.glob(".model.bin.*")):
        assert process.poll() is None, "it has ended"
        time.sleep(0.05)
    process.terminate()
    code = process.wait()
    while any(target.glob(".model.bin.*")):  # the receiving process cleans up
        time.sleep(0.05)
    content = (target / "model.bin").read_bytes()
    year = time.gmtime((target / "model.bin").stat().st_mtime).tm_year
    return code, content[:3].decode(), len(content), year


print(subprocess.run([rsync, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0])
plain, partial, aside = interrupt(0), interrupt(1, "--partial"), interrupt(2, "--partial-dir=.rsync-partial")
for name, found in (("plain", plain), ("--partial", partial), ("--partial-dir", aside)):
    print(f"{name}: exit code {found[0]}; the file is {found[2]} bytes of the {found[1]} one, of {found[3]}")
assert plain == aside == (20, "old", SIZE, 2023)
assert partial[:2] == (20, "new") and 0 < partial[2] < SIZE and partial[3] == 1970, "this has changed"
END
