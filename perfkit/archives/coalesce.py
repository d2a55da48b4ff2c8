"""Merge byte ranges that are cheaper to fetch together."""

from __future__ import annotations

from collections.abc import Iterable

_REQUEST_BYTES = 500  # headers of a request and its response: a shorter gap costs less than another request
_WASTE = 0.04  # of the wanted bytes may be gaps


def coalesce(ranges: Iterable[tuple[int, int]], *, gap: int) -> list[tuple[int, int]]:
    """Half-open ranges in order, merged where the gap between two is no longer than `gap` bytes.

    The shortest gaps are closed first. Those longer than the headers of a request may add up to 4 % of the wanted bytes
    at most, so that a fast connection does not fetch everything.
    """
    wanted = sorted(pair for pair in ranges if pair[0] < pair[1])
    budget = int(_WASTE * sum(end - start for start, end in wanted))
    joined = set()  # indexes of ranges that are merged with the one before
    for index in sorted(range(1, len(wanted)), key=lambda index: wanted[index][0] - wanted[index - 1][1]):
        between = wanted[index][0] - wanted[index - 1][1]
        if between > _REQUEST_BYTES:
            budget -= between
            if between > gap or budget < 0:
                break
        joined.add(index)
    merged: list[tuple[int, int]] = []
    for index, (start, end) in enumerate(wanted):
        if index in joined:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
