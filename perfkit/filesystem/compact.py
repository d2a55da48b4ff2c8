"""Many names and numbers in little memory: bytes in a row, arrays, or a range if they are one."""

from __future__ import annotations

import heapq
import operator
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

__all__ = ["Names", "pack_numbers", "sort_numbers"]

_BLOCK = 32  # names: one row of bytes that grows would be moved again and again, and leave holes in the heap
_LONGEST = 255  # of what is shared, so that a byte tells how much
_AT_ONCE = 4096  # numbers that are sorted together


class Names:
    """Names in the order they were appended, which is best the alphabet's.

    In a block, the directories of the first name are kept once; the others say how many bytes of that they share.
    """

    def __init__(self) -> None:
        self._shared: list[bytes] = []
        self._blocks: list[bytearray] = []
        self._ends = array("I")  # within the block

    def append(self, name: str) -> None:
        """One more."""
        data = name.encode()
        if len(self._ends) % _BLOCK == 0:
            self._shared.append(data[: data.rfind(b"/", 0, _LONGEST) + 1])
            self._blocks.append(bytearray())
        shared, block = self._shared[-1], self._blocks[-1]
        size = len(shared)
        while not data.startswith(shared[:size]):
            size = shared.rfind(b"/", 0, size - 1) + 1
        block.append(size)
        block += data[size:]
        self._ends.append(len(block))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, at: int) -> str:
        return self.encoded(at).decode()

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def encoded(self, at: int) -> bytes:
        """The UTF-8 bytes of one, which sort as names do."""
        block = self._blocks[at // _BLOCK]
        begin = self._ends[at - 1] if at % _BLOCK else 0
        return self._shared[at // _BLOCK][: block[begin]] + block[begin + 1 : self._ends[at]]


def sort_numbers(numbers: Sequence[int], key: Callable[[int], Any]) -> Iterator[int]:
    """These numbers, each below 2**32, by their keys; those with the same key stay in order.

    `sorted` holds all keys at once, of a hundred thousand files ten megabytes.
    """
    if len(numbers) <= _AT_ONCE:
        return iter(sorted(numbers, key=key))
    parts = (sorted(numbers[at : at + _AT_ONCE], key=key) for at in range(0, len(numbers), _AT_ONCE))
    return heapq.merge(*[array("I", part) for part in parts], key=key)


def pack_numbers(numbers: Iterable[int]) -> Sequence[int]:
    """These numbers, each below 2**32."""
    packed = array("I", numbers)
    whole = range(packed[0], packed[0] + len(packed)) if packed else range(0)
    return whole if all(map(operator.eq, packed, whole)) else packed
