"""Read and write deltas: the new manifest, and new blobs in groups, each a frame that needs old content.

The new manifest is verified here; content is not: the caller compares the SHA-256 of a complete file with the manifest.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from operator import attrgetter
from typing import BinaryIO, NamedTuple, NoReturn

from perfkit.errors import ManifestError
from perfkit.filesystem.spilled import Keep
from perfkit.releases.format import most_compressed, most_content
from perfkit.releases.format.columns import Reader, pack_column, unzigzag, zigzag
from perfkit.releases.format.differences import restore
from perfkit.releases.format.draft import parse_draft
from perfkit.releases.format.frames import Write
from perfkit.releases.format.manifest import MAX_MANIFEST_BYTES, Manifest, pair_entries
from perfkit.releases.format.zstd import compress, decompress, decompress_stream, prefix_dictionary

MAX_GROUP_BYTES = 3 << 20  # limit of a group's old content, and of its new content
MAX_GROUP_SPANS = 1 << 16  # limit of the number of spans in either
_MAX_TABLE_BYTES = 64 << 20
_MAGIC = b"perfkit delta 5\n"
_MAGIC_4 = b"perfkit delta 4\n"  # without planes; still accepted
_HEAD_BYTES = len(_MAGIC) + 32 + 8
_READ_BYTES = 64 << 10
_SAME_ENTRY = zigzag(-1)  # the step to a span of the same entry


class Span(NamedTuple):
    """Bytes from `offset` to `offset + length` (exclusive) of an entry of a manifest. A tuple: some deltas have 10,000.

    A source may also be in a new file: then `entry` is the number of old entries plus the index of the new one.
    """

    entry: int
    offset: int
    length: int


_LENGTH = attrgetter("length")


@dataclass(frozen=True, slots=True)
class Group:
    """One frame."""

    # spans of the old tree, or of what earlier groups make; concatenated, they are the prefix that the frame
    # was compressed against, or the content that its differences are added to
    sources: tuple[Span, ...]
    outputs: tuple[Span, ...]  # spans of the new tree; concatenated, the content of the group
    bytes: int  # the frame's size
    differences: int = 0  # how many bytes a frame of differences decodes to; 0: it was compressed against a prefix
    gaps: tuple[int, ...] = ()  # for differences, the bytes of new content before each source; a prefix has none

    @property
    def size(self) -> int:
        """Bytes of new content."""
        return sum(map(_LENGTH, self.outputs))

    @property
    def source_bytes(self) -> int:
        """Bytes of the sources."""
        return sum(map(_LENGTH, self.sources))


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of the new manifest's canonical bytes."""

    length: int  # its bytes
    start: int  # offset of the part of the old manifest that the frame was compressed against
    source: int  # the length of that part; 0: none
    frame: bytes  # the compressed bytes


