"""Trees that are deeper than the recursion limit, and than what descriptors are kept of."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfkit import Toolkit
from perfkit.transactions.tree import Tree
from tests.support.sites import Origin

pytestmark = pytest.mark.once

RECURSION = 600  # the usual limit of 1,000 would take four times as long
DEEP, OTHER = "/".join("d" * (RECURSION + 50)), "/".join("e" * 200)


@pytest.fixture
def short_path(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for each in tmp_path.iterdir():
        subprocess.run(["rm", "-rf", each], check=True)  # shutil.rmtree, and so pytest, recurses


@pytest.fixture
def little_recursion() -> Iterator[None]:
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(RECURSION)
    yield
    sys.setrecursionlimit(usual)


@pytest.mark.usefixtures("little_recursion")
def test_deep_trees(short_path: Path, kit: Toolkit) -> None:
    """They are published, installed, updated, verified and rolled back, and every file ends where it belongs."""
    source = short_path / "src"
    with Tree(source) as tree, tree.transaction() as tx:
        tx.write(f"{DEEP}/file", b"one")
        tx.write(f"{OTHER}/file", b"two")
    kit.publish(source, short_path / "site", version="1")
    with Origin(short_path) as origin:
        kit.sync(origin.url, short_path / "out")
        with Tree(source) as tree, tree.transaction() as tx:
            tx.move(f"{DEEP}/file", f"{OTHER}/moved")
            tx.move(f"{OTHER}/file", f"{DEEP}/file")
        kit.publish(source, short_path / "site", version="2")
        kit.sync(origin.url, short_path / "out")
    assert (short_path / "out" / DEEP / "file").read_bytes() == b"two"
    assert (short_path / "out" / OTHER / "moved").read_bytes() == b"one"
    assert not (short_path / "out" / OTHER / "file").exists()
    assert not kit.verify(short_path / "out").changed
    kit.rollback(short_path / "out")
    assert (short_path / "out" / DEEP / "file").read_bytes() == b"one"
    assert (short_path / "out" / OTHER / "file").read_bytes() == b"two"
    assert not (short_path / "out" / OTHER / "moved").exists()
