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
from tests.support.trees import Tree, text, tree_of

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