@dataclass(frozen=True, slots=True)
class Delta:
    """An open delta, whose table has been read and whose frames follow in the file."""

    target_sha256: bytes  # the digest of the manifest that it produces
    _bytes: int = field(repr=False)
    _file: BinaryIO = field(repr=False)
    _table: _Table = field(repr=False)

    @classmethod
    def open(cls, file: BinaryIO) -> Delta:
        """Read the table of a delta, and leave the file at its first frame.

        Raises:
            ManifestError: it is damaged, exceeds a limit, or has an unknown format version.
        """
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = _exactly(file, _HEAD_BYTES)
        head = Reader(start.replace(_MAGIC_4, _MAGIC, 1), "delta", _MAGIC)
        target = head.take(32)
        packed, size = head.number(), head.number()
        if not 0 < packed <= min(_MAX_TABLE_BYTES, end) or size > min(_MAX_TABLE_BYTES, most_content(end)):
            _refuse("its table exceeds the limit")
        return cls(target, end, file, _Table(decompress(_exactly(file, packed), size)))

    def new_manifest(
        self, old: Manifest, *, most_bytes: int = MAX_MANIFEST_BYTES, keep: Keep = b"".join, known: bool = False
    ) -> Manifest:
        """The manifest that a delta without groups produces; call it once.

        Args:
            old: the manifest that it applies to.
            most_bytes: maximum size of the new manifest.
            keep: joins parts of its bytes.
            known: the new manifest was read before; its names are not checked again.

        Raises:
            ManifestError: `old` is another manifest, or the delta is damaged.
            UnsafePathError: an unsafe name in the new manifest, or in what is made from another `old`.
        """
        return Manifest.parse(keep(self._new_bytes(old, most_bytes)), sha256=self.target_sha256, known=known)

    def draft(self, old: Manifest, *, most_bytes: int = MAX_MANIFEST_BYTES, keep: Keep = b"".join) -> Manifest:
        """As `new_manifest`, but without the digests of what the groups make; call it once, before `groups`."""
        return parse_draft(self._new_bytes(old, most_bytes), keep)

    def _new_bytes(self, old: Manifest, most_bytes: int) -> Iterator[bytes]:
        raw = old.data
        if sum(self._table.slices[0]) > min(most_bytes, most_content(self._bytes) + 2 * len(raw)):
            _refuse("its manifest exceeds the limit")
        for length, start, source, size in zip(*self._table.slices, strict=True):
            if start + source > len(raw):
                _refuse("it refers beyond the end of the old manifest")
            yield decompress(_exactly(self._file, size), length, prefix=raw[start : start + source])

    def groups(self, old: Manifest, new: Manifest) -> Groups:
        """The groups of the delta, in order; can be iterated repeatedly. They are checked against both manifests.

        They produce every blob of `new` that `old` does not have, for one of its entries (the others are copies of that
        one), except empty blobs.

        Args:
            old: the manifest that the delta applies to.
            new: the new manifest, or its draft.

        Raises:
            ManifestError: the groups do not produce these blobs, or exceed a limit.
        """
        groups = Groups(self._table, old, new)
        groups.total_bytes = _check_outputs(groups, old, new)
        return groups

    def apply(self, groups: Iterable[Group], read: Callable[[Span], bytes | None], write: Write) -> int:
        """Produce the new blobs, group by group; call it once, after `draft`.

        Groups with missing sources and damaged groups are skipped; all others are produced.

        Args:
            groups: all of `groups`.
            read: returns the bytes of a source, or None if they are missing; the caller makes sure that they are the
                old content, or what was written.
            write: called with parts of the new blobs, in order for each file.

        Returns:
            How many groups were skipped because of missing sources.

        Raises:
            ManifestError: the delta is damaged, or `read` returned other content; raised at the end, after all groups.
        """
        skipped = 0
        damage: ManifestError | None = None
        for group in groups:
            frame = _chunks(self._file, group.bytes)
            try:
                _make(group, frame, read, write)
            except _MissingSourceError:
                skipped += 1
            except ManifestError as error:
                damage = error
            for _ in frame:  # skip to the next group
                pass
        if damage is not None:
            raise damage
        if self._file.read(1):
            _refuse("it is followed by other bytes")
        return skipped


class _MissingSourceError(Exception):
    """Old content that a group needs is missing."""


def _make(group: Group, frame: Iterator[bytes], read: Callable[[Span], bytes | None], write: Write) -> None:
    """Produce the blobs of one group."""

    def old_content(span: Span) -> bytes:
        data = read(span)
        if data is None:
            raise _MissingSourceError
        if len(data) != span.length:
            _refuse("an old file is shorter than in the manifest")
        return data

    if group.differences:
        sources = zip(group.gaps, group.sources, strict=True)
        pieces = ((gap, old_content(part)) for gap, span in sources for gap, part in _parts(gap, span))
        size = group.size
        content = restore(frame, group.differences, size - group.source_bytes, size, pieces)
    else:
        content = decompress_stream(frame, group.size, prefix_dictionary(b"".join(map(old_content, group.sources))))
    _scatter(group.outputs, content, write)


def _parts(gap: int, span: Span) -> Iterable[tuple[int, Span]]:
    """A source and the gap before it, in parts that are read at once."""
    if span.length <= _READ_BYTES:
        return ((gap, span),)
    places = range(span.offset, span.offset + span.length, _READ_BYTES)
    parts = (Span(span.entry, place, min(_READ_BYTES, places.stop - place)) for place in places)
    return zip(chain((gap,), repeat(0)), parts, strict=False)


