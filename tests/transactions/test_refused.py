"""Files and directories that the kernel does not let anyone replace: the tree stays whole, and the error names them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perfkit import Toolkit
from perfkit.errors import UpdateError
from perfkit.transactions import commit
from perfkit.transactions.tree import Tree
from tests.support.crash_cases import check_whole, snapshot
from tests.support.sites import Origin
from tests.support.tools import mounted, need, need_root, unavailable

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def as_root() -> None:
    need_root("to mount")


NAMES = ["a", "b/x", "b/y", "c", "d/z", "gone/e"]


@contextlib.contextmanager
def mounted_file(path: Path) -> Iterator[None]:
    """A file with another one mounted over it, as containers do with a single file."""
    shutil.copy2(path, path.parents[2] / "mounted")
    with mounted(path, "--bind", path.parents[2] / "mounted"):
        yield


@contextlib.contextmanager
def mounted_directory(path: Path) -> Iterator[None]:
    """The directory of a file, mounted over itself: the same device, and yet no rename leads into it."""
    with mounted(path.parent, "--bind", path.parent):
        yield


def attribute(letter: str, *, directory: bool = False) -> Callable[[Path], contextlib.AbstractContextManager[None]]:
    """chattr(1) of a file, or of its directory."""

    @contextlib.contextmanager
    def change(path: Path) -> Iterator[None]:
        need("chattr")
        where = path.parent if directory else path
        if subprocess.run(["chattr", f"+{letter}", where], capture_output=True, check=False).returncode:
            unavailable("this file system has no such attributes")
        try:
            yield
        finally:
            subprocess.run(["chattr", f"-{letter}", where], check=True)

    return change


REFUSALS = {
    "mounted file": (mounted_file, "d/z", "mount point", "busy"),
    "mounted directory": (mounted_directory, "d", "mount point", "cross-device"),
    "immutable file": (attribute("i"), "d/z", "immutable", "not permitted"),
    "append-only file": (attribute("a"), "d/z", "append-only", "not permitted"),
    "immutable directory": (attribute("i", directory=True), "d", "immutable", "not permitted"),
    "append-only directory": (attribute("a", directory=True), "d", "append-only", "not permitted"),
}


@pytest.mark.parametrize("told", [True, False], ids=["before the commit point", "behind it"])
@pytest.mark.parametrize("cause", REFUSALS)
def test_a_refused_change_leaves_one_version(
    cause: str, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a change, nor a rollback, nor a crash in between leaves a mix of two versions; then the cause is gone."""
    refuse, name, reason, failure = REFUSALS[cause]
    root = tmp_path / "tree"
    for version in (b"first", b"old"):
        with Tree(root) as tree, tree.transaction() as tx:
            for each in NAMES:
                tx.write(each, version + b" of " + each.encode(), mode=0o640)
    old = snapshot(root)

    def change() -> None:
        with Tree(root) as tree, tree.transaction() as tx:
            tx.remove("gone/e")
            for each in [*NAMES[:-1], "new/f"]:
                tx.write(each, b"new of " + each.encode())

    def roll_back() -> None:
        with Tree(root) as tree:
            tree.rollback()

    with monkeypatch.context() as patch:
        if not told:
            patch.setattr(commit, "check_replaceable", lambda *_: None)
        for action in (change, roll_back):
            with refuse(root / "d/z"):
                with pytest.raises(
                    UpdateError, match=rf"(?i)^{name}\S* can't be.*{reason if told else failure}|^{name} is a {reason}"
                ):
                    action()
                assert snapshot(root) == old
                assert {entry.name for entry in (root / ".perfkit").iterdir()} <= {
                    "lock",
                    "history",
                    "objects",
                    "state",
                }
                with Tree(root) as tree:
                    assert [each.number for each in tree.history()] == [0, 1, 2]
    change()
    new = snapshot(root)
    assert new != old
    assert check_whole(root, old, new)


def test_sync_asks_before_it_fetches(kit: Toolkit, origin: Origin, tmp_path: Path) -> None:
    """A mount inside the tree is named before anything is fetched; without it, the sync goes through."""
    origin.publish({"a": b"1", "d/z": b"1"}, "1")
    root = tmp_path / "tree"
    kit.sync(origin.url, root)
    origin.publish({"a": b"2" * 5000, "d/z": b"2" * 5000, "d/new": b"2"}, "2")
    for refuse in (mounted_file, mounted_directory):
        with refuse(root / "d/z"):
            origin.sent.clear()
            with pytest.raises(UpdateError, match=r"^d.* mount point"):
                kit.sync(origin.url, root)
            assert sum(size for _, size in origin.sent) < 3000, "more than the pointer and the manifest"
            assert (root / "a").read_bytes() == b"1"
            assert kit.verify(root).intact
    assert kit.sync(origin.url, root).changed == 2


def test_directory_without_permission(open_path: Path) -> None:
    """Told before the commit point to one who may not write there, by the name of the directory."""
    code = """if True:
        import ctypes, os, sys
        from perfkit.transactions.tree import Tree
        for root in (sys.argv[1] + "-first", sys.argv[1]):  # what root imports in the first, the other one may not read
            with Tree(root) as tree, tree.transaction() as tx:
                for name in ("a", "d/z"):
                    tx.write(name, sys.argv[2].encode())
            os.setuid(65534)
    """
    root = open_path / "tree"
    root.mkdir()
    os.chown(root, 65534, 65534)

    def run(text: str) -> str:
        command = [sys.executable, "-c", code, str(root), text]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stderr

    assert run("old") == ""
    old = snapshot(root)
    (root / "d").chmod(0o555)
    assert "UpdateError: d: no permission to write here" in run("new")
    (root / "d").chmod(0o644)
    assert f"Permission denied: '{root}/d/z'\n" in run("new")
    (root / "d").chmod(0o755)
    assert snapshot(root) == old
    assert run("new") == ""
