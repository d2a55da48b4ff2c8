"""Many names in little memory: their UTF-8 bytes in a row, and where each ends."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

__all__ = ["Names"]


_BLOCK = 32  # names: one row of bytes that grows would be moved again and again, and leave holes in the heap
_LONGEST = 255  # of what is shared, so that a byte tells how much


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
