#!/usr/bin/env bash
# CPython's zipimport (seen on 3.11), a program that is shipped as one file, as `python -m zipapp` makes it, that runs
# for days, imports some modules only when they are needed, and reads a file that came with it. Meanwhile its file is
# replaced by the next version, by a rename.
# Most would guess: the running program goes on as the old version, as any program whose file is replaced by a rename;
# at least what no longer fits is an error.
# Seen: zipimport keeps the archive's index from the start, and opens the path anew for each module and file. So it reads
# the new archive at the old places. If nothing before it has another length, the old program gets the new module, and
# of a file that has become longer the beginning, cut at the old length: half of a table, and no error. If something
# before it has, each further import fails with "bad local file header", though both versions have the module. Import
# all at the start and read the files then, or give each version a name of its own and restart. (Known: CPython issue
# 63281.)
# Needs no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 - "$folder" <<'END'
import os, pathlib, platform, subprocess, sys, zipfile

folder = pathlib.Path(sys.argv[1])
MAIN = """
import sys

VERSION = {version!r}
print("ready", flush=True)
sys.stdin.readline()  # a server waits for its first request
try:
    import pkgutil
    import report

    print("main", VERSION, "report", report.VERSION, hasattr(report, "total"))
    print("rows", pkgutil.get_data("report", "table.txt").decode().split())
except Exception as error:
    print(type(error).__name__, str(error).partition(":")[0])
"""
REPORT = "VERSION = {version!r}\n\n\ndef rows():\n    pass\n\n\ndef total():\n    pass\n"


def build(target, version, compression, more_in_main="", rows=2):
    """As zipapp does, which leaves the order of the members to the file system before Python 3.12."""
    with zipfile.ZipFile(target, "w", compression) as archive:
        archive.writestr("__main__.py", MAIN.format(version=version) + more_in_main)
        archive.writestr("report.py", REPORT.format(version=version))
        archive.writestr("table.txt", "".join(f"{version}-{row}\n" for row in range(rows)))


def run(compression=zipfile.ZIP_STORED, **of_the_next):
    """What the old version says when it is asked after the next one was put in its place."""
    app = folder / "app.pyz"
    build(app, "1.0", compression)
    build(folder / "next", "2.0", compression, **of_the_next)
    with subprocess.Popen([sys.executable, app], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline() == "ready\n"
        os.replace(folder / "next", app)
        said, _ = program.communicate("request\n")
    assert program.returncode == 0
    return said.splitlines()


print("Python", platform.python_version())
found = {
    "nothing has another length": run(),
    "the last file is longer": run(rows=4),
    "the first file is longer": run(more_in_main="# more\n"),
    "the first file is longer, compressed": run(zipfile.ZIP_DEFLATED, more_in_main="# more\n"),
}
for what, said in found.items():
    print(f"{what}: {'; '.join(said)}")
mixture = ["main 1.0 report 2.0 True", "rows ['2.0-0', '2.0-1']"]
assert found["nothing has another length"] == found["the last file is longer"] == mixture, "this has changed"
failed = ["ZipImportError bad local file header"]
assert found["the first file is longer"] == found["the first file is longer, compressed"] == failed, "this has changed"
END
