"""The two checksums of a zsync block, for many blocks at once: rsum and MD4 (RFC 1320). Needs numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    _U8 = NDArray[np.uint8]
    _I64 = NDArray[np.int64]


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
