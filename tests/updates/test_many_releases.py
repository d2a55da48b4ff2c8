"""A site that publishes often: what it costs a client does not grow with the number of releases that it missed."""

from __future__ import annotations

from pathlib import Path

import pytest

from perfkit import Toolkit
from perfkit.releases.format.index import Index
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.format.pointer import Pointer
from perfkit.releases.publish.site import Site
from tests.support.sites import Origin
from tests.support.trees import Tree, lines, noise, text, tree_of

pytestmark = pytest.mark.once

RELEASES = 24


def test_far_behind(origin: Origin, kit: Toolkit, tmp_path: Path) -> None:
    """After many releases of one change each, all that changed comes in few requests, without a delta.

    Each pack is larger than all smaller ones together, so there are as many as the size has bits, at the most.
    """
    tree: Tree = {f"d{number % 5}/f{number}": text(number) for number in range(60)}
    origin.publish(tree, "0", keep_deltas=0)
    kit.sync(origin.url, tmp_path / "tree")
    for number in range(1, RELEASES):
        tree = {**tree, f"d{number % 5}/f{number}": text(1000 + number), "log": b"%d\n" % number}
        origin.publish(tree, str(number), keep_deltas=0)
    site = Site(str(origin.site))
    pointer = Pointer.parse((origin.site / "perfkit.json").read_bytes())
    manifest = Manifest.parse(site.get_packed(pointer.manifest))
    sizes = sorted(pack.object.bytes for pack in Index.parse(site.get_packed(pointer.fine), manifest).packs)
    assert len(sizes) <= 6
    report = kit.sync(origin.url, tmp_path / "tree")
    assert (report.version, report.route) == (str(RELEASES - 1), "blocks")
    assert report.requests <= 10
    assert tree_of(tmp_path / "tree") == tree
    kit.sync(origin.url, tmp_path / "fresh")
    assert tree_of(tmp_path / "fresh") == tree


def test_few_packs_even_if_each_release_changes_less(origin: Origin, kit: Toolkit, tmp_path: Path) -> None:
    """Each pack is larger than all smaller ones together, in whatever order they came."""
    tree: Tree = {"large": noise(0, 60_000)}
    origin.publish(tree, "0", keep_deltas=0)
    kit.sync(origin.url, tmp_path / "tree")
    for number in range(1, 13):
        tree[f"f{number}"] = noise(number, 1600 - 100 * number)
        origin.publish(tree, str(number), keep_deltas=0)
    assert kit.sync(origin.url, tmp_path / "tree").requests <= 8
    assert tree_of(tmp_path / "tree") == tree


def test_only_new_lines_of_tiny_files_are_fetched(origin: Origin, kit: Toolkit, tmp_path: Path) -> None:
    """Files of a few kilobytes are cut finely: a changed line costs some hundred bytes, not its whole file."""
    tree: Tree = {f"f{number}": noise(number, 1500).hex("\n", 16).encode() for number in range(12)}
    origin.publish(tree, "0", keep_deltas=0)
    kit.sync(origin.url, tmp_path / "tree")
    for number in range(12):
        tree[f"f{number}"] = tree[f"f{number}"].replace(b"\n", b"\nchanged\n", 20).replace(b"\nchanged", b"", 19)
        origin.publish(tree, str(number + 1), keep_deltas=0)
    report = kit.sync(origin.url, tmp_path / "tree")
    assert report.route == "blocks"
    assert report.bytes_received < 12 * 600 + 3000
    assert tree_of(tmp_path / "tree") == tree
    kit.sync(origin.url, tmp_path / "fresh")
    assert tree_of(tmp_path / "fresh") == tree


@pytest.mark.parametrize("size", [20_000, 400_000])
def test_only_new_parts_are_fetched(origin: Origin, kit: Toolkit, tmp_path: Path, size: int) -> None:
    """Of a small file and of the pieces of a large one, from any earlier release, however often they have changed."""
    content = lines(1, size // 27)
    trees: list[Tree] = [{"file": content}]
    for number in range(1, 4):
        place = content.index(b"\n", number * size // 5) + 1
        content = content[:place] + noise(number, 2000).hex().encode() + b"\n" + content[place:]
        trees.append({"file": content})
    for number, tree in enumerate(trees):
        origin.publish(tree, str(number), keep_deltas=0)
        if number < len(trees) - 1:
            kit.sync(origin.url, tmp_path / str(number))
    for number in range(len(trees) - 1):
        report = kit.sync(origin.url, tmp_path / str(number))
        assert (report.route, report.version) == ("blocks", str(len(trees) - 1))
        assert report.bytes_received < 3_000 + 3_500 * (len(trees) - 1 - number)
        assert tree_of(tmp_path / str(number)) == trees[-1]
    kit.sync(origin.url, tmp_path / "fresh")
    assert tree_of(tmp_path / "fresh") == trees[-1]
