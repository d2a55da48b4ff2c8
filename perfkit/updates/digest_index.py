"""Which content is where, and which contents are at hand: by SHA-256, in a few bytes each. Pure.

A dictionary of digests takes a hundred bytes and more for each; of a hundred thousand files, several of these would be
most of what a sync may use.
"""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Set

from perfkit.filesystem.compact import pack_numbers, sort_numbers
from perfkit.releases.format.manifest import Manifest

__all__ = ["ContentSet", "Contents", "DigestIndex"]


class DigestIndex:
    """Places in a sequence of digests, by what each digest begins with."""

    def __init__(self, digests: Iterable[bytes]) -> None:
        keys = array("Q", (_key(digest) for digest in digests))
        self._order = array("I", sort_numbers(range(len(keys)), keys.__getitem__))
        self._keys = array("Q", (keys[at] for at in self._order))

    def candidates(self, digest: bytes, *, skip: int = 0) -> Iterator[int]:
        """Where this digest may be, in order, the first few left out if wished; only a look tells."""
        key = _key(digest)
        for at in range(bisect_left(self._keys, key) + skip, len(self._keys)):
            if self._keys[at] != key:
                return
            yield self._order[at]


def _key(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big")


class Contents:
    """Which entries of a manifest have a content, in some 12 bytes an entry; a dictionary would take a hundred.

    Attributes:
        places: the entries that count, in order; all by default.
    """

    def __init__(self, manifest: Manifest, places: Iterable[int] | None = None) -> None:
        self.manifest = manifest
        self.places = range(len(manifest)) if places is None else pack_numbers(places)
        self._index = DigestIndex(map(manifest.digest, self.places))

    def find(self, digest: bytes) -> Iterator[int]:
        """The indexes of the entries with this SHA-256, in order."""
        found = (self.places[at] for at in self._index.candidates(digest))
        return (at for at in found if self.manifest.digest(at) == digest)

    def first(self, digest: bytes) -> int | None:
        """The index of the first entry with this SHA-256."""
        return next(self.find(digest), None)

    def bytes_of(self, digests: Iterable[bytes]) -> int:
        """The sizes of these contents together."""
        return sum(self.manifest.size(at) for at in map(self.first, digests) if at is not None)


class ContentSet(Set[bytes]):
    """Some contents of a manifest, by SHA-256, in a byte an entry."""

    def __init__(self, contents: Contents, digests: Iterable[bytes] = ()) -> None:
        self.contents = contents
        self._has = bytearray(len(contents.manifest))  # for the first entry of each content
        for digest in digests:
            self.add(digest)

    @classmethod
    def at(cls, manifest: Manifest, places: Iterable[int]) -> ContentSet:
        """The contents of these entries, given in order."""
        contents = Contents(manifest, places)
        return cls(contents, map(manifest.digest, contents.places))

    def add(self, digest: bytes) -> bool:
        """Take one in; False if the manifest does not have it."""
        at = self.contents.first(digest)
        if at is not None:
            self._has[at] = 1
        return at is not None

    def __contains__(self, digest: object) -> bool:
        at = self.contents.first(digest) if isinstance(digest, bytes) else None
        return at is not None and self._has[at] == 1

    def __iter__(self) -> Iterator[bytes]:
        return itertools.compress(self.contents.manifest.digests(), self._has)

    def __len__(self) -> int:
        return self._has.count(1)

    def __sub__(self, other: Iterable[object]) -> ContentSet:
        left = ContentSet(self.contents)
        if isinstance(other, ContentSet) and other.contents is self.contents:
            bits = int.from_bytes(self._has, "big") & ~int.from_bytes(other._has, "big")
            left._has[:] = bits.to_bytes(len(self._has), "big")
            return left
        left._has[:] = self._has
        for digest in other:
            if isinstance(digest, bytes) and (at := self.contents.first(digest)) is not None:
                left._has[at] = 0
        return left

    @classmethod
    def _from_iterable(cls, digests: Iterable[bytes]) -> frozenset[bytes]:  # type: ignore[override]
        return frozenset(digests)
