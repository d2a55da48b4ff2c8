"""Integers in columns, as manifests, indexes and deltas store them.

A column of n integers of w bytes is stored as w planes of n bytes, the least significant first. The planes of small
numbers are mostly zeros, which compress to almost nothing, and a column is read by slicing.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable

from perfkit.errors import ManifestError
from perfkit.filesystem.spilled import Bytes

_CODES = {1: "B", 4: "I", 8: "Q"}


class Reader:
    """Reads a record from start to end, and never past its end.

    Args:
        what: the name of the record, for errors.

    Every method raises:
        ManifestError: the record is too short or, in `end`, too long.
    """

    def __init__(self, data: Bytes, what: str, magic: bytes) -> None:
        self._data = data
        self._what = what
        self.position = 0
        found = self.take(len(magic))
        if found != magic:
            kind, _, version = magic.decode().strip().rpartition(" ")
            if found.startswith(kind.encode() + b" "):
                raise ManifestError(f"{what}: unknown format version; this perfkit reads version {version}")
            raise ManifestError(f"{what}: it does not start with the magic bytes")

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > len(self._data) - self.position:
            raise ManifestError(f"{self._what}: truncated")
        start, self.position = self.position, self.position + count
        return self._data[start : self.position]

    def skip(self, count: int) -> None:
        """Skip the next bytes."""
        if count > len(self._data) - self.position:
            raise ManifestError(f"{self._what}: truncated")
        self.position += count

    def number(self, width: int = 4) -> int:
        """One little-endian integer."""
        return int.from_bytes(self.take(width), "little")

    def column(self, width: int, count: int) -> array[int]:
        """`count` integers of `width` bytes each."""
        if width * count > len(self._data) - self.position:
            raise ManifestError(f"{self._what}: truncated")
        values = array(_CODES[width], (0,)) * count
        for plane in range(width):
            memoryview(values).cast("B")[plane::width] = self.take(count)
        if sys.byteorder == "big":
            values.byteswap()
        return values

    def end(self) -> None:
        """Check that this is the end."""
        if self.position != len(self._data):
            raise ManifestError(f"{self._what}: {len(self._data) - self.position} bytes too long")


def pack_column(width: int, values: Iterable[int]) -> bytes:
    """The planes of these integers.

    Raises:
        OverflowError: one is negative or too large for `width` bytes.
    """
    column = array(_CODES[width], values)
    if sys.byteorder == "big":
        column.byteswap()
    raw = column.tobytes()
    return b"".join(raw[plane::width] for plane in range(width))


def zigzag(value: int) -> int:
    """Map small numbers of either sign to small positive ones: 0, -1, 1, -2 become 0, 1, 2, 3."""
    return value << 1 if value >= 0 else -(value << 1) - 1


def unzigzag(value: int) -> int:
    """The inverse of `zigzag`."""
    return value >> 1 if not value & 1 else -(value >> 1) - 1
