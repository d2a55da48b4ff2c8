"""Mutated copies of valid input, the same for the same seed."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

_NUMBERS = [
    b"0",
    b"-1",
    b"1e999",
    b"NaN",
    b"9" * 30,
    b"18446744073709551616",
    b"null",
    b'"x"',
    b"[]",
    b"{}",
    b"[[[[",
    b"\xff",
]
_BYTES = [0, 1, 0x0A, 0x20, 0x2E, 0x2F, 0x7F, 0x80, 0xFF]


def mutated(samples: Sequence[bytes], seed: str) -> bytes:
    """One of the samples with one to four changes."""
    chance = random.Random(seed)
    data = bytearray(chance.choice(samples))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.choice([1, 1, 2, 4, 8, 64, 1000]))
        kind = chance.randrange(9)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = chance.choice(_BYTES)
        elif kind == 2:
            del data[at:end]
        elif kind == 3:
            data[at:at] = data[at:end] * chance.choice([1, 2, 50])
        elif kind == 4:
            data[at:at] = chance.randbytes(chance.choice([1, 4, 100]))
        elif kind == 5:
            del data[at:]
        elif kind == 6:
            other = chance.choice(samples)
            start = chance.randrange(len(other) + 1)
            data[at:end] = other[start : start + chance.randint(0, 100)]
        elif kind == 7:
            data[at:end] = chance.choice([b"\xff", b"\0", b"\x7f"]) * (end - at)
        elif found := list(re.finditer(rb"-?[0-9]+", data)):
            number = chance.choice(found)
            data[number.start() : number.end()] = chance.choice(_NUMBERS)
    return bytes(data)
