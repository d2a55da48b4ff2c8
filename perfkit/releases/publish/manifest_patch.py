"""Encode a manifest as changes to an earlier one, for deltas and for sites whose trees have many files."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from io import BytesIO

from perfkit.releases.format.delta import MAX_GROUP_BYTES, Slice, write_delta
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.format.zstd import compress, prefix_dictionary, zstd

_SLICE_BYTES = 1 << 20
_FEW = 200  # a slice that is this many times larger than its frame has few changes: that is good enough
# Long equal ranges are found by long-distance matching, at ten times the speed of the level that would find them.
_QUICK: dict[int, int] = {
    zstd.CompressionParameter.compression_level: 1,
    zstd.CompressionParameter.window_log: 22,
    zstd.CompressionParameter.enable_long_distance_matching: 1,
}
# Tables of 20 MiB, where level 19 takes 48, and there are two threads. Smaller ones miss what has moved.
_TABLES: dict[int, int] = {zstd.CompressionParameter.chain_log: 22, zstd.CompressionParameter.hash_log: 20}


def manifest_patch(old: Manifest, new: Manifest) -> bytes:
    """A delta that makes the new manifest from the old one, and no contents."""
    patch = BytesIO()
    write_delta(patch.write, old, new, [make() for make in manifest_slices(old.raw, new.raw, quick=True)], [], [])
    return patch.getvalue()


def manifest_slices(old: bytes, new: bytes, *, quick: bool = False) -> Iterator[Callable[[], Slice]]:
    """Functions that make the parts of a manifest, or draft, each from the old part at the same relative position.

    Args:
        quick: do not look for a smaller form of a part that has changed much.
    """
    return (functools.partial(_slice, old, new, start, quick) for start in range(0, len(new), _SLICE_BYTES))


def _slice(old: bytes, new: bytes, start: int, quick: bool) -> Slice:
    part = new[start : start + _SLICE_BYTES]
    first, size = start, len(part)
    if not old.startswith(part, start):
        middle, size = start * len(old) // len(new), MAX_GROUP_BYTES
        first = max(0, min(middle - _SLICE_BYTES, len(old) - size))
    prefix = old[first : first + size]
    frame = zstd.compress(part, options=_QUICK, zstd_dict=prefix_dictionary(prefix))
    if len(frame) > len(part) // _FEW and not quick:
        frame = compress(part, prefix=prefix, parameters=_TABLES if len(prefix) > _SLICE_BYTES else {})
    return Slice(len(part), first, len(prefix), frame)
