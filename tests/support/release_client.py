"""The smallest client of a release: reads a site from disk by each route, with the pure decoders only."""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path

from perfkit.releases.format.delta import Delta, Span
from perfkit.releases.format.draft import complete
from perfkit.releases.format.frames import decode_range
from perfkit.releases.format.index import Index
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.format.pointer import DeltaRef, ObjectRef, PackedRef, Pointer
from perfkit.releases.format.zstd import decompress
from tests.support.trees import Tree


class Client:
    """What a site offers."""

    def __init__(self, site: Path) -> None:
        self.site = site
        self.pointer = Pointer.parse((site / "perfkit.json").read_bytes())
        sha256, base = bytes.fromhex(self.pointer.manifest_sha256), self.pointer.base
        if base is None:
            self.manifest = Manifest.parse(self.packed(self.pointer.manifest), sha256=sha256)
        else:
            old = Manifest.parse(self.packed(base.packed), sha256=bytes.fromhex(base.sha256))
            self.manifest = Delta.open(BytesIO(self.get(self.pointer.manifest.object))).new_manifest(old)
            assert self.manifest.sha256 == sha256

    def get(self, ref: ObjectRef) -> bytes:
        """An object, verified."""
        data = (self.site / ref.path).read_bytes()
        assert hashlib.sha256(data).hexdigest() == ref.sha256
        assert len(data) == ref.bytes
        return data

    def packed(self, packed: PackedRef) -> bytes:
        """What a compressed object holds."""
        return decompress(self.get(packed.object), packed.size)

    def packs(self, index_ref: PackedRef) -> list[ObjectRef]:
        """The packs of one index."""
        return [pack.object for pack in Index.parse(self.packed(index_ref), self.manifest).packs]

    def install(self, index_ref: PackedRef) -> Tree:
        """The whole tree, by the blocks of one index."""
        index = Index.parse(self.packed(index_ref), self.manifest)
        pieces = index.pieces(lambda entry: True)
        contents: dict[int, bytearray] = {}
        for fetched in index.ranges(pieces):
            pack = index.packs[fetched.pack]
            with open(self.site / pack.object.path, "rb") as file:
                file.seek(fetched.start)
                shared = self.packed(pack.dictionary) if pack.dictionary else None
                decode_range(index, fetched, file, _into(contents, self.manifest), wanted=pieces, shared=shared)
        return _tree(self.manifest, contents, {})

    def update(self, delta: DeltaRef, old: Manifest, tree: Tree) -> tuple[Manifest, Tree]:
        """Where one delta leads from a tree."""

        def read(span: Span) -> bytes:
            number = span.entry - len(old)
            content = contents[number] if number >= 0 else tree[old.name(span.entry)]
            return bytes(content[span.offset : span.offset + span.length])

        contents: dict[int, bytearray] = {}
        with open(self.site / delta.object.path, "rb") as file:
            delta = Delta.open(file)
            draft = delta.draft(old)
            delta.apply(delta.groups(old, draft), read, _into(contents, draft))
        new = complete(draft, digests_of(draft, contents), delta.target_sha256)
        return new, _tree(new, contents, tree)

    def follow(self, tree: Tree) -> Tree | None:
        """The release's tree from an earlier one by the deltas on offer; None without a delta for it."""
        manifest = manifest_of(tree)
        deltas = self.pointer.chain(manifest.sha256.hex())
        for delta in deltas:
            manifest, tree = self.update(delta, manifest, tree)
        return tree if deltas else None


def manifest_of(tree: Tree) -> Manifest:
    """The manifest of a tree without executable files."""
    from perfkit.releases.format.manifest import Entry

    return Manifest.of(Entry(name, len(data), hashlib.sha256(data).digest()) for name, data in tree.items())


def digests_of(draft: Manifest, contents: dict[int, bytearray]) -> bytes:
    """The SHA-256 of each entry of a draft that a delta made, as `complete` takes them."""
    return b"".join(hashlib.sha256(contents.get(entry, b"")).digest() for entry in range(len(draft)))


def _into(contents: dict[int, bytearray], manifest: Manifest):  # type: ignore[no-untyped-def]
    def write(entry: int, offset: int, data: memoryview) -> None:
        content = contents.setdefault(entry, bytearray(manifest.size(entry)))
        content[offset : offset + len(data)] = data

    return write


def _tree(manifest: Manifest, contents: dict[int, bytearray], old: Tree) -> Tree:
    known = {hashlib.sha256(data).digest(): bytes(data) for data in (*old.values(), *contents.values(), b"")}
    return {entry.name: known[entry.sha256] for entry in manifest}
