"""Going back: to a release's own bytes, without the network, at a cost that follows the change and not the tree."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from perfkit import RollbackError, Toolkit, UpdateError
from perfkit.releases.format.manifest import Manifest
from perfkit.transactions import object_store
from tests.support.sites import Origin
from tests.support.trees import ONE, TWO, damage, edit, text, tree_of

pytestmark = pytest.mark.once

LOCAL = "README.perfkit-local"


@pytest.fixture
def tree_v2(tmp_path: Path, origin: Origin, kit: Toolkit) -> Path:
    """A tree at its second generation, of version 2, with version 1 before it."""
    for version, tree in (("1", ONE), ("2", TWO)):
        origin.publish(tree, version)
        kit.sync(origin.url, tmp_path / "tree")
    return tmp_path / "tree"


def test_back_past_a_repair(kit: Toolkit, origin: Origin, tree_v2: Path) -> None:
    """Damage, repair, back: every file is the release's, one that both have and one that differs."""
    for name in ("README", "pkg/same.py", "moved/b.py"):
        damage(tree_v2 / name)
    (tree_v2 / "pkg/a.py").unlink()
    repaired = kit.verify(tree_v2, repair=True).repaired
    assert repaired is not None
    assert repaired.generation == 2
    asked = len(origin.sent)
    report = kit.rollback(tree_v2, hold=False)
    assert (report.version, report.previous_version, report.generation) == ("1", "2", 1)
    kept = {f"{name}.perfkit-local" for name in ("README", "pkg/same.py", "moved/b.py")}
    assert {name: data for name, data in tree_of(tree_v2).items() if name not in kept} == ONE
    assert kit.verify(tree_v2).extra == tuple(sorted(kept))
    assert kit.verify(tree_v2).intact
    assert len(origin.sent) == asked
    assert kit.rollback(tree_v2, to=2, hold=False).version == "2"
    assert kit.verify(tree_v2).intact


def test_back_past_an_overwritten_edit(make_kit: Callable[..., Toolkit], origin: Origin, tree_v2: Path) -> None:
    """Content that an edit replaced can't be restored; what the sync found is, and report and verify say so."""
    kit = make_kit(local_changes="overwrite")
    origin.publish({**TWO, "README": b"hello 3\n"}, "3")
    edit(tree_v2 / "README", b"mine\n")
    report = kit.sync(origin.url, tree_v2)
    assert report.overwritten == ("README",)
    report = kit.rollback(tree_v2, hold=False)
    assert (report.version, report.restored_with_edits) == ("2", ("README",))
    assert tree_of(tree_v2) == {**TWO, "README": b"mine\n"}
    assert kit.verify(tree_v2).changed == ("README",)
    kit.rollback(tree_v2, to=1, hold=False)
    assert tree_of(tree_v2) == ONE


def test_back_past_an_edit_that_changed_nothing(
    make_kit: Callable[..., Toolkit], origin: Origin, tree_v2: Path
) -> None:
    """An edit that a sync overwrote with the same release's file leaves no trace in the history."""
    kit = make_kit(local_changes="overwrite")
    edit(tree_v2 / "README", b"mine\n")
    assert kit.sync(origin.url, tree_v2).generation == 2
    assert tree_of(tree_v2) == TWO
    kit.rollback(tree_v2, hold=False)
    assert tree_of(tree_v2) == ONE


def test_back_past_an_edit_kept_aside(kit: Toolkit, origin: Origin, tree_v2: Path) -> None:
    """The edit outlives every way, to generation 0 as well."""
    edit(tree_v2 / "README", b"mine\n")
    assert kit.sync(origin.url, tree_v2).saved_as == {"README": LOCAL}
    origin.publish({**TWO, "pkg/new.py": text(6)}, "3")
    kit.sync(origin.url, tree_v2)
    for to, tree in ((2, TWO), (1, ONE), (0, {}), (3, {**TWO, "pkg/new.py": text(6)})):
        kit.rollback(tree_v2, to=to, hold=False)
        assert tree_of(tree_v2) == {**tree, LOCAL: b"mine\n"}


@pytest.mark.parametrize("policy", ["keep", "overwrite", "refuse"])
def test_edits_in_the_way_back(make_kit: Callable[..., Toolkit], origin: Origin, tree_v2: Path, policy: str) -> None:
    """The policy holds for a rollback too, and its report names what is kept as that of a sync does."""
    kit = make_kit(local_changes=policy)
    edit(tree_v2 / "README", b"mine\n")
    if policy == "refuse":
        with pytest.raises(RollbackError, match="README: changed since"):
            kit.rollback(tree_v2, hold=False)
        assert tree_of(tree_v2) == {**TWO, "README": b"mine\n"}
        return
    report = kit.rollback(tree_v2, hold=False)
    kept = {"README": LOCAL} if policy == "keep" else {}
    assert report.saved_as == kept
    assert report.overwritten == (() if kept else ("README",))
    assert tree_of(tree_v2) == {**ONE, **dict.fromkeys(kept.values(), b"mine\n")}


