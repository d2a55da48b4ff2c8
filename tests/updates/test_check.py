"""A check sees the tree as it will be, before anything changes, and may refuse it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit import CheckFailedError, StagedTree, Toolkit
from tests.support.sites import Origin
from tests.support.trees import ONE, TWO, Tree, edit, tree_of

pytestmark = pytest.mark.once


def seen_at(path: str) -> Tree:
    """The files of a tree that is made of links."""
    found = {}
    for directory, _, names in os.walk(path, followlinks=True):
        for name in names:
            file = Path(directory, name)
            found[file.relative_to(path).as_posix()] = file.read_bytes()
    return found


def refuse(staged: StagedTree) -> None:
    raise ValueError(f"{staged.version} is bad")


@pytest.mark.parametrize("kept", [{}, {"mine": b"mine\n", "pkg/own": b"own\n"}])
def test_the_tree_as_it_will_be(kit: Toolkit, origin_v1: Origin, tmp_path: Path, kept: Tree) -> None:
    """At the first sync and at an update: what the check saw is what is there afterwards, unmanaged files included."""
    tree, seen = tmp_path / "tree", []

    def look(staged: StagedTree) -> None:
        seen.append(seen_at(staged.path))
        assert staged.previous_version == (None if len(seen) == 1 else "1")
        assert not {name for name in seen[-1] if name.startswith(".perfkit/")}

    for version, files in (("1", ONE), ("2", TWO)):
        origin_v1.publish(files, version)
        for name, data in kept.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(data)
        assert kit.sync(origin_v1.url, tree, check=look).version == version
        assert seen[-1] == tree_of(tree) == {**files, **kept}
        assert not (tree / ".perfkit/check").exists()
    kit.sync(origin_v1.url, tree, check=look)
    assert len(seen) == 2  # nothing changed, so there was nothing to look at


def test_what_changes(kit: Toolkit, origin_v1: Origin, tmp_path: Path) -> None:
    kit.sync(origin_v1.url, tmp_path / "tree")
    origin_v1.publish(TWO, "2")
    seen: list[StagedTree] = []
    kit.sync(origin_v1.url, tmp_path / "tree", check=seen.append)
    (staged,) = seen
    assert set(staged.added) == TWO.keys() - ONE.keys()
    assert set(staged.removed) == ONE.keys() - TWO.keys()
    assert set(staged.changed) == {name for name in ONE.keys() & TWO.keys() if ONE[name] != TWO[name]}


def test_programs_can_be_run(kit: Toolkit, origin: Origin, tmp_path: Path) -> None:
    """New, moved, with a mode that changes, and with the content of a file that is no program."""
    program, other = b"#!/bin/sh\n", b"#!/bin/sh\n# other\n"
    seen: list[set[str]] = []

    def look(staged: StagedTree) -> None:
        seen.append({name for name in seen_at(staged.path) if os.access(Path(staged.path, name), os.X_OK)})

    one: Tree = {"a": program, "b/c": other, "d": b"d", "e": b""}
    two: Tree = {"a": program, "moved/c": other, "d": b"d", "new": b"new", "text": b"new"}
    origin.publish(one, "1", executable=("a", "b/c", "e"))
    kit.sync(origin.url, tmp_path / "tree", check=look)
    (origin.root / "src/a").chmod(0o644)
    origin.publish(two, "2", executable=("moved/c", "d", "new"))
    kit.sync(origin.url, tmp_path / "tree", check=look)
    assert seen[0] == {"a", "b/c", "e"}
    assert seen[1] - {"text"} == {"moved/c", "d", "new"}
    assert kit.verify(tmp_path / "tree").intact


def test_an_edit_that_is_kept(kit: Toolkit, origin_v1: Origin, tmp_path: Path) -> None:
    """The check sees the release's file, and the edit under the name that it will have."""
    tree, seen = tmp_path / "tree", []
    kit.sync(origin_v1.url, tree)
    edit(tree / "README", b"mine\n")
    origin_v1.publish(TWO, "2")
    kit.sync(origin_v1.url, tree, check=lambda staged: seen.append(seen_at(staged.path)))
    assert seen == [tree_of(tree)] == [{**TWO, "README.perfkit-local": b"mine\n"}]


