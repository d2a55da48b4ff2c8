"""Many names in little memory: their UTF-8 bytes in a row, and where each ends."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

__all__ = ["Names"]


class Names(Sequence[str]):
    """Names in the order they were appended; equal to any sequence of the same ones."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._bytes = bytearray()
        self._ends = array("Q", (0,))
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        """One more."""
        self._bytes += name.encode()
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...
    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        if isinstance(at, slice):
            return [self.encoded(each).decode() for each in range(len(self))[at]]
        return self.encoded(range(len(self))[at]).decode()

    def encoded(self, at: int) -> bytes:
        """The UTF-8 bytes of one, which sort as names do."""
        return bytes(self._bytes[self._ends[at] : self._ends[at + 1]])

    def __iter__(self) -> Iterator[str]:
        return (self.encoded(at).decode() for at in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # it can be appended to

    def __repr__(self) -> str:
        return f"Names({list(self)!r})"
