"""Make a delta: new blobs in groups, each compressed against similar content of an old release.

Text is compressed against a prefix of old content; binaries as differences from a prediction (`binary_groups.py`), or
as text is if that is smaller.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate
from typing import BinaryIO, NamedTuple

from perfkit.progress.stage import Stage
from perfkit.releases.format.delta import MAX_GROUP_BYTES, MAX_GROUP_SPANS, Group, Span, write_delta
from perfkit.releases.format.differences import AVAILABLE as AVAILABLE_DIFFERENCES
from perfkit.releases.format.differences import encode_differences, no_differences
from perfkit.releases.format.draft import draft_bytes
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.format.zstd import compress
from perfkit.releases.publish.binary_groups import HEAD_BYTES, PredictedGroup, is_binary, predicted_groups, read_parts
from perfkit.releases.publish.blob_reader import BlobReader
from perfkit.releases.publish.frame_table import FrameTable
from perfkit.releases.publish.manifest_patch import manifest_slices
from perfkit.releases.publish.similarity import BLOCK_BYTES, SimilarityIndex, joined, line_marks, unknown_bytes
from perfkit.releases.publish.site import ObjectWriter
from perfkit.releases.publish.work_cache import WorkCache

_Task = Callable[[], tuple[Group, bytes]]

_PART_BYTES = 3 << 19  # of one large file; leaves room in the prefix for moved content
_LEVEL = 19
_LEAST_RUN_BYTES = 1 << 20  # shorter equal ranges are left to the compressors
_WORTH_LOOKING = 2048  # the old tree is searched for similar content if more than one part in this many is new
_FILE_BYTES = 4 << 10  # of content take as long to search as opening a file does
_MADE_BYTES = 8 << 10  # what is new in several files is found in blocks of this size
_POOR_SHARE = 1 / 8  # of a binary's content: if its differences take more, it is also compressed as text is


class Run(NamedTuple):
    """A range of new content that equals a range of old content."""

    offset: int
    length: int
    old_entry: int
    old_offset: int

    def goes_on_with(self, other: Run) -> bool:
        return (
            self.offset + self.length == other.offset
            and self.old_entry == other.old_entry
            and self.old_offset + self.length == other.old_offset
        )


def new_blobs(old: Manifest, first: dict[bytes, int]) -> list[int]:
    """The entry of each blob that `old` does not have, in order of names.

    Args:
        first: the first entry of the new manifest with each blob, in order.
    """
    known = bytearray(1 + max(first.values(), default=0))  # a set would take 17 MB for 400,000 files
    for entry in map(first.get, old.digests()):
        if entry is not None:
            known[entry] = 1
    return [entry for entry in first.values() if not known[entry]]


class Comparison(NamedTuple):
    """What a delta is made from."""

    old: BlobReader  # the old release
    new: Manifest  # the manifest of the new release
    pieces: FrameTable  # the small frames of the new release
    wanted: list[int]  # the entries of `new` to make, as from `new_blobs`
    opened: Callable[[int], BinaryIO]  # opens the new file of an entry
    cache: WorkCache  # of the deltas of one release


def encode_delta(between: Comparison, writer: ObjectWriter, threads: ThreadPoolExecutor, shown: Stage) -> None:
    """Write a delta.

    Args:
        shown: counts the bytes of the new files.
    """
    old = between.old.manifest
    parts = manifest_slices(old.raw, draft_bytes(between.new, between.wanted))
    slices = list(threads.map(lambda make: make(), parts))  # first: searching old content takes memory, too
    groups, frames = [], []
    for group, frame in _results(_tasks(between), threads):
        groups.append(group)
        frames.append(frame)
        shown.count(count_bytes=group.size)
    write_delta(writer.write, old, between.new, slices, groups, frames)


def _results(tasks: Iterable[_Task], threads: ThreadPoolExecutor) -> Iterator[tuple[Group, bytes]]:
    """The results in order; `map` would yield none before the last task is found, which takes as long as several."""
    pending = deque[Future[tuple[Group, bytes]]]()
    for make in tasks:
        pending.append(threads.submit(make))
        while pending and pending[0].done():
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _tasks(between: Comparison) -> Iterator[_Task]:
    """Functions that make each group and its frame: first for large files with long equal ranges, then for others."""
    old, new, opened, cache = between.old, between.new, between.opened, between.cache
    # Indexing the whole old tree takes a while, so it happens only on the first search.
    similar = [functools.cache(functools.partial(_indexed, old, binary=binary)) for binary in (False, True)]
    runs = exact_runs(old, new, between.pieces, between.wanted)

    def prefixed(spans: list[Span]) -> Iterator[_Task]:
        few = (old.manifest.total_bytes + _FILE_BYTES * len(old.manifest)) // _WORTH_LOOKING
        unknown = accumulate(_unknown_bytes(old, new, opened, span) for span in spans)
        found = similar[False] if any(size > few for size in unknown) else None
        finder = _SourceFinder(old, new, found, sum(span.length for span in spans))
        for sources, outputs in _grouped(opened, spans, finder):
            yield functools.partial(_against_prefix, between, sources, outputs)

    def predicted(spans: list[Span]) -> Iterator[_Task]:
        for group in predicted_groups(old, new, opened, spans, similar[True], cache):
            yield functools.partial(_against_prediction, between, group)

    for entry, copied in runs.items():
        kind = (prefixed, predicted)[_is_binary(opened, entry)]
        at = 0
        for run in (*copied, Run(new.size(entry), 0, 0, 0)):
            if run.offset > at:
                yield from kind([Span(entry, at, run.offset - at)])
            for start in range(0, run.length, MAX_GROUP_BYTES):
                length = min(MAX_GROUP_BYTES, run.length - start)
                source = Span(run.old_entry, run.old_offset + start, length)
                yield functools.partial(_unchanged_group, source, Span(entry, run.offset + start, length))
            at = run.offset + run.length
    kinds: tuple[list[Span], list[Span]] = ([], [])
    for entry in between.wanted:
        if entry not in runs:
            kinds[_is_binary(opened, entry)].append(Span(entry, 0, new.size(entry)))
    yield from predicted(kinds[1])  # first: threads compress these while text is compared here
    yield from prefixed(kinds[0])


def exact_runs(old: BlobReader, new: Manifest, pieces: FrameTable, entries: Iterable[int]) -> dict[int, list[Run]]:
    """Long ranges of new contents that equal ranges of old ones, found by the tags of pieces; in order."""
    large = {entry for entry in entries if new.size(entry) >= _LEAST_RUN_BYTES and AVAILABLE_DIFFERENCES}
    if not large:
        return {}
    found: dict[int, list[Run]] = {}
    rows = sorted((entry, pieces.offsets[at], at) for at, entry in enumerate(pieces.entries) if entry in large)
    likely: int | None = None  # the old piece at the same place, preferred to equal ones
    last = -1
    for entry, offset, at in rows:
        if entry != last:
            likely, last = next(iter(old.pieces(new.name(entry))), None), entry
        same = likely is not None and old.index.piece(likely).tag == pieces.tags[at]
        number = likely if same else old.tags.get(pieces.tags[at])
        before = likely if number is None else number
        likely = None if before is None else old.following.get(before)
        if number is None or old.index.lengths[number] != pieces.lengths[at]:
            continue
        run = Run(offset, pieces.lengths[at], old.index.entries[number], old.index.offsets[number])
        runs = found.setdefault(entry, [])
        if runs and runs[-1].goes_on_with(run):
            runs[-1] = runs[-1]._replace(length=runs[-1].length + run.length)
        else:
            runs.append(run)
    long = {entry: [run for run in runs if run.length >= _LEAST_RUN_BYTES] for entry, runs in found.items()}
    return {entry: runs for entry, runs in long.items() if runs}


def _unchanged_group(source: Span, output: Span) -> tuple[Group, bytes]:
    """The group of a range that is the same in both releases."""
    frame, differences = no_differences()
    return Group((source,), (output,), len(frame), differences, (0,)), frame


def _indexed(old: BlobReader, *, binary: bool) -> SimilarityIndex:
    """The old files of one kind, by their lines."""
    heads = ((entry, old.read(entry, 0, min(HEAD_BYTES, old.manifest.size(entry)))) for entry in old.entries())
    entries = [entry for entry, head in heads if is_binary(head) == binary]
    similar = SimilarityIndex(sum(map(old.manifest.size, entries)))
    for entry in entries:
        for offset, block in old.blocks(entry, BLOCK_BYTES):
            similar.add(entry, offset, block)
    return similar


def _is_binary(opened: Callable[[int], BinaryIO], entry: int) -> bool:
    with opened(entry) as file:
        return is_binary(file.read(HEAD_BYTES))


def _unknown_bytes(old: BlobReader, new: Manifest, opened: Callable[[int], BinaryIO], span: Span) -> int:
    """How much of a file isn't in the old file of the same name."""
    entry = old.named(new.name(span.entry))
    if entry is None or max(old.manifest.size(entry), span.length) > MAX_GROUP_BYTES:
        return span.length
    return unknown_bytes(old.read(entry), _read([span], opened))


