"""The index of a release: which frames of which packs have the content of each file. No I/O.

A pack is an object made of independent zstd frames. A piece is a part of one file within one frame; most files are one
piece. A blob that several entries share is listed once, for the first of them.
"""

from __future__ import annotations

import operator
from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, compress, pairwise, repeat
from typing import NamedTuple, NoReturn

from perfkit.errors import ManifestError
from perfkit.filesystem.compact import pack_numbers
from perfkit.filesystem.spilled import Bytes
from perfkit.releases.format import most_compressed
from perfkit.releases.format.columns import Reader, pack_column, unzigzag, zigzag
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.format.pointer import ObjectRef, PackedRef

MAX_FRAME_BYTES = 16 << 20
MAX_DICTIONARY_BYTES = 256 << 10
_MAX_PACKS = 4096
_MAX_COUNT = 1 << 24
_MAGIC = b"perfkit index 1\n"


class Pack(NamedTuple):
    """An object made of frames, and their common dictionary, if any."""

    object: ObjectRef
    dictionary: PackedRef | None = None


class Piece(NamedTuple):
    """A part of a file's content within a frame. A tuple, since it is created for each file."""

    entry: int  # index of the file in the manifest
    offset: int  # where the part begins in the file
    start: int  # where it begins in the frame's content
    length: int  # its bytes
    # the first 8 bytes of its SHA-256, little-endian, if the file has several pieces and the index has tags;
    # else 0. It helps a client find pieces that it already has, but proves nothing.
    tag: int = 0


class PackRange(NamedTuple):
    """Bytes to fetch: from `start` (inclusive) to `end` (exclusive) of a pack, for these frames."""

    pack: int
    start: int
    end: int
    frames: Sequence[int]


