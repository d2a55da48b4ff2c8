"""Hostile and damaged sites, as a sync meets them: a typed error and the tree as it was, or the right tree."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perfkit import ManifestError, PerfkitError, Toolkit, TransferError, UnsafePathError
from perfkit.releases.format.manifest import Entry, Manifest
from perfkit.releases.format.pointer import ObjectRef, PackedRef, Pointer
from perfkit.releases.format.zstd import compress, decompress
from tests.support.hostile import bounded, raw_manifest
from tests.support.sites import Origin
from tests.support.trees import ONE, TWO, tree_of

pytestmark = pytest.mark.once


class Forge:
    """A site with two releases, a tree of the first, and the means to offer anything at all."""

    def __init__(self, origin: Origin, kit: Toolkit) -> None:
        self.origin, self.kit = origin, kit
        origin.publish(ONE, "1")
        self.base = origin.root / "base"
        kit.sync(origin.url, self.base)
        origin.publish(TWO, "2")
        self.good = {
            path: path.read_bytes() for path in origin.site.rglob("*") if path.is_file() and path.stat().st_size
        }
        self.pointer = Pointer.parse((origin.site / "perfkit.json").read_bytes())

    def put(self, data: bytes) -> ObjectRef:
        ref = ObjectRef(hashlib.sha256(data).hexdigest(), len(data))
        (self.origin.site / ref.path).write_bytes(data)
        return ref

    def pack(self, raw: bytes) -> PackedRef:
        return PackedRef(self.put(compress(raw)), len(raw))

    def raw(self, packed: PackedRef) -> bytes:
        return decompress(self.good[self.origin.site / packed.object.path], packed.size)

    def offer(self, pointer: Pointer) -> None:
        (self.origin.site / "perfkit.json").write_bytes(pointer.encode())

    def offer_manifest(self, raw: bytes) -> None:
        digest = hashlib.sha256(raw).hexdigest()
        self.offer(self.pointer._replace(manifest=self.pack(raw), manifest_sha256=digest, deltas=()))

    def sync(self, start: str = "1") -> Exception | None:
        """Sync a copy of the tree, or an empty one; see that it is whole: as it was, or what its manifest says."""
        with tempfile.TemporaryDirectory(dir=self.origin.root) as name:
            dest = Path(name, "in", "tree")
            if start == "1":
                shutil.copytree(self.base, dest)
            try:
                self.kit.sync(self.origin.url, dest)
            except (PerfkitError, OSError) as error:
                assert tree_of(dest) == (ONE if start == "1" else {})
                caught: Exception | None = error
            else:
                assert self.kit.verify(dest).intact
                assert set(tree_of(dest).values()) <= set(TWO.values())
                caught = None
            assert [entry.name for entry in Path(name).rglob("*") if "tree" not in entry.parts] == ["in"]
            return caught


@pytest.fixture
def forge(tmp_path: Path, kit: Toolkit) -> Iterator[Forge]:
    with Origin(tmp_path) as origin:
        yield Forge(origin, kit)


@pytest.mark.parametrize(
    "names", [["../up"], ["/abs"], ["a/../../up"], [".perfkit/release"], [".Perfkit/x"], ["C:x"], ["A", "a"],
              ["\u00e9", "e\u0301"], ["a", "a/b"], ["nul"]],
)  # fmt: skip
def test_unsafe_names_are_refused(forge: Forge, names: list[str]) -> None:
    """Outside, perfkit's own, or two that are one somewhere."""
    forge.offer_manifest(raw_manifest(sorted(name.encode(errors="surrogatepass") for name in names)))
    assert isinstance(forge.sync(), ManifestError | UnsafePathError)


@pytest.mark.parametrize("size", [0, 5, 7, 1 << 30, 1 << 50])
def test_sizes_that_lie(forge: Forge, size: int) -> None:
    """Of one file, which has six bytes of content in the packs."""
    listed = [Entry(name, len(data), hashlib.sha256(data).digest()) for name, data in TWO.items() if name != "README"]
    readme = Entry("README", size, hashlib.sha256(TWO["README"]).digest())
    forge.offer_manifest(Manifest.of([*listed, readme]).raw)
    for start in ("1", "nothing"):
        assert isinstance(forge.sync(start), PerfkitError | OSError)


def test_decompression_bombs_are_stopped(forge: Forge) -> None:
    """What expands to more than it says is stopped there, in bounded memory."""
    bomb = forge.put(compress(bytes(200 << 20)))
    for size in (1000, forge.pointer.manifest.size):
        lie = PackedRef(bomb, size)
        for pointer in (
            forge.pointer._replace(manifest=lie, deltas=()),
            forge.pointer._replace(solid=lie, fine=lie, deltas=()),
        ):
            forge.offer(pointer)
            with bounded(30):
                assert isinstance(forge.sync(), ManifestError)


