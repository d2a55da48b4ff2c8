"""The releases that a site still has: listed, and installed by their version."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perfkit import ManifestError, Toolkit, UpdateError
from perfkit.errors import ConfigError
from perfkit.releases.format.pointer import ObjectRef, Pointer
from perfkit.releases.format.release_history import MAX_HISTORY_BYTES
from perfkit.releases.publish.site import Site
from tests.support.sites import Origin
from tests.support.trees import lines, tree_of

pytestmark = pytest.mark.once

ONE = {"README": b"hello\n", "pkg/a.py": lines(1, 400), "gone": b"1\n"}
TWO = {"README": b"hello 2\n", "pkg/a.py": ONE["pkg/a.py"] + b"more\n", "new": lines(2, 20)}
THREE = {**TWO, "more": b"more\n"}


@pytest.fixture
def origin_v3(origin: Origin) -> Origin:
    """A site that has had three releases."""
    for version, tree in (("1", ONE), ("2", TWO), ("3", THREE)):
        origin.publish(tree, version)
    return origin


def test_releases_are_listed_newest_first(kit: Toolkit, origin_v3: Origin) -> None:
    """Newest first, by the URL of the site or of its pointer; two requests."""
    found = kit.releases(origin_v3.url)
    assert [(each.version, each.current) for each in found] == [("3", True), ("2", False), ("1", False)]
    assert len({each.serial for each in found}) == 3
    assert kit.releases(f"{origin_v3.url}/perfkit.json") == found
    assert len(origin_v3.sent) == 4


def test_an_error_names_what_the_caller_gave(kit: Toolkit) -> None:
    with pytest.raises(ConfigError, match=r"^'site' is not an http"):
        kit.releases("site")


def test_older_and_newer_releases_are_installed(kit: Toolkit, origin_v3: Origin, tmp_path: Path) -> None:
    """Older and newer ones, into an empty tree or over another; without a release, the newest again."""
    tree = tmp_path / "tree"
    for release, files in (("2", TWO), ("1", ONE), ("3", THREE), ("1", ONE), ("1", ONE), ("2", TWO)):
        report = kit.sync(origin_v3.url, tree, release=release)
        assert (report.version, tree_of(tree)) == (release, files)
        assert kit.verify(tree).intact
    assert kit.plan(origin_v3.url, tree, release="1").version == "1"
    assert kit.sync(origin_v3.url, tree).version == "3"
    assert tree_of(tree) == THREE


def test_by_the_delta_that_leads_there(kit: Toolkit, origin_v3: Origin, tmp_path: Path) -> None:
    kit.sync(origin_v3.url, tmp_path / "tree", release="1")
    assert kit.sync(origin_v3.url, tmp_path / "tree", release="2").route == "delta"
    assert tree_of(tmp_path / "tree") == TWO


def test_repair_uses_the_installed_release(kit: Toolkit, origin_v3: Origin, tmp_path: Path) -> None:
    """From the release that is installed, not the current one."""
    tree = tmp_path / "tree"
    kit.sync(origin_v3.url, tree, release="1")
    name = max(ONE, key=lambda each: len(ONE[each]))
    (tree / name).write_bytes(b"damaged")
    assert kit.verify(tree, repair=True).repaired
    assert tree_of(tree)[name] == ONE[name]
    assert kit.status(tree).version == "1"


def test_one_on_hold(kit: Toolkit, origin_v3: Origin, tmp_path: Path) -> None:
    """Asking for it ends the hold; asking for another one does not."""
    tree = tmp_path / "tree"
    kit.sync(origin_v3.url, tree, release="2")
    kit.sync(origin_v3.url, tree)
    kit.rollback(tree)
    kit.sync(origin_v3.url, tree, release="1")
    assert kit.sync(origin_v3.url, tree).held == "3"
    assert kit.sync(origin_v3.url, tree, release="3").version == "3"
    assert kit.status(tree).held is None


def test_a_pinned_tree(kit: Toolkit, origin_v3: Origin, tmp_path: Path) -> None:
    """Goes where it is told, and stays there."""
    tree = tmp_path / "tree"
    kit.sync(origin_v3.url, tree)
    kit.pin(tree)
    assert kit.sync(origin_v3.url, tree, release="1").version == "1"
    held = kit.status(tree).held
    assert held is not None
    assert (held.reason, held.version) == ("pin", "1")
    assert kit.sync(origin_v3.url, tree).version == "1"


def test_one_that_is_not_there(kit: Toolkit, origin_v3: Origin, tmp_path: Path) -> None:
    with pytest.raises(UpdateError, match="has no release '9'; it has 3, 2, 1"):
        kit.sync(origin_v3.url, tmp_path / "tree", release="9")
    (tmp_path / "list.txt").write_text(f"{origin_v3.url}/perfkit.json\n")
    with pytest.raises(ConfigError, match="only release sites have earlier releases"):
        kit.sync(tmp_path / "list.txt", tmp_path / "tree", release="1")


def rewrite_history(site: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Another history in a site, referred to by its pointer."""
    with Site(str(site)) as place:
        pointer = place.pointer()
        assert pointer is not None
        history = json.loads(place.get(pointer.history))
        change(history)
        replaced = pointer._replace(history=place.put(json.dumps(history).encode()))
        place.replace_pointer(replaced)


HOSTILE: list[Callable[[dict[str, Any]], object]] = [
    lambda history: history["releases"][0].__setitem__(3, "../../etc/passwd"),
    lambda history: history["releases"][0].__setitem__(2, 7),
    lambda history: history["releases"][0].__setitem__(0, ["1"]),
    lambda history: history["releases"][0].__setitem__(0, "\ud800"),
    lambda history: history["releases"][0].__setitem__(1, "1"),
    lambda history: history["releases"][0].__setitem__(5, 1 << 60),
    lambda history: history["releases"][1].pop(),
    lambda history: history["releases"].append(7),
    lambda history: history.__setitem__("deltas", [[None, *row[1:]] for row in history["deltas"]]),
    lambda history: history.__setitem__("releases", 7),
    lambda history: history.__setitem__("format", 3),
]


def test_hostile_histories(kit: Toolkit, origin_v3: Origin, tmp_path: Path) -> None:
    """An error, and nothing else; a sync to the current release needs no history."""
    pointer = origin_v3.site / "perfkit.json"
    good = pointer.read_bytes()
    for change in HOSTILE:
        rewrite_history(origin_v3.site, change)
        with pytest.raises(ManifestError):
            kit.releases(origin_v3.url)
        with pytest.raises(ManifestError):
            kit.sync(origin_v3.url, tmp_path / "tree", release="1")
        pointer.write_bytes(good)
    rewrite_history(origin_v3.site, HOSTILE[0])
    assert kit.sync(origin_v3.url, tmp_path / "tree").version == "3"


def test_too_large_a_history(kit: Toolkit, origin_v3: Origin) -> None:
    """It is not even requested."""
    path = origin_v3.site / "perfkit.json"
    pointer = Pointer.parse(path.read_bytes())
    large = ObjectRef(pointer.history.sha256, MAX_HISTORY_BYTES + 1)
    path.write_bytes(pointer._replace(history=large).encode())
    with pytest.raises(ManifestError, match="larger than"):
        kit.releases(origin_v3.url)
    assert len(origin_v3.sent) == 1