def _scatter(outputs: tuple[Span, ...], chunks: Iterable[bytes | bytearray], write: Write) -> None:
    spans = iter(outputs)
    span, done = next(spans), 0
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            if done == span.length:
                span, done = next(spans), 0
            part = view[: span.length - done]
            write(span.entry, span.offset + done, part)
            done += len(part)
            view = view[len(part) :]


class _Table:
    """The table of a delta: columns, to be resolved against manifests."""

    def __init__(self, raw: bytes) -> None:
        reader = Reader(raw, "delta table", b"")
        slices, groups, sources, outputs = (reader.number() for _ in range(4))
        columns = [reader.column(width, slices) for width in (4, 8, 4, 4)]
        self.slices = columns  # length, offset and length in the old manifest, size of the frame
        self.sources_of, self.outputs_of, self.bytes, self.differences = (reader.column(4, groups) for _ in range(4))
        self.sources = [reader.column(width, sources) for width in (4, 8, 4)]
        self.gaps = reader.column(4, sources)
        self.outputs = [reader.column(width, outputs) for width in (4, 8, 4)]
        reader.end()
        if sum(self.sources_of) != sources or sum(self.outputs_of) != outputs or 0 in self.outputs_of:
            _refuse("its counts are inconsistent")
        lengths, _, prefixes, frames = columns
        if max(map(_largest, (lengths, prefixes))) > MAX_GROUP_BYTES or any(map(_too_long, frames, lengths)):
            _refuse(f"a slice of more than {MAX_GROUP_BYTES} bytes")
        if max(map(_largest, (self.sources_of, self.outputs_of))) > MAX_GROUP_SPANS:
            _refuse(f"a group of more than {MAX_GROUP_SPANS} parts of files")

    def groups(self, old: Manifest, new: Manifest) -> Iterator[Group]:
        """The groups, with their bounds checked."""
        sources = _spans(self.sources, (old, new))
        outputs = _spans(self.outputs, (new,))
        gaps = iter(self.gaps)
        columns = (self.sources_of, self.outputs_of, self.bytes, self.differences)
        for from_count, to_count, size, differences in zip(*columns, strict=True):
            spans = tuple(islice(sources, from_count)), tuple(islice(outputs, to_count))
            group = Group(*spans, size, differences, tuple(islice(gaps, from_count)))
            made, old_bytes = group.size, group.source_bytes
            if max(made, old_bytes) > MAX_GROUP_BYTES or _too_long(size, made):
                _refuse(f"a group of more than {MAX_GROUP_BYTES} bytes")
            if differences and not sum(group.gaps) <= made - old_bytes <= differences <= made:
                _refuse("its differences are longer or shorter than what they belong to")
            yield group


class Groups:
    """The groups of a delta, decoded from its table one at a time: thousands of spans would take megabytes.

    Attributes:
        total_bytes: of the content that they produce.
    """

    def __init__(self, table: _Table, old: Manifest, new: Manifest) -> None:
        self.total_bytes = 0
        self._table = table
        self._old = old
        self._new = new

    def __len__(self) -> int:
        return len(self._table.bytes)

    def __iter__(self) -> Iterator[Group]:
        return self._table.groups(self._old, self._new)


def _spans(columns: Sequence[array[int]], manifests: Sequence[Manifest]) -> Iterator[Span]:
    """Decode spans from columns: the step from the entry before; the offset, in the same entry from the end of the span
    before; and the length, where 0 is the rest of the file.

    Args:
        manifests: entries are numbered through all of these.
    """
    entry, end, size = -1, 0, 0
    for step, offset, length in zip(*columns, strict=True):
        start = offset >> 1 if not offset & 1 else -(offset >> 1) - 1  # as `unzigzag`, whose call takes as long as this
        if step == _SAME_ENTRY:  # as most are, of thousands
            start += end
        else:
            entry += 1 + unzigzag(step)
            manifest, number = _entry_of(manifests, entry)
            size = manifest.size(number)
        length = length or max(0, size - start)
        if not 0 < length <= size - start <= size:
            manifest, number = _entry_of(manifests, entry)
            _refuse(f"it refers beyond the end of {manifest.name(number)}")
        end = start + length
        yield Span(entry, start, length)


def _entry_of(manifests: Sequence[Manifest], entry: int) -> tuple[Manifest, int]:
    for manifest in manifests:
        if 0 <= entry < len(manifest):
            return manifest, entry
        entry -= len(manifest)
    return _refuse("it refers to an entry that does not exist")