def test_parts_in_each_others_place(forge: Forge) -> None:
    """A manifest for an index, an index for a manifest, a part for itself: all but a wrong delta is an error."""
    pointer = forge.pointer
    for changed in (
        pointer._replace(fine=pointer.manifest, solid=pointer.manifest, deltas=()),
        pointer._replace(manifest=pointer.fine, deltas=()),
        pointer._replace(manifest=PackedRef(pointer.fine.object, pointer.manifest.size), deltas=()),
        pointer._replace(manifest=PackedRef(ObjectRef(pointer.manifest.object.sha256, 5), 5), deltas=()),
    ):
        forge.offer(changed)
        assert isinstance(forge.sync(), ManifestError | TransferError)
    (delta,) = pointer.deltas
    for part in (pointer.manifest.object, pointer.history, ObjectRef("0" * 64, 10), ObjectRef(delta.object.sha256, 3)):
        forge.offer(pointer._replace(deltas=(delta._replace(object=part),)))
        assert forge.sync() is None


def test_a_delta_of_another_release(forge: Forge) -> None:
    """One that leads elsewhere, however good by itself, is not followed; blocks bring the release."""
    forge.origin.publish({**TWO, "README": b"hello 3\n"}, "3")
    three = Pointer.parse((forge.origin.site / "perfkit.json").read_bytes())
    (mine,) = forge.pointer.deltas
    (wrong,) = (delta for delta in three.deltas if delta.origin == mine.origin)
    forge.offer(forge.pointer._replace(deltas=(mine._replace(object=wrong.object),)))
    assert forge.sync() is None


damage = st.tuples(st.sampled_from(["flip", "cut", "grow", "zeros"]), st.integers(0, 1 << 30), st.integers(0, 7))


def damaged(data: bytes, how: tuple[str, int, int]) -> bytes:
    kind, place, bit = how
    at = place % len(data)
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
    if kind == "zeros":
        return (data[:at] + bytes(min(len(data) - at, 1 << bit)) + data[at + (1 << bit) :])[: len(data)]
    return data[:at] if kind == "cut" else data + bytes([place % 256]) * (1 << bit)


FUZZ = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(choice=st.integers(0, 99), how=damage, start=st.sampled_from(["1", "nothing"]))
def test_any_file_damaged(forge: Forge, choice: int, how: tuple[str, int, int], start: str) -> None:
    """Anywhere in any file of the site: the digests show it."""
    path = sorted(forge.good)[choice % len(forge.good)]
    path.write_bytes(damaged(forge.good[path], how))
    caught = forge.sync(start)
    assert caught is None or isinstance(caught, ManifestError | TransferError | UnsafePathError)
    path.write_bytes(forge.good[path])


@FUZZ
@given(
    part=st.sampled_from(["manifest", "solid", "fine", "delta"]),
    how=damage,
    packed=st.booleans(),
    start=st.sampled_from(["1", "nothing"]),
)
def test_any_part_forged(forge: Forge, part: str, how: tuple[str, int, int], start: str, packed: bool) -> None:
    """The same by one who can make the digests fit: in what is compressed, or in its compressed form."""
    pointer = forge.pointer
    if part == "delta":
        (delta,) = pointer.deltas
        data = damaged(forge.good[forge.origin.site / delta.object.path], how) or b"x"
        forge.offer(pointer._replace(deltas=(delta._replace(object=forge.put(data)),)))
        assert forge.sync(start) is None
        return
    old: PackedRef = getattr(pointer, part)
    if packed:
        whole = damaged(forge.good[forge.origin.site / old.object.path], how)
        if not whole:
            return
        forge.offer(pointer._replace(**{part: PackedRef(forge.put(whole), old.size)}, deltas=()))
    elif part == "manifest":
        forge.offer_manifest(damaged(forge.raw(old), how) or b"x")
    else:
        forge.offer(pointer._replace(**{part: forge.pack(damaged(forge.raw(old), how) or b"x")}, deltas=()))
    forge.sync(start)


@pytest.mark.parametrize("names", [["a", "b", "c"], ["x" * 250]])
def test_a_release_of_too_many_files(
    make_kit: Callable[..., Toolkit], origin: Origin, tmp_path: Path, names: list[str]
) -> None:
    """One with more files than allowed, or with very long names, is refused in words that name the setting."""
    origin.publish({name: name.encode() for name in names}, "1")
    small = make_kit(max_files=min(2, len(names)))
    with pytest.raises(ManifestError, match=r"(more than|too long for) max_files, which is .*PERFKIT_MAX_FILES"):
        small.sync(origin.url, tmp_path / "tree")
    with pytest.raises(ManifestError, match="max_files"):
        small.plan(origin.url, tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == {}
    make_kit(max_files=3).sync(origin.url, tmp_path / "tree")
    assert sorted(tree_of(tmp_path / "tree")) == names


def test_a_delta_to_too_many_files(make_kit: Callable[..., Toolkit], origin: Origin, tmp_path: Path) -> None:
    """It is refused, too, and the tree stays."""
    origin.publish({"a": b"1\n" * 500}, "1")
    small = make_kit(max_files=2)
    small.sync(origin.url, tmp_path / "tree")
    origin.publish(dict.fromkeys("abc", b"2\n" * 500), "2")
    with pytest.raises(ManifestError, match="max_files"):
        small.sync(origin.url, tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == {"a": b"1\n" * 500}
