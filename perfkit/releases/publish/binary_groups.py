"""Groups of a delta for binaries: old content that is nearly the same predicts the new content.

HDiffPatch (extra `publish`) finds the approximate matches; without it, binaries are compressed as text is.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, islice
from typing import BinaryIO, NamedTuple

from perfkit.releases.format.delta import MAX_GROUP_BYTES, MAX_GROUP_SPANS, Span
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.format.zstd import is_noise
from perfkit.releases.publish.blob_reader import BlobReader
from perfkit.releases.publish.similarity import SimilarityIndex, joined
from perfkit.releases.publish.work_cache import WorkCache

try:
    import hdiffpatch
except ImportError:
    hdiffpatch = None  # type: ignore[assignment]

AVAILABLE = hdiffpatch is not None
_BATCH_BYTES = 24 << 20  # new content that is compared at once; the suffix array takes 5 bytes for each old byte
_AROUND_BYTES = 4 << 20  # a part of a large file is compared with the same place in the old one, and this much around
_AROUND_TIMES = 8  # or this many times the part, if that is less: half a second for each short part would be too long
_LIKE_BYTES = 8 << 20  # of similar parts of old files, for a file whose name is new
HEAD_BYTES = 8 << 10


class PredictedGroup(NamedTuple):
    """Spans of new files, and the spans of old files that predict them, each after a gap."""

    sources: list[Span]
    gaps: list[int]
    outputs: list[Span]


class _Match(NamedTuple):
    new: int
    old: int
    length: int


def is_binary(head: bytes) -> bool:
    """Whether a file with these first `HEAD_BYTES` is not text: there is a NUL byte in them, as git decides it."""
    return AVAILABLE and b"\0" in head


def predicted_groups(
    old: BlobReader,
    new: Manifest,
    opened: Callable[[int], BinaryIO],
    spans: Iterable[Span],
    similar: Callable[[], SimilarityIndex],
    cache: WorkCache,
) -> Iterator[PredictedGroup]:
    """The groups of these spans of `new`, in order. `Comparison` has the other arguments."""
    outputs: list[Span] = []
    blocks: set[Span] = set()
    contents = bytearray()
    for part, content in read_parts(spans, opened, _BATCH_BYTES):
        full = len(contents) + len(content) > _BATCH_BYTES or len(outputs) == MAX_GROUP_SPANS
        if outputs and full:
            yield from _matched(old, joined(blocks), bytes(contents), outputs, cache)
            outputs, blocks, contents = [], set(), bytearray()
        outputs.append(part)
        contents += content
        blocks |= _like(old, new, part.entry, part.offset, content, similar)
    if outputs:
        yield from _matched(old, joined(blocks), bytes(contents), outputs, cache)


def read_parts(spans: Iterable[Span], opened: Callable[[int], BinaryIO], most: int) -> Iterator[tuple[Span, bytes]]:
    """These spans in parts of at most that many bytes, each with its content."""
    for span in spans:
        offset, end = span.offset, span.offset + span.length
        with opened(span.entry) as file:
            file.seek(offset)
            while content := file.read(min(most, end - offset)):
                yield Span(span.entry, offset, len(content)), content
                offset += len(content)


def _like(
    old: BlobReader, new: Manifest, entry: int, offset: int, content: bytes, similar: Callable[[], SimilarityIndex]
) -> set[Span]:
    """The old content to compare a part of a new file with: the same place under the same name or, if the name is new,
    in the most similar file, and similar parts of others.
    """
    before, blocks = old.named(new.name(entry)), set[Span]()
    if before is None:
        blocks.update(similar().find(content, limit=min(_LIKE_BYTES, 4 * len(content))))
        found = Counter[int]()
        for block in blocks:
            found[block.entry] += block.length
        if not found:
            return blocks
        before = max(found, key=lambda entry: (found[entry], -entry))  # code around what was found has no lines
    size, around = old.manifest.size(before), min(_AROUND_BYTES, _AROUND_TIMES * len(content))
    start = min(max(0, offset - around), max(0, size - len(content) - around))
    end = min(size, offset + len(content) + around)
    return {*blocks, Span(before, start, end - start)}


def _matched(
    old: BlobReader, spans: list[Span], content: bytes, outputs: list[Span], cache: WorkCache
) -> Iterator[PredictedGroup]:
    """Compare a batch, and cut it into groups."""
    before = b"".join(old.read(span.entry, span.offset, span.length) for span in spans)
    ends = list(accumulate(span.length for span in spans))
    found = cache.get(functools.partial(_covers, before, content), "covers", (before, content))
    matches = list(_approximate_matches(*found))
    del before
    reached = 0
    for start in range(0, len(content), MAX_GROUP_BYTES):
        end = min(len(content), start + MAX_GROUP_BYTES)
        sources: list[Span] = []
        gaps: list[int] = []
        place = start
        while reached < len(matches) and len(sources) < MAX_GROUP_SPANS:
            match = matches[reached]
            at = max(match.new, place)
            if at >= end:
                break
            position = match.old + at - match.new
            number = bisect_right(ends, position)
            span = spans[number]
            length = min(match.new + match.length, end) - at
            length = min(length, ends[number] - position)  # a match may run over into the next old file
            sources.append(Span(span.entry, span.offset + span.length - (ends[number] - position), length))
            gaps.append(at - place)
            place = at + length
            if place >= match.new + match.length:
                reached += 1
        yield PredictedGroup(sources, gaps, list(_between(outputs, start, end)))


def _between(outputs: list[Span], start: int, end: int) -> Iterator[Span]:
    """The parts of concatenated spans from `start` to `end`."""
    place = 0
    for span in outputs:
        first, last = max(start, place), min(end, place + span.length)
        if first < last:
            yield Span(span.entry, span.offset + first - place, last - first)
        place += span.length


def _covers(before: bytes, content: bytes) -> tuple[bytes, int]:
    """The covers of an HDIFF13 patch, and how many there are.

    The patch begins with `HDIFF13&`, the name of the compression (none) and a zero; eleven integers follow, of which
    the third counts the covers, and the fourth their bytes, which come next. The bytes of an integer come most
    significant first; the highest bit of each says whether another follows.
    """
    if not before or is_noise(content, before=before):  # noise would take HDiffPatch a second for each MiB
        return b"", 0
    patch = hdiffpatch.diff(before, content, validate=False)
    if not patch.startswith(b"HDIFF13&\0"):
        raise ValueError("this version of hdiffpatch writes another format; install one that setup.cfg allows")
    numbers = _Numbers(memoryview(patch)[patch.index(b"\0") + 1 :])
    header = [numbers.unsigned() for _ in range(11)]
    return numbers.take(header[3]), header[2]


def _approximate_matches(covers: bytes, count: int) -> Iterator[_Match]:
    """Matches that are ascending in the new content, without overlap.

    A cover has three integers: the distance of its old place from the old end of the cover before, with its sign in the
    highest bit of the first byte; the number of new bytes since the cover before; and its length.
    """
    numbers = _Numbers(covers)
    old_end = new_end = 0
    for _ in range(count):
        old_at = old_end + numbers.signed()
        new_at = new_end + numbers.unsigned()
        length = numbers.unsigned()
        yield _Match(new_at, old_at, length)
        old_end, new_end = old_at + length, new_at + length


class _Numbers:
    """Reads the integers of a patch."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._bytes = iter(data)

    def take(self, count: int) -> bytes:
        """The next bytes."""
        return bytes(islice(self._bytes, count))

    def unsigned(self) -> int:
        return self._rest(next(self._bytes), 7)

    def signed(self) -> int:
        first = next(self._bytes)
        value = self._rest(first, 6)
        return -value if first & 0x80 else value

    def _rest(self, byte: int, bits: int) -> int:
        value, more = byte & (1 << bits) - 1, byte >> bits & 1
        while more:
            byte = next(self._bytes)
            value, more = value << 7 | byte & 0x7F, byte >> 7
        return value
