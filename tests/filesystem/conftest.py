"""A tree with links, modes and times."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.files import make


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = make(tmp_path / "src", {"a": b"1" * 5000, "d/b": b"2", "d/e/empty": b"", "x/run.sh": b"#!", "ro/f": b"3"})
    os.chmod(root / "x/run.sh", 0o755)
    os.symlink("../a", root / "d/link")
    for number, name in enumerate(["a", "d/b", "x/run.sh", "ro", "d"]):
        os.utime(root / name, ns=(1, 10**18 + number))
    os.chmod(root / "ro", 0o500)
    return root