@dataclass(frozen=True, slots=True, repr=False)
class Index:
    """The frames of a release, ordered by pack and offset, and their pieces, ordered by frame; in columns."""

    manifest_sha256: bytes  # the digest of the manifest that entries refer to
    packs: tuple[Pack, ...]  # the packs that contain the frames
    packs_of: array[int]  # the pack of each frame
    at: array[int]  # the offset of each frame in its pack
    packed: array[int]  # the compressed size of each frame
    sizes: array[int]  # the decompressed size of each frame
    first: Sequence[int]  # the first piece of each frame, and the number of pieces
    entries: array[int]  # of each piece, as in `Piece`
    offsets: array[int]
    starts: array[int]
    lengths: array[int]
    tags: array[int]  # of each piece; empty: the index has none

    def __len__(self) -> int:
        return len(self.at)

    def piece(self, number: int) -> Piece:
        """One piece; pieces are numbered through all frames."""
        tag = self.tags[number] if self.tags else 0
        return Piece(self.entries[number], self.offsets[number], self.starts[number], self.lengths[number], tag)

    def pieces_of(self, number: int) -> range:
        """The numbers of a frame's pieces."""
        return range(self.first[number], self.first[number + 1])

    def frame_of(self, number: int) -> int:
        """The frame of a piece."""
        return bisect_right(self.first, number) - 1

    def pieces(self, wanted: Callable[[int], bool]) -> Sequence[int]:
        """The numbers of all pieces of the wanted entries, in the order of frames."""
        return pack_numbers(number for number, entry in enumerate(self.entries) if wanted(entry))

    def ranges(self, pieces: Sequence[int], *, max_gap: int = 0, max_bytes: int | None = None) -> list[PackRange]:
        """The ranges to fetch for these pieces.

        Args:
            pieces: in ascending order, as from `pieces`.
            max_gap: unused bytes that are fetched to save a request.
            max_bytes: maximum size of a range, unless a single frame is larger; None: no limit.
        """
        ranges: list[PackRange] = []
        frames = array("I")  # of the last range
        frame = 0
        for number in pieces:
            while self.first[frame + 1] <= number:
                frame += 1
            pack, start, end = self.packs_of[frame], self.at[frame], self.at[frame] + self.packed[frame]
            if frames and frames[-1] == frame:
                continue
            last = ranges[-1] if ranges else None
            fits = last is not None and (max_bytes is None or end - last.start <= max_bytes)
            if fits and last is not None and last.pack == pack and start - last.end <= max_gap:
                frames.append(frame)
                ranges[-1] = PackRange(pack, last.start, end, frames)
            else:
                frames = array("I", (frame,))
                ranges.append(PackRange(pack, start, end, frames))
        return ranges

    @classmethod
    def without_pieces(cls, raw: Bytes) -> Index:
        """Read where the frames are, before the manifest is there; each frame counts as one piece.

        Raises:
            ManifestError: a frame is outside its pack, or the index exceeds a limit.
        """
        of, _, _, packs, packs_of, at, sizes = _read_frames(Reader(raw, "index", _MAGIC))
        none = array("I")
        return cls(of, packs, packs_of, at, sizes, none, range(len(at) + 1), none, none, none, none, none)

    @classmethod
    def parse(cls, raw: Bytes, manifest: Manifest, *, known: bool = False) -> Index:
        """Read an index, and check that it covers all content of this manifest exactly once.

        Args:
            known: these bytes were written by `encode`; do not check again what they cover.

        Raises:
            ManifestError: it does not cover it so, belongs to another manifest, or exceeds a limit.
        """
        reader = Reader(raw, "index", _MAGIC)
        of, piece_count, tag_count, packs, packs_of, at, packed = _read_frames(reader)
        if of != manifest.sha256:
            _refuse(f"it belongs to manifest {of.hex()}, not {manifest.sha256.hex()}")
        tails, counts = reader.column(4, len(packed)), reader.column(4, len(packed))
        steps, jumps, moves, given = (reader.column(width, piece_count) for width in (4, 8, 4, 4))
        tags = reader.column(8, tag_count)
        reader.end()
        if sum(counts) != piece_count:
            _refuse("its counts are inconsistent")
        first = array("I", accumulate(counts, initial=0))
        entries = _decode_entries(len(manifest), steps)
        offsets, lengths, tags = _decode_ranges(manifest, entries, jumps, given, tags)
        starts, ends = _decode_starts(first, moves, lengths)
        sizes = array("Q", map(operator.add, _used(first, ends), tails)) if any(tails) else _used(first, ends)
        if sizes and not 0 < min(sizes) <= max(sizes) <= MAX_FRAME_BYTES:
            _refuse(f"a frame with {min(sizes)} or {max(sizes)} bytes; at most {MAX_FRAME_BYTES} are allowed")
        for size, compressed in compress(zip(sizes, packed, strict=True), map(operator.lt, sizes, packed)):
            if compressed > most_compressed(size):
                _refuse(f"a frame of {compressed} bytes with {size}")
        index = cls(of, packs, packs_of, at, packed, _narrow(sizes), first, entries, offsets, starts, lengths, tags)
        if not known:
            index._check(manifest)
        return index

    def _check(self, manifest: Manifest) -> None:
        """Check that the pieces cover every blob of the manifest, each byte once."""
        entries, offsets, lengths = self.entries, self.offsets, self.lengths
        reached = array("Q", (0,)) * len(manifest)
        later = []
        for number, entry in enumerate(entries):
            if offsets[number] == reached[entry]:
                reached[entry] += lengths[number]
            else:
                later.append(number)
        for number in sorted(later, key=offsets.__getitem__):
            if offsets[number] != reached[entries[number]]:
                _refuse("pieces of a file overlap or leave a gap")
            reached[entries[number]] += lengths[number]
        shared: dict[bytes, int] = {}  # blobs of unlisted entries: another entry must have them
        for entry, end in enumerate(reached):
            size = manifest.size(entry)
            if end == 0 and size and shared.setdefault(manifest.digest(entry), size) != size:
                _refuse("the same digest with different sizes")
            if end not in (0, size):
                _refuse(f"it has only {end} of the {size} bytes of {manifest.name(entry)}")
        for entry, end in enumerate(reached):
            if end and shared.pop(manifest.digest(entry), end) != end:
                _refuse("the same digest with different sizes")
        if shared:
            _refuse(f"{len(shared)} blobs are missing")

    def encode(self, manifest: Manifest) -> bytes:
        """The bytes that `parse` reads; each blob must be listed once."""
        per_pack, gaps = array("I"), array("Q")
        for pack in range(len(self.packs)):
            here = slice(len(gaps), bisect_right(self.packs_of, pack))
            at, packed = self.at[here], self.packed[here]
            per_pack.append(len(at))
            gaps.extend(map(operator.sub, at, chain((0,), map(operator.add, at, packed))))
        ends = array("Q", map(operator.add, self.starts, self.lengths))
        before = array("Q", chain((0,), ends))  # for each piece, the end of the one before it in its frame
        for number in self.first:
            before[number] = 0
        jumps, given, tags = array("Q", bytes(8 * len(ends))), array("I", bytes(4 * len(ends))), array("Q")
        reached: dict[int, int] = defaultdict(int)
        sizes = map(manifest.sizes.__getitem__, self.entries)
        for number in compress(range(len(ends)), map(operator.ne, sizes, self.lengths)):  # the parts of files
            entry, offset, length = self.entries[number], self.offsets[number], self.lengths[number]
            jumps[number] = zigzag(offset - reached[entry])
            reached[entry] = offset + length
            if offset + length != manifest.size(entry):
                given[number] = length
            if self.tags:
                tags.append(self.tags[number])
        shared = [pack.dictionary or PackedRef(ObjectRef("00" * 32, 0), 0) for pack in self.packs]
        return b"".join(
            (
                _MAGIC,
                manifest.sha256,
                *(len(each).to_bytes(4, "little") for each in (self.packs, self.at, ends, tags)),
                b"".join(bytes.fromhex(pack.object.sha256) for pack in self.packs),
                pack_column(8, (pack.object.bytes for pack in self.packs)),
                b"".join(bytes.fromhex(packed.object.sha256) for packed in shared),
                pack_column(4, (packed.object.bytes for packed in shared)),
                pack_column(4, (packed.size for packed in shared)),
                pack_column(4, per_pack),
                pack_column(8, gaps),
                pack_column(4, self.packed),
                pack_column(4, map(operator.sub, self.sizes, _used(self.first, ends))),
                pack_column(4, map(operator.sub, self.first[1:], self.first)),
                pack_column(4, _zigzags(map(operator.sub, self.entries, chain((0,), map((1).__add__, self.entries))))),
                pack_column(8, jumps),
                pack_column(4, _zigzags(map(operator.sub, self.starts, before))),
                pack_column(4, given),
                pack_column(8, tags),
            )
        )


