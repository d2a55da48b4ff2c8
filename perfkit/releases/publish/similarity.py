"""Find content that is similar to new content, by the lines that they share. No I/O.

Lines are content-defined chunks that can be split at C speed. This finds content that was edited, moved, or copied and
adapted, in text and in most binary formats.
"""

from __future__ import annotations

import zlib
from array import array
from collections import defaultdict
from collections.abc import Container, Iterable

from perfkit.releases.format.delta import Span

BLOCK_BYTES = 64 << 10
_LINES_PER_INDEX = 500_000
_LINE_BYTES = 40  # of a typical line of text
_SHORT_BYTES = 6  # shorter lines are ignored
_LONG_BYTES = 1 << 12
_OWNERS = 4  # the first blocks with a line share its weight; further ones are ignored


class SimilarityIndex:
    """An index of old content.

    Args:
        total_bytes: size of all blocks to be added; beyond tens of megabytes, only a sample of the lines is indexed.
        block_bytes: the size of most blocks.
    """

    def __init__(self, total_bytes: int, block_bytes: int = BLOCK_BYTES) -> None:
        self._block_bytes = block_bytes
        self._rate = 1 + total_bytes // (_LINES_PER_INDEX * _LINE_BYTES)
        self._entries, self._offsets, self._lengths = array("I"), array("Q"), array("I")  # of blocks
        self._owners: dict[int, int | tuple[int, ...]] = {}

    def add(self, entry: int, offset: int, content: bytes) -> None:
        """Index a block of a file."""
        number = len(self._entries)
        self._entries.append(entry)
        self._offsets.append(offset)
        self._lengths.append(len(content))
        owners = self._owners
        for mark in self._marks(content):
            found = owners.get(mark)
            if found is None:
                owners[mark] = number
            elif isinstance(found, int):
                owners[mark] = (found, number)
            elif len(found) < _OWNERS:
                owners[mark] = (*found, number)

    def _marks(self, content: bytes) -> dict[int, int]:
        """The sampled lines: checksum and length."""
        rate, marks = self._rate, line_marks(content)
        return marks if rate == 1 else {mark: size for mark, size in marks.items() if mark % rate == 0}

    def find(self, content: bytes, *, limit: int, known: Container[int] = ()) -> list[Span]:
        """The blocks that share most with this content, best first, of at most `limit` bytes in total.

        Args:
            known: the `line_marks` of lines that need not be found.
        """
        votes: dict[int, int] = defaultdict(int)
        marks = {mark: size for mark, size in self._marks(content).items() if mark not in known}
        for mark, size in marks.items():
            found = self._owners.get(mark)
            if isinstance(found, int):
                votes[found] += 4 * size
            elif found is not None:
                for number in found:
                    votes[number] += 4 * size // len(found)
        chosen: list[Span] = []
        taken = 0
        # An eighth of what a block can have, if that is less: no block is a 200th of a large file.
        least = int(4 * sum(marks.values()) * min(1 / 200, self._block_bytes / (8 * len(content) or 1)))
        for number in sorted(votes, key=lambda number: (-votes[number], number)):
            block = Span(self._entries[number], self._offsets[number], self._lengths[number])
            if votes[number] < least or taken + block.length > limit:
                break
            chosen.append(block)
            taken += block.length
        return chosen


def joined(blocks: Iterable[Span]) -> list[Span]:
    """The blocks as spans that neither overlap nor touch."""
    spans: list[Span] = []
    for block in sorted(blocks):
        last = spans[-1] if spans else None
        if last is not None and last.entry == block.entry and block.offset <= last.offset + last.length:
            length = max(last.length, block.offset + block.length - last.offset)
            spans[-1] = Span(last.entry, last.offset, length)
        else:
            spans.append(block)
    return spans


def unknown_bytes(old: bytes, new: bytes) -> int:
    """The bytes of new lines that the old content does not have."""
    marks = line_marks(new)
    return sum(map(marks.__getitem__, marks.keys() - line_marks(old).keys()))


def line_marks(content: bytes) -> dict[int, int]:
    """The checksum of each line that isn't short, and its length."""
    lines = content.split(b"\n")
    if max(map(len, lines)) > _LONG_BYTES:
        lines = [part for line in lines for part in _cut_long(line)]
    return {zlib.crc32(line): len(line) for line in lines if len(line) >= _SHORT_BYTES}


def _cut_long(line: bytes) -> Iterable[bytes]:
    """Split text without line feeds, such as minified code, at other common delimiters."""
    if len(line) <= _LONG_BYTES:
        return (line,)
    return line.replace(b"}", b"}\n").replace(b",", b",\n").replace(b"\0", b"\0\n").split(b"\n")
