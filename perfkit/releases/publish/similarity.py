"""Which old contents a new content resembles, by the lines that they share. Pure.

Lines are content-defined chunks that come at C speed: what is edited, moved and edited, or new but like something old
is found in the same way, in text and in most binary formats.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["BLOCK_BYTES", "Block", "Similar"]

BLOCK_BYTES = 64 << 10
_LINES_PER_INDEX = 500_000
_LINE_BYTES = 40  # about what a line of text has
_SHORT_BYTES = 6  # lines below this say nothing
_LONG_BYTES = 1 << 12
_OWNERS = 4  # so many blocks share the weight of a line; those after them get nothing


@dataclass(frozen=True, slots=True, order=True)
class Block:
    """A range of an old file."""

    entry: int
    offset: int
    length: int


class Similar:
    """An index of old contents.

    Args:
        total_bytes: of all that will be added; beyond some tens of megabytes only a sample of the lines is kept.
    """

    def __init__(self, total_bytes: int) -> None:
        self._rate = 1 + total_bytes // (_LINES_PER_INDEX * _LINE_BYTES)
        self._blocks: list[Block] = []
        self._owners: dict[int, int | tuple[int, ...]] = {}

    def add(self, entry: int, offset: int, content: bytes) -> None:
        """Take a block of an old content in."""
        number = len(self._blocks)
        self._blocks.append(Block(entry, offset, len(content)))
        owners = self._owners
        for mark in self._marks(content):
            held = owners.get(mark)
            if held is None:
                owners[mark] = number
            elif isinstance(held, int):
                owners[mark] = (held, number)
            elif len(held) < _OWNERS:
                owners[mark] = (*held, number)

    def _marks(self, content: bytes) -> dict[int, int]:
        """The lines of the sample: checksum to length."""
        lines = content.split(b"\n")
        if len(content) > _LONG_BYTES * len(lines):
            lines = [part for line in lines for part in _cut_long(line)]
        rate = self._rate
        marks = {zlib.crc32(line): len(line) for line in lines if len(line) >= _SHORT_BYTES}
        return marks if rate == 1 else {mark: size for mark, size in marks.items() if mark % rate == 0}

    def find(self, content: bytes, *, limit: int) -> list[Block]:
        """The old blocks that this content shares most with, best first, of at most `limit` bytes together."""
        votes: dict[int, int] = defaultdict(int)
        for mark, size in self._marks(content).items():
            held = self._owners.get(mark)
            if isinstance(held, int):
                votes[held] += 4 * size
            elif held is not None:
                for number in held:
                    votes[number] += 4 * size // len(held)
        chosen: list[Block] = []
        taken = 0
        least = 4 * len(content) // self._rate // 200
        for number in sorted(votes, key=lambda number: (-votes[number], number)):
            block = self._blocks[number]
            if votes[number] < least or taken + block.length > limit:
                break
            chosen.append(block)
            taken += block.length
        return chosen


def _cut_long(line: bytes) -> Iterable[bytes]:
    """Text without line feeds, such as minified code, at other common marks."""
    if len(line) <= _LONG_BYTES:
        return (line,)
    return line.replace(b"}", b"}\n").replace(b",", b",\n").replace(b"\0", b"\0\n").split(b"\n")
