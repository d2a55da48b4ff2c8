"""Traversal in order, and manifests side by side: what a scan of a tree is made of."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from perfkit.filesystem.scan import scan, scan_in_order
from perfkit.releases.format.manifest import Entry, Manifest, pair_entries
from perfkit.updates.digest_index import BlobIndex


def manifest(**files: str) -> Manifest:
    return Manifest.of(Entry(name, 1, hashlib.sha256(data.encode()).digest()) for name, data in files.items())


def test_names_come_in_the_order_of_a_manifest(tmp_path: Path) -> None:
    """A directory's files come where its name with a slash belongs, which is not where its bare name does."""
    names = ["a", "a-b", "a.txt/x", "a.txt/x.y/z", "a.txt0", "ab/c", "é/ü", "\U0001f600", "~", "Z"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "link").symlink_to("a")
    found = list(scan_in_order(tmp_path))
    assert [each.name for each in found] == sorted([*names, "link"], key=str.encode)
    assert set(found) == set(scan(tmp_path))


def test_names_at_the_root_are_left_out(tmp_path: Path) -> None:
    """Only there: a directory of that name further down is like any other."""
    for name in (".perfkit/lock", "d/.perfkit/x"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
    assert [each.name for each in scan_in_order(tmp_path, without=(".perfkit",))] == ["d/.perfkit/x"]


def test_deeper_than_descriptors_are_held(tmp_path: Path) -> None:
    """Directories far up are opened again on the way back, and what follows them is there."""
    deep = Path(*["d"] * 80)
    (tmp_path / deep).mkdir(parents=True)
    wanted = {str(deep / "x")}
    (tmp_path / deep / "x").write_bytes(b"")
    for depth in range(0, 80, 9):
        name = Path(*["d"] * depth) / "e"
        (tmp_path / name).write_bytes(b"")
        wanted.add(str(name))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    found = [each.name for each in scan_in_order(tmp_path)]
    assert found == sorted(wanted)
    assert before == (len(os.listdir("/proc/self/fd")) if before else 0)


def test_entries_are_paired() -> None:
    """Every name of two manifests comes once, with its place in both."""
    old, new = manifest(a="1", c="3", d="4"), manifest(b="2", c="3", e="5")
    assert list(pair_entries(old, new)) == [("a", 0, None), ("b", None, 0), ("c", 1, 1), ("d", 2, None), ("e", None, 2)]
    assert list(pair_entries(manifest(), new)) == [(name, None, at) for at, name in enumerate("bce")]
    assert list(pair_entries(new, manifest())) == [(name, at, None) for at, name in enumerate("bce")]


def test_contents_are_found_by_their_digest() -> None:
    """All entries of one content, in order, and none of another."""
    found = BlobIndex(manifest(a="1", b="2", c="1", d="3"))
    assert list(found.find(hashlib.sha256(b"1").digest())) == [0, 2]
    assert list(found.find(hashlib.sha256(b"3").digest())) == [3]
    assert list(found.find(hashlib.sha256(b"4").digest())) == []
    assert list(BlobIndex(manifest()).find(bytes(32))) == []
