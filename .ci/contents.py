"""Check that the built sdist and wheel contain every tracked file, and nothing else:  python .ci/contents.py dist"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

SOURCES = (
    *("perfkit/", "tests/", "docs/", "examples/", "benchmarks/", ".ci/"),
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "MANIFEST.in"),
    *("pyproject.toml", "setup.cfg", "setup.py", "tox.ini", "ruff.toml", ".pre-commit-config.yaml"),
)


def main() -> int:
    dist = Path(sys.argv[1])
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    tracked = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True).stdout.split("\0")
    wanted = {name for name in tracked if name.startswith(SOURCES)}

    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    generated = {name for name in names if ".egg-info/" in name} | {"PKG-INFO"}
    check("sdist", missing=wanted - names, extra=names - wanted - generated)

    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {name for name in tracked if name.startswith("perfkit/")}
    check("wheel", missing=wanted - names, extra=names - wanted)
    return 0


def check(archive: str, *, missing: set[str], extra: set[str]) -> None:
    if missing or extra:
        raise SystemExit(f"{archive}: missing {sorted(missing)}, unexpected {sorted(extra)}")


if __name__ == "__main__":
    main()
