"""Many numbers in little memory: in an array, in order, or in a range if they are one."""

from __future__ import annotations

import heapq
import operator
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

__all__ = ["pack_numbers", "sort_numbers"]

_AT_ONCE = 4096


def sort_numbers(numbers: Sequence[int], key: Callable[[int], Any]) -> Iterator[int]:
    """These numbers, each below 2**32, by their keys; those with the same key stay in order.

    `sorted` holds all keys at once, of a hundred thousand files ten megabytes.
    """
    if len(numbers) <= _AT_ONCE:
        return iter(sorted(numbers, key=key))
    parts = (sorted(numbers[at : at + _AT_ONCE], key=key) for at in range(0, len(numbers), _AT_ONCE))
    return heapq.merge(*[array("I", part) for part in parts], key=key)


def pack_numbers(numbers: Iterable[int]) -> Sequence[int]:
    """These numbers, each below 2**32."""
    packed = array("I", numbers)
    whole = range(packed[0], packed[0] + len(packed)) if packed else range(0)
    return whole if all(map(operator.eq, packed, whole)) else packed