def _zigzags(values: Iterable[int]) -> Iterator[int]:
    return (value and zigzag(value) for value in values)  # nearly all are 0, and calls take time


def _decode_entries(count: int, steps: array[int]) -> array[int]:
    """The entry of each piece; in runs of one entry after the other."""
    runs = [*compress(range(len(steps)), steps), len(steps)]
    entries = array("I", range(min(runs[0], count)))
    for start, end in pairwise(runs):
        entry = (entries[-1] if entries else -1) + 1 + unzigzag(steps[start])
        if not 0 <= entry <= count - (end - start):
            break
        entries.extend(range(entry, entry + end - start))
    if len(entries) != len(steps):
        _refuse("a piece of an entry that does not exist")
    return entries


def _decode_ranges(
    manifest: Manifest, entries: array[int], jumps: array[int], given: array[int], coded: array[int]
) -> tuple[array[int], array[int], array[int]]:
    """The offset, the length and the tag of each piece."""
    offsets, lengths = jumps, array(manifest.sizes.typecode, map(manifest.sizes.__getitem__, entries))
    tags, left = array("Q", bytes(8 * len(entries) if coded else 0)), iter(coded)
    parts = {*compress(entries, jumps), *compress(entries, given)}  # all other entries are one piece each
    reached = dict.fromkeys(parts, 0)
    for number in compress(range(len(entries)), map(parts.__contains__, entries)) if parts else ():
        entry = entries[number]
        offset = reached[entry] + unzigzag(jumps[number])
        length = given[number] or lengths[number] - offset
        if offset < 0 or not 0 < length <= lengths[number] - offset:
            _refuse("a piece outside its file")
        if coded and length != lengths[number]:
            if (tag := next(left, None)) is None:
                _refuse("too few tags")
            tags[number] = tag
        offsets[number], lengths[number], reached[entry] = offset, length, offset + length
    if next(left, None) is not None:
        _refuse("too many tags")
    if entries and not 0 < min(lengths) <= max(lengths) <= MAX_FRAME_BYTES:
        _refuse("a piece that is empty or longer than a frame")
    return offsets, _narrow(lengths), tags


