"""Make a delta: new blobs in groups, each compressed against similar content of an old release."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from perfkit.progress.stage import Stage
from perfkit.releases.format.delta import MAX_GROUP_BYTES, MAX_GROUP_SPANS, Group, Slice, Span, write_delta
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.format.zstd import compress
from perfkit.releases.publish.similarity import BLOCK_BYTES, Block, SimilarityIndex
from perfkit.releases.publish.site import BlobReader, ObjectWriter

__all__ = ["encode_delta", "new_blobs"]

_PART_BYTES = 3 << 19  # of one large file; leaves room in the prefix for moved content
_SLICE_BYTES = 1 << 20
_LEVEL = 19


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
    groups = list(_grouped(old, new, opened))
    made = threads.map(lambda group: _frame(old, new, opened, *group), groups)
    frames = []
    for (_, outputs), frame in zip(groups, made, strict=True):
        frames.append(frame)
        shown.count(count_bytes=sum(span.length for span in outputs))
    measured = [
        Group(tuple(sources), tuple(outputs), len(frame))
        for (sources, outputs), frame in zip(groups, frames, strict=True)
    ]
    write_delta(writer.write, old.manifest, new, list(_slices(old.manifest, new)), measured, frames)


def _frame(
    old: BlobReader, new: Manifest, opened: Callable[[int], BinaryIO], sources: list[Span], outputs: list[Span]
) -> bytes:
    prefix = b"".join(old.read(span.entry, span.offset, span.length) for span in sources)
    content = []
    for span in outputs:
        with opened(span.entry) as file:
            file.seek(span.offset)
            content.append(file.read(span.length))
    return compress(b"".join(content), level=_LEVEL, prefix=prefix)


def _grouped(
    old: BlobReader, new: Manifest, opened: Callable[[int], BinaryIO]
) -> Iterator[tuple[list[Span], list[Span]]]:
    """Sources and outputs of each group: as many adjacent files as the limits allow."""
    entries = new_blobs(old.manifest, new)
    if not entries:
        return
    similar = SimilarityIndex(sum(old.manifest.size(entry) for entry in old.entries()))
    for entry in old.entries():
        for offset, block in old.blocks(entry, BLOCK_BYTES):
            similar.add(entry, offset, block)
    blocks: set[Block] = set()
    outputs: list[Span] = []
    size = source_bytes = 0
    for entry in entries:
        with opened(entry) as file:
            offset = 0
            while content := file.read(_PART_BYTES):
                mine = _sources(similar, old, new, entry, offset, content)
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
