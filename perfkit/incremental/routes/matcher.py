"""Find a file's blocks in another file, at any offset, by zsync's two checksums. Needs numpy, which frees the GIL.

The weak checksum (rsum) of every offset comes from two running sums: with S(n) the sum of the first n bytes and T(n)
the sum of S(1) … S(n), a block of size B at o has a = S(o+B) - S(o) and b = T(o+B) - T(o) - B * S(o), all modulo 2**16.
A Bloom filter picks the offsets worth a closer look, and MD4 (RFC 1320), computed for all of these at once, decides.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["find_blocks", "md4", "rsum"]

_WINDOW_BYTES = 16 << 20  # offsets looked at before their candidates are hashed
_STRIDE = 64 << 10  # offsets looked at in one go: arrays that stay in the cache
_FILTER_BITS = (16, 22)  # log2 of a filter's size in bytes: least and most
_TRIES = 4  # candidates for the same blocks in one stride
_MULTIPLIERS = (0x9E3779B1, 0x85EBCA6B)
_SIXTEEN = np.array(16, np.uint32)

_U8 = NDArray[np.uint8]
_U32 = NDArray[np.uint32]
_I64 = NDArray[np.int64]


def find_blocks(
    descriptor: int, sums: bytes, *, block_size: int, rsum_bytes: int, strong_bytes: int, sequence: int
) -> _I64:
    """For each block of a file that is wanted, an offset in the file behind `descriptor` where it stands, or -1.

    A block whose checksums are short is only believed together with its neighbour, if `sequence` is 2, as zsync does.
    Beyond its end, the file is read as zeros. It may be changed meanwhile: what is found must be verified when used.

    Args:
        sums: for each block `rsum_bytes` of its weak checksum, big-endian, and the first `strong_bytes` of its MD4.

    Raises:
        OSError: the file can't be read.
    """
    table = np.frombuffer(sums, np.uint8).reshape(-1, rsum_bytes + strong_bytes)
    target = _Target(table, rsum_bytes, sequence)
    size = os.fstat(descriptor).st_size
    budget = 4 * size + (64 << 20)  # bytes to hash: a control file made to slow us down gets no further
    reach = block_size * sequence
    buffer = np.zeros(min(_WINDOW_BYTES, size) + reach, np.uint8)
    scanner = _Scanner(block_size, sequence, rsum_bytes)
    for start in range(0, size, _WINDOW_BYTES):
        if not target.open or budget <= 0:
            break
        filled = _read(descriptor, buffer, start)
        buffer[filled:] = 0
        count = min(_WINDOW_BYTES, size - start)
        offsets = scanner.candidates(buffer[: count + reach], target)
        if sequence == 2:
            budget -= 2 * len(offsets) * block_size
            both = np.unique(np.concatenate((offsets, offsets + block_size)))
            names = _names(buffer, both, block_size, rsum_bytes, strong_bytes)
            at = np.searchsorted(both, offsets)
            after = np.searchsorted(both, offsets + block_size)
            target.found(offsets + start, [names[at], names[after]], block_size)
        else:
            budget -= len(offsets) * block_size
            names = _names(buffer, offsets, block_size, rsum_bytes, strong_bytes)
            target.found(offsets + start, [names], block_size)
    return target.where


def _read(descriptor: int, buffer: _U8, position: int) -> int:
    filled = 0
    view = buffer.data
    while filled < len(buffer) and (count := os.preadv(descriptor, [view[filled:]], position + filled)):
        filled += count
    return filled


class _Target:
    """The blocks that are wanted, grouped by content, and where they have been found."""

    def __init__(self, table: _U8, rsum_bytes: int, sequence: int) -> None:
        self._sequence = sequence
        self.where = np.full(len(table), -1, np.int64)
        weak = np.zeros(len(table), np.uint32)
        for column in range(rsum_bytes):
            weak = (weak << np.uint32(8)) | table[:, column]
        self.weak = np.ascontiguousarray(table[:, :rsum_bytes])
        # a block is known by its whole row, a pair of neighbours by the numbers of their rows
        self._rows, numbers = np.unique(_as_names(table), return_inverse=True)
        if sequence == 2:
            keys = _pair_key(weak[:-1], weak[1:])
            units = numbers[:-1] * len(self._rows) + numbers[1:]
        else:
            keys, units = weak, numbers
        self._units, first, self._unit_of = np.unique(units, return_index=True, return_inverse=True)
        self._unit_keys: _U32 = keys[first]
        self._blocks_by_key = np.argsort(keys)
        self._sorted_keys: _U32 = keys[self._blocks_by_key]
        self._offsets = np.full(len(self._units), -1, np.int64)
        self._fill_filter()

    def _fill_filter(self) -> None:
        missing = self._unit_keys[self._offsets < 0]
        self.open = len(missing)
        self.keys = np.unique(missing)
        least, most = _FILTER_BITS
        self.filter_bits = min(max(len(self.keys).bit_length() + 6, least), most)
        self.filters = []
        for multiplier in _MULTIPLIERS:
            one = np.zeros(1 << self.filter_bits, np.bool_)
            one[_slots(self.keys, multiplier, self.filter_bits)] = True
            self.filters.append(one)

    def block(self, key: np.uint32) -> int:
        """One of the blocks that have this key, which is there."""
        return int(self._blocks_by_key[np.searchsorted(self._sorted_keys, key)])

    def found(self, offsets: _I64, names: list[Any], block_size: int) -> None:
        """Take what stands at these offsets: the rows that it would have."""
        if not len(offsets):
            return
        numbers = []
        for each in names:
            number = np.minimum(np.searchsorted(self._rows, each), len(self._rows) - 1)
            numbers.append(np.where(self._rows[number] == each, number, -1))
        units = numbers[0] if len(numbers) == 1 else numbers[0] * len(self._rows) + numbers[1]
        known = numbers[0] >= 0 if len(numbers) == 1 else (numbers[0] >= 0) & (numbers[1] >= 0)
        units, offsets = units[known], offsets[known]
        index = np.minimum(np.searchsorted(self._units, units), len(self._units) - 1)
        right = self._units[index] == units
        self._offsets[index[right][::-1]] = offsets[right][::-1]  # the first of several stays
        places = self._offsets[self._unit_of]
        hit = np.flatnonzero(places >= 0)
        self.where[hit] = places[hit]
        if self._sequence == 2:
            lonely = hit[self.where[hit + 1] < 0]
            self.where[lonely + 1] = places[lonely] + block_size
        if np.count_nonzero(self._offsets < 0) < self.open * 0.75:
            self._fill_filter()


def _as_names(table: _U8) -> Any:
    """Rows as byte strings, which numpy can sort. Zeros at the end do not count there, and all have one length."""
    return np.ascontiguousarray(table).view(f"S{table.shape[1]}").reshape(-1)


def _slots(keys: _U32, multiplier: int, bits: int) -> NDArray[np.intp]:
    return ((keys * np.uint32(multiplier)) >> np.uint32(32 - bits)).astype(np.intp)


def _pair_key(weak: _U32, following: _U32) -> _U32:
    """Of two neighbours: the lower halves of their weak checksums, which is all that a short rsum has."""
    return (weak << np.uint32(16)) | (following & np.uint32(0xFFFF))


class _Scanner:
    """Weak checksums of a stride of offsets, in arrays that are used again: fresh ones cost more than the sums."""

    def __init__(self, block_size: int, sequence: int, rsum_bytes: int) -> None:
        self._block_size = block_size
        self._sequence = sequence
        self._mask = np.array(0xFFFFFFFF >> (32 - 8 * rsum_bytes), np.uint32)
        self._size = np.array(block_size & 0xFFFF, np.uint16)
        length = _STRIDE + block_size * sequence + 1
        self._sums, self._sums2, self._b, self._spare = (np.zeros(length, np.uint16) for _ in range(4))
        self._keys, self._hashes = np.empty(_STRIDE, np.uint32), np.empty(_STRIDE, np.uint32)
        self._slots = np.empty(_STRIDE, np.intp)
        self._maybe, self._other = np.empty(_STRIDE, np.bool_), np.empty(_STRIDE, np.bool_)

    def candidates(self, data: _U8, target: _Target) -> _I64:
        """The offsets in `data` whose weak checksums are among the wanted; what follows the last one is its block."""
        reach = self._block_size * self._sequence
        count = len(data) - reach
        kept: list[_I64] = [np.empty(0, np.int64)]
        predicted: list[_I64] = []
        offset = block = -1  # the last candidate in `data`, and a block that it may be
        for start in range(0, count, _STRIDE):
            end = min(start + _STRIDE, count)
            if offset >= 0:
                steps = -(-(start - offset) // self._block_size)
                run = self._run(data, offset + steps * self._block_size, block + steps, end, target)
                if run is not None:
                    predicted.append(run)
                    continue
            keys = self._weak_keys(data[start : end + reach])
            offsets = np.flatnonzero(self._filtered(keys, target.filters[0], target.filter_bits))
            keys = keys[offsets]
            again = target.filters[1].take(_slots(keys, _MULTIPLIERS[1], target.filter_bits))
            offsets, keys = _exact(offsets[again] + start, keys[again], target.keys)
            if len(offsets):
                offset, block = int(offsets[-1]), target.block(keys[-1])
                kept.append(_first_of_each(offsets, keys))
        return np.unique(np.concatenate(kept + predicted))

    def _run(self, data: _U8, offset: int, block: int, end: int, target: _Target) -> _I64 | None:
        """The offsets up to `end` where blocks follow each other, if the weak checksums say that they still do.

        Where most is as it was, that spares looking at each offset. MD4 has the last word on these as on others.
        """
        count = -(-(end - offset) // self._block_size)
        if count < 1 or block + count > len(target.weak) or offset + count * self._block_size > len(data):
            return None
        blocks = data[offset : offset + count * self._block_size].reshape(count, self._block_size)
        if not np.array_equal(rsum(blocks)[:, 4 - target.weak.shape[1] :], target.weak[block : block + count]):
            return None
        return offset + np.arange(count, dtype=np.int64) * self._block_size

    def _weak_keys(self, data: _U8) -> _U32:
        size, length = self._block_size, len(data) + 1
        sums, sums2 = self._sums[:length], self._sums2[:length]
        np.cumsum(data, dtype=np.uint16, out=sums[1:])
        np.cumsum(sums, dtype=np.uint16, out=sums2)
        b, spare = self._b[: length - size], self._spare[: length - size]
        np.subtract(sums2[size:], sums2[:-size], out=b)
        np.multiply(sums[:-size], self._size, out=spare)
        np.subtract(b, spare, out=b)
        count = len(data) - size * self._sequence
        keys = self._keys[:count]
        if self._sequence == 2:
            keys[:] = b[:count]
            np.left_shift(keys, _SIXTEEN, out=keys)
            np.bitwise_or(keys, b[size : size + count], out=keys)
        else:
            np.subtract(sums[size:], sums[:-size], out=spare)
            keys[:] = spare[:count]
            np.left_shift(keys, _SIXTEEN, out=keys)
            np.bitwise_or(keys, b[:count], out=keys)
            np.bitwise_and(keys, self._mask, out=keys)
        return keys

    def _filtered(self, keys: _U32, one: NDArray[np.bool_], bits: int) -> NDArray[np.bool_]:
        count = len(keys)
        hashes, slots = self._hashes[:count], self._slots[:count]
        maybe, other = self._maybe[:count], self._other[:count]
        np.multiply(keys, np.uint32(_MULTIPLIERS[0]), out=hashes)
        np.right_shift(hashes, np.uint32(32 - bits), out=hashes)
        slots[:] = hashes
        one.take(slots, out=maybe, mode="clip")  # "raise" would make a copy
        np.not_equal(keys[1:], keys[:-1], out=other[1:])  # in a run of equal bytes, only its beginning
        np.logical_and(maybe[1:], other[1:], out=maybe[1:])
        return maybe


def _names(data: _U8, offsets: _I64, block_size: int, rsum_bytes: int, strong_bytes: int) -> Any:
    """The rows that the blocks at these offsets would have in a control file."""
    rows = np.empty((len(offsets), rsum_bytes + strong_bytes), np.uint8)
    blocks = np.lib.stride_tricks.sliding_window_view(data, block_size)
    step = max(1, _STRIDE * 4 // block_size)
    for start in range(0, len(offsets), step):
        rows[start : start + step, :rsum_bytes] = rsum(blocks[offsets[start : start + step]])[:, 4 - rsum_bytes :]
    step = max(1, _WINDOW_BYTES // block_size)
    for start in range(0, len(offsets), step):
        rows[start : start + step, rsum_bytes:] = md4(data, offsets[start : start + step], block_size)[:, :strong_bytes]
    return _as_names(rows)


def _exact(offsets: _I64, keys: _U32, wanted: _U32) -> tuple[_I64, _U32]:
    at = np.minimum(np.searchsorted(wanted, keys), len(wanted) - 1)
    exact = wanted[at] == keys
    return offsets[exact], keys[exact]


def _first_of_each(offsets: _I64, keys: _U32) -> _I64:
    """A few offsets for each key; more are repetitions."""
    if len(offsets) <= _TRIES:
        return offsets
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    rank = np.arange(len(ranked)) - np.searchsorted(ranked, ranked)
    return offsets[order[rank < _TRIES]]


def rsum(blocks: _U8) -> _U8:
    """The weak checksum of each row, as four bytes: a, then b, big-endian."""
    weights = np.arange(blocks.shape[1], 0, -1).astype(np.uint16)
    sums = np.empty((len(blocks), 2), ">u2")
    sums[:, 0] = blocks.sum(axis=1, dtype=np.uint16)
    for start in range(0, len(blocks), 256):
        sums[start : start + 256, 1] = (blocks[start : start + 256] * weights).sum(axis=1, dtype=np.uint16)
    return sums.view(np.uint8)


def _md4_steps() -> list[tuple[int, int, int]]:
    """(round, word, rotation) of RFC 1320 section 3.4."""
    orders = (range(16), (0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
              (0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15))  # fmt: skip
    shifts = ((3, 7, 11, 19), (3, 5, 9, 13), (3, 9, 11, 15))
    return [(number, word, shifts[number][index % 4])
            for number, order in enumerate(orders) for index, word in enumerate(order)]  # fmt: skip


_STEPS = _md4_steps()
_CONSTANTS = np.array((0, 0x5A827999, 0x6ED9EBA1), np.uint32)
_SHIFTS = {shift: (np.array(shift, np.uint32), np.array(32 - shift, np.uint32)) for _, _, shift in _STEPS}


def md4(data: _U8, offsets: _I64, length: int) -> _U8:
    """The MD4 (RFC 1320) of `length` bytes, a multiple of 64, at each of these offsets, as 16 bytes."""
    count = len(offsets)
    chunks = np.lib.stride_tricks.sliding_window_view(data, 64)
    block = np.empty((16, count), np.uint32)
    padding = np.zeros((16, count), np.uint32)
    padding[0], padding[14], padding[15] = 0x80, (length * 8) & 0xFFFFFFFF, (length * 8) >> 32
    state = [np.full(count, value, np.uint32) for value in (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)]
    before = [np.empty(count, np.uint32) for _ in range(4)]
    spare, other = np.empty(count, np.uint32), np.empty(count, np.uint32)
    with_constant = np.empty((16, count), np.uint32)
    add, xor, conjunction, disjunction = np.add, np.bitwise_xor, np.bitwise_and, np.bitwise_or
    left, right = np.left_shift, np.right_shift
    for chunk in range(0, length + 64, 64):
        block[:] = chunks[offsets + chunk].view("<u4").T if chunk < length else padding
        for old, each in zip(before, state, strict=True):
            old[:] = each
        a, b, c, d = state
        rows = list(block)
        for index, (number, word, shift) in enumerate(_STEPS):
            if index in (16, 32):
                add(block, _CONSTANTS[number : number + 1], out=with_constant)
                rows = list(with_constant)
            if number == 0:  # (b & c) | (~b & d)
                xor(c, d, out=spare)
                conjunction(spare, b, out=spare)
                xor(spare, d, out=spare)
            elif number == 1:  # the majority of b, c and d
                disjunction(c, d, out=spare)
                conjunction(spare, b, out=spare)
                conjunction(c, d, out=other)
                disjunction(spare, other, out=spare)
            else:
                xor(b, c, out=spare)
                xor(spare, d, out=spare)
            add(a, spare, out=a)
            add(a, rows[word], out=a)
            up, down = _SHIFTS[shift]
            right(a, down, out=spare)
            left(a, up, out=a)
            disjunction(a, spare, out=a)
            a, b, c, d = d, a, b, c
        state = [a, b, c, d]
        for each, old in zip(state, before, strict=True):
            add(each, old, out=each)
    digests = np.empty((count, 4), "<u4")
    for column, each in enumerate(state):
        digests[:, column] = each
    return digests.view(np.uint8)
