#!/usr/bin/env bash
# rsync 3.2.7 (Debian 12's package; so does 3.5.0).
# Most would guess: files are put in place in the order of their names, so "objects/..." before "pointer.json"; and with
# --delay-updates, which renames all files at the end (rsync(1)), none is in place before the others have arrived.
# Seen: a directory's own files come before everything below its subdirectories, whatever their names are. So an index,
# a repository's metadata or an HTML page at the top is public before the files that it refers to. --delay-updates keeps
# that order among the renames. Two runs are needed: one with --exclude, one for the index.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(cd "$folder"; apt-get download -q 'rsync=3.2.7-1*' 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
dpkg -x "$folder"/rsync_*.deb "$folder/rsync"
python3 - "$folder" <<'END'
import pathlib, subprocess, sys

folder = pathlib.Path(sys.argv[1])
rsync, site = str(folder / "rsync/usr/bin/rsync"), folder / "site"
(site / "objects").mkdir(parents=True)
for number in range(3000):
    (site / f"objects/{number:04}").write_text(f"{number}")
(site / "pointer.json").write_text('{"release": 2}')
print(subprocess.run([rsync, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0])
for options in [], ["--delay-updates"]:
    target = folder / f"target{len(options)}"
    target.mkdir()
    command = [rsync, "-a", *options, "--out-format=%n", f"{site}/", f"{target}/"]
    sent = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    sent = [name for name in sent if not name.endswith("/")]
    placed = [path for path in target.rglob("*") if path.is_file()]  # a rename sets a file's change time
    placed.sort(key=lambda path: path.stat().st_ctime_ns)
    later = sum(path.stat().st_ctime_ns > (target / "pointer.json").stat().st_ctime_ns for path in placed)
    print(f"{' '.join(options) or 'plain'}: sent first: {sent[0]}; put in place after it: {later} of 3000 objects")
    assert sent[0] == "pointer.json" and later > 2000, "this has changed"
END
