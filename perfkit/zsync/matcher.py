"""Find a file's blocks in another file, at any offset, by zsync's two checksums. Needs numpy, which frees the GIL.

The weak checksum (rsum) of every offset comes from two running sums: with S(n) the sum of the first n bytes and T(n)
the sum of S(1) … S(n), a block of size B at o has a = S(o+B) - S(o) and b = T(o+B) - T(o) - B * S(o), all modulo 2**16.
A Bloom filter picks the offsets worth a closer look. Where several blocks follow each other as in the file that is
wanted, their weak checksums together are enough, and MD4 (RFC 1320), computed for many at once, decides on the others.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    _U8 = NDArray[np.uint8]
    _U32 = NDArray[np.uint32]
    _U64 = NDArray[np.uint64]
    _I64 = NDArray[np.int64]
    _Bool = NDArray[np.bool_]

__all__ = ["find_blocks", "md4", "rsum"]

_WINDOW_BYTES = 4 << 20  # of the old file, in memory at once
_STRIDE = 64 << 10  # offsets looked at in one go: arrays that stay in the cache
_RUN_BYTES = 256 << 10  # of a run of blocks, compared in one go
_WORTH_BYTES = 16 << 10  # to search each offset of this takes as long as to step over a change
_BATCH_BYTES = 8 << 20  # of blocks whose MD4 is computed at once: some 20,000 numpy calls, however many they are
_FILTER_BITS = (16, 22)  # log2 of a filter's size in bytes: least and most
_TRIES = 4  # candidates for the same blocks in one stride; and those that are tried for a run
_ENOUGH_BITS = 64  # of weak checksums in a row, to believe them
_MULTIPLIERS = (0x9E3779B1, 0x85EBCA6B)
_PAIR_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SIXTEEN = np.array(16, np.uint32)


def find_blocks(
    descriptor: int,
    sums: bytes,
    *,
    block_size: int,
    rsum_bytes: int,
    strong_bytes: int,
    sequence: int,
    strict: bool = False,
) -> _I64:
    """For each block of a file that is wanted, an offset in the file behind `descriptor` where it stands, or -1.

    A block whose checksums are short is only believed together with its neighbour, if `sequence` is 2, as zsync does.
    Beyond its end, the file is read as zeros. It may be changed meanwhile: what is found must be verified when used.

    Args:
        sums: for each block `rsum_bytes` of its weak checksum, big-endian, and the first `strong_bytes` of its MD4.
        strict: compute the MD4 of runs of blocks, too. Without, one in some 65,000 changed blocks is taken for the old.

    Raises:
        OSError: the file can't be read.
    """
    table = np.frombuffer(sums, np.uint8).reshape(-1, rsum_bytes + strong_bytes)
    target = _Target(table, rsum_bytes, block_size, sequence)
    size = os.fstat(descriptor).st_size
    doubts = _Doubts(descriptor, target, budget=4 * size + (64 << 20))
    scanner = _Scanner(target, doubts, size)
    buffer = np.zeros(min(_WINDOW_BYTES, size) + scanner.reach, np.uint8)
    position = 0
    while position < size and target.open and doubts.budget > 0:
        _read(descriptor, buffer, position)
        position = scanner.look(buffer[: min(_WINDOW_BYTES, size - position) + scanner.reach], position)
        target.renew_filters()
    doubts.settle()
    where = target.where()
    if strict:
        found = np.flatnonzero(where >= 0)
        for start in range(0, len(found), _BATCH_BYTES // block_size):
            some = found[start : start + _BATCH_BYTES // block_size]
            where[some[_read_names(descriptor, where[some], target) != target.names[some]]] = -1
    return where


def _read(descriptor: int, buffer: _U8, position: int) -> None:
    filled = 0
    view = buffer.data
    while filled < len(buffer) and (count := os.preadv(descriptor, [view[filled:]], position + filled)):
        filled += count
    buffer[filled:] = 0


class _Target:
    """The blocks that are wanted, grouped by content, and where they have been found.

    A unit is what is looked for: a block, or with `sequence` 2 a block and the one after it.

    Attributes:
        names: of all blocks.
        open: how many units had not been found when the filters were made.
    """

    def __init__(self, table: _U8, rsum_bytes: int, block_size: int, sequence: int) -> None:
        self.block_size = block_size
        self.rsum_bytes = rsum_bytes
        self.strong_bytes = table.shape[1] - rsum_bytes
        self.sequence = sequence
        self.weak = np.ascontiguousarray(table[:, :rsum_bytes])
        weak = np.zeros(len(table), np.uint32)
        for column in range(rsum_bytes):
            weak = (weak << np.uint32(8)) | table[:, column]
        self.names = _names(self.weak, table[:, rsum_bytes:])
        keys, units = weak, self.names
        if sequence == 2:
            keys = _pair_key(weak[:-1], weak[1:])
            units = _pair_name(self.names[:-1], self.names[1:])
        order = np.argsort(units, kind="stable")
        ranked = units[order]
        first = _is_first(ranked)
        self._units = ranked[first]
        self._unit_keys: _U32 = keys[order[first]]
        self._unit_of = np.empty(len(units), np.intp)
        self._unit_of[order] = np.cumsum(first) - 1
        self._places = np.full(len(self._units), -1, np.int64)  # of units
        self._run_places = np.full(len(table), -1, np.int64)  # of blocks, in runs
        self._blocks_by_key = np.argsort(keys, kind="stable")
        self._sorted_keys: _U32 = keys[self._blocks_by_key]
        self._fill_filters()

    def renew_filters(self) -> None:
        """Look for less, if a good part has been found."""
        if np.count_nonzero(self._places < 0) < self.open * 0.75:
            self._fill_filters()

    def _fill_filters(self) -> None:
        keys = np.sort(self._unit_keys[self._places < 0])
        self.open = len(keys)
        self.keys = keys[_is_first(keys)]
        least, most = _FILTER_BITS
        self.filter_bits = min(max(len(self.keys).bit_length() + 6, least), most)
        self.filters = []
        for multiplier in _MULTIPLIERS:
            one = np.zeros(1 << self.filter_bits, np.bool_)
            one[_slots(self.keys, multiplier, self.filter_bits)] = True
            self.filters.append(one)

    def block(self, key: np.uint32, least: int) -> int:
        """A block with this key that has not been found, of a few after `least` or else of the first; -1: all have."""
        keys = self._sorted_keys
        blocks = self._blocks_by_key[keys.searchsorted(key) : keys.searchsorted(key, "right")]
        after = int(blocks.searchsorted(least))
        few = np.concatenate((blocks[after : after + _TRIES], blocks[:_TRIES]))
        few = few[self._places[self._unit_of[few]] < 0]
        return int(few[0]) if len(few) else -1

    def found(self, offsets: _I64, units: _U64) -> None:
        """Take what stands at these offsets: the units that it would be."""
        index = np.minimum(np.searchsorted(self._units, units), len(self._units) - 1)
        right = self._units[index] == units
        self._place(index[right], offsets[right])

    def found_run(self, block: int, offset: int, count: int) -> None:
        """Take so many blocks in a row, and what has the same content."""
        if block and self._run_places[block - 1] == offset - self.block_size:  # it goes on: the pair with that one, too
            block, offset, count = block - 1, offset - self.block_size, count + 1
        offsets = offset + np.arange(count) * self.block_size
        self._run_places[block : block + count] = offsets
        units = self._unit_of[block : block + count - self.sequence + 1]
        self._place(units, offsets[: len(units)])

    def _place(self, units: NDArray[np.intp], offsets: _I64) -> None:
        new = self._places[units] < 0
        self._places[units[new][::-1]] = offsets[new][::-1]  # the first of several stays

    def where(self) -> _I64:
        """For each block where it stands, or -1."""
        places = self._places[self._unit_of]
        if self.sequence == 1:
            return np.where(self._run_places < 0, places, self._run_places)
        found = self._run_places.copy()
        for start in (0, 1):
            part = found[start : start + len(places)]
            np.copyto(part, places + start * self.block_size, where=(part < 0) & (places >= 0))
        return found


def _names(weak: _U8, strong: _U8) -> _U64:
    """What blocks are known by: 64 bits of what a control file says of them, of the stronger checksum first."""
    rows = np.zeros((len(weak), 8), np.uint8)
    both = np.hstack((strong, weak))[:, :8]
    rows[:, : both.shape[1]] = both
    return rows.view(np.uint64).reshape(-1)


def _pair_name(names: _U64, following: _U64) -> _U64:
    return names * _PAIR_MULTIPLIER + following


def _is_first(ranked: NDArray[np.generic]) -> _Bool:
    """Of a sorted array, the first of each value. (`np.unique` would do, but imports numpy.ma, which takes 5 ms.)"""
    first = np.ones(len(ranked), np.bool_)
    np.not_equal(ranked[1:], ranked[:-1], out=first[1:])
    return first


def _slots(keys: _U32, multiplier: int, bits: int) -> NDArray[np.intp]:
    return ((keys * np.uint32(multiplier)) >> np.uint32(32 - bits)).astype(np.intp)


def _pair_key(weak: _U32, following: _U32) -> _U32:
    """Of two neighbours: the lower halves of their weak checksums, which is all that a short rsum has."""
    return (weak << np.uint32(16)) | (following & np.uint32(0xFFFF))


def _read_names(descriptor: int, offsets: _I64, target: _Target) -> _U64:
    """The names of the blocks at these offsets."""
    size = target.block_size
    blocks = np.empty((len(offsets), size), np.uint8)
    for block, offset in zip(blocks, offsets.tolist(), strict=True):
        _read(descriptor, block, offset)
    strong = md4(blocks.reshape(-1), np.arange(len(offsets)) * size, size)[:, : target.strong_bytes]
    return _names(rsum(blocks, target.rsum_bytes), strong)


class _Doubts:
    """Offsets where only MD4 can tell what stands there.

    Attributes:
        budget: bytes still to be hashed: a control file made to slow us down gets no further.
    """

    def __init__(self, descriptor: int, target: _Target, *, budget: int) -> None:
        self._descriptor = descriptor
        self._target = target
        self._offsets: list[_I64] = []
        self._batch = max(1, _BATCH_BYTES // (target.block_size * target.sequence))
        self.budget = budget

    def add(self, offsets: _I64) -> None:
        """Take note of some."""
        if len(offsets):
            self._offsets.append(offsets)
        if sum(map(len, self._offsets)) >= self._batch:
            self.settle()

    def settle(self) -> None:
        """Find out what is there."""
        offsets, self._offsets = np.concatenate([np.empty(0, np.int64), *self._offsets]), []
        for start in range(0, len(offsets), self._batch):
            if self.budget <= 0:
                break
            self._settle(offsets[start : start + self._batch])

    def _settle(self, offsets: _I64) -> None:
        target, size = self._target, self._target.block_size
        wanted = offsets if target.sequence == 1 else np.concatenate((offsets, offsets + size))
        wanted.sort()
        wanted = wanted[_is_first(wanted)]
        self.budget -= len(wanted) * size
        names = _read_names(self._descriptor, wanted, target)
        units = names[np.searchsorted(wanted, offsets)]
        if target.sequence == 2:
            units = _pair_name(units, names[np.searchsorted(wanted, offsets + size)])
        target.found(offsets, units)


class _Scanner:
    """Goes through the old file: along a run of blocks while there is one, and else from offset to offset.

    Its arrays are used again: fresh ones cost more than the sums.
    """

    def __init__(self, target: _Target, doubts: _Doubts, size: int) -> None:
        self._target = target
        self._doubts = doubts
        self._size = size
        self._enough = max(2, _ENOUGH_BITS // (8 * target.rsum_bytes))  # blocks in a row, to believe them
        self._worth = max(self._enough, _WORTH_BYTES // target.block_size)  # the same, to step over a change for them
        self._block = -1  # the one that follows in a run, if there is one
        self._ahead: tuple[int, int] | None = None  # where a run goes on after a change: an offset, and the block there
        self._latest = 0  # that followed in one
        block_size = self._block_size = target.block_size
        self.reach = block_size * self._enough  # bytes beyond the offsets that are looked at
        self._mask = np.array(0xFFFFFFFF >> (32 - 8 * target.rsum_bytes), np.uint32)
        self._factor = np.array(block_size & 0xFFFF, np.uint16)
        length = _STRIDE + block_size * target.sequence + 1
        self._sums, self._sums2, self._b, self._spare = (np.zeros(length, np.uint16) for _ in range(4))
        self._keys, self._hashes = np.empty(_STRIDE, np.uint32), np.empty(_STRIDE, np.uint32)
        self._slots = np.empty(_STRIDE, np.intp)
        self._maybe, self._other = np.empty(_STRIDE, np.bool_), np.empty(_STRIDE, np.bool_)

    def look(self, data: _U8, base: int) -> int:
        """Look at `data`, which stands at `base`, but for the last `reach` bytes; returns where to go on."""
        self._data, self._base = data, base
        offset, end = base, base + len(data) - self.reach
        while True:
            if self._ahead is not None and offset >= self._ahead[0]:
                (offset, self._block), self._ahead = self._ahead, None
            if offset >= end:
                return offset
            if self._block >= 0:
                offset = self._follow(offset, self._block)
            else:
                offset = self._search(offset, end if self._ahead is None else min(end, self._ahead[0]))

    def _follow(self, offset: int, block: int) -> int:
        """Go along a run as far as it can be seen; returns where to go on, with that run or without one."""
        same = self._same(offset, block, max(_RUN_BYTES // self._block_size, 2 * self._worth))
        if count := _leading(same):
            offset = self._take(offset, block, count)
        if self._ahead is None and len(same) - count >= self._worth:
            runs = np.lib.stride_tricks.sliding_window_view(same[count:], self._worth)
            if (changed := _leading(~np.all(runs, axis=1))) < len(runs):
                self._ahead = (offset + changed * self._block_size, self._block + changed)
                count = 0
        if count:
            return offset
        self._block = -1
        return max(self._base, offset - self._block_size + 1)  # what comes next may overlap with the last block

    def _search(self, start: int, end: int) -> int:
        """Look at each offset of a stride that ends at `end`, if not before; a run that is found may lead further."""
        end = min(end, start + _STRIDE)
        offsets, keys = self._candidates(start, end)
        done, following, tries = start, -1, _TRIES
        doubtful = []
        for index, offset in enumerate(offsets.tolist()):
            if offset < done and (done - offset) % self._block_size == 0:
                continue  # in the run itself
            if not tries:
                rest = offsets[index:]
                self._doubts.add(rest[rest > done - self._block_size])
                break
            if (block := self._target.block(keys[index], self._latest)) < 0:
                continue
            if _leading(self._same(offset, block, self._enough)) == self._enough:
                ended = self._take(offset, block, self._enough)
                if ended < end:
                    more = self._same(ended, self._block, -(-(end - ended) // self._block_size))
                    ended = self._take(ended, self._block, _leading(more))
                if ended > done:
                    done, following = ended, self._block
            else:
                tries -= 1
                doubtful.append(offset)
        self._doubts.add(np.array(doubtful, np.int64))
        self._block = following if done >= end else -1
        return max(done, end)

    def _same(self, offset: int, block: int, most: int) -> _Bool:
        """Whether blocks from this offset on have the weak checksums of those that are wanted from `block` on."""
        size, weak = self._block_size, self._target.weak[block : block + most]
        at = offset - self._base
        count = max(0, min(len(weak), -((offset - self._size) // size), (len(self._data) - at) // size))
        blocks = self._data[at : at + count * size].reshape(count, size)
        same: _Bool = (rsum(blocks, weak.shape[1]) == weak[:count]).all(axis=1)
        return same

    def _take(self, offset: int, block: int, count: int) -> int:
        """Believe so many blocks of a run; returns where it goes on."""
        self._target.found_run(block, offset, count)
        self._block = self._latest = block + count
        return offset + count * self._block_size

    def _candidates(self, start: int, end: int) -> tuple[_I64, _U32]:
        """The offsets whose weak checksums are among the wanted, and these."""
        target = self._target
        first, behind = start - self._base, end - self._base + self._block_size * target.sequence
        keys = self._weak_keys(self._data[first:behind])
        offsets = np.flatnonzero(self._filtered(keys, target.filters[0], target.filter_bits))
        keys = keys[offsets]
        again = target.filters[1].take(_slots(keys, _MULTIPLIERS[1], target.filter_bits))
        offsets, keys = offsets[again] + start, keys[again]
        if not len(offsets):
            return offsets, keys
        at = np.minimum(np.searchsorted(target.keys, keys), len(target.keys) - 1)
        exact = target.keys[at] == keys
        return _first_of_each(offsets[exact], keys[exact])

    def _weak_keys(self, data: _U8) -> _U32:
        size, length = self._block_size, len(data) + 1
        sums, sums2 = self._sums[:length], self._sums2[:length]
        np.cumsum(data, dtype=np.uint16, out=sums[1:])
        np.cumsum(sums, dtype=np.uint16, out=sums2)
        b, spare = self._b[: length - size], self._spare[: length - size]
        np.subtract(sums2[size:], sums2[:-size], out=b)
        np.multiply(sums[:-size], self._factor, out=spare)
        np.subtract(b, spare, out=b)
        count = len(data) - size * self._target.sequence
        keys = self._keys[:count]
        if self._target.sequence == 2:
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

    def _filtered(self, keys: _U32, one: _Bool, bits: int) -> _Bool:
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


def _leading(same: _Bool) -> int:
    """How many are true before the first that is not."""
    return len(same) if same.all() else int(same.argmin())


def _first_of_each(offsets: _I64, keys: _U32) -> tuple[_I64, _U32]:
    """A few offsets for each key; more are repetitions."""
    if len(offsets) <= _TRIES:
        return offsets, keys
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    kept = np.sort(order[np.arange(len(ranked)) - np.searchsorted(ranked, ranked) < _TRIES])
    return offsets[kept], keys[kept]


def rsum(blocks: _U8, size: int = 4) -> _U8:
    """The weak checksum of each row: a, then b, big-endian; the last `size` bytes of these four."""
    weights = np.arange(blocks.shape[1], 0, -1).astype(np.uint16)
    sums = np.empty((len(blocks), 2), ">u2")
    if size > 2:
        sums[:, 0] = blocks.sum(axis=1, dtype=np.uint16)
    for start in range(0, len(blocks), 256):
        sums[start : start + 256, 1] = (blocks[start : start + 256] * weights).sum(axis=1, dtype=np.uint16)
    return sums.view(np.uint8)[:, 4 - size :]


def _md4_steps() -> list[tuple[int, int, int]]:
    """(round, word, rotation) of RFC 1320 section 3.4."""
    orders = (
        range(16),
        (0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
        (0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15),
    )
    shifts = ((3, 7, 11, 19), (3, 5, 9, 13), (3, 9, 11, 15))
    return [
        (number, word, shifts[number][index % 4])
        for number, order in enumerate(orders)
        for index, word in enumerate(order)
    ]


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
