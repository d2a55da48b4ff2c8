"""Find blobs by SHA-256, with a few bytes of memory for each. No I/O.

A dictionary takes a hundred bytes and more for each digest; with a hundred thousand files, several dictionaries would
take most of the memory that a sync may use.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Set

from perfkit.filesystem.compact import DigestIndex, pack_numbers
from perfkit.releases.format.manifest import Manifest


class BlobIndex:
    """The entries of a manifest by content, in about 12 bytes per entry."""

    def __init__(self, manifest: Manifest, places: Iterable[int] | None = None) -> None:
        self.manifest = manifest
        # the entries that are indexed, in order; all by default
        self.places = range(len(manifest)) if places is None else pack_numbers(places)
        self._index = DigestIndex(map(manifest.digest, self.places))

    def find(self, digest: bytes) -> Iterator[int]:
        """The indexes of the entries with this SHA-256, in order."""
        for place in self._index.candidates(digest):
            if self.manifest.digest(at := self.places[place]) == digest:
                yield at

    def first(self, digest: bytes) -> int | None:
        """The index of the first entry with this SHA-256."""
        place = self._index.first(digest)
        if place is None:
            return None
        at = self.places[place]
        return at if self.manifest.digest(at) == digest else next(self.find(digest), None)

    def repeated(self) -> Iterator[int]:
        """The indexes of entries that may have the SHA-256 of an earlier one."""
        return map(self.places.__getitem__, self._index.repeated())

    def bytes_of(self, digests: Iterable[bytes]) -> int:
        """The total size of these blobs."""
        if isinstance(digests, BlobSet) and digests.index is self:
            return sum(itertools.compress(self.manifest.sizes, digests._has))
        return sum(self.manifest.size(at) for at in map(self.first, digests) if at is not None)


class BlobSet(Set[bytes]):
    """A set of a manifest's blobs, by SHA-256, in one byte per entry."""

    def __init__(self, index: BlobIndex, digests: Iterable[bytes] = ()) -> None:
        self.index = index
        self._has = bytearray(len(index.manifest))  # 1 for the first entry of each blob in the set
        for digest in digests:
            self.add(digest)

    @classmethod
    def of_files(cls, manifest: Manifest, names: Iterable[str]) -> BlobSet:
        """The blobs of these files, except empty ones."""
        found = map(manifest.find, names)
        return cls.at(manifest, (at for at in found if at is not None and manifest.size(at)))

    @classmethod
    def at(cls, manifest: Manifest, places: Iterable[int]) -> BlobSet:
        """The blobs of these entries, given in order."""
        blobs = cls(BlobIndex(manifest, places))
        for at in blobs.index.places:
            blobs._has[at] = 1
        for at in blobs.index.repeated():
            blobs._has[at] = blobs.index.first(manifest.digest(at)) == at
        return blobs

    def add(self, digest: bytes) -> bool:
        """Add a blob; False if the index does not have it."""
        at = self.index.first(digest)
        if at is not None:
            self._has[at] = 1
        return at is not None

    def has_first(self, at: int) -> bool:
        """Whether this entry is the first one of a blob in the set."""
        return self._has[at] == 1

    def __contains__(self, digest: object) -> bool:
        at = self.index.first(digest) if isinstance(digest, bytes) else None
        return at is not None and self._has[at] == 1

    def __iter__(self) -> Iterator[bytes]:
        return itertools.compress(self.index.manifest.digests(), self._has)

    def __len__(self) -> int:
        return self._has.count(1)

    def __sub__(self, other: Iterable[object]) -> BlobSet:
        left = BlobSet(self.index)
        if isinstance(other, BlobSet) and other.index is self.index:
            bits = int.from_bytes(self._has, "big") & ~int.from_bytes(other._has, "big")
            left._has[:] = bits.to_bytes(len(self._has), "big")
            return left
        left._has[:] = self._has
        for digest in other:
            if isinstance(digest, bytes) and (at := self.index.first(digest)) is not None:
                left._has[at] = 0
        return left

    @classmethod
    def _from_iterable(cls, digests: Iterable[bytes]) -> frozenset[bytes]:  # type: ignore[override]
        return frozenset(digests)
