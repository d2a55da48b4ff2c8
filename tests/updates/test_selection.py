"""A part of a release: chosen by patterns, remembered by the tree, and no more fetched than that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit import ConfigError, PerfkitError, Toolkit
from perfkit.archives.members import Selection
from tests.support.archive_tools import make_tar, make_zip
from tests.support.sites import Counting, Origin
from tests.support.trees import ONE, Tree, lines, noise, tree_of

pytestmark = pytest.mark.once

OLD: Tree = {
    "README": b"hello\n",
    "rules/a.rules": lines(1, 300),
    "rules/b.rules": lines(2, 300),
    "rules/old/c.rules": lines(3, 300),
    "data/large.bin": noise(3, 300_000),
    "data/rules": noise(4, 5000),
}
NEW = {**OLD, "rules/a.rules": lines(9, 300), "rules/d.rules": lines(8, 300), "data/large.bin": noise(5, 300_000)}
RULES = Selection(include=("*.rules",), exclude=("old/",))


def chosen(tree: Tree) -> Tree:
    return {name: data for name, data in tree.items() if name.endswith(".rules") and "/old/" not in name}


def test_a_part_of_a_release(kit: Toolkit, origin: Origin, tmp_path: Path) -> None:
    """Little is fetched, later syncs, repairs and rollbacks keep to it, and another choice replaces it."""
    tree = tmp_path / "tree"
    origin.publish(OLD, "1")
    first, sent = origin.counted(lambda: kit.sync(origin.url, tree, selection=RULES))
    assert (first.added, first.selection, tree_of(tree)) == (2, "+*.rules -old/", chosen(OLD))
    assert sent < 100_000
    assert kit.sync(origin.url, tree).requests == 1
    (tree / "rules/b.rules").unlink()
    repaired, sent = origin.counted(lambda: kit.verify(tree, repair=True).repaired)  # type: ignore[arg-type, return-value]
    assert (repaired.unchanged, tree_of(tree), sent < 100_000) == (1, chosen(OLD), True)
    origin.publish(NEW, "2")
    assert kit.plan(origin.url, tree).bytes < 100_000
    second, sent = origin.counted(lambda: kit.sync(origin.url, tree))
    assert (second.added, second.changed, second.route, sent < 100_000) == (1, 1, "blocks", True)
    assert tree_of(tree) == chosen(NEW)
    assert kit.verify(tree).intact
    kit.rollback(tree, hold=False)
    assert tree_of(tree) == chosen(OLD)
    third = kit.sync(origin.url, tree, selection=Selection())
    assert (third.selection, tree_of(tree)) == ("", NEW)
    kit.rollback(tree, hold=False)
    assert kit.sync(origin.url, tree).selection == "+*.rules -old/"  # of the generation that is back
    assert tree_of(tree) == chosen(NEW)


def test_a_choice_for_a_whole_tree(kit: Toolkit, origin: Origin, tmp_path: Path) -> None:
    """The rest is removed, without a new release and without a download; then deltas are of no use."""
    tree = tmp_path / "tree"
    origin.publish(OLD, "1")
    kit.sync(origin.url, tree)
    report, sent = origin.counted(lambda: kit.sync(origin.url, tree, selection=Selection(include=("/rules/",))))
    assert (report.removed, sent < 10_000) == (3, True)
    assert sorted(tree_of(tree)) == ["rules/a.rules", "rules/b.rules", "rules/old/c.rules"]
    origin.publish(NEW, "2")
    assert kit.sync(origin.url, tree).route == "blocks"
    same = kit.sync(origin.url, tree, selection=Selection(include=("*.rules",)))
    assert (same.changed, same.selection) == (0, "+*.rules")
    assert kit.sync(origin.url, tree).selection == "+*.rules"  # also where it makes no difference yet
    report = kit.sync(origin.url, tree, selection=Selection(include=("*",)))
    assert tree_of(tree) == NEW


def test_another_source_has_its_own_choice(kit: Toolkit, origin: Origin, counting: Counting, tmp_path: Path) -> None:
    origin.publish(OLD, "1")
    kit.sync(origin.url, tmp_path / "tree", selection=RULES)
    (Path(origin.root) / "site/pack.zip").write_bytes(make_zip(OLD))
    kit.sync(f"{origin.url}/pack.zip", tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == OLD


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_an_archive_keeps_its_choice(
    kit: Toolkit, counting: Counting, site: Path, tmp_path: Path, make: Callable[[Tree], bytes]
) -> None:
    """By the same patterns, and remembered in the same way."""
    (site / "pack").write_bytes(make({name: data[:1000] for name, data in OLD.items()}))
    expected = {name: data[:1000] for name, data in chosen(OLD).items()}
    kit.sync(counting.url + "pack", tmp_path / "tree", selection=RULES)
    report = kit.sync(counting.url + "pack", tmp_path / "tree")
    assert (report.requests, report.selection, tree_of(tmp_path / "tree")) == (1, "+*.rules -old/", expected)


def test_choices_that_make_no_sense(kit: Toolkit, origin: Origin, tmp_path: Path) -> None:
    """Nothing is removed because of a mistyped pattern."""
    origin.publish(OLD, "1")
    kit.sync(origin.url, tmp_path / "tree")
    for selection, words in (
        (Selection(include=("*.rule",)), r"version 1 has no files that match \+\*\.rule"),
        (Selection(exclude=("*",)), "has no files that match"),
        (Selection(strip_components=1), "only include and exclude"),
        (Selection(links="skip"), "only include and exclude"),
    ):
        with pytest.raises(ConfigError, match=words):
            kit.sync(origin.url, tmp_path / "tree", selection=selection)
    assert tree_of(tmp_path / "tree") == OLD
    for pattern in ("!", "[z-a]"):
        with pytest.raises(ConfigError, match="invalid gitignore patterns"):
            Selection(include=(pattern,))


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("*.rules", {"rules/a.rules", "rules/b.rules", "rules/old/c.rules"}),
        ("/*", set(OLD)),
        ("/README", {"README"}),
        ("rules", {"rules/a.rules", "rules/b.rules", "rules/old/c.rules", "data/rules"}),
        ("rules/", {"rules/a.rules", "rules/b.rules", "rules/old/c.rules"}),
        ("rules/*.rules", {"rules/a.rules", "rules/b.rules"}),
        ("rules/**/*.rules", {"rules/a.rules", "rules/b.rules", "rules/old/c.rules"}),
        ("[ab].rules", {"rules/a.rules", "rules/b.rules"}),
    ],
)
def test_patterns_match_as_in_gitignore(pattern: str, wanted: set[str]) -> None:
    """As gitignore(5) has them."""
    assert set(filter(Selection(include=(pattern,)).wants, OLD)) == wanted
    assert set(filter(Selection(exclude=(pattern,)).wants, OLD)) == set(OLD) - wanted


def test_a_damaged_record(kit: Toolkit, origin: Origin, tmp_path: Path) -> None:
    """Whatever others wrote there, it is an error of ours."""
    origin.publish(ONE, "1")
    kit.sync(origin.url, tmp_path / "tree", selection=Selection(include=("*.py",)))
    path = tmp_path / "tree/.perfkit/release"
    text = path.read_text()
    for damage in (
        {"selection": 5},
        {"selection": {"include": 5}},
        {"selection": {"include": ["!"]}},
        {"selection": {"strip_components": "x"}},
        {"origin": ["etag"]},
    ):
        record = json.loads(text)
        record["state"] |= damage
        path.write_text(json.dumps(record))
        with pytest.raises(PerfkitError, match="damaged"):
            kit.sync(origin.url, tmp_path / "tree")
