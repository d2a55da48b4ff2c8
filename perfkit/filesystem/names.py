"""Many names in little memory: their UTF-8 bytes in a row, and where each ends."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

__all__ = ["Names"]


_BLOCK = 512  # names: one row of bytes that grows would be moved again and again, and leave holes in the heap


class Names:
    """Names in the order they were appended."""

    def __init__(self) -> None:
        self._blocks: list[bytearray] = []
        self._ends = array("I")  # within the block

    def append(self, name: str) -> None:
        """One more."""
        if len(self._ends) % _BLOCK == 0:
            self._blocks.append(bytearray())
        block = self._blocks[-1]
        block += name.encode()
        self._ends.append(len(block))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, at: int) -> str:
        return self.encoded(at).decode()

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def encoded(self, at: int) -> bytes:
        """The UTF-8 bytes of one, which sort as names do."""
        begin = self._ends[at - 1] if at % _BLOCK else 0
        return bytes(self._blocks[at // _BLOCK][begin : self._ends[at]])
