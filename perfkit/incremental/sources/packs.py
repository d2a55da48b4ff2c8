"""The route by blocks: contents made from frames of packs, as one index of a release tells."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection

from perfkit.errors import ManifestError
from perfkit.incremental.codec import give_back
from perfkit.incremental.fetch import Assembly
from perfkit.incremental.index import Index, PackRange
from perfkit.incremental.manifest import Manifest
from perfkit.incremental.plan import Offer
from perfkit.incremental.release import PackedRef
from perfkit.incremental.routes.blocks import unpack
from perfkit.incremental.sources.objects import Objects, Staged

__all__ = ["Packs"]


class Packs:
    """The packs that one index tells of.

    Raises:
        ManifestError, TransferError, OSError: the index can't be had, or is damaged.
    """

    def __init__(self, objects: Objects, index: PackedRef, manifest: Manifest, *, variant: str) -> None:
        self._objects = objects
        self._manifest = manifest
        self._index = Index.parse(objects.packed(index), manifest)
        self._variant = variant

    def offer(self, missing: frozenset[bytes]) -> Offer:
        """What it takes to make these contents from frames."""
        ranges = self._index.ranges(self._pieces(missing))
        staged = self._objects.staged()
        lacking = [each for each in ranges if staged.find(self._index, each) is None]
        dictionaries = self._objects.lacks(packed.object for packed in self._dictionaries(ranges).values())
        decoded = sum(self._index.content_bytes(frame) for each in ranges for frame in each.frames)
        return Offer(
            "blocks", missing, variant=self._variant, requests=len(lacking) + len(dictionaries), decoded_bytes=decoded,
            bytes=sum(each.end - each.start for each in lacking) + sum(ref.bytes for ref in dictionaries),
        )  # fmt: skip

    def fetch(self, missing: frozenset[bytes], assembly: Assembly) -> None:
        """Make these contents; those that come out wrong are not in the assembly then.

        Raises:
            ManifestError: a frame is damaged; all others were used.
            TransferError, OSError: as they are fetched.
        """
        pieces = self._pieces(missing)
        ranges = self._index.ranges(pieces)
        dictionaries = self._dictionaries(ranges)
        shared = {number: self._objects.packed(packed) for number, packed in dictionaries.items()}
        staged = self._objects.fetch_ranges(self._index, ranges)
        chosen = frozenset(pieces)
        failure: ManifestError | None = None
        with assembly.making(files=len(missing)):
            for each in ranges:
                try:
                    self._unpack(each, staged, chosen, assembly, shared.get(each.pack))
                except ManifestError as error:
                    failure = error
        assembly.forget_parts()
        give_back()
        if failure is not None or missing.difference(assembly.done):
            self._discard(ranges, staged)
        if failure is not None:
            raise failure

    def _pieces(self, missing: Collection[bytes]) -> list[int]:
        entries = [entry for entry, digest in enumerate(self._manifest.digests()) if digest in missing]
        return self._index.pieces(entries)

    def _dictionaries(self, ranges: Collection[PackRange]) -> dict[int, PackedRef]:
        packs = {each.pack: self._index.packs[each.pack] for each in ranges}
        return {number: pack.dictionary for number, pack in packs.items() if pack.dictionary is not None}

    def _unpack(
        self, each: PackRange, staged: Staged, pieces: Collection[int], assembly: Assembly, shared: bytes | None
    ) -> None:
        if (found := staged.find(self._index, each)) is None:
            raise ManifestError("a range of a pack is gone from the stage")
        path, start = found
        with open(path, "rb") as file:
            file.seek(each.start - start)
            unpack(self._index, each, file, assembly.writer(self._manifest), wanted=pieces, shared=shared)

    def _discard(self, ranges: Collection[PackRange], staged: Staged) -> None:
        """Nobody can tell which of them is damaged: none is to be used again."""
        for each in ranges:
            if (found := staged.find(self._index, each)) is not None:
                with contextlib.suppress(OSError):
                    os.unlink(found[0])
