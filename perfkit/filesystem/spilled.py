"""Bytes and rows that are kept in a file, most of them, where they would take much memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from struct import Struct
from typing import Any

_BLOCK_ROWS = 256
_READ_BYTES = 8 << 10
_MAX_BLOCKS = 32  # of a file, in memory
_IN_MEMORY = 4 << 20  # bytes that are kept in memory and not in a file
_CHUNK_BYTES = 256 << 10


class FileBytes:
    """The bytes of an open file, which are read when they are needed, in little memory if in order.

    Args:
        descriptor: of the file, which must not change; it is closed with this object.
    """

    _descriptor = -1  # until `__init__` begins, before which a signal may come

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._blocks: dict[int, bytes] = {}

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: slice) -> bytes:
        start, stop = key.start or 0, self._size if key.stop is None else key.stop
        number, at = divmod(start, _READ_BYTES)
        if at + stop - start <= _READ_BYTES:
            return (self._blocks.get(number) or self._read(number))[at : at + stop - start]
        return self._read_at(start, stop - start)

    def _read(self, number: int) -> bytes:
        """A block, which is kept for a while."""
        if len(self._blocks) == _MAX_BLOCKS:
            del self._blocks[next(iter(self._blocks))]
        start = number * _READ_BYTES
        block = self._blocks[number] = self._read_at(start, min(_READ_BYTES, self._size - start))
        return block

    def _read_at(self, start: int, size: int) -> bytes:
        found = os.pread(self._descriptor, size, start)
        if len(found) != size:
            raise OSError(errno.EIO, "a file became shorter while it was read")
        return found

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


Bytes = bytes | FileBytes
Keep = Callable[[Iterable[bytes]], Bytes]  # joins bytes, in memory or in a file


def file_bytes(descriptor: int) -> Bytes:
    """The bytes of an open file, which must not change; this, or `FileBytes` if there are megabytes, closes it."""
    stored = FileBytes(descriptor)
    return stored if len(stored) > _IN_MEMORY else stored[:]


def keep_bytes(parts: Iterable[bytes], create_file: Callable[[], int]) -> Bytes:
    """All of these bytes, joined.

    Args:
        create_file: returns a descriptor of an empty file without a name; called if there are megabytes.
    """
    found, left = bytearray(), iter(parts)
    for part in left:
        found += part
        if len(found) > _IN_MEMORY:
            with open(create_file(), "r+b") as file:
                file.write(found)
                del found
                file.writelines(left)
                file.flush()
                return FileBytes(os.dup(file.fileno()))
    return bytes(found)


def chunks(data: Bytes, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """These bytes from `start` to `stop`, in chunks."""
    end = len(data) if stop is None else stop
    return (data[at : min(at + _CHUNK_BYTES, end)] for at in range(start, end, _CHUNK_BYTES))


class FileRows:
    """A list of rows of one size, most of them in a file, so that millions take half a megabyte of memory.

    Args:
        row: what a row is made of.
        create_file: returns a descriptor of an empty file without a name; called once there are many rows.
    """

    _descriptor = -1

    def __init__(self, row: Struct, create_file: Callable[[], int]) -> None:
        self._row = row
        self._create_file = create_file
        self._blocks: dict[int, bytearray] = {}  # those in memory
        self._changed: set[int] = set()  # of these, the ones that differ from the file
        self._count = 0

    def append(self, *values: object) -> None:
        """Add a row."""
        self._count += 1
        self[self._count - 1] = values

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, at: int) -> tuple[Any, ...]:
        number, place = divmod(at, _BLOCK_ROWS)
        return self._row.unpack_from(self._blocks.get(number) or self._read(number), place * self._row.size)

    def __setitem__(self, at: int, values: tuple[object, ...]) -> None:
        number, place = divmod(at, _BLOCK_ROWS)
        self._row.pack_into(self._blocks.get(number) or self._read(number), place * self._row.size, *values)
        self._changed.add(number)

    def _read(self, number: int) -> bytearray:
        """A block, which is kept for a while."""
        if len(self._blocks) == _MAX_BLOCKS:
            self._write_oldest()
        size = _BLOCK_ROWS * self._row.size
        stored = b"" if self._descriptor < 0 else os.pread(self._descriptor, size, number * size)
        block = self._blocks[number] = bytearray(stored.ljust(size, b"\0"))
        return block

    def _write_oldest(self) -> None:
        number = next(iter(self._blocks))
        block = self._blocks.pop(number)
        if number in self._changed:
            self._changed.remove(number)
            if self._descriptor < 0:
                self._descriptor = self._create_file()
            if os.pwrite(self._descriptor, block, number * len(block)) < len(block):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
