"""What a transaction refuses to take, and why."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from perfkit.errors import ConfigError, FileChangedError, UpdateError
from perfkit.transactions import transaction
from perfkit.transactions.tree import Tree
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
        with pytest.raises(ConfigError, match="mode must be a whole number or None"):
            tx.replace("a", "/etc/hostname", mode=mode)
        with pytest.raises(ConfigError, match="a path must be text"):
            tx.replace("a", path)
