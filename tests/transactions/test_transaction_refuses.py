"""What a transaction refuses to take, and why."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from perfkit.errors import ConfigError, FileChangedError, UpdateError
from perfkit.transactions import commit, transaction
from perfkit.transactions.tree import Tree
from tests.support.faults import Crash, watched
from tests.support.files import free_descriptors
from tests.support.trees import tree_of

pytestmark = pytest.mark.once


def test_a_fifo(tmp_path: Path) -> None:
    """Nobody writes to it, and nobody waits for it."""
    os.mkfifo(tmp_path / "fifo")
    with Tree(tmp_path / "tree") as tree, tree.transaction() as tx:
        with pytest.raises(UpdateError, match="not a regular file"):
            tx.replace("a", tmp_path / "fifo")
        tx.write("b", b"b")
    assert tree_of(tmp_path / "tree") == {"b": b"b"}


def test_a_file_that_changes_while_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, copy_into = tmp_path / "source", transaction.copy_into

    def copy_and_change(file: int, copy: int) -> str:
        found = copy_into(file, copy)
        with source.open("ab") as changing:
            changing.write(b"more")
        return found

    source.write_bytes(b"source")
    monkeypatch.setattr(transaction, "copy_into", copy_and_change)
    with Tree(tmp_path / "tree") as tree, tree.transaction() as tx:
        with pytest.raises(FileChangedError, match="while it was copied; retry"):
            tx.replace("a", source)
        tx.write("b", b"b")
    assert tree_of(tmp_path / "tree") == {"b": b"b"}


def test_a_file_that_was_removed_before(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    with Tree(tmp_path) as tree, tree.transaction() as tx:
        tx.remove("a")
        with pytest.raises(FileNotFoundError):
            tx.move("a", "b")
    assert tree_of(tmp_path) == {}


def test_errors_have_the_whole_path(small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the disk; errors of the caller's own code, and the paths that it gives, stay as they are."""
    root = small_disk / "tree"
    monkeypatch.chdir(tmp_path)
    with Tree(root) as tree, tree.transaction() as tx:
        tx.write("sub/a", b"a")
        for change in (lambda: tx.remove("sub/gone"), lambda: tx.move("gone", "b")):
            with pytest.raises(FileNotFoundError) as caught:
                change()
            assert caught.value.filename in (f"{root}/sub/gone", f"{root}/gone")
        with pytest.raises(OSError, match="No space left") as full:
            tx.write("sub/large", bytes(64 << 20))
        assert full.value.filename == f"{root}/sub/large"
        with pytest.raises(FileNotFoundError) as given:
            tx.replace("sub/b", "gone")
        assert given.value.filename == "gone"
        with pytest.raises(OSError) as own:
            tx.write("sub/c", (os.read(-1, 1) for _ in range(1)))
        assert (own.value.errno, own.value.filename) == (errno.EBADF, None)

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(commit, "sync_directory", fail)
    with pytest.raises(OSError, match="Input/output error") as failed, Tree(root) as tree, tree.transaction() as tx:
        tx.write("sub/a", b"b")
    assert failed.value.filename == str(root)


class _Edit:
    """Edits a file once, before a call that changes the disk, unless it is one that changes this file."""

    def __init__(self, path: Path, before_call: int, *, in_place: bool) -> None:
        self.done = False
        self._path, self._left, self._in_place = path, before_call, in_place

    def __call__(self, kind: str, paths: list[str]) -> None:
        self._left -= 1
        if self._left >= 0 or self.done or str(self._path) in paths:
            return
        self.done = True
        if self._in_place:
            self._path.write_bytes(b"edited")
        else:
            (self._path.parent / "other").write_bytes(b"edited")
            (self._path.parent / "other").rename(self._path)


@pytest.mark.parametrize(
    ("name", "in_place"),
    [*itertools.product(["replaced", "created", "removed"], [True, False]), ("moved", False), ("to", False)],
)
def test_an_edit_during_the_commit_is_not_lost(tmp_path: Path, name: str, in_place: bool) -> None:
    """Before each call of the commit: it fails and changes nothing, or the edit is of the new file, or is kept."""
    old = {each: each.encode() for each in ("replaced", "removed", "moved")}
    new = {"replaced": b"new", "created": b"new", "to": b"moved"}
    failures = 0
    for at in itertools.count():
        root = tmp_path / f"tree-{at}"
        root.mkdir()
        for each, data in old.items():
            (root / each).write_bytes(data)
            os.utime(root / each, (1, 1))
        edit = _Edit(root / name, at, in_place=in_place)
        with Tree(root) as tree:
            tx = tree.transaction()
            tx.write("replaced", b"new")
            tx.write("created", b"new")
            tx.remove("removed")
            tx.move("moved", "to")
            try:
                with watched(edit), tx:
                    pass
            except FileChangedError as error:
                failed = error.path
            else:
                failed = ""
            edited = {name: b"edited"}
            if failed:
                failures += 1
                assert (failed, tree_of(root)) == (name, old | edited)
            elif tree_of(root) != new | edited:
                assert tree_of(root) == new
                tree.rollback()
                assert tree_of(root) == (old | edited if edit.done else old)
        if not edit.done:
            break
    assert failures > 5


