"""The way back leads to what a generation was meant to be, whatever others did to its files; or it is refused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from perfkit.errors import RollbackError
from perfkit.transactions.prepare import Known
from perfkit.transactions.records import Content
from perfkit.transactions.transaction import Transaction
from perfkit.transactions.tree import Tree
from tests.support.trees import litter, tree_of

Files = dict[str, bytes]


class Release:
    """A tree that is brought from one dictionary to the next, and knows what it was meant to be."""

    def __init__(self, root: Path) -> None:
        self.root, self.now = root, Files()

    def meant(self, name: str) -> Content | None:
        data = self.now.get(name)
        return None if data is None else Content(hashlib.sha256(data).hexdigest(), len(data), 0o644)

    def bring(self, wanted: Files, *, aside: dict[str, str] | None = None) -> int:
        """As the updater does it: edited files aside, then the files of the release; returns the generation."""
        holders = {hashlib.sha256(data).hexdigest(): name for name, data in tree_of(self.root).items()}
        known = Known(expected=self.meant, copy_of=holders.get)
        with Tree(self.root) as tree, tree.transaction(known=known) as tx:
            for name, fresh in (aside or {}).items():
                tx.move_aside(name, fresh)
            for name in self.now.keys() | wanted.keys():
                self._one(tx, name, wanted.get(name))
        assert tx.result is not None
        self.now = wanted
        return tx.result.generation

    def _one(self, tx: Transaction, name: str, data: bytes | None) -> None:
        path = self.root / name
        if (path.read_bytes() if path.exists() else None) == data:
            tx.record_existing(name)
        elif data is None:
            tx.remove(name)
        else:
            tx.write(name, data)


ONE = {"a": b"a of 1", "same": b"same", "gone": b"gone after 1"}
TWO = {"a": b"a of 2", "same": b"same", "new": b"new in 2"}


@pytest.fixture
def release(tmp_path: Path) -> Release:
    release = Release(tmp_path)
    assert release.bring(ONE) == 1
    return release


def edit(path: Path, data: bytes) -> None:
    """As editors do it: a new file in the place of the old one."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def back(root: Path, to: int | None = None) -> Files:
    with Tree(root) as tree:
        tree.rollback(to)
    assert not litter(root)
    return tree_of(root)


def test_a_repair_is_no_generation(release: Release, tmp_path: Path) -> None:
    """What a repair replaces comes back by no way; going back leads past it to the release before."""
    assert release.bring(TWO) == 2
    (tmp_path / "a").write_bytes(b"damaged")
    (tmp_path / "same").unlink()
    assert release.bring(TWO) == 2
    assert tree_of(tmp_path) == TWO
    assert not (tmp_path / f".perfkit/objects/{hashlib.sha256(b'damaged').hexdigest()}").exists()
    assert back(tmp_path) == ONE
    assert back(tmp_path, 2) == TWO


def test_what_was_edited_comes_back_as_it_was(release: Release, tmp_path: Path) -> None:
    """The content before is nowhere: the way back leads to what the update found, and tells of which files."""
    edit(tmp_path / "a", b"edited")
    (tmp_path / "gone").unlink()
    release.bring(TWO)
    with Tree(tmp_path) as tree:
        assert tree.rollback().restored_with_edits == ("a", "gone")
    assert tree_of(tmp_path) == {
        name: b"edited" if name == "a" else data for name, data in ONE.items() if name != "gone"
    }
    assert back(tmp_path, 2) == TWO
    with Tree(tmp_path) as tree:
        assert tree.rollback(1).restored_with_edits == ("a", "gone")
        assert tree.rollback(0, edits="keep").saved_as == {"a": "a.perfkit-local"}
    assert tree_of(tmp_path) == {"a.perfkit-local": b"edited"}


def test_what_was_edited_has_a_twin(release: Release, tmp_path: Path) -> None:
    """Another file of the tree has the content that the edited one had: it is kept from there."""
    release.bring({**ONE, "twin": ONE["a"]})
    edit(tmp_path / "a", b"edited")
    release.bring({**TWO, "twin": ONE["a"]})
    assert back(tmp_path) == {**ONE, "twin": ONE["a"]}


def test_kept_aside_stays(release: Release, tmp_path: Path) -> None:
    """An edited file that was kept is nobody's but its owner's: going back and forth leaves it."""
    release.bring({**ONE, "other": b"2"})
    edit(tmp_path / "same", b"mine")
    assert release.bring({**TWO, "other": b"3"}, aside={"same": "same.perfkit-local"}) == 3
    mine = {"same.perfkit-local": b"mine"}
    assert back(tmp_path) == {**ONE, "other": b"2", **mine}
    assert back(tmp_path, 1) == {**ONE, **mine}
    assert back(tmp_path, 3) == {**TWO, "other": b"3", **mine}


def test_what_others_brought_first_goes_back(release: Release, tmp_path: Path) -> None:
    """Someone made the change already, of which nothing had to be done: the way back undoes it all the same."""
    os.link(tmp_path / "a", tmp_path / "twin")
    edit(tmp_path / "a", TWO["a"])
    assert release.bring(TWO) == 2
    assert back(tmp_path) == {**ONE, "twin": ONE["a"]}
    assert back(tmp_path, 2) == {**TWO, "twin": ONE["a"]}


def test_unmanaged_file_in_the_way_comes_back(release: Release, tmp_path: Path) -> None:
    """No generation had it, so what was found is what the way back restores."""
    (tmp_path / "new").write_bytes(b"mine")
    release.bring(TWO)
    assert back(tmp_path) == {**ONE, "new": b"mine"}


def test_damaged_in_place_and_moved(release: Release, tmp_path: Path) -> None:
    """A moved file shares its inode with the object that is kept of it; spoilt together, they are mended together."""
    with Tree(tmp_path) as tree, tree.transaction() as tx:
        tx.move("a", "b")
    release.now = {"b": ONE["a"], "same": ONE["same"], "gone": ONE["gone"]}
    with (tmp_path / "b").open("r+b") as file:
        file.write(b"spoilt")
    assert release.bring(release.now) == 2
    assert back(tmp_path, 1) == ONE


def test_edits_are_kept_under_one_name_each(release: Release, tmp_path: Path) -> None:
    """`NAME.perfkit-local`, and a number where that is taken; the result tells them."""
    release.bring(TWO)
    (tmp_path / "a.perfkit-local").write_bytes(b"an earlier edit")
    edit(tmp_path / "a", b"edited")
    edit(tmp_path / "new", b"edited too")
    with Tree(tmp_path) as tree:
        with pytest.raises(RollbackError, match="a, new: changed since the last update"):
            tree.rollback(1)
        result = tree.rollback(1, edits="keep")
    assert result.saved_as == {"a": "a.perfkit-local-2", "new": "new.perfkit-local"}
    assert tree_of(tmp_path) == {
        **ONE,
        "a.perfkit-local": b"an earlier edit",
        "a.perfkit-local-2": b"edited",
        "new.perfkit-local": b"edited too",
    }