def _check_outputs(groups: Iterable[Group], old: Manifest, new: Manifest) -> int:
    """Check what `Delta.groups` promises; returns how many bytes the groups produce."""
    reached = array("Q", bytes(8 * len(new)))
    for group in groups:
        for span in group.sources:
            if span.entry >= len(old) and span.offset + span.length > reached[span.entry - len(old)]:
                _refuse("it refers to new content that comes later")
        for span in group.outputs:
            if span.offset != reached[span.entry]:
                _refuse(f"the parts of {new.name(span.entry)} are not in order")
            reached[span.entry] = span.offset + span.length
    unmade = bytearray(len(new))
    for entry, end in enumerate(reached):
        if end not in (0, new.size(entry)):
            _refuse(f"it has only {end} of the {new.size(entry)} bytes of {new.name(entry)}")
        unmade[entry] = end == 0 < new.size(entry)
    for _, here, there in pair_entries(old, new):  # most are unchanged, and need no dictionary
        if (
            here is not None
            and there is not None
            and (old.digest(here), old.size(here)) == (new.digest(there), new.size(there))
        ):
            unmade[there] = 0
    missing = {new.digest(entry): new.size(entry) for entry, flag in enumerate(unmade) if flag}
    for entry, end in enumerate(reached):
        if end and missing.pop(new.digest(entry), end) != end:
            _refuse("the same digest with different sizes")
    for digest in old.digests():
        missing.pop(digest, None)
    if missing:
        _refuse(f"{len(missing)} blobs are neither in the delta nor in the old tree")
    return sum(reached)


def write_delta(
    write: Callable[[bytes], object],
    old: Manifest,
    new: Manifest,
    slices: Sequence[Slice],
    groups: Sequence[Group],
    frames: Iterable[bytes],
) -> None:
    """Write a delta that `Delta.open` reads.

    Args:
        slices: the new manifest, or its draft, in order.
        groups: in order, with the sizes of their frames.
        frames: one for each group.
    """
    sources = [span for group in groups for span in group.sources]
    outputs = [span for group in groups for span in group.outputs]
    raw = b"".join(
        (
            *(count.to_bytes(4, "little") for count in (len(slices), len(groups), len(sources), len(outputs))),
            pack_column(4, (part.length for part in slices)),
            pack_column(8, (part.start for part in slices)),
            pack_column(4, (part.source for part in slices)),
            pack_column(4, (len(part.frame) for part in slices)),
            pack_column(4, (len(group.sources) for group in groups)),
            pack_column(4, (len(group.outputs) for group in groups)),
            pack_column(4, (group.bytes for group in groups)),
            pack_column(4, (group.differences for group in groups)),
            *_columns(sources, (old, new)),
            pack_column(4, (gap for group in groups for gap in group.gaps or bytes(len(group.sources)))),
            *_columns(outputs, (new,)),
        )
    )
    table = compress(raw)
    write(_MAGIC + new.sha256 + len(table).to_bytes(4, "little") + len(raw).to_bytes(4, "little"))
    write(table)
    for part in slices:
        write(part.frame)
    for frame in frames:
        write(frame)


def _columns(spans: Sequence[Span], manifests: Sequence[Manifest]) -> tuple[bytes, bytes, bytes]:
    steps, offsets, lengths = [], [], []
    last, end = -1, 0
    for span in spans:
        steps.append(zigzag(span.entry - last - 1))
        offsets.append(zigzag(span.offset - (end if span.entry == last else 0)))
        last, end = span.entry, span.offset + span.length
        manifest, number = _entry_of(manifests, span.entry)
        lengths.append(0 if end == manifest.size(number) else span.length)
    return pack_column(4, steps), pack_column(8, offsets), pack_column(4, lengths)


def _largest(column: array[int]) -> int:
    return max(column, default=0)


def _too_long(frame: int, content: int) -> bool:
    return frame > most_compressed(content)


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        _refuse("truncated")
    return data


def _chunks(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size:
        data = _exactly(file, min(size, _READ_BYTES))
        size -= len(data)
        yield data


def _refuse(reason: str) -> NoReturn:
    raise ManifestError(f"delta: {reason}")
