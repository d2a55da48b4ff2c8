"""Watching a tree: what has changed, or that everything may have."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perfkit.filesystem.batch.removal import remove_tree
from perfkit.filesystem.scan import scan
from perfkit.filesystem.watch import ALL, DirtySet
from tests.support.files import make, sha
from tests.support.watched import LONG_S, taken


def test_changes_are_dirty(tmp_path: Path) -> None:
    """Created, changed, moved and removed names, also in new directories; then the set is clean."""
    make(tmp_path, {"a": b"", "d/b": b"", "d/c": b"", "quiet": b""})
    with DirtySet(tmp_path) as dirty:
        (tmp_path / "a").write_bytes(b"1")
        os.rename(tmp_path / "d/b", tmp_path / "moved")
        (tmp_path / "d/c").unlink()
        make(tmp_path, {"new/deep/e": b""})
        (tmp_path / "quiet").read_bytes()
        assert dirty.wait(LONG_S)
        found = taken(dirty)
        assert {"a", "d/b", "d/c", "moved", "new"} <= set(found)
        assert "quiet" not in found
        assert taken(dirty) == set()
        assert not dirty.wait(0)


def test_nothing_is_lost_at_the_end(tmp_path: Path) -> None:
    """What changes just before the block ends is in the set after it; no thread is left."""
    threads = set(threading.enumerate())
    with DirtySet(tmp_path) as dirty:
        names = {f"f{number}" for number in range(500)}
        for name in names:
            (tmp_path / name).touch()
    assert dirty.drain() == names
    assert set(threading.enumerate()) == threads


def test_new_directories_cause_no_warning(tmp_path: Path) -> None:
    """watchdog finds nested directories that are created quickly twice; that causes no warning."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with DirtySet(tmp_path) as dirty:
            for number in range(30):
                (tmp_path / f"{number}/a/b/c/d/e/f").mkdir(parents=True)
    assert told == []
    assert {f"{number}" for number in range(30)} <= dirty.drain()  # type: ignore[operator]


@contextlib.contextmanager
def _no_other_thread() -> Iterator[ctypes.PyDLL]:
    """The C library, called while no other thread of Python runs: `PyDLL` keeps the interpreter's lock."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(LONG_S)
    try:
        yield ctypes.PyDLL(None)
    finally:
        sys.setswitchinterval(before)


@pytest.mark.once
def test_overflow_dirties_everything(tmp_path: Path) -> None:
    """The kernel's queue really overflows: everything is dirty once, and later changes are seen by name again."""
    events = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    files = [bytes(path) for path in make(tmp_path, {"1": b"", "2": b""}).iterdir()]
    with DirtySet(tmp_path) as dirty:
        with _no_other_thread() as library:
            for number in range(events + 5000):  # the reader may have taken 64 KiB of them
                assert library.chmod(files[number % 2], 0o600) == 0
        (tmp_path / "late").mkdir()
        dirty.flush(LONG_S)
        assert dirty.drain() is ALL
        (tmp_path / "late/x").touch()
        assert "late/x" in taken(dirty)


def test_a_removed_root_dirties_everything(tmp_path: Path) -> None:
    """After the removal of the watched directory nothing is known, and the watch ends cleanly."""
    root = make(tmp_path / "root", {"a": b""})
    with DirtySet(root) as dirty:
        remove_tree(root)
        assert dirty.wait(LONG_S)
        assert dirty.drain() is ALL
    with pytest.raises(NotADirectoryError), DirtySet(tmp_path / "none"):
        pass


def test_watchdog_is_imported_only_by_a_watch() -> None:
    """Nor does creating a Toolkit import the packages that it may never need."""
    code = (
        "import sys\nfrom perfkit import Toolkit\nToolkit().close()\n"
        "late = {'watchdog', 'pathspec', 'perfkit.filesystem.batch', 'perfkit.filesystem.hashing.hash_file'}\n"
        "assert not late & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_toolkit_wires_it(tree: Path, tmp_path: Path, kit: Any) -> None:
    """The facade's methods do what the functions do."""
    assert {entry.name for entry in kit.scan(tree)} == {entry.name for entry in scan(tree)}
    assert kit.hash_file(tree / "a").sha256 == sha(b"1" * 5000)
    assert {each.name for each in kit.hash_tree(tree, exclude=["x/"])} == {"a", "d/b", "d/e/empty", "ro/f"}
    assert kit.copy_tree(tree, tmp_path / "copy").files == kit.link_tree(tree, tmp_path / "links").files == 6
    kit.move_many([(tmp_path / "copy", tmp_path / "moved")])
    assert kit.remove_tree(tmp_path / "moved") > 6
    with kit.watch(tmp_path) as dirty:
        (tmp_path / "w").touch()
    assert dirty.drain() == {"w"}
