#!/usr/bin/env bash
# gzip 1.12 --rsyncable, zstd 1.5.4 --rsyncable and pigz 2.6 --rsyncable, sent by rsync 3.2.7 (Debian 12's packages).
# Most would guess: with --rsyncable the compressed file is cut where the content says so, whatever the content is, and a
# change costs some KB around it: "mysqldump | gzip --rsyncable" before rsync or zsync.
# Seen: gzip cuts where the sum of the last 4,096 bytes is a multiple of 4,096, so where their average is a whole number.
# Records of one kind (SQL dumps, JSON lines, CSV) have nearly the same average everywhere. If it lies between two whole
# numbers, there is no such place: the option changes no byte, and after one more row rsync sends all of the file. Random
# hexadecimal digits, whose average varies more, take a percent. pigz, by another rule, takes a percent for the dump but
# most of the JSON lines. zstd's cuts lie megabytes apart, which leaves up to a half of a file of 8 MiB. Measure with two
# versions of the file itself, or have rsync and zsync read it before it is compressed.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('gzip=1.12-1*' 'pigz=2.6-1*' 'zstd=1.5.4+dfsg2-5*' 'rsync=3.2.7-1*' liblz4-1 liblzma5 libpopt0 libzstd1 zlib1g)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
python3 - "$folder" <<'END'
import json, os, pathlib, random, re, shutil, subprocess, sys

SIZE, INSERTED_AT, WINDOW = 8 << 20, 100, 4096
folder = pathlib.Path(sys.argv[1])
old, new, received = (folder / name for name in ("old", "new", "received"))
libraries = ":".join(map(str, [*folder.glob("lib/*-linux-gnu"), *folder.glob("usr/lib/*-linux-gnu")]))
environment = {**os.environ, "LD_LIBRARY_PATH": libraries, "LC_ALL": "C"}
source = random.Random(1)


def run(name, *arguments):
    program = next(path for path in (folder / "bin" / name, folder / "usr/bin" / name) if path.exists())
    return subprocess.run([program, *arguments], env=environment, check=True, capture_output=True).stdout


def rows(make):
    """As many rows as fill `SIZE` bytes."""
    made, length = [], 0
    while length < SIZE:
        made.append(make())
        length += len(made[-1])
    return made


def share(content, program, *options):
    """What rsync sends of the compressed file when one row has been inserted into it."""
    for path, lines in ((old, content), (new, [*content[:INSERTED_AT], content[0], *content[INSERTED_AT:]])):
        path.write_bytes(run(program, *options, "-c", make_file(lines)))
    shutil.copy(old, received)
    said = run("rsync", "--no-whole-file", "--ignore-times", "--stats", new, received).decode()
    assert received.read_bytes() == new.read_bytes()
    return int(re.search(r"Literal data: ([\d,]+)", said)[1].replace(",", "")) / new.stat().st_size


def make_file(lines):
    path = folder / "content"
    path.write_text("".join(lines))
    return path


def averages(content):
    """The lowest and the highest average of `WINDOW` bytes, and how many windows have a whole number as average."""
    total = lowest = highest = sum(content[:WINDOW])
    whole = 0
    for leaves, enters in zip(content, content[WINDOW:]):
        total += enters - leaves
        lowest, highest, whole = min(lowest, total), max(highest, total), whole + (total % WINDOW == 0)
    return lowest / WINDOW, highest / WINDOW, whole


contents = {
    "SQL": rows(
        lambda: f"INSERT INTO t VALUES ({source.randrange(10**6)},'{source.randrange(10**5)}',{source.random():.4f});\n"
    ),
    "JSON": rows(
        lambda: json.dumps(
            {"id": source.randrange(10**6), "name": f"user{source.randrange(10**5)}", "ok": source.random() < 0.5}
        )
        + "\n"
    ),
    "hex": rows(lambda: source.randbytes(32).hex() + "\n"),
}
programs = {
    "gzip": ("gzip", "-n"),
    "gzip --rsyncable": ("gzip", "-n", "--rsyncable"),
    "pigz --rsyncable": ("pigz", "-n", "--rsyncable"),
    "zstd --rsyncable": ("zstd", "-q", "--rsyncable"),
}
for name in ("gzip", "pigz", "zstd", "rsync"):
    print((run(name, "--version") or name.encode()).decode().splitlines()[0])
shares, whole = {}, {}
for kind, content in contents.items():
    lowest, highest, whole[kind] = averages("".join(content).encode())
    print(f"{kind}: the average of {WINDOW} bytes is {lowest:.2f} to {highest:.2f}, whole at {whole[kind]} places")
    for name, command in programs.items():
        shares[kind, name] = share(content, *command)
        print(f"  one row more in {SIZE >> 20} MiB: of the file by {name} rsync sends {shares[kind, name]:.1%}")
for kind in ("SQL", "JSON"):
    plain = make_file(contents[kind])
    assert not whole[kind]
    assert run("gzip", "-nc", plain) == run("gzip", "-nc", "--rsyncable", plain), "this has changed"
assert shares["SQL", "gzip --rsyncable"] > 0.8
assert whole["hex"] and shares["hex", "gzip --rsyncable"] < 0.02
assert shares["SQL", "pigz --rsyncable"] < 0.02 and shares["JSON", "pigz --rsyncable"] > 0.5, "pigz has changed"
assert max(shares[kind, "zstd --rsyncable"] for kind in contents) > 0.3, "zstd has changed"
END
