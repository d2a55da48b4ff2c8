"""The operations of a journal, one by one: their order, a second time, and undone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from perfkit.filesystem.rootdir import RootDir
from perfkit.transactions.journal_ops import apply_op, undo_op
from perfkit.transactions.layout import OBJECTS
from perfkit.transactions.records import DELETE, RENAME, JournalOp, Previous
from perfkit.transactions.tree import Tree
from tests.support.faults import watched

pytestmark = pytest.mark.once


@pytest.fixture
def rootdir(tmp_path: Path) -> Iterator[RootDir]:
    """A tree with a file, its object, and a staged file."""
    (tmp_path / OBJECTS).mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"old")
    os.link(tmp_path / "file", tmp_path / OBJECTS / "old")
    (tmp_path / "staged").write_bytes(b"new")
    with closing(RootDir(str(tmp_path))) as opened:
        yield opened


def previous(path: Path, ino: int | None = None) -> Previous:
    found = path.stat()
    return Previous(
        f"{OBJECTS}/old", found.st_size, found.st_mtime_ns, stat.S_IMODE(found.st_mode), ino or found.st_ino
    )


def test_what_needs_space_comes_first(tmp_path: Path) -> None:
    """Then replacements, and last what is deleted, but for what is in the way."""
    with Tree(tmp_path) as tree, tree.transaction() as tx:
        for name in ("replaced", "way", "gone/file"):
            tx.write(name, b"old")
    calls: list[tuple[str, str]] = []

    def watch(kind: str, paths: list[str]) -> None:
        name = os.path.relpath(paths[-1], tmp_path)
        if kind in ("rename", "unlink", "mkdir", "rmdir") and not name.startswith(".perfkit"):
            calls.append((kind, name))

    with Tree(tmp_path) as tree, watched(watch), tree.transaction() as tx:
        tx.remove("gone/file")
        tx.remove("way")
        for name in ("replaced", "way/file", "new"):
            tx.write(name, b"new")
    additions = [("unlink", "way"), ("mkdir", "way"), ("rename", "new"), ("rename", "way/file")]
    assert calls == [*additions, ("rename", "replaced"), ("unlink", "gone/file"), ("rmdir", "gone")]


def test_a_rename_a_second_time(rootdir: RootDir, tmp_path: Path) -> None:
    """Nothing, if it was made; but an error if it can't be, since the directory is gone."""
    op = JournalOp(RENAME, "file", "staged", previous(tmp_path / "file"))
    for _ in range(2):
        apply_op(rootdir, op)
        assert (tmp_path / "file").read_bytes() == b"new"
    (tmp_path / "staged").write_bytes(b"newer")
    with pytest.raises(FileNotFoundError):
        apply_op(rootdir, JournalOp(RENAME, "none/file", "staged"))
    assert (tmp_path / "staged").read_bytes() == b"newer"


@pytest.mark.parametrize("again", [False, True])
def test_another_spelling_is_deleted_once(rootdir: RootDir, tmp_path: Path, again: bool) -> None:
    """On a disk that ignores case, the name is that of the new file as soon as that is no longer staged."""
    if again:
        (tmp_path / "staged").unlink()
    apply_op(rootdir, JournalOp(DELETE, "file", "staged", previous(tmp_path / "file")))
    assert (tmp_path / "file").exists() == again


@pytest.mark.parametrize("kept", [True, False], ids=["its object", "a copy"])
def test_an_undone_operation_restores_the_file(rootdir: RootDir, tmp_path: Path, kept: bool) -> None:
    """The name gets the very file that it had, or one like it; a second time, nothing happens."""
    (tmp_path / "file").chmod(0o640)
    before = previous(tmp_path / "file", None if kept else 1)
    inode = (tmp_path / "file").stat().st_ino
    op = JournalOp(RENAME, "file", "staged", before)
    apply_op(rootdir, op)
    for _ in range(2):
        undo_op(rootdir, op)
        found = (tmp_path / "file").stat()
        assert ((tmp_path / "file").read_bytes(), (tmp_path / "staged").read_bytes()) == (b"old", b"new")
        assert (found.st_ino == inode) == kept
        assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o640, before.mtime_ns)
