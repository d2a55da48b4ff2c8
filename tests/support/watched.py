"""What a watched tree reports."""

from __future__ import annotations

from perfkit.filesystem.watch import ALL, DirtySet

LONG_S = 60.0


def taken(dirty: DirtySet) -> frozenset[str]:
    """The names that have changed up to now."""
    dirty.flush(LONG_S)
    names = dirty.drain()
    assert names is not ALL
    return names
