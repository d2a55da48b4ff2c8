"""Find a file's blocks in another file, at any offset, by zsync's two checksums. Needs numpy, which releases the GIL.

The weak checksum (rsum) of every offset comes from two running sums: with S(n) the sum of the first n bytes and T(n)
the sum of S(1) … S(n), a block of size B at o has a = S(o+B) - S(o) and b = T(o+B) - T(o) - B * S(o), all modulo 2**16.
A Bloom filter selects the offsets to check. Where several blocks follow each other as in the wanted file, their weak
checksums together are sufficient; MD4 (RFC 1320), computed for many at once, decides on the others.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from perfkit.libc import preadv
from perfkit.zsync.block_sums import md4, rsum

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from perfkit.zsync.control import Control

    _U8 = NDArray[np.uint8]
    _U32 = NDArray[np.uint32]
    _U64 = NDArray[np.uint64]
    _I64 = NDArray[np.int64]
    _Bool = NDArray[np.bool_]

_WINDOW_BYTES = 512 << 10  # of the old file, read at once
_STRIDE = 64 << 10  # offsets searched at once: the arrays fit into the cache
_RUN_BYTES = 128 << 10  # of a run of blocks, compared at once
_WORTH_BYTES = 16 << 10  # searching each offset of this many bytes takes as long as skipping over a change
_BATCH_BYTES = 8 << 20  # of blocks whose MD4 is computed at once: about 20,000 numpy calls, however many blocks
_FILTER_BITS = (16, 22)  # log2 of a filter's size in bytes: minimum and maximum
_TRIES = 4  # candidates for the same block in one stride, and candidates that are tried for a run
_ENOUGH_BITS = 64  # of consecutive weak checksums, to accept them
_MULTIPLIERS = (0x9E3779B1, 0x85EBCA6B)
_PAIR_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SIXTEEN = np.array(16, np.uint32)


def find_blocks(descriptor: int, wanted: Control, *, strict: bool = False) -> _I64:
    """For each block of the wanted file, an offset in the file of `descriptor` that has it, or -1.

    If `sequence` is 2, a block is only accepted together with an adjacent one, as in zsync, since the checksums are
    short. The file is padded with zeros. Others may write to it: verify what was found when using it.

    Args:
        wanted: describes the wanted file, which has blocks.
        strict: compute the MD4 of runs of blocks, too. Without this, about one in 65,000 changed blocks is not noticed.

    Raises:
        OSError: the file can't be read.
    """
    target = _Target(wanted)
    size = os.fstat(descriptor).st_size
    queue = _Md4Queue(descriptor, target, budget=4 * size + (64 << 20))
    scanner = _Scanner(target, queue, size)
    buffer = np.zeros(min(_WINDOW_BYTES, size) + scanner.reach, np.uint8)
    position = 0
    while position < size and target.open and queue.budget > 0:
        _read(descriptor, buffer, position)
        position = scanner.search(buffer[: min(_WINDOW_BYTES, size - position) + scanner.reach], position)
        target.renew_filters()
    queue.flush()
    where = target.where()
    if strict:
        found = np.flatnonzero(where >= 0)
        for start in range(0, len(found), _BATCH_BYTES // wanted.block_size):
            some = found[start : start + _BATCH_BYTES // wanted.block_size]
            where[some[_read_ids(descriptor, where[some], target) != target.ids[some]]] = -1
    return where


def _read(descriptor: int, buffer: _U8, position: int) -> None:
    filled = 0
    view = buffer.data
    while filled < len(buffer) and (count := preadv(descriptor, [view[filled:]], position + filled)):
        filled += count
    buffer[filled:] = 0


class _Target:
    """The wanted blocks, grouped by content, and where they were found.

    A unit is a block or, if `sequence` is 2, a block and the next one.

    Attributes:
        ids: of all blocks.
        open: how many units had not been found when the filters were built.
    """

    def __init__(self, wanted: Control) -> None:
        self.block_size = wanted.block_size
        self.rsum_bytes = rsum_bytes = wanted.rsum_bytes
        self.strong_bytes = wanted.strong_bytes
        self.sequence = sequence = wanted.sequence
        table = np.frombuffer(wanted.sums, np.uint8).reshape(-1, rsum_bytes + wanted.strong_bytes)
        self.weak = np.ascontiguousarray(table[:, :rsum_bytes])
        weak = np.zeros(len(table), np.uint32)
        for column in range(rsum_bytes):
            weak = (weak << np.uint32(8)) | table[:, column]
        self.ids = _block_ids(self.weak, table[:, rsum_bytes:])
        keys, units = weak, self.ids
        if sequence == 2:
            keys = _pair_key(weak[:-1], weak[1:])
            units = _pair_id(self.ids[:-1], self.ids[1:])
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
        """Build the filters for the remaining units, if many have been found."""
        if np.count_nonzero(self._places < 0) < self.open * 0.75:
            self._fill_filters()

    def _fill_filters(self) -> None:
        keys = np.sort(self._unit_keys[self._places < 0])
        self.open = len(keys)
        self.keys = keys[_is_first(keys)]
        least, most = _FILTER_BITS
        self.filter_bits = min(max(len(self.keys).bit_length() + 4, least), most)
        self.filters = []
        for multiplier in _MULTIPLIERS:
            one = np.zeros(1 << self.filter_bits, np.bool_)
            one[_slots(self.keys, multiplier, self.filter_bits)] = True
            self.filters.append(one)

    def block(self, key: np.uint32, least: int) -> int:
        """A block with this key that has not been found, among a few after `least` or else the first few; -1: none."""
        keys = self._sorted_keys
        blocks = self._blocks_by_key[keys.searchsorted(key) : keys.searchsorted(key, "right")]
        after = int(blocks.searchsorted(least))
        few = np.concatenate((blocks[after : after + _TRIES], blocks[:_TRIES]))
        few = few[self._places[self._unit_of[few]] < 0]
        return int(few[0]) if len(few) else -1

    def found(self, offsets: _I64, units: _U64) -> None:
        """Record the units found at these offsets; unknown ones are ignored."""
        index = np.minimum(np.searchsorted(self._units, units), len(self._units) - 1)
        right = self._units[index] == units
        self._place(index[right], offsets[right])

    def found_run(self, block: int, offset: int, count: int) -> None:
        """Record a run of blocks, and all units with the same content."""
        if block and self._run_places[block - 1] == offset - self.block_size:  # it continues a run
            block, offset, count = block - 1, offset - self.block_size, count + 1
        offsets = offset + np.arange(count) * self.block_size
        self._run_places[block : block + count] = offsets
        units = self._unit_of[block : block + count - self.sequence + 1]
        self._place(units, offsets[: len(units)])

    def _place(self, units: NDArray[np.intp], offsets: _I64) -> None:
        new = self._places[units] < 0
        self._places[units[new][::-1]] = offsets[new][::-1]  # the first of several is kept

    def where(self) -> _I64:
        """The offset of each block, or -1."""
        places = self._places[self._unit_of]
        if self.sequence == 1:
            return np.where(self._run_places < 0, places, self._run_places)
        found = self._run_places.copy()
        for start in (0, 1):
            part = found[start : start + len(places)]
            np.copyto(part, places + start * self.block_size, where=(part < 0) & (places >= 0))
        return found


def _block_ids(weak: _U8, strong: _U8) -> _U64:
    """Identify blocks by the first 64 bits of their checksums, the strong one first."""
    rows = np.zeros((len(weak), 8), np.uint8)
    both = np.hstack((strong, weak))[:, :8]
    rows[:, : both.shape[1]] = both
    return rows.view(np.uint64).reshape(-1)


def _pair_id(ids: _U64, following: _U64) -> _U64:
    return ids * _PAIR_MULTIPLIER + following


def _is_first(ranked: NDArray[np.generic]) -> _Bool:
    """Marks the first of each value in a sorted array. (`np.unique` imports numpy.ma, which takes 5 ms.)"""
    first = np.ones(len(ranked), np.bool_)
    np.not_equal(ranked[1:], ranked[:-1], out=first[1:])
    return first


def _slots(keys: _U32, multiplier: int, bits: int) -> NDArray[np.intp]:
    return ((keys * np.uint32(multiplier)) >> np.uint32(32 - bits)).astype(np.intp)


def _pair_key(weak: _U32, following: _U32) -> _U32:
    """The key of two adjacent blocks: the lower halves of their weak checksums, which is all that a short rsum has."""
    return (weak << np.uint32(16)) | (following & np.uint32(0xFFFF))


def _read_ids(descriptor: int, offsets: _I64, target: _Target) -> _U64:
    """The ids of the blocks at these offsets."""
    size = target.block_size
    blocks = np.empty((len(offsets), size), np.uint8)
    for block, offset in zip(blocks, offsets.tolist(), strict=True):
        _read(descriptor, block, offset)
    strong = md4(blocks.reshape(-1), np.arange(len(offsets)) * size, size)[:, : target.strong_bytes]
    return _block_ids(rsum(blocks, target.rsum_bytes), strong)


class _Md4Queue:
    """Candidate offsets to verify by MD4, in batches."""

    def __init__(self, descriptor: int, target: _Target, *, budget: int) -> None:
        self._descriptor = descriptor
        self._target = target
        self._offsets: list[_I64] = []
        self._batch = max(1, _BATCH_BYTES // (target.block_size * target.sequence))
        self.budget = budget  # bytes that may still be hashed, which limits what a malicious control file can cost

    def add(self, offsets: _I64) -> None:
        """Queue some offsets."""
        if len(offsets):
            self._offsets.append(offsets)
        if sum(map(len, self._offsets)) >= self._batch:
            self.flush()

    def flush(self) -> None:
        """Verify the queued offsets."""
        offsets, self._offsets = np.concatenate([np.empty(0, np.int64), *self._offsets]), []
        for start in range(0, len(offsets), self._batch):
            if self.budget <= 0:
                break
            self._verify(offsets[start : start + self._batch])

    def _verify(self, offsets: _I64) -> None:
        target, size = self._target, self._target.block_size
        wanted = offsets if target.sequence == 1 else np.concatenate((offsets, offsets + size))
        wanted.sort()
        wanted = wanted[_is_first(wanted)]
        self.budget -= len(wanted) * size
        ids = _read_ids(self._descriptor, wanted, target)
        units = ids[np.searchsorted(wanted, offsets)]
        if target.sequence == 2:
            units = _pair_id(units, ids[np.searchsorted(wanted, offsets + size)])
        target.found(offsets, units)


class _Scanner:
    """Goes through the old file: along a run of blocks where there is one, else from offset to offset.

    Its arrays are reused: allocating new ones costs more than the sums.
    """

    def __init__(self, target: _Target, queue: _Md4Queue, size: int) -> None:
        self._target = target
        self._queue = queue
        self._size = size
        self._enough = max(2, _ENOUGH_BITS // (8 * target.rsum_bytes))  # consecutive blocks, to accept them
        self._worth = max(self._enough, _WORTH_BYTES // target.block_size)  # to skip over a change for them
        self._block = -1  # the next one of the current run, or -1
        self._ahead: tuple[int, int] | None = None  # after a change: offset and block
        self._latest = 0  # the last value of `_block` in a run
        block_size = self._block_size = target.block_size
        self.reach = block_size * self._enough  # bytes needed beyond the offsets that are searched
        self._mask = np.array(0xFFFFFFFF >> (32 - 8 * target.rsum_bytes), np.uint32)
        self._factor = np.array(block_size & 0xFFFF, np.uint16)
        length = _STRIDE + block_size * target.sequence + 1
        self._sums, self._sums2, self._b, self._spare = (np.zeros(length, np.uint16) for _ in range(4))
        self._keys, self._hashes = np.empty(_STRIDE, np.uint32), np.empty(_STRIDE, np.uint32)
        self._slots = np.empty(_STRIDE, np.intp)
        self._maybe, self._other = np.empty(_STRIDE, np.bool_), np.empty(_STRIDE, np.bool_)

    def search(self, data: _U8, base: int) -> int:
        """Search `data`, which is at offset `base`, except the last `reach` bytes; returns where to continue."""
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
        """Follow a run as far as `data` goes; returns where to continue, with that run or without one."""
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
        return max(self._base, offset - self._block_size + 1)  # the next match may overlap with the last block

    def _search(self, start: int, end: int) -> int:
        """Search each offset of a stride that ends at `end` at the latest; a run that is found may extend further."""
        end = min(end, start + _STRIDE)
        offsets, keys = self._candidates(start, end)
        done, following, tries = start, -1, _TRIES
        unverified = []
        for index, offset in enumerate(offsets.tolist()):
            if offset < done and (done - offset) % self._block_size == 0:
                continue  # in the run itself
            if not tries:
                rest = offsets[index:]
                self._queue.add(rest[rest > done - self._block_size])
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
                unverified.append(offset)
        self._queue.add(np.array(unverified, np.int64))
        self._block = following if done >= end else -1
        return max(done, end)

    def _same(self, offset: int, block: int, most: int) -> _Bool:
        """Whether the blocks from this offset on have the weak checksums of the wanted blocks from `block` on."""
        size, weak = self._block_size, self._target.weak[block : block + most]
        at = offset - self._base
        count = max(0, min(len(weak), -((offset - self._size) // size), (len(self._data) - at) // size))
        blocks = self._data[at : at + count * size].reshape(count, size)
        same: _Bool = (rsum(blocks, weak.shape[1]) == weak[:count]).all(axis=1)
        return same

    def _take(self, offset: int, block: int, count: int) -> int:
        """Accept these blocks of a run; returns where it continues."""
        self._target.found_run(block, offset, count)
        self._block = self._latest = block + count
        return offset + count * self._block_size

    def _candidates(self, start: int, end: int) -> tuple[_I64, _U32]:
        """The offsets with wanted weak checksums, and their keys."""
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
        np.not_equal(keys[1:], keys[:-1], out=other[1:])  # of a run of equal bytes, only the first
        np.logical_and(maybe[1:], other[1:], out=maybe[1:])
        return maybe


def _leading(same: _Bool) -> int:
    """How many are true before the first that is not."""
    return len(same) if same.all() else int(same.argmin())


def _first_of_each(offsets: _I64, keys: _U32) -> tuple[_I64, _U32]:
    """The first few offsets of each key; more are repetitions."""
    if len(offsets) <= _TRIES:
        return offsets, keys
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    kept = np.sort(order[np.arange(len(ranked)) - np.searchsorted(ranked, ranked) < _TRIES])
    return offsets[kept], keys[kept]
