#!/usr/bin/env bash
# bsdiff and bspatch 4.3 (Debian 12's package), and zstandard 0.25.0 (python-zstandard) with the old file as its prefix
# or raw dictionary, as `zstd --patch-from` uses it.
# Most would guess: a patch applied to another version than the one that it was made from is refused, as by xdelta3 and
# by `zstd -d --patch-from`, or at least fails somewhere.
# Seen: bspatch ends with exit code 0 and writes a file of the right length, a mixture: its format has no checksum of
# either file, nor the old one's length. So does zstandard, if the other file is not shorter: a raw dictionary has no ID,
# and the library, unlike the program, writes no checksum unless write_checksum is set. A client that updates in steps,
# or whose file was edited, has to compare a checksum before and after.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('bsdiff=4.3-23*' 'zstd=1.5.4+dfsg2-5*' 'xdelta3=3.0.11-dfsg-1.2*' libbz2-1.0 liblz4-1 liblzma5 libzstd1)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check zstandard==0.25.0
"$folder/venv/bin/python" - "$folder" <<'END'
import os, pathlib, random, subprocess, sys
import zstandard

folder = pathlib.Path(sys.argv[1])
libraries = ":".join(map(str, [*folder.glob("lib/*-linux-gnu"), *folder.glob("usr/lib/*-linux-gnu")]))
environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
one, two, patch, result = (folder / name for name in ("one", "two", "patch", "result"))
first = random.Random(1).randbytes(200_000)
second = first[:100_000] + first[100_064:]
edited = second[:50_000] + bytes(64) + second[50_064:]
third = second[:150_000] + b"changed" + second[150_007:]


def run(name, *arguments):
    command = [folder / "usr/bin" / name, *arguments]
    return subprocess.run(command, env=environment, capture_output=True).returncode


def applied(make, apply):
    """The exit code for a patch from `second` to `third` that is applied to other files, and whether that is `third`."""
    found = []
    one.write_bytes(second)
    two.write_bytes(third)
    assert run(*make) == 0
    for old in second, first, edited:
        one.write_bytes(old)
        result.unlink(missing_ok=True)
        code = run(*apply)
        content = result.read_bytes() if code == 0 else b""
        found.append((code, len(content) == len(third), content == third))
    return found


tools = {
    "bspatch": (["bsdiff", one, two, patch], ["bspatch", one, result, patch]),
    "xdelta3": (["xdelta3", "-f", "-e", "-s", one, two, patch], ["xdelta3", "-d", "-s", one, patch, result]),
    "zstd": (
        ["zstd", "-qf", f"--patch-from={one}", two, "-o", patch],
        ["zstd", "-qd", f"--patch-from={one}", patch, "-o", result],
    ),
}
found = {name: applied(*commands) for name, commands in tools.items()}


def prefix(data):
    return zstandard.ZstdCompressionDict(data, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def by_library(old, **options):
    frame = zstandard.ZstdCompressor(dict_data=prefix(second), **options).compress(third)
    try:
        content = zstandard.ZstdDecompressor(dict_data=prefix(old)).decompress(frame)
    except zstandard.ZstdError:
        return 1, False, False
    return 0, len(content) == len(third), content == third


print(f"bsdiff 4.3, zstd 1.5.4, xdelta3 3.0.11, zstandard {zstandard.__version__}")
found["zstandard"] = [by_library(old) for old in (second, first, edited)]
found["zstandard with write_checksum"] = [by_library(old, write_checksum=True) for old in (second, first, edited)]
for name, results in found.items():
    print(f"{name}:")
    for old, (code, length, right) in zip(("the old file", "the one before it", "an edited one"), results, strict=True):
        print(f"  applied to {old}: exit code {code}, right length: {length}, right bytes: {right}")
assert all(results[0] == (0, True, True) for results in found.values())
for name in "bspatch", "zstandard":
    assert found[name][1:] == [(0, True, False)] * 2, "this has changed"
for name in "xdelta3", "zstd", "zstandard with write_checksum":
    assert found[name][1:] == [(1, False, False)] * 2
END
