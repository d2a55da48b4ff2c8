"""Read the contents of earlier releases through the index of their small frames."""

from __future__ import annotations

import os
import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice, pairwise, repeat

from perfkit.filesystem.thread_map import cached_property
from perfkit.releases.format.index import Index
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.format.zstd import decompress_stream, dictionary, stored_content, zstd
from perfkit.releases.publish.site import Site

_READ_BYTES = 1 << 20


class BlobReader:
    """Reads the blobs of an earlier release from the site's packs of small frames. Thread-safe."""

    def __init__(self, site: Site, manifest: Manifest, index: Index) -> None:
        self.manifest = manifest
        self.index = index
        self._site = site
        self._opening = threading.Lock()
        self._last = (-1, b"")  # the frame that was read last: it may have the next piece, too
        self._packs: dict[int, tuple[int, zstd.ZstdDict | None]] = {}

    @cached_property
    def _whole(self) -> array[int]:
        """For each entry its piece, or one of several; -1: the content is listed for another entry, or empty."""
        found = array("q", repeat(-1, len(self.manifest)))
        for number, entry in enumerate(self.index.entries):
            found[entry] = number
        return found

    @cached_property
    def _parts(self) -> dict[int, list[int]]:
        """The pieces of each entry that has several, in order of their offsets; they have tags."""
        found: dict[int, list[int]] = {}
        for number, tag in enumerate(self.index.tags):
            if tag:
                found.setdefault(self.index.entries[number], []).append(number)
        for numbers in found.values():
            numbers.sort(key=self.index.offsets.__getitem__)
        return found

    def _pieces_of(self, entry: int) -> list[int]:
        return self._parts.get(entry) or [self._whole[entry]]

    @cached_property
    def _repeated(self) -> dict[bytes, int]:
        """The listed entry of each content that others have, too; a table of all would take 150 bytes for each."""
        wanted = {digest for digest, number in self._digests() if number < 0}
        rows = enumerate(self._digests())
        return {digest: entry for entry, (digest, number) in rows if number >= 0 and digest in wanted}

    def _digests(self) -> Iterator[tuple[bytes, int]]:
        return zip(self.manifest.digests(), self._whole, strict=True)

    def pieces(self, name: str) -> list[int]:
        """The numbers of the pieces of the file with this name, in order; empty: there is no such file."""
        entry = self.named(name)
        return [] if entry is None else self._pieces_of(entry)

    @cached_property
    def tags(self) -> dict[int, int]:
        """The piece with each tag."""
        return {tag: number for number, tag in enumerate(self.index.tags) if tag}

    @cached_property
    def following(self) -> dict[int, int]:
        """The piece after each piece of a file."""
        return {one: other for numbers in self._parts.values() for one, other in pairwise(numbers)}

    def close(self) -> None:
        """Close the packs."""
        for descriptor, _ in self._packs.values():
            os.close(descriptor)
        self._packs.clear()

    def named(self, name: str) -> int | None:
        """The one of `entries` with the content of the file with this name; None: there is no such file, or it is
        empty.
        """
        at = self.manifest.find(name)
        if at is None or self._whole[at] >= 0:
            return at
        return self._repeated.get(self.manifest.digest(at))

    def entries(self) -> list[int]:
        """One entry for each blob that isn't empty, in order."""
        return [entry for entry, number in enumerate(self._whole) if number >= 0]

    def read(self, entry: int, offset: int = 0, length: int | None = None) -> bytes:
        """Read one of `entries`, or a part of it."""
        length = self.manifest.size(entry) - offset if length is None else length
        numbers, end, parts = self._pieces_of(entry), offset + length, []
        first = bisect_right(numbers, offset, key=self.index.offsets.__getitem__) - 1
        for number in islice(numbers, first, None):
            piece = self.index.piece(number)
            if piece.offset >= end:
                break
            at, frame = piece.start - piece.offset, self.frame(self.index.frame_of(number))
            parts.append(frame[max(offset, piece.offset) + at : min(end, piece.offset + piece.length) + at])
        return b"".join(parts)

    def blocks(self, entry: int, size: int) -> Iterator[tuple[int, bytes]]:
        """Read one of `entries` in blocks of `size` bytes, except the last; yields offsets and blocks."""
        step = size * max(1, _READ_BYTES // size)
        for start in range(0, self.manifest.size(entry), step):
            part = self.read(entry, start, min(step, self.manifest.size(entry) - start))
            yield from ((start + at, part[at : at + size]) for at in range(0, len(part), size))

    def compressed(self, number: int) -> bytes:
        """The bytes of one frame, as they are in its pack."""
        index = self.index
        return os.pread(self._pack(index.packs_of[number])[0], index.packed[number], index.at[number])

    def content(self, number: int) -> bytes:
        """The bytes of one piece."""
        start = self.index.starts[number]
        return self.frame(self.index.frame_of(number))[start : start + self.index.lengths[number]]

    def frame(self, number: int) -> bytes:
        """The decompressed bytes of one frame."""
        last, content = self._last
        if last != number:
            content = self._decoded(number)
            self._last = number, content
        return content

    def _decoded(self, number: int) -> bytes:
        compressed, size = self.compressed(number), self.index.sizes[number]
        if (content := stored_content(compressed, size)) is not None:
            return content
        _, shared = self._pack(self.index.packs_of[number])
        return b"".join(decompress_stream((compressed,), size, shared))

    def _pack(self, number: int) -> tuple[int, zstd.ZstdDict | None]:
        with self._opening:
            if number not in self._packs:
                pack = self.index.packs[number]
                shared = dictionary(self._site.get_packed(pack.dictionary)) if pack.dictionary else None
                self._packs[number] = os.open(self._site.path(pack.object), os.O_RDONLY | os.O_CLOEXEC), shared
            return self._packs[number]
