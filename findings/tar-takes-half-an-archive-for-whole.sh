#!/usr/bin/env bash
# GNU tar 1.34, bsdtar 3.6.2 (Debian 12's packages) and CPython's tarfile (seen on 3.11), an archive that was cut off,
# as by an upload that has not ended, or in `curl URL | tar -x`, where only curl's exit code tells.
# Most would guess: a cut-off archive is an error, since an archive ends with two blocks of zeros (pax(1), ustar).
# Seen: none asks for them. Where the cut is between two members all three extract what there is, say nothing, and end
# with exit code 0. Members begin at multiples of 512, and so do most buffers: an archive of small files passes wherever
# it is cut at a multiple of 64 KiB. What mirrors a tree from it then takes the other files for deleted. Only a cut
# within a file is an error. Compare a length or a checksum before the archive is used.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
needed=('tar=1.34+dfsg-1*' 'libarchive-tools=3.6.2-1*' 'libarchive13=3.6.2-1*' libacl1 libnettle8 libxml2 libicu72)
(cd "$folder"; apt-get download -q "${needed[@]}" 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder"; done
python3 - "$folder" <<'END'
import io, os, pathlib, platform, subprocess, sys, tarfile, tempfile

FILES, STEP = 1000, 64 << 10
folder = pathlib.Path(sys.argv[1])
libraries = ":".join(map(str, [*folder.glob("lib/*-linux-gnu"), *folder.glob("usr/lib/*-linux-gnu")]))
environment = {**os.environ, "LD_LIBRARY_PATH": libraries, "LC_ALL": "C"}
programs = {"GNU tar": folder / "bin/tar", "bsdtar": folder / "usr/bin/bsdtar"}


def archive(size):
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as opened:
        for number in range(FILES):
            member = tarfile.TarInfo(f"{number:04}")
            member.size = size
            opened.addfile(member, io.BytesIO(bytes(size)))
    return written.getvalue()


def extract(name, content):
    """The exit code or exception, what was said, and how many files there are."""
    with tempfile.TemporaryDirectory(dir=folder) as into:
        if name == "tarfile":
            try:
                with tarfile.open(fileobj=io.BytesIO(content), mode="r|*") as opened:
                    opened.extractall(into)
                result = (0, "")
            except tarfile.TarError as error:
                result = (1, str(error))
        else:
            command = [programs[name], "-x", "-f", "-", "-C", into]
            done = subprocess.run(command, env=environment, input=content, capture_output=True)
            result = (done.returncode, (done.stdout + done.stderr).decode())
        return *result, len(os.listdir(into))


for name, program in programs.items():
    said = subprocess.run([program, "--version"], env=environment, capture_output=True, text=True).stdout
    print(said.splitlines()[0])
print(f"CPython {platform.python_version()}")
small, large = archive(100), archive(2000)
cuts = range(STEP, FILES * 1024, STEP)
for name in (*programs, "tarfile"):
    found = [extract(name, small[:cut]) for cut in cuts]
    middle = extract(name, large[: len(large) // 2 + 1024])
    silent = sum((code, said) == (0, "") for code, said, _ in found)
    print(f"{name}: {silent} of {len(cuts)} cut-off archives pass, the first with {found[0][2]} files of {FILES}")
    print(f"  one that is cut within a file: exit code {middle[0]}, {middle[1].strip().splitlines()[:1]}")
    assert silent == len(cuts) and [count for *_, count in found] == [cut // 1024 for cut in cuts], "this has changed"
    assert middle[0] != 0
END
