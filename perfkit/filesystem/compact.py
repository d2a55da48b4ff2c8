"""Many names and numbers in little memory, as byte strings, arrays and ranges."""

from __future__ import annotations

import heapq
import operator
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import Any, TypeVar, overload

T = TypeVar("T")

_BLOCK = 32  # names; a single growing buffer would be moved again and again, and fragment the heap
_TEXTS = 64  # in a block
_DIGESTS = 1024  # in a block, for the same reason
_MAX_SHARED = 255  # bytes of a shared prefix, so that its length fits into a byte
_SORT_CHUNK = 4096  # numbers that are sorted at a time
_HALF = (1 << 32) - 1


class Names:
    """A list of names, or other texts, which takes the least memory if they are appended in sorted order.

    Each block stores the directory of its first name once; every name stores how many bytes of it the name shares.
    """

    def __init__(self) -> None:
        self._shared: list[bytes] = []
        self._blocks: list[bytearray] = []
        self._ends = array("I")  # within the block

    def append(self, name: str) -> None:
        """Add a name."""
        data = name.encode(errors="surrogatepass")
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
        return self.encoded(at).decode(errors="surrogatepass")

    def encoded(self, at: int) -> bytes:
        """The UTF-8 bytes of a name, which sort as the names do."""
        block = self._blocks[at // _BLOCK]
        begin = self._ends[at - 1] if at % _BLOCK else 0
        return self._shared[at // _BLOCK][: block[begin]] + block[begin + 1 : self._ends[at]]


class LazySequence(Sequence[T]):
    """A sequence whose items are made on access."""

    def __init__(self, at: Callable[[int], T], places: Sequence[int]) -> None:
        self._at = at
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, number: int) -> T: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[T]: ...
    def __getitem__(self, number: int | slice) -> T | Sequence[T]:
        if isinstance(number, slice):
            return LazySequence(self._at, self._places[number])
        return self._at(self._places[number])

    def __iter__(self) -> Iterator[T]:
        return map(self._at, self._places)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # its items may change

    def __repr__(self) -> str:
        return f"LazySequence({list(self)!r})"


class Texts:
    """A list of texts without line feeds, compressed in blocks: fast if read in order."""

    def __init__(self) -> None:
        self._packed: list[bytes] = []
        self._last: list[str] = []  # not yet packed
        self._unpacked: tuple[int, list[str]] = -1, []  # number and texts of the block that was read last

    def append(self, text: str) -> None:
        """Add a text."""
        self._last.append(text)
        if len(self._last) == _TEXTS:
            self._packed.append(_pack(self._last))
            self._last = []

    def __len__(self) -> int:
        return _TEXTS * len(self._packed) + len(self._last)

    def __getitem__(self, at: int) -> str:
        number, place = divmod(at, _TEXTS)
        if number == len(self._packed):
            return self._last[place]
        if number != self._unpacked[0]:
            self._unpacked = number, unpack_texts(self._packed[number])
        return self._unpacked[1][place]

    def blocks(self) -> Iterator[bytes]:
        """All texts, as `unpack_texts` reads them."""
        yield from self._packed
        if self._last:
            yield _pack(self._last)


def _pack(texts: Iterable[str]) -> bytes:
    return zlib.compress("\n".join(texts).encode(), 1)


def unpack_texts(block: bytes) -> list[str]:
    """The texts in a block of `Texts`.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return zlib.decompress(block).decode().split("\n")
    except zlib.error as error:
        raise ValueError(str(error)) from error


class Lookup:
    """A hash table of row numbers; a dictionary of strings would take five times the memory."""

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 64))  # half of the hash, and the row number plus one; 0: free
        self._used = 0

    def find(self, key: int, matches: Callable[[int], bool]) -> int | None:
        """The row with this hash that matches."""
        slots, mask, half = self._slots, len(self._slots) - 1, key & _HALF
        at = half & mask
        while found := slots[at]:
            if found >> 32 == half and matches(row := (found & _HALF) - 1):
                return row
            at = (at + 1) & mask
        return None

    def add(self, row: int, key: int) -> None:
        """Add a row, which has this hash."""
        self._used += 1
        if 3 * self._used > 2 * len(self._slots):
            old, self._slots = self._slots, array("Q", bytes(16 * len(self._slots)))
            for each in filter(None, old):
                self._insert(each)
        self._insert((key & _HALF) << 32 | row + 1)

    def _insert(self, entry: int) -> None:
        slots, mask = self._slots, len(self._slots) - 1
        at = entry >> 32 & mask
        while slots[at]:
            at = (at + 1) & mask
        slots[at] = entry


class Digests:
    """A list of SHA-256 digests, in 32 bytes each."""

    def __init__(self) -> None:
        self._blocks: list[bytearray] = []
        self._count = 0

    def append(self, digest: bytes) -> None:
        """Add a digest."""
        if self._count % _DIGESTS == 0:
            self._blocks.append(bytearray())
        self._blocks[-1] += digest
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, at: int) -> bytes:
        place = 32 * (at % _DIGESTS)
        return bytes(self._blocks[at // _DIGESTS][place : place + 32])

    def __iter__(self) -> Iterator[bytes]:
        return map(self.__getitem__, range(self._count))


class DigestSet(Set[bytes]):
    """A set of SHA-256 digests, in about fifty bytes each."""

    def __init__(self, digests: Iterable[bytes] = ()) -> None:
        self._digests = Digests()
        self._rows = Lookup()
        for digest in digests:
            self.add(digest)

    def add(self, digest: bytes) -> bool:
        """Add a digest; returns False if it is there already."""
        if digest in self:
            return False
        self._digests.append(digest)
        self._rows.add(len(self) - 1, hash(digest))
        return True

    def __contains__(self, digest: object) -> bool:
        return self._rows.find(hash(digest), lambda row: self._digests[row] == digest) is not None

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._digests)

    def __len__(self) -> int:
        return len(self._digests)


class DigestIndex:
    """Positions in a sequence of digests, by the first 8 bytes of each digest, in 12 bytes each."""

    def __init__(self, digests: Iterable[bytes]) -> None:
        keys = array("Q", map(_key, digests))
        buckets = [array("I") for _ in range(256)]  # by first byte: sorting all at once takes more time and memory
        for at, key in enumerate(keys):
            buckets[key >> 56].append(at)
        self._order = array("I")
        for bucket in buckets:
            self._order.extend(sorted(bucket, key=keys.__getitem__))
        self._keys = array("Q", map(keys.__getitem__, self._order))

    def candidates(self, digest: bytes, *, skip: int = 0) -> Iterator[int]:
        """Positions that may have this digest, in order, without the first `skip`; compare the whole digest there."""
        key, keys = _key(digest), self._keys
        at, end = bisect_left(keys, key) + skip, len(keys)
        while at < end and keys[at] == key:
            yield self._order[at]
            at += 1

    def first(self, digest: bytes) -> int | None:
        """The first of the `candidates`."""
        key, keys = _key(digest), self._keys
        at = bisect_left(keys, key)
        return self._order[at] if at < len(keys) and keys[at] == key else None

    def repeated(self) -> Iterator[int]:
        """Positions whose digest begins with the same 8 bytes as one before it."""
        keys = self._keys
        return (self._order[at] for at in range(1, len(keys)) if keys[at] == keys[at - 1])

    def count(self, digest: bytes) -> int:
        """How many digests begin with the same 8 bytes."""
        key = _key(digest)
        return bisect_right(self._keys, key) - bisect_left(self._keys, key)


def _key(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big")


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