def _read(spans: Iterable[Span], opened: Callable[[int], BinaryIO]) -> bytes:
    return b"".join(content for _, content in read_parts(spans, opened, MAX_GROUP_BYTES))


def _against_prefix(between: Comparison, sources: list[Span], outputs: list[Span]) -> tuple[Group, bytes]:
    old, opened, count = between.old, between.opened, len(between.old.manifest)
    repeated = [span._replace(entry=span.entry - count) for span in sources if span.entry >= count]
    before = [old.read(span.entry, span.offset, span.length) for span in sources if span.entry < count]
    prefix, content = b"".join((*before, _read(repeated, opened))), _read(outputs, opened)
    frame, _ = between.cache.get(functools.partial(_prefixed_frame, content, prefix), "prefix", (content, prefix))
    return Group(tuple(sources), tuple(outputs), len(frame)), frame


def _prefixed_frame(content: bytes, prefix: bytes) -> tuple[bytes, int]:
    """A frame without differences, as `_predicted_frame`."""
    return compress(content, level=_LEVEL, prefix=prefix), 0


def _against_prediction(between: Comparison, predicted: PredictedGroup) -> tuple[Group, bytes]:
    content, gaps = _read(predicted.outputs, between.opened), tuple(predicted.gaps)
    sources = [between.old.read(span.entry, span.offset, span.length) for span in predicted.sources]
    make = functools.partial(_predicted_frame, content, sources, gaps)
    frame, differences = between.cache.get(make, f"prediction {gaps}", (content, *sources))
    spans = tuple(predicted.sources), tuple(predicted.outputs)
    return Group(*spans, len(frame), differences, gaps if differences else ()), frame