def test_others_made_the_change_first(kit: Toolkit, origin: Origin, tree_v2: Path) -> None:
    """A tree that was half brought to the new release by hand goes back to the old one all the same."""
    three = {**TWO, "pkg/new.py": text(2), "more": text(5)}
    del three["pkg/same.py"]
    origin.publish(three, "3")
    os.link(tree_v2 / "pkg/new.py", tree_v2 / "more")
    edit(tree_v2 / "pkg/new.py", text(2))
    kit.sync(origin.url, tree_v2)
    assert tree_of(tree_v2) == three
    kit.rollback(tree_v2, hold=False)
    assert tree_of(tree_v2) == {**TWO, "more": text(5)}  # which was there before, and nobody's


def test_cost_follows_the_change(kit: Toolkit, origin: Origin, tree_v2: Path, tmp_path: Path) -> None:
    """No scan, no manifest parsed, and of the tree only those files opened that differ."""
    origin.publish(TWO | {f"many/file-{number}": b"%d" % number for number in range(300)}, "3")
    kit.sync(origin.url, tree_v2)
    origin.publish(TWO | {f"many/file-{number}": b"%d" % number for number in range(300)} | {"README": b"4\n"}, "4")
    kit.sync(origin.url, tree_v2)
    opened: list[str] = []
    real, real_scandir = os.open, os.scandir

    def watched(path: Any, *args: Any, **options: Any) -> Any:
        opened.append(str(path))
        return real(path, *args, **options)

    def scandir(path: Any) -> Any:
        assert isinstance(path, int), f"{path} is scanned"
        directory = os.path.relpath(os.readlink(f"/proc/self/fd/{path}"), tree_v2)
        assert directory.split("/")[0] == ".perfkit", f"{directory} is scanned"
        return real_scandir(path)

    with (
        mock.patch.object(os, "open", watched),
        mock.patch.object(Manifest, "parse", side_effect=AssertionError("a manifest is parsed")),
        mock.patch.object(os, "scandir", scandir),
        mock.patch.object(object_store, "digest_of", wraps=object_store.digest_of) as hashed,
    ):
        report = kit.rollback(tree_v2, hold=False)
    assert (report.changed, report.added, report.removed, report.unchanged) == (1, 0, 0, 306)
    assert not [path for path in opened if "file-" in path]
    assert hashed.call_count <= 6  # README, manifest and record, as they are and as they were
    assert kit.rollback(tree_v2, to=4, hold=False).unchanged == 306


def test_retention_is_bounded_and_frees_space(make_kit: Callable[..., Toolkit], origin: Origin, tmp_path: Path) -> None:
    """`keep_generations` bounds what can be reached and what it takes on disk."""
    kit, dest = make_kit(keep_generations=2), tmp_path / "tree"
    for number in range(6):
        noise = os.urandom(200_000)
        origin.publish({"noise": noise, "same": text(1)}, str(number))
        kit.sync(origin.url, dest)
    assert [(each.number, each.label["version"]) for each in kit.history(dest)] == [(4, "3"), (5, "4"), (6, "5")]
    assert 600_000 < disk_use(dest) < 700_000
    with pytest.raises(RollbackError, match=r"generation 1 is not kept; choose one of 4, 5, 6"):
        kit.rollback(dest, to=1, hold=False)
    kit.rollback(dest, hold=False)
    assert disk_use(dest) < 700_000
    one = make_kit(keep_generations=1)
    origin.publish({"noise": os.urandom(200_000), "same": text(1)}, "7")
    one.sync(origin.url, dest)
    assert [each.label["version"] for each in one.history(dest)] == ["4", "7"]
    assert 400_000 < disk_use(dest) < 500_000


def disk_use(root: Path) -> int:
    """As du(1) counts: blocks, each file once however many names it has."""
    found = {stat.st_ino: stat.st_blocks * 512 for path in root.rglob("*") if (stat := path.lstat())}
    return sum(found.values())


def test_history_has_versions_times_and_sizes(kit: Toolkit, tree_v2: Path) -> None:
    """Versions, times, counts and sizes, and which one is current."""
    zero, one, two = kit.history(tree_v2)
    assert (zero.number, one.number, two.number) == (0, 1, 2)
    assert [dict(each.label).get("version") for each in (zero, one, two)] == [None, "1", "2"]
    assert (two.current, one.current) == (True, False)
    assert 0 < one.created_s <= two.created_s
    assert two.bytes_kept > sum(len(ONE[name]) for name in ("README", "pkg/a.py", "pkg/b.py", "pkg/going.py"))


def test_not_a_managed_tree(kit: Toolkit, tmp_path: Path) -> None:
    """Nothing is made where nothing is managed."""
    for work in (kit.rollback, kit.history, kit.verify):
        with pytest.raises(UpdateError, match="not managed by perfkit"):
            work(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
