"""Many names in little memory: their UTF-8 bytes in a row, and where each ends."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

__all__ = ["Names"]


class Names:
    """Names in the order they were appended."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("Q", (0,))

    def append(self, name: str) -> None:
        """One more."""
        self._bytes += name.encode()
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, at: int) -> str:
        return self.encoded(at).decode()

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def encoded(self, at: int) -> bytes:
        """The UTF-8 bytes of one, which sort as names do."""
        return bytes(self._bytes[self._ends[at] : self._ends[at + 1]])