def _predicted_frame(content: bytes, sources: Sequence[bytes], gaps: Sequence[int]) -> tuple[bytes, int]:
    """A frame, and how many bytes of differences it decodes to; 0: it was compressed against a prefix."""
    found = encode_differences(content, sources, gaps)
    if len(found[0]) <= _POOR_SHARE * len(content):
        return found
    return min(found, _prefixed_frame(content, b"".join(sources)), key=lambda each: len(each[0]))


def _grouped(
    opened: Callable[[int], BinaryIO], spans: Iterable[Span], finder: _SourceFinder
) -> Iterator[tuple[list[Span], list[Span]]]:
    """Sources and outputs of each group: as many adjacent files as the limits allow."""
    blocks: set[Span] = set()
    outputs: list[Span] = []
    size = source_bytes = 0
    for part, content in read_parts(spans, opened, _PART_BYTES):
        mine = finder.find(part.entry, part.offset, content)
        fresh = mine - blocks
        more = sum(block.length for block in fresh)
        full = size + len(content) > MAX_GROUP_BYTES or source_bytes + more > MAX_GROUP_BYTES
        if outputs and (full or max(len(outputs), len(blocks) + len(fresh)) >= MAX_GROUP_SPANS):
            yield joined(finder.without_own(blocks, outputs[0])), outputs
            blocks, outputs, size, source_bytes = set(), [], 0, 0
            fresh, more = mine, sum(block.length for block in mine)
        blocks |= fresh
        source_bytes += more
        outputs.append(part)
        size += len(content)
    if outputs:
        yield joined(finder.without_own(blocks, outputs[0])), outputs


class _SourceFinder:
    """Finds what to compress each part of a new file against; call `find` in the order in which parts are produced.

    Args:
        similar: the old blocks, if they are worth a search.
        total_bytes: total size of all parts.
    """

    def __init__(
        self, old: BlobReader, new: Manifest, similar: Callable[[], SimilarityIndex] | None, total_bytes: int
    ) -> None:
        self._old = old
        self._new = new
        self._similar = similar
        self._count = len(old.manifest)
        self._made = SimilarityIndex(total_bytes, _MADE_BYTES)

    def find(self, entry: int, offset: int, content: bytes) -> set[Span]:
        """The same place in the old file; for lines that are not there, also earlier new blocks and similar old ones.

        So what is new both in modules and in bundles that are made of them is compressed only once.
        """
        blocks = set(self._same_place(entry, offset, len(content)))
        known: set[int] = set()
        for block in blocks:
            known.update(line_marks(self._old.read(block.entry, block.offset, block.length)))
        left = min(MAX_GROUP_BYTES, 2 * len(content) + (64 << 10)) - sum(block.length for block in blocks)
        made = self._made.find(content, limit=left, known=known)
        left -= sum(block.length for block in made)
        blocks.update(made)
        for block in self._similar().find(content, limit=left, known=known) if self._similar else ():
            if block not in blocks and block.length <= left:
                blocks.add(block)
                left -= block.length
        for at in range(0, len(content), _MADE_BYTES):
            self._made.add(self._count + entry, offset + at, content[at : at + _MADE_BYTES])
        return blocks

    def _same_place(self, entry: int, offset: int, length: int) -> Iterator[Span]:
        if (before := self._old.named(self._new.name(entry))) is not None:
            size = self._old.manifest.size(before)
            start = max(0, offset - BLOCK_BYTES) // BLOCK_BYTES * BLOCK_BYTES
            for at in range(start, min(size, offset + length + BLOCK_BYTES), BLOCK_BYTES):
                yield Span(before, at, min(BLOCK_BYTES, size - at))

    def without_own(self, blocks: set[Span], first: Span) -> set[Span]:
        """The blocks, without those of the group that begins with `first`."""
        return {block for block in blocks if (block.entry, block.offset) < (self._count + first.entry, first.offset)}
