"""Make a delta: new blobs in groups, each compressed against similar content of an old release.

Text is compressed against a prefix of old content, binaries as differences from a prediction (`binary_groups.py`), or
in the other way where that is smaller.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from perfkit.progress.stage import Stage
from perfkit.releases.format.delta import MAX_GROUP_BYTES, MAX_GROUP_SPANS, Group, Slice, Span, write_delta
from perfkit.releases.format.differences import encode_differences
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.format.zstd import compress
from perfkit.releases.publish.binary_groups import AVAILABLE, PredictedGroup, is_binary, predicted_groups
from perfkit.releases.publish.similarity import BLOCK_BYTES, Block, SimilarityIndex
from perfkit.releases.publish.site import BlobReader, ObjectWriter

__all__ = ["encode_delta", "new_blobs"]

_PART_BYTES = 3 << 19  # of one large file; leaves room in the prefix for moved content
_SLICE_BYTES = 1 << 20
_LEVEL = 19
_POOR_SHARE = 1 / 8  # of a binary's content: a frame of differences that is larger is tried the other way too


def new_blobs(old: Manifest, new: Manifest) -> list[int]:
    """One entry of `new` for each blob that `old` does not have, in order of names."""
    wanted = {new.digest(entry): entry for entry in reversed(range(len(new))) if new.size(entry)}
    for digest in old.digests():
        wanted.pop(digest, None)
    return sorted(wanted.values())


def encode_delta(
    old: BlobReader,
    new: Manifest,
    opened: Callable[[int], BinaryIO],
    writer: ObjectWriter,
    threads: ThreadPoolExecutor,
    shown: Stage,
) -> None:
    """Write the delta from an old release to `new`.

    Args:
        opened: opens the new file of an entry.
        shown: counts the bytes of the new files.
    """
    texts, binaries = _sorted_out(new, opened, new_blobs(old.manifest, new))
    similar = functools.cache(lambda: _indexed(old))  # takes a while: only if it is asked
    prefixed = list(_grouped(old, new, opened, texts, similar))
    predicted = list(predicted_groups(old, new, opened, binaries, similar))
    groups, frames = [], []
    for group, frame in itertools.chain(
        threads.map(lambda group: _against_prefix(old, opened, *group), prefixed),
        threads.map(lambda group: _against_prediction(old, opened, group), predicted),
    ):
        groups.append(group)
        frames.append(frame)
        shown.count(count_bytes=group.size)
    write_delta(writer.write, old.manifest, new, list(_slices(old.manifest, new)), groups, frames)


def _indexed(old: BlobReader) -> SimilarityIndex:
    similar = SimilarityIndex(sum(old.manifest.size(entry) for entry in old.entries()))
    for entry in old.entries():
        for offset, block in old.blocks(entry, BLOCK_BYTES):
            similar.add(entry, offset, block)
    return similar


def _sorted_out(
    new: Manifest, opened: Callable[[int], BinaryIO], entries: Iterable[int]
) -> tuple[list[int], list[int]]:
    """The entries that are text, and those that are binary."""
    kinds: tuple[list[int], list[int]] = ([], [])
    for entry in entries:
        with opened(entry) as file:
            kinds[AVAILABLE and is_binary(file)].append(entry)
    return kinds


def _read(spans: Iterable[Span], opened: Callable[[int], BinaryIO]) -> bytes:
    content = []
    for span in spans:
        with opened(span.entry) as file:
            file.seek(span.offset)
            content.append(file.read(span.length))
    return b"".join(content)


def _against_prefix(
    old: BlobReader, opened: Callable[[int], BinaryIO], sources: list[Span], outputs: list[Span]
) -> tuple[Group, bytes]:
    prefix = b"".join(old.read(span.entry, span.offset, span.length) for span in sources)
    frame = compress(_read(outputs, opened), level=_LEVEL, prefix=prefix)
    return Group(tuple(sources), tuple(outputs), len(frame)), frame


def _against_prediction(
    old: BlobReader, opened: Callable[[int], BinaryIO], predicted: PredictedGroup
) -> tuple[Group, bytes]:
    content = _read(predicted.outputs, opened)
    sources = [old.read(span.entry, span.offset, span.length) for span in predicted.sources]
    prediction = b"".join(bytes(gap) + source for gap, source in zip(predicted.gaps, sources, strict=True))
    frame, differences = encode_differences(content, prediction.ljust(len(content), b"\0"))
    spans = tuple(predicted.sources), tuple(predicted.outputs)
    if len(frame) > _POOR_SHARE * len(content):
        other = compress(content, level=_LEVEL, prefix=b"".join(sources))
        if len(other) < len(frame):
            return Group(*spans, len(other)), other
    return Group(*spans, len(frame), differences, tuple(predicted.gaps)), frame


def _grouped(
    old: BlobReader,
    new: Manifest,
    opened: Callable[[int], BinaryIO],
    entries: Iterable[int],
    similar: Callable[[], SimilarityIndex],
) -> Iterator[tuple[list[Span], list[Span]]]:
    """Sources and outputs of each group: as many adjacent files as the limits allow."""
    blocks: set[Block] = set()
    outputs: list[Span] = []
    size = source_bytes = 0
    for entry in entries:
        with opened(entry) as file:
            offset = 0
            while content := file.read(_PART_BYTES):
                mine = _sources(similar(), old, new, entry, offset, content)
                fresh = mine - blocks
                more = sum(block.length for block in fresh)
                full = size + len(content) > MAX_GROUP_BYTES or source_bytes + more > MAX_GROUP_BYTES
                if outputs and (full or max(len(outputs), len(blocks | mine)) >= MAX_GROUP_SPANS):
                    yield _merged(blocks), outputs
                    blocks, outputs, size, source_bytes = set(), [], 0, 0
                    fresh, more = mine, sum(block.length for block in mine)
                blocks |= fresh
                source_bytes += more
                outputs.append(Span(entry, offset, len(content)))
                size += len(content)
                offset += len(content)
    if outputs:
        yield _merged(blocks), outputs


def _sources(
    similar: SimilarityIndex, old: BlobReader, new: Manifest, entry: int, offset: int, content: bytes
) -> set[Block]:
    """The old content to compress a part of a new file against: the same place in the old file, and similar blocks."""
    blocks: set[Block] = set()
    before = old.manifest.find(new.name(entry))
    limit = min(MAX_GROUP_BYTES, 2 * len(content) + (64 << 10))
    if before is not None:
        before = old.entry(old.manifest.digest(before))
    if before is not None:
        size = old.manifest.size(before)
        start = max(0, offset - BLOCK_BYTES) // BLOCK_BYTES * BLOCK_BYTES
        for at in range(start, min(size, offset + len(content) + BLOCK_BYTES), BLOCK_BYTES):
            blocks.add(Block(before, at, min(BLOCK_BYTES, size - at)))
    left = limit - sum(block.length for block in blocks)
    for block in similar.find(content, limit=limit):
        if block not in blocks and block.length <= left:
            blocks.add(block)
            left -= block.length
    return blocks


def _merged(blocks: set[Block]) -> list[Span]:
    spans: list[Span] = []
    for block in sorted(blocks):
        last = spans[-1] if spans else None
        if last is not None and last.entry == block.entry and last.offset + last.length == block.offset:
            spans[-1] = Span(last.entry, last.offset, last.length + block.length)
        else:
            spans.append(Span(block.entry, block.offset, block.length))
    return spans


def _slices(old: Manifest, new: Manifest) -> Iterator[Slice]:
    """The new manifest in parts, each compressed against the part of the old one at the same relative position."""
    for start in range(0, len(new.raw), _SLICE_BYTES):
        part = new.raw[start : start + _SLICE_BYTES]
        middle = start * len(old.raw) // len(new.raw)
        first = max(0, min(middle - _SLICE_BYTES, len(old.raw) - 3 * _SLICE_BYTES))
        prefix = old.raw[first : first + 3 * _SLICE_BYTES]
        yield Slice(len(part), first, len(prefix), compress(part, level=_LEVEL, prefix=prefix))