def test_a_refused_version_is_passed_over(kit: Toolkit, origin_v1: Origin, tmp_path: Path) -> None:
    """The tree stays; the version is passed over until another one is offered, and the next sync fetches little."""
    tree = tmp_path / "tree"
    kit.sync(origin_v1.url, tree)
    origin_v1.publish(TWO, "2")
    with pytest.raises(CheckFailedError, match=r"the check refused version 2, .*: 2 is bad") as caught:
        kit.sync(origin_v1.url, tree, check=refuse)
    assert (caught.value.version, caught.value.reason) == ("2", "2 is bad")
    assert tree_of(tree) == ONE
    held = kit.status(tree).held
    assert held is not None
    assert (held.reason, held.version, held.message) == ("check", "2", "2 is bad")
    report = kit.sync(origin_v1.url, tree, check=refuse)
    assert (report.version, report.held, report.route, report.requests) == ("1", "2", "none", 1)
    origin_v1.publish({**TWO, "more": b"more\n"}, "3")
    report = kit.sync(origin_v1.url, tree, check=lambda staged: None)
    assert (report.version, report.held) == ("3", None)
    assert kit.status(tree).held is None


def test_refused_and_tried_again(kit: Toolkit, origin_v1: Origin, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    kit.sync(origin_v1.url, tree)
    origin_v1.publish(TWO, "2")
    with pytest.raises(CheckFailedError):
        kit.sync(origin_v1.url, tree, check=refuse)
    with pytest.raises(CheckFailedError):
        kit.sync(origin_v1.url, tree, check=refuse, retry_rejected=True)
    assert kit.sync(origin_v1.url, tree, check=lambda staged: None, retry_rejected=True).version == "2"
    assert tree_of(tree) == TWO


def test_refused_of_a_list(kit: Toolkit, origin: Origin, tmp_path: Path) -> None:
    """The version of a list of URLs is known when its files are."""
    origin.site.mkdir()
    source, tree = tmp_path / "urls.txt", tmp_path / "tree"
    source.write_text(f"{origin.url}/a\n{origin.url}/b\n")
    for name in "ab":
        (origin.site / name).write_bytes(b"1")
    kit.sync(source, tree)
    (origin.site / "b").write_bytes(b"22")
    with pytest.raises(CheckFailedError) as caught:
        kit.sync(source, tree, check=refuse)
    assert kit.sync(source, tree, check=refuse).held == caught.value.version
    assert kit.sync(source, tree).held == caught.value.version
    (origin.site / "b").write_bytes(b"333")
    assert kit.sync(source, tree).held is None
    assert tree_of(tree) == {"a": b"1", "b": b"333"}
    kit.rollback(tree)
    assert kit.sync(source, tree).held
    assert tree_of(tree) == {"a": b"1", "b": b"1"}


def test_refused_at_first(kit: Toolkit, origin_v1: Origin, tmp_path: Path) -> None:
    with pytest.raises(CheckFailedError):
        kit.sync(origin_v1.url, tmp_path / "tree", check=refuse)
    assert tree_of(tmp_path / "tree") == {}
    assert kit.sync(origin_v1.url, tmp_path / "tree").held == "1"


@pytest.mark.parametrize("name", ["pkg/new.py", "moved/b.py", "README"])
def test_a_check_that_writes(kit: Toolkit, origin_v1: Origin, tmp_path: Path, name: str) -> None:
    """What it did to new files never gets into the tree."""
    tree = tmp_path / "tree"
    kit.sync(origin_v1.url, tree)
    origin_v1.publish(TWO, "2")

    def write(staged: StagedTree) -> None:
        path = Path(staged.path, name)
        if Path(os.path.realpath(path)).is_relative_to(tree / ".perfkit/fetch"):
            with open(path, "r+b") as file:
                file.write(b"XXXX")
        path.with_name("beside").write_bytes(b"in the way")
        path.unlink()

    with contextlib.suppress(CheckFailedError):
        kit.sync(origin_v1.url, tree, check=write)
    assert tree_of(tree) in (ONE, TWO)
    kit.sync(origin_v1.url, tree, retry_rejected=True)
    assert tree_of(tree) == TWO


@pytest.mark.parametrize("change", ["write", "chmod", "remove", "replace"])
def test_a_check_that_changes_the_tree(kit: Toolkit, origin_v1: Origin, tmp_path: Path, change: str) -> None:
    """In files that the release leaves as they are. It is told, nothing else changes, and a repair restores them."""
    tree = tmp_path / "tree"
    kit.sync(origin_v1.url, tree)
    kept = next(name for name in ONE if TWO.get(name) == ONE[name] and ONE[name])
    origin_v1.publish(TWO, "2")
    changes: dict[str, Callable[[Path], object]] = {
        "write": lambda path: path.write_bytes(b"XXXX"),
        "chmod": lambda path: path.chmod(0o755),
        "remove": lambda path: Path(os.path.realpath(path)).unlink(),
        "replace": lambda path: os.replace(tree / "extra", os.path.realpath(path)),
    }
    (tree / "extra").write_bytes(b"extra")

    def harm(staged: StagedTree) -> None:
        changes[change](Path(staged.path, kept))

    with pytest.raises(CheckFailedError, match=f"has changed the tree.*{kept}"):
        kit.sync(origin_v1.url, tree, check=harm)
    (tree / "extra").unlink(missing_ok=True)
    kit.verify(tree, repair=True)
    (tree / f"{kept}.perfkit-local").unlink(missing_ok=True)
    assert tree_of(tree) == ONE
    assert kit.verify(tree).intact


def test_what_others_do_to_the_tree_meanwhile(kit: Toolkit, origin_v1: Origin, tmp_path: Path) -> None:
    """A backup by hard links changes inodes, and no content; unmanaged files are no business of perfkit's."""
    tree = tmp_path / "tree"
    kit.sync(origin_v1.url, tree)
    origin_v1.publish(TWO, "2")

    def back_up(staged: StagedTree) -> None:
        for number, name in enumerate(ONE):
            os.link(tree / name, tmp_path / f"backup-{number}")
        (tree / "log").write_bytes(b"a line\n")

    assert kit.sync(origin_v1.url, tree, check=back_up).version == "2"


def test_a_check_that_was_killed(
    kit: Toolkit, origin_v1: Origin, tmp_path: Path, make_kit: Callable[..., Toolkit]
) -> None:
    """What it left is removed by the next one."""
    tree = tmp_path / "tree"
    kit.sync(origin_v1.url, tree)
    (tree / ".perfkit/check/d").mkdir(parents=True)
    (tree / ".perfkit/check/d/f").write_bytes(b"left")
    origin_v1.publish(TWO, "2")
    kit.sync(origin_v1.url, tree, check=lambda staged: None)
    assert not (tree / ".perfkit/check").exists()


def test_a_directory_becomes_a_file_and_back(kit: Toolkit, origin: Origin, tmp_path: Path) -> None:
    trees: list[Tree] = [{"a/b/c": b"1\n", "x": b"x\n"}, {"a": b"2\n", "x": b"x\n"}, {"a/b/c": b"3\n", "x/y": b"y\n"}]
    for number, files in enumerate(trees):
        origin.publish(files, str(number))
        seen: list[Tree] = []
        kit.sync(origin.url, tmp_path / "tree", check=lambda staged, seen=seen: seen.append(seen_at(staged.path)))
        assert seen == [files]