def _decode_starts(first: Sequence[int], moves: array[int], lengths: array[int]) -> tuple[array[int], array[int]]:
    """The start of each piece in its frame, and the end."""
    if _one_each(first, moves) and not any(moves):
        return moves, lengths
    starts, ends = array("q", moves), array("q", lengths)
    for number in compress(range(len(moves)), moves):
        starts[number] = unzigzag(moves[number])
        ends[number] += starts[number]
    for start, end in pairwise(first):
        if end > start + 1:
            ends[start:end] = array("q", accumulate(ends[start:end]))
            starts[start:end] = array("q", map(operator.sub, ends[start:end], lengths[start:end]))
    if starts and (min(starts) < 0 or max(ends) > MAX_FRAME_BYTES):
        _refuse("a piece outside its frame")
    return _narrow(starts), _narrow(ends)


def _one_each(first: Sequence[int], pieces: array[int]) -> bool:
    """Whether every frame has one piece."""
    return len(pieces) == len(first) - 1 and all(map(operator.eq, first, range(len(first))))


def _used(first: Sequence[int], ends: array[int]) -> array[int]:
    """The end of the last piece in each frame."""
    if _one_each(first, ends):
        return ends
    return array(
        "I",
        (ends[start] if end == start + 1 else max(ends[start:end], default=0) for start, end in pairwise(first)),
    )


def _narrow(column: array[int]) -> array[int]:
    """The column in four bytes for each integer."""
    return column if column.typecode == "I" else array("I", column)


def _read_frames(
    reader: Reader,
) -> tuple[bytes, int, int, tuple[Pack, ...], array[int], array[int], array[int]]:
    """The digest of the manifest, the numbers of pieces and tags, the packs, and the first columns of `Index`."""
    of = reader.take(32)
    pack_count, frame_count, piece_count, tag_count = (reader.number() for _ in range(4))
    if pack_count > _MAX_PACKS or max(frame_count, piece_count, tag_count) > _MAX_COUNT:
        _refuse("it exceeds the limit of packs, frames or pieces")
    packs = _read_packs(reader, pack_count)
    per_pack, gaps, sizes = (reader.column(4, pack_count), reader.column(8, frame_count), reader.column(4, frame_count))
    if sum(per_pack) != frame_count:
        _refuse("its counts are inconsistent")
    return of, piece_count, tag_count, packs, *_places(packs, per_pack, gaps, sizes), sizes


def _read_packs(reader: Reader, count: int) -> tuple[Pack, ...]:
    digests = reader.take(32 * count)
    sizes = reader.column(8, count)
    dictionaries = reader.take(32 * count)
    dictionary_bytes, dictionary_sizes = reader.column(4, count), reader.column(4, count)
    packs = []
    for number in range(count):
        cut = slice(32 * number, 32 * number + 32)
        shared = None
        if dictionary_sizes[number]:
            if max(dictionary_sizes[number], dictionary_bytes[number]) > MAX_DICTIONARY_BYTES:
                _refuse(f"a dictionary larger than {MAX_DICTIONARY_BYTES} bytes")
            shared = PackedRef(ObjectRef(dictionaries[cut].hex(), dictionary_bytes[number]), dictionary_sizes[number])
        elif dictionary_bytes[number] or any(dictionaries[cut]):
            _refuse("a dictionary of size 0")
        packs.append(Pack(ObjectRef(digests[cut].hex(), sizes[number]), shared))
    return tuple(packs)


def _places(
    packs: tuple[Pack, ...], per_pack: array[int], gaps: array[int], sizes: array[int]
) -> tuple[array[int], array[int]]:
    packs_of, at = array("I"), array("Q")
    for number, count in enumerate(per_pack):
        here = slice(len(at), len(at) + count)
        if not all(sizes[here]) or sum(gaps[here]) + sum(sizes[here]) > packs[number].object.bytes:
            _refuse("a frame outside its pack")
        ends = accumulate(map(operator.add, gaps[here], chain((0,), sizes[here])))
        at.extend(ends)
        packs_of.extend(repeat(number, count))
    return packs_of, at


def _refuse(reason: str) -> NoReturn:
    raise ManifestError(f"index: {reason}")
