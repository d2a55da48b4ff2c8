"""A few kilobytes that claim, or decompress to, far more: refused before memory or disk are taken for it."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pytest

from perfkit import ManifestError, UnsafePathError
from perfkit.filesystem.paths import check_name, check_names
from perfkit.releases.format.columns import pack_column
from perfkit.releases.format.delta import MAX_GROUP_SPANS, Delta
from perfkit.releases.format.index import Index, Pack, Piece
from perfkit.releases.format.manifest import Entry, Manifest
from perfkit.releases.format.pointer import ObjectRef, PackedRef, Pointer
from perfkit.releases.format.zstd import compress
from perfkit.releases.publish.publisher import publish
from perfkit.releases.publish.site import Site
from tests.support.hostile import bounded, one_frame, raw_manifest
from tests.support.trees import write_tree

pytestmark = pytest.mark.once

OBJECT = ObjectRef("ab" * 32, 1000)


def pointer(**changes: PackedRef) -> Pointer:
    small = PackedRef(OBJECT, 1000)
    base = Pointer("1", 1, "cd" * 32, small, small, small, OBJECT)
    return base._replace(**changes)


@pytest.mark.parametrize("name", ["manifest", "solid", "fine"])
@pytest.mark.parametrize(
    "packed", [PackedRef(ObjectRef("ab" * 32, 1000), 100 << 20), PackedRef(ObjectRef("ab" * 32, 1 << 40), 1000),
               PackedRef(ObjectRef("ab" * 32, 3000), 1000)],
)  # fmt: skip
def test_sizes_that_no_frame_has(name: str, packed: PackedRef) -> None:
    """A kilobyte that becomes 100 MB, and objects longer than what they contain."""
    assert Pointer.parse(pointer().encode())
    with pytest.raises(ManifestError, match="can't be those of a frame"):
        Pointer.parse(pointer(**{name: packed}).encode())


def test_an_index_grows_with_its_manifest() -> None:
    """Millions of tiny files: an index of zeros, but the manifest has a digest for each."""
    large = PackedRef(ObjectRef("ab" * 32, 30 << 20), 100 << 20)
    index = PackedRef(ObjectRef("ef" * 32, 5000), 60 << 20)
    assert Pointer.parse(pointer(manifest=large, solid=index).encode()).solid == index


def test_no_site_offers_what_clients_refuse(tmp_path: Path) -> None:
    publish(str(write_tree(tmp_path / "src", {"a": b"1"})), str(tmp_path / "site"), version="1")
    before = (tmp_path / "site/perfkit.json").read_bytes()
    with Site(str(tmp_path / "site")) as site, pytest.raises(ManifestError):
        site.replace_pointer(pointer(fine=PackedRef(OBJECT, 100 << 20)))
    assert (tmp_path / "site/perfkit.json").read_bytes() == before


def test_far_more_directories_than_files() -> None:
    """200 names with 400,000 directories, in whichever form they come."""
    names = [f"{number:03}/" + "a/" * 1900 + "f" for number in range(200)]
    with bounded(40), pytest.raises(ManifestError, match="more than 10800 directories"):
        Manifest.parse(raw_manifest([name.encode() for name in names]))
    with bounded(40), pytest.raises(UnsafePathError, match="directories"):
        check_names(names)
    check_names([f"{number}/a/b/c/f" for number in range(30_000)])


def test_names_longer_than_any_path() -> None:
    with bounded(1), pytest.raises(UnsafePathError, match="longer than 4096 bytes"):
        check_name("ä/" * 2000)
    assert check_name("a/" * 2047 + "b")


def delta(slices: list[tuple[int, int, int, int]], groups: list[tuple[int, int, int]], spans: int) -> io.BytesIO:
    """A delta with this table, and without frames."""
    raw = b"".join(
        (
            *(count.to_bytes(4, "little") for count in (len(slices), len(groups), spans, spans)),
            *(pack_column(width, (row[at] for row in slices)) for at, width in enumerate((4, 8, 4, 4))),
            *(pack_column(4, (row[at] for row in groups)) for at in range(3)),
            bytes(4 * len(groups) + 36 * spans),
        )
    )
    table = compress(raw, level=3)
    head = bytes(32) + len(table).to_bytes(4, "little") + len(raw).to_bytes(4, "little")
    return io.BytesIO(b"perfkit delta 5\n" + head + table)


OLD = Manifest.of([Entry("a", 1 << 40, bytes(32))])


def test_deltas_that_claim_too_much() -> None:
    """Slices, groups and parts that decompress from nothing."""
    frame = (1, 1, 2000)
    for file in (
        delta([(1, 0, 0, 1 << 31)], [], 0),  # a frame of 2 GB for one byte
        delta([], [(MAX_GROUP_SPANS + 1, MAX_GROUP_SPANS + 1, 1)], MAX_GROUP_SPANS + 1),
        delta([(0, 0, 0, 0)] * 500_000, [], 0),  # a table of 10 MB
    ):
        with bounded(20), pytest.raises(ManifestError):
            Delta.open(file).new_manifest(OLD)
    with bounded(20), pytest.raises(ManifestError, match="its manifest exceeds the limit"):
        Delta.open(delta([(1 << 20, 0, 0, 1000)] * 100, [], 0)).new_manifest(OLD)
    with bounded(20), pytest.raises(ManifestError, match="a group of more than"):
        list(Delta.open(delta([], [frame], 1)).groups(OLD, Manifest.of([Entry("a", 1, bytes(32))])))


def test_frames_longer_than_their_content() -> None:
    """An index whose frames would fill the disk with a gigabyte for each byte."""
    manifest = Manifest.of([Entry("a", 1, hashlib.sha256(b"x").digest())])
    for size, fits in ((1000, True), (1 << 30, False)):
        pack = Pack(ObjectRef("ab" * 32, 1 << 31))
        raw = one_frame(manifest, pack, size, 1, (Piece(0, 0, 0, 1),)).encode(manifest)
        if fits:
            assert len(Index.parse(raw, manifest)) == 1
        else:
            with pytest.raises(ManifestError, match="a frame of 1073741824 bytes"):
                Index.parse(raw, manifest)


def test_pointers_that_recurse() -> None:
    for raw in (b"[" * 60_000, b'{"format":' * 6_000, json.dumps({"format": 1, "manifest": [[]]}).encode()):
        with bounded(), pytest.raises(ManifestError):
            Pointer.parse(raw)
