"""Releases of many files, whose manifests are stored as changes to an earlier one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfkit import ManifestError, Toolkit
from perfkit.releases.format.pointer import BaseManifest, ObjectRef, Pointer
from perfkit.releases.format.release_history import History
from perfkit.releases.publish import publisher
from tests.support.release_client import Client
from tests.support.sites import Origin
from tests.support.trees import Tree, noise, text, tree_of

pytestmark = pytest.mark.once

TREES: list[Tree] = [
    {f"d{number % 7}/f{number}": text(number) for number in range(300)} | {"log": b"%d" % release}
    for release in range(4)
]


@pytest.fixture(scope="module", autouse=True)
def few_are_many() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publisher, "_LARGE_MANIFEST_BYTES", 1)
        yield


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, few_are_many: None) -> Path:
    """Four releases."""
    with Origin(tmp_path_factory.mktemp("published")) as origin:
        for number, tree in enumerate(TREES):
            origin.publish(tree, str(number), keep_deltas=0)
        return origin.site


@pytest.fixture
def site(origin: Origin, published: Path) -> Origin:
    """A copy of them."""
    shutil.copytree(published, origin.site)
    return origin


def test_a_release_grows_a_site_by_its_changes(site: Origin, kit: Toolkit) -> None:
    """The first manifest stays the base, and stays on the site when its own release is forgotten."""
    pointer = Client(site.site).pointer
    history = History.parse((site.site / pointer.history.path).read_bytes())
    whole = history.records[0]
    assert [record.base for record in history.records] == [
        None,
        *[BaseManifest(whole.manifest_sha256, whole.manifest)] * 3,
    ]
    assert max(record.manifest.object.bytes for record in history.records[1:]) < whole.manifest.object.bytes / 16
    site.publish(TREES[0] | {"log": b"4"}, "4", keep_releases=1, grace_s=0)
    assert kit.check_site(site.site).intact
    assert Client(site.site).manifest.find("log") is not None
    site.publish({name: noise(100, number) for number, name in enumerate(TREES[0])}, "5")
    last = Client(site.site).pointer
    assert (last.base, json.loads(last.encode())["format"]) == (None, 1)


@pytest.mark.parametrize("has", [None, 0, 2])
def test_clients_read_them(site: Origin, kit: Toolkit, tmp_path: Path, has: int | None) -> None:
    """The tree may have nothing, the base, or another release."""
    if has is not None:
        kit.sync(site.url, tmp_path / "tree", release=str(has))
    base = Client(site.site).pointer.base
    assert base is not None
    lost = site.site / base.packed.object.path
    moved = lost.rename(tmp_path / "lost") if has == 0 else None
    kit.sync(site.url, tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == TREES[3]
    if moved is not None:
        moved.rename(lost)
    kit.sync(site.url, tmp_path / "tree", release="1")
    assert tree_of(tmp_path / "tree") == TREES[1]


def test_changes_that_lead_elsewhere_are_refused(site: Origin, kit: Toolkit, tmp_path: Path) -> None:
    """To another manifest, or from another one; nothing is installed."""
    pointer = Client(site.site).pointer
    assert pointer.base is not None
    history = History.parse((site.site / pointer.history.path).read_bytes())
    wrong_base = pointer.base._replace(packed=history.records[2].manifest)
    for wrong in (
        pointer._replace(manifest=history.records[1].manifest),
        pointer._replace(base=wrong_base),
    ):
        (site.site / "perfkit.json").write_bytes(wrong.encode())
        with pytest.raises(ManifestError):
            kit.sync(site.url, tmp_path / "tree")
        assert tree_of(tmp_path / "tree") == {}


def test_what_pointers_say_of_it(site: Origin) -> None:
    """Format 2 says what the manifest is made from, with limits; in format 1, it is a field of nobody."""
    pointer = Client(site.site).pointer
    assert Pointer.parse(pointer.encode()) == pointer
    record = json.loads(pointer.encode())
    assert record["format"] == 2
    assert Pointer.parse(json.dumps(record | {"format": 1}).encode()).base is None
    base = record["manifest"]["base"]
    wrong = (None, [], {}, base | {"sha256": "x"}, base | {"size": 1 << 40}, base | {"bytes": 0}, {**base, "object": 1})
    for each in wrong:
        with pytest.raises(ManifestError):
            Pointer.parse(json.dumps(record | {"manifest": record["manifest"] | {"base": each}}).encode())
    huge = pointer._replace(manifest=pointer.manifest._replace(size=100 << 20))
    with pytest.raises(ManifestError, match="can't be those"):
        Pointer.parse(huge.encode())
    assert pointer.manifest_bytes == pointer.manifest.object.bytes + pointer.base.packed.object.bytes  # type: ignore[union-attr]
    assert ObjectRef(base["object"], base["bytes"]) == pointer.base.packed.object  # type: ignore[union-attr]