def test_what_is_created_after_a_crash_stays(tmp_path: Path) -> None:
    """A file that the interrupted change would have created: it is undone."""

    def crash(kind: str, paths: list[str]) -> None:
        if str(tmp_path / "b") in paths:
            raise Crash

    def change() -> None:
        with watched(crash), Tree(tmp_path) as tree, tree.transaction() as tx:
            tx.write("a", b"a")
            tx.write("b", b"b")

    with pytest.raises(Crash):
        change()
    (tmp_path / "b").write_bytes(b"mine")
    (tmp_path / ".perfkit/owner").unlink(missing_ok=True)
    with Tree(tmp_path):
        assert tree_of(tmp_path) == {"b": b"mine"}


def test_times_beyond_64_bits_survive_a_crash(tmp_path: Path) -> None:
    """In nanoseconds, the years after 2262; most file systems hold some of them."""
    mtime_ns = 10**10 * 10**9

    def crash(kind: str, paths: list[str]) -> None:
        if (kind, paths) == ("unlink", [str(tmp_path / "b")]):
            raise Crash

    def change() -> None:
        with watched(crash), Tree(tmp_path) as tree, tree.transaction() as tx:
            tx.write("a", b"new")
            tx.remove("b")

    for name in "ab":
        (tmp_path / name).write_bytes(b"old")
        os.utime(tmp_path / name, ns=(mtime_ns, mtime_ns))
    with pytest.raises(Crash):
        change()
    (tmp_path / ".perfkit/owner").unlink(missing_ok=True)
    with Tree(tmp_path) as tree:
        assert tree_of(tmp_path) == {"a": b"new"}
        tree.rollback()
        assert (tmp_path / "a").stat().st_mtime_ns == os.stat(tmp_path / "b").st_mtime_ns
    assert tree_of(tmp_path) == {"a": b"old", "b": b"old"}


def test_with_few_descriptors_it_works_or_nothing_changes(tmp_path: Path) -> None:
    """And the tree does not stay locked."""
    ends = set()
    for count in range(20):
        root = tmp_path / f"tree-{count}"
        (root / "a/b/c/d/e/f/g").mkdir(parents=True)
        (root / "a/b/c/d/e/f/g/old").write_bytes(b"old")

        def change(root: Path = root) -> None:
            with Tree(root) as tree, tree.transaction() as tx:
                tx.move("a/b/c/d/e/f/g/old", "h/i/j/k/l/m/n/new")

        try:
            with free_descriptors(count):
                change()
        except OSError as error:
            ends.add(error.errno)
            assert tree_of(root) == {"a/b/c/d/e/f/g/old": b"old"}
            change()
        else:
            ends.add(0)
        assert tree_of(root) == {"h/i/j/k/l/m/n/new": b"old"}
    assert ends == {0, errno.EMFILE}


@pytest.mark.parametrize("data", ["text", "", None, 1, [1], ["text"], [b"a", None]])
def test_content_that_is_not_bytes(data: Any, tmp_path: Path) -> None:
    """The file keeps its content, even if only a later part is of another type."""
    (tmp_path / "a").write_bytes(b"a")
    with Tree(tmp_path) as tree, tree.transaction() as tx:
        with pytest.raises(ConfigError, match="a: the content must be bytes"):
            tx.write("a", data)
        tx.write("b", b"b")
    assert tree_of(tmp_path) == {"a": b"a", "b": b"b"}


def test_a_mode_or_path_of_another_type(tmp_path: Path) -> None:
    mode: Any = "0644"
    path: Any = b"/etc/hostname"
    with Tree(tmp_path) as tree, tree.transaction() as tx:
        with pytest.raises(ConfigError, match="mode must be a whole number"):
            tx.write("a", b"a", mode=mode)
        with pytest.raises(ConfigError, match="mode must be a whole number"):
            tx.replace("a", "/etc/hostname", mode=mode)
        for bits in (-1, 644 << 8):
            with pytest.raises(ConfigError, match="mode must be permission bits, such as 0o644"):
                tx.write("a", b"a", mode=bits)
        with pytest.raises(ConfigError, match="a path must be text"):
            tx.replace("a", path)
