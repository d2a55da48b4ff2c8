"""See that the built sdist and wheel hold what they should, and nothing else:  python .ci/contents.py dist"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

SOURCES = ("perfkit/", "tests/", "docs/", "examples/", "benchmarks/", ".ci/", "README.md", "CHANGELOG.md", "LICENSE",
           "MANIFEST.in", "setup.cfg", "setup.py", "tox.ini", "ruff.toml")  # fmt: skip


def main() -> int:
    dist = Path(sys.argv[1])
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    tracked = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True).stdout.split("\0")
    wanted = {name for name in tracked if name.startswith(SOURCES)}

    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    made = {name for name in names if ".egg-info/" in name} | {"PKG-INFO"}
    complain("sdist", lacking=wanted - names, extra=names - wanted - made)

    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {name for name in tracked if name.startswith("perfkit/")}
    complain("wheel", lacking=wanted - names, extra=names - wanted)
    return 0


def complain(what: str, *, lacking: set[str], extra: set[str]) -> None:
    if lacking or extra:
        raise SystemExit(f"{what}: lacks {sorted(lacking)}, and should not have {sorted(extra)}")


if __name__ == "__main__":
    main()
