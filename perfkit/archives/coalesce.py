"""Merge byte ranges that are cheaper to fetch together."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from perfkit.filesystem.compact import sort_numbers

_REQUEST_BYTES = 500  # headers of a request and its response: a shorter gap costs less than another request
_WASTE = 0.04  # of the wanted bytes may be gaps


def coalesce(ranges: Iterable[tuple[int, int]], *, gap: int) -> list[tuple[int, int]]:
    """Half-open ranges in order, merged where the gap between two is no longer than `gap` bytes.

    The shortest gaps are closed first. Those longer than the headers of a request may add up to 4 % of the wanted bytes
    at most, so that a fast connection does not fetch everything.
    """
    starts, ends = array("Q"), array("Q")  # lists of pairs would take hundreds of bytes a range
    for start, end in ranges:
        if start < end:
            starts.append(start)
            ends.append(end)
    budget = int(_WASTE * (sum(ends) - sum(starts)))
    joined = bytearray(len(starts))  # 1: merged with the one before
    for index in sort_numbers(range(1, len(starts)), lambda index: starts[index] - ends[index - 1]):
        between = starts[index] - ends[index - 1]
        if between > _REQUEST_BYTES:
            budget -= between
            if between > gap or budget < 0:
                break
        joined[index] = 1
    merged: list[tuple[int, int]] = []
    for start, end, join in zip(starts, ends, joined, strict=True):
        if join:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
