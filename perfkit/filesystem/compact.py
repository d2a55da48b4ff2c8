"""Many names and numbers in little memory, as byte strings, arrays and ranges."""

from __future__ import annotations

import heapq
import operator
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

__all__ = ["Names", "pack_numbers", "sort_numbers"]

_BLOCK = 32  # names; a single growing buffer would be moved again and again, and fragment the heap
_MAX_SHARED = 255  # bytes of a shared prefix, so that its length fits into a byte
_SORT_CHUNK = 4096  # numbers that are sorted at a time


class Names:
    """A list of names, which takes least memory if they are appended in sorted order.

    Each block stores the directory of its first name once; every name stores how many bytes of that it shares.
    """

    def __init__(self) -> None:
        self._shared: list[bytes] = []
        self._blocks: list[bytearray] = []
        self._ends = array("I")  # within the block

    def append(self, name: str) -> None:
        """Add a name."""
        data = name.encode()
        if len(self._ends) % _BLOCK == 0:
            self._shared.append(data[: data.rfind(b"/", 0, _MAX_SHARED) + 1])
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
        """The UTF-8 bytes of a name, which sort as the names do."""
        block = self._blocks[at // _BLOCK]
        begin = self._ends[at - 1] if at % _BLOCK else 0
        return self._shared[at // _BLOCK][: block[begin]] + block[begin + 1 : self._ends[at]]


def sort_numbers(numbers: Sequence[int], key: Callable[[int], Any]) -> Iterator[int]:
    """Sort numbers below 2**32 by key; the sort is stable.

    `sorted` would hold all keys at once: ten megabytes for a hundred thousand files.
    """
    if len(numbers) <= _SORT_CHUNK:
        return iter(sorted(numbers, key=key))
    parts = (sorted(numbers[at : at + _SORT_CHUNK], key=key) for at in range(0, len(numbers), _SORT_CHUNK))
    return heapq.merge(*[array("I", part) for part in parts], key=key)


def pack_numbers(numbers: Iterable[int]) -> Sequence[int]:
    """Numbers below 2**32 as an array, or as a range if they are consecutive."""
    packed = array("I", numbers)
    whole = range(packed[0], packed[0] + len(packed)) if packed else range(0)
    return whole if all(map(operator.eq, packed, whole)) else packed
