"""Ctrl-C at any moment of a change."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from perfkit import Toolkit
from perfkit.transactions import commit, lock, transaction, tree
from tests.support.interrupts import interrupted
from tests.support.trees import litter, tree_of, write_tree

OLD = {"kept": b"kept", "changed": b"before", "moved": b"moved", "removed": b"removed"}
NEW = {"kept": b"kept", "changed": b"after", "to": b"moved", "dir/new": b"new"}


@pytest.mark.parametrize("modules", [(tree, lock), (transaction, commit)], ids=["lock", "change"])
def test_an_interrupt_leaves_nothing_half_staged_or_locked(
    kit: Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modules: tuple[ModuleType, ...]
) -> None:
    """The tree is the old or the new one, the next change begins at once, and nothing is printed."""
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    root = tmp_path / "tree"

    def change() -> None:
        with kit.transaction(root) as tx:
            tx.write("changed", b"after")
            tx.write("dir/new", b"new")
            tx.move("moved", "to")
            tx.remove("removed")

    for number in itertools.count(1):
        write_tree(root, OLD)
        if not interrupted(change, modules, number):
            break
        assert tree_of(root) in (OLD, NEW), number
        assert litter(root) == set(), number
        with kit.transaction(root) as tx:
            tx.write("next", b"next")
        assert unraisable == [], number
    assert tree_of(root) == NEW
    assert number > 50
