"""The frames of an index that is being made: those kept from the last release, and new ones."""

from __future__ import annotations

import operator
from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain, compress, groupby, repeat

from perfkit.filesystem.compact import pack_numbers
from perfkit.releases.format.index import Index, Pack
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.format.pointer import ObjectRef, PackedRef

_PIECE_COLUMNS = ("frames", "entries", "offsets", "starts", "lengths", "tags")
_SMALL_BYTES = 4096  # content too small to tell by itself whether it compresses


class Copies:
    """Which ranges of new contents are ranges of old ones.

    Args:
        moved: for each old entry, the first new one with the same content, or -1.
    """

    def __init__(self, moved: Iterable[int]) -> None:
        self.moved = array("q", moved)
        # for old entries that are not whole in the new release: old offset, length, new entry, new offset
        self.parts: dict[int, list[tuple[int, int, int, int]]] = defaultdict(list)

    def add(self, old_entry: int, old_offset: int, length: int, entry: int, offset: int) -> None:
        """Add a range; it extends the last one if it follows that in both contents."""
        parts = self.parts[old_entry]
        if parts:
            at, size, other, there = parts[-1]
            if other == entry and at + size == old_offset and there + size == offset:
                parts[-1] = (at, size + length, entry, there)
                return
        parts.append((old_offset, length, entry, offset))


class _Overlaps:
    """Finds the ranges of an entry, rows of `Copies.parts`, that may overlap others, without looking at all of them."""

    def __init__(self, rows: list[tuple[int, int, int, int]]) -> None:
        self._rows = sorted(rows)
        self._ends = list(accumulate((row[0] + row[1] for row in self._rows), max))  # the maximum up to each row

    def find(self, begin: int, end: int) -> list[tuple[int, int, int, int]]:
        return self._rows[bisect_right(self._ends, begin) : bisect_left(self._rows, (end,))]


