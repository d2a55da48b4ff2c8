#!/usr/bin/env bash
# pip 26.3 and uv 0.13.9, an upgrade by which files move from one package to another: `tool` 1.0 has tool.py and the
# directory core/; since 2.0 core/ is a package of its own, `tool-core`, which `tool` requires (as msgpack-python,
# python-chess and others were renamed or split).
# Most would guess: after `pip install --upgrade tool` there is what a fresh installation has. pip uninstalls the old
# version before it installs the new one, and says so.
# Seen: requirements come first. tool-core 2.0 is written over the files of tool 1.0, and then tool 1.0 is uninstalled,
# with all files that it had: core/ is gone. pip ends with 0, `pip check` finds nothing, both versions are listed, and
# pip goes on saying "already satisfied"; fresh environments, such as CI's, have the files. uv removes all old versions
# first and has all files after the upgrade. --force-reinstall of tool-core mends it. (Known: pip issues 4961 and 9655.)
# Needs no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pip==26.3 uv==0.13.9
"$folder/venv/bin/python" - "$folder" <<'END'
import os, pathlib, shutil, subprocess, sys, zipfile

folder = pathlib.Path(sys.argv[1])
programs = folder / "venv/bin"
environment = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_", "PYTHON"))}
environment |= {"UV_CACHE_DIR": str(folder / "cache"), "UV_NO_CONFIG": "1", "PIP_CONFIG_FILE": os.devnull}
environment |= {"PIP_NO_CACHE_DIR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
WHEELS = ("--no-index", "--find-links", folder / "wheels")
SAYS = "import tool, core.parts; print(tool.version, core.parts.version)"


def build(name, version, files, requires=""):
    """A wheel (packaging.python.org, "Binary distribution format")."""
    information = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n{requires}"
    members = {file: f"version = {version!r}\n" for file in files}
    members[f"{information}/METADATA"] = metadata
    members[f"{information}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    members[f"{information}/RECORD"] = "".join(f"{file},,\n" for file in [*members, f"{information}/RECORD"])
    with zipfile.ZipFile(folder / f"wheels/{name}-{version}-py3-none-any.whl", "w") as wheel:
        for file, content in members.items():
            wheel.writestr(file, content)


def run(*command):
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def has(python):
    done = subprocess.run([python, "-c", SAYS], env=environment, capture_output=True, text=True)
    return done.stdout.strip() or done.stderr.splitlines()[-1]


def upgrade(name, *install):
    """What is there after an upgrade, after a fresh installation beside it, and what pip says of the upgraded one."""
    python = folder / name / "bin/python"
    results = []
    for steps in (["tool==1.0"], ["--upgrade", "tool"]), (["tool"],):
        shutil.rmtree(folder / name, ignore_errors=True)
        run(programs / "uv", "venv", "--python", sys.executable, folder / name)
        for step in steps:
            run(*install, "--python", python, *WHEELS, *step) if "uv" in install[0].name else run(
                install[0], "--python", python, *install[1:], *WHEELS, *step
            )
        results.append(has(python))
        if len(steps) == 2:
            run(programs / "pip", "--python", python, "check")
            again = run(programs / "pip", "--python", python, "install", *WHEELS, "--upgrade", "tool")
            listed = run(programs / "pip", "--python", python, "list", "--format=freeze").split()
            run(programs / "pip", "--python", python, "install", *WHEELS, "--force-reinstall", "tool-core")
            results += [listed, again.count("already satisfied"), has(python)]
    return results


(folder / "wheels").mkdir()
build("tool", "1.0", ["tool.py", "core/__init__.py", "core/parts.py"])
build("tool", "2.0", ["tool.py"], "Requires-Dist: tool-core==2.0\n")
build("tool_core", "2.0", ["core/__init__.py", "core/parts.py"])
print(run(programs / "pip", "--version").split(" from")[0] + ", " + run(programs / "uv", "--version"))
found = {
    "pip": upgrade("by-pip", programs / "pip", "install"),
    "uv": upgrade("by-uv", programs / "uv", "pip", "install"),
}
for name, (upgraded, listed, satisfied, mended, fresh) in found.items():
    print(f"{name}: after the upgrade: {upgraded}; listed: {listed}; fresh: {fresh}; tool-core reinstalled: {mended}")
    assert (listed, satisfied, mended, fresh) == (["tool==2.0", "tool-core==2.0"], 2, "2.0 2.0", "2.0 2.0")
assert found["pip"][0] == "ModuleNotFoundError: No module named 'core'", "this has changed"
assert found["uv"][0] == "2.0 2.0"
END
