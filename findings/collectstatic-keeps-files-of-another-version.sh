#!/usr/bin/env bash
# Django 5.2.19's collectstatic, its defaults, and uv 0.13.9, by which a package with static files is changed to another
# version and back, as by a deployment and its rollback; pip 26.3 beside it.
# Most would guess: after the installation of a version and collectstatic, STATIC_ROOT has that version's static files.
# Seen: collectstatic copies a file if its date is later than that of the copy, which has the time of the last
# collectstatic; size and content do not matter. What uv installs is linked from its cache and has the date at which it
# came there, once. So from the second time on that a host goes to a version, its files are older than the copies of the
# version before: "0 static files copied, 1 unmodified", the code is of one version and what browsers get is of the
# other, for good. pip writes the files at each installation, so there all is well. The same holds for whatever brings
# back files with their dates (rsync -a, tar, cp -a, reverted images). `collectstatic --clear` copies everything.
# Needs no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/tools"
"$folder/tools/bin/pip" install -q --disable-pip-version-check uv==0.13.9 setuptools==84.2.1 wheel==0.45.1
for installer in uv pip; do
    python3 -m venv "$folder/$installer"
    "$folder/$installer/bin/pip" install -q --disable-pip-version-check pip==26.3 django==5.2.19
done
"$folder/tools/bin/python" - "$folder" <<'END'
import os, pathlib, re, subprocess, sys, time

folder = pathlib.Path(sys.argv[1])
wheels = folder / "wheels"
environment = {**os.environ, "UV_CACHE_DIR": str(folder / "cache"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def run(*command, **options):
    done = subprocess.run(command, env=environment, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


for version in "1", "2":
    source = folder / f"source{version}"
    package = source / "shop"
    (package / "static").mkdir(parents=True)
    (package / "__init__.py").write_text(f"VERSION = '{version}'\n")
    (package / "static/shop.js").write_text(f"version {version}\n")
    (source / "setup.py").write_text(
        f"from setuptools import setup\nsetup(name='shop', version='{version}', packages=['shop'], "
        "package_data={'shop': ['static/*']})\n"
    )
    build = ("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", wheels, source)
    run(sys.executable, *build)


def deploy(installer, version):
    """Install a version and collect; what collectstatic says, and the versions of the code and of the static file."""
    python = folder / installer / "bin/python"
    options = ["--no-index", "--find-links", wheels, f"shop=={version}"]
    if installer == "uv":
        run(folder / "tools/bin/uv", "pip", "install", "-q", "--python", python, *options)
    else:
        run(python, "-m", "pip", "install", "-q", *options)
    root = folder / f"{installer}-static"
    settings = f"""
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["django.contrib.staticfiles", "shop"], STATIC_ROOT={str(root)!r}, STATIC_URL="static/"
)
import django, shop
from django.core.management import call_command
django.setup()
call_command("collectstatic", interactive=False)
print("code", shop.VERSION)
"""
    said = run(python, "-c", settings, cwd=folder)
    copied, code = re.search(r"\d+ static files? copied", said)[0], said.rpartition("code ")[2]
    collected = (root / "shop.js").read_text().removeprefix("version ").strip()
    print(f"{installer}, version {version}: {copied}; the code is version {code}, the static file {collected}")
    time.sleep(1.1)
    return code, collected


print(run(folder / "tools/bin/uv", "--version"))
results = {installer: [deploy(installer, version) for version in "1212"] for installer in ("pip", "uv")}
assert results["pip"] == [(version, version) for version in "1212"]
assert results["uv"][:2] == [("1", "1"), ("2", "2")]
assert results["uv"][2:] == [("1", "2"), ("2", "2")], "this has changed"
END