class Gaps:
    """Ranges of contents that no piece covers, in columns, in order of entries and places."""

    def __init__(self) -> None:
        self._entries, self._begins, self._ends = array("I"), array("Q"), array("Q")

    def add(self, entry: int, begin: int, end: int) -> None:
        """Add a range; call this in order."""
        self._entries.append(entry)
        self._begins.append(begin)
        self._ends.append(end)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Entry, beginning and end of each range."""
        return zip(self._entries, self._begins, self._ends, strict=True)

    def entries(self) -> Iterator[int]:
        """The entries, each once."""
        return (entry for entry, _ in groupby(self._entries))

    def of(self, entry: int) -> Iterable[tuple[int, int]]:
        """The beginnings and ends of the ranges of an entry."""
        here = slice(bisect_left(self._entries, entry), bisect_right(self._entries, entry))
        return zip(self._begins[here], self._ends[here], strict=True)

    @property
    def bytes(self) -> int:
        """The total length of the ranges."""
        return sum(self._ends) - sum(self._begins)


class FrameTable:
    """Frames and pieces in columns, as in `Index`, but in any order. A frame without pieces is not used.

    Attributes:
        packs: the packs that contain the frames.
        frames: the frame of each piece.
    """

    def __init__(self) -> None:
        self.packs: list[Pack] = []
        self.packs_of, self.at, self.packed, self.sizes = array("I"), array("Q"), array("I"), array("I")
        self.frames, self.entries, self.offsets = array("I"), array("I"), array("Q")
        self.starts, self.lengths, self.tags = array("I"), array("I"), array("Q")

    @classmethod
    def kept(cls, index: Index, copies: Copies, *, share: float = 0.0, parts: bool = False) -> FrameTable:
        """The frames of the last release, with the pieces that the new one has.

        Args:
            share: the least share of a frame's content that the new release must use.
            parts: whether to take the ranges of changed contents as well.
        """
        table = cls()
        table.packs = list(index.packs)
        table.packs_of, table.at = array("I", index.packs_of), array("Q", index.at)
        table.packed, table.sizes = array("I", index.packed), array("I", index.sizes)
        counts = map(operator.sub, index.first[1:], index.first)
        frames = array("I", chain.from_iterable(map(repeat, range(len(index)), counts)))
        moved = list(map(copies.moved.__getitem__, index.entries))
        live = [entry >= 0 for entry in moved]
        columns = frames, moved, index.offsets, index.starts, index.lengths, index.tags or repeat(0)
        for name, column in zip(_PIECE_COLUMNS, columns, strict=True):
            getattr(table, name).extend(compress(column, live))
        if parts and copies.parts:
            found = {entry: _Overlaps(rows) for entry, rows in copies.parts.items()}
            for number, entry in enumerate(index.entries):
                if entry in found:
                    table._add_parts(frames[number], index, number, found[entry])
        if share:
            used = array("Q", bytes(8 * len(index)))
            for frame, length in zip(table.frames, table.lengths, strict=True):
                used[frame] += length
            table.drop(lambda frame: used[frame] < share * table.sizes[frame])
        return table

    def _add_parts(self, frame: int, index: Index, number: int, parts: _Overlaps) -> None:
        offset, start, length = index.offsets[number], index.starts[number], index.lengths[number]
        for old_offset, size, entry, there in parts.find(offset, offset + length):
            begin, end = max(offset, old_offset), min(offset + length, old_offset + size)
            if begin < end:
                self.add_piece(frame, entry, there + begin - old_offset, start + begin - offset, end - begin)

    def __len__(self) -> int:
        return len(self.at)

    def add_frame(self, pack: int, at: int, compressed: int, size: int) -> None:
        """Add a frame; frames are numbered in the order of these calls."""
        self.packs_of.append(pack)
        self.at.append(at)
        self.packed.append(compressed)
        self.sizes.append(size)

    def add_piece(self, frame: int, entry: int, offset: int, start: int, length: int, tag: int = 0) -> None:
        """Add a piece of a frame; the frame itself may be added later."""
        self.frames.append(frame)
        self.entries.append(entry)
        self.offsets.append(offset)
        self.starts.append(start)
        self.lengths.append(length)
        self.tags.append(tag)

    def drop(self, unwanted: Callable[[int], bool]) -> None:
        """Remove all pieces of the unwanted frames."""
        wanted = bytes(not unwanted(frame) for frame in range(len(self)))
        if all(wanted):
            return
        keep = bytes(map(wanted.__getitem__, self.frames))
        for name in _PIECE_COLUMNS:
            column = getattr(self, name)
            setattr(self, name, array(column.typecode, compress(column, keep)))

    def used(self) -> dict[int, array[int]]:
        """The frames with pieces, by pack, each in order of their offsets; in order of the packs."""
        frames = sorted(compress(range(len(self)), self._piece_counts()), key=self.at.__getitem__)
        frames.sort(key=self.packs_of.__getitem__)
        return {pack: array("I", here) for pack, here in groupby(frames, self.packs_of.__getitem__)}

    def _piece_counts(self) -> array[int]:
        counts = array("I", bytes(4 * len(self)))
        for frame in self.frames:
            counts[frame] += 1
        return counts

    def gaps(self, manifest: Manifest, entries: Iterable[int]) -> Gaps:
        """What no piece covers of the contents of these entries, which are in ascending order."""
        single = array("Q", bytes(8 * len(manifest)))  # bytes from the beginning
        several: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for entry, offset, length in zip(self.entries, self.offsets, self.lengths, strict=True):
            if offset == single[entry]:
                single[entry] += length
            else:
                several[entry].append((offset, offset + length))
        found = Gaps()
        for entry in entries:
            size, reached = manifest.size(entry), single[entry]
            if reached == size:
                continue
            for begin, end in (*sorted(several.get(entry, ())), (size, size)):
                if begin > reached:
                    found.add(entry, reached, begin)
                reached = max(reached, end)
        return found

    def compressible(self, gaps: Gaps, ratio: float) -> Gaps:
        """The gaps in entries that this table compresses to at most `ratio`, or of which it has little content."""
        count = max(self.entries, default=-1) + 1
        packed, sizes = array("d", bytes(8 * count)), array("Q", bytes(8 * count))
        for frame, entry, length in zip(self.frames, self.entries, self.lengths, strict=True):
            packed[entry] += length * self.packed[frame] / self.sizes[frame]
            sizes[entry] += length
        found = Gaps()
        for entry, begin, end in gaps:
            if sizes[entry] < _SMALL_BYTES or packed[entry] <= ratio * sizes[entry]:
                found.add(entry, begin, end)
        return found

    def add_from(self, other: FrameTable, gaps: Gaps) -> None:
        """Add the frames of another table that fill these gaps."""
        if not gaps.bytes:
            return
        first = len(self.packs)
        self.packs += other.packs
        places: dict[int, int] = {}
        incomplete = set(gaps.entries())
        for number, entry in enumerate(other.entries):
            if entry not in incomplete:
                continue
            for begin, end in gaps.of(entry):
                offset = other.offsets[number]
                low, high = max(begin, offset), min(end, offset + other.lengths[number])
                if low < high:
                    frame = other.frames[number]
                    if frame not in places:
                        places[frame] = len(self)
                        self.add_frame(
                            first + other.packs_of[frame], other.at[frame], other.packed[frame], other.sizes[frame]
                        )
                    self.add_piece(places[frame], entry, low, other.starts[number] + low - offset, high - low)

    def dictionary(self) -> PackedRef | None:
        """The latest dictionary."""
        return next((pack.dictionary for pack in reversed(self.packs) if pack.dictionary), None)

    def objects(self) -> tuple[ObjectRef, ...]:
        """The packs in use, and their dictionaries."""
        packs = [self.packs[pack] for pack in sorted(set(map(self.packs_of.__getitem__, self.frames)))]
        return tuple(
            {ref: None for pack in packs for ref in (pack.object, pack.dictionary and pack.dictionary.object) if ref}
        )

    def index(self, manifest: Manifest, *, tags: bool) -> Index:
        """The index of a release with these frames, in the order of packs and offsets."""
        used, counts = self.used(), self._piece_counts()
        frames = pack_numbers(chain.from_iterable(used.values()))
        place = array("I", bytes(4 * len(self)))  # of each frame
        for number, frame in enumerate(frames):
            place[frame] = number
        places = array("I", map(place.__getitem__, self.frames))
        pieces = pack_numbers(sorted(range(len(places)), key=places.__getitem__))

        def take(column: array[int], numbers: Sequence[int]) -> array[int]:
            whole = numbers == range(len(column))
            return column if whole else array(column.typecode, map(column.__getitem__, numbers))

        return Index(
            manifest.sha256,
            tuple(map(self.packs.__getitem__, used)),
            array("I", chain.from_iterable(map(repeat, range(len(used)), map(len, used.values())))),
            take(self.at, frames),
            take(self.packed, frames),
            take(self.sizes, frames),
            array("I", accumulate(take(counts, frames), initial=0)),
            take(self.entries, pieces),
            take(self.offsets, pieces),
            take(self.starts, pieces),
            take(self.lengths, pieces),
            take(self.tags, pieces) if tags else array("Q"),
        )
