"""Order in little memory: `sorted` holds all keys at once, of a hundred thousand files ten megabytes."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

__all__ = ["sort_numbers"]

_AT_ONCE = 4096


def sort_numbers(numbers: Sequence[int], key: Callable[[int], Any]) -> Iterator[int]:
    """These numbers, each below 2**32, by their keys; those with the same key stay in order."""
    if len(numbers) <= _AT_ONCE:
        return iter(sorted(numbers, key=key))
    parts = (sorted(numbers[at : at + _AT_ONCE], key=key) for at in range(0, len(numbers), _AT_ONCE))
    return heapq.merge(*[array("I", part) for part in parts], key=key)
