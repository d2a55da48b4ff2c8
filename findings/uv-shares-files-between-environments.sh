#!/usr/bin/env bash
# uv 0.13.9, its defaults on Linux, on a file system without reflinks (ext4, overlay); pip 26.3 beside it.
# Most would guess: an environment is a copy. What somebody changes in one, to try something or by a deployment that
# writes in place (rsync --inplace, `>>`, editors that keep the inode), concerns that one, as with pip.
# Seen: the files are hard links to uv's cache. A line that is added to a module in one environment is in all others that
# have the package, and in those that are made afterwards, and `uv pip check` has no objection. Where the wheels are in a
# directory (--find-links), --reinstall brings the changed file again, since it comes from the cache; `uv cache clean` of
# the package and a reinstallation mend it. What writes into installed files has to replace them by a rename, or the
# environments have to be made with --link-mode=copy.
# Needs no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
touch "$folder/one"
if cp --reflink=always "$folder/one" "$folder/other" 2>/dev/null; then
    echo "skipped: $folder is on a file system with reflinks; set TMPDIR to one without"
    exit 0
fi
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check uv==0.13.9 pip==26.3
"$folder/venv/bin/pip" download -q --disable-pip-version-check --no-deps -d "$folder/wheels" six==1.17.0
"$folder/venv/bin/python" - "$folder" <<'END'
import os, pathlib, subprocess, sys

folder = pathlib.Path(sys.argv[1])
uv = folder / "venv/bin/uv"
environment = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_", "PYTHON"))}
environment |= {"UV_CACHE_DIR": str(folder / "cache"), "UV_NO_CONFIG": "1", "PIP_CONFIG_FILE": os.devnull}
WHEELS = ("--no-index", "--find-links", folder / "wheels")


def run(*command):
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def python(name):
    return folder / name / "bin/python"


def install(name, *options):
    run(uv, "pip", "install", "--python", python(name), *WHEELS, *options, "six==1.17.0")


def make(name, *options):
    run(uv, "venv", "--python", sys.executable, folder / name)
    install(name, *options)


def has(name):
    return run(python(name), "-c", "import six; print(getattr(six, 'changed', 'as published'))")


make("first")
make("second")
make("copied", "--link-mode=copy")
run(sys.executable, "-m", "venv", folder / "by-pip")
run(python("by-pip"), "-m", "pip", "install", "--no-index", "--find-links", folder / "wheels", "six==1.17.0")
module = next((folder / "first").glob("lib/python*/site-packages/six.py"))
with module.open("a") as file:
    file.write("changed = 'changed in the first'\n")
make("made-later")
names = module.stat().st_nlink
found = {name: has(name) for name in ("first", "second", "made-later", "copied", "by-pip")}
run(uv, "pip", "check", "--python", python("second"))
install("second", "--reinstall")
found["second, after --reinstall"] = has("second")
run(uv, "cache", "clean", "six")
install("second", "--reinstall")
found["second, after uv cache clean six and --reinstall"] = has("second")
print(f"{run(uv, '--version')}; the file has {names} names")
for name, what in found.items():
    print(f"{name}: {what}")
changed = {"first", "second", "made-later", "second, after --reinstall"}
assert {name for name, what in found.items() if what == "changed in the first"} == changed, "this has changed"
assert {what for name, what in found.items() if name not in changed} == {"as published"}
END
