"""The index of a release: which frames of which packs have the content of each file. No I/O.

A pack is an object made of independent zstd frames. A piece is a part of one file within one frame; most files are one
piece. A blob that several entries share is listed once, for the first of them.
"""

from __future__ import annotations

import operator
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import NoReturn

from perfkit.errors import ManifestError
from perfkit.filesystem.compact import Bytes, pack_numbers
from perfkit.releases.format import most_compressed
from perfkit.releases.format.columns import Reader, pack_column, unzigzag, zigzag
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.format.pointer import ObjectRef, PackedRef

MAX_FRAME_BYTES = 16 << 20
MAX_DICTIONARY_BYTES = 256 << 10
_MAX_PACKS = 4096
_MAX_COUNT = 1 << 24
_MAGIC = b"perfkit index 1\n"


@dataclass(frozen=True, slots=True)
class Pack:
    """An object made of frames, and their common dictionary, if any."""

    object: ObjectRef
    dictionary: PackedRef | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a file's content within a frame."""

    entry: int  # index of the file in the manifest
    offset: int  # where the part begins in the file
    start: int  # where it begins in the frame's content
    length: int  # its bytes
    # the first 8 bytes of its SHA-256, little-endian, if the file has several pieces and the index has tags;
    # else 0. It helps a client find pieces that it already has, but proves nothing.
    tag: int = 0


@dataclass(frozen=True, slots=True)
class PackRange:
    """Bytes to fetch: from `start` (inclusive) to `end` (exclusive) of a pack, for these frames."""

    pack: int
    start: int
    end: int
    frames: Sequence[int]


@dataclass(frozen=True, slots=True)
class Index:
    """The frames of a release, ordered by pack and offset, and their pieces, ordered by frame; in columns."""

    manifest_sha256: bytes  # the digest of the manifest that entries refer to
    packs: tuple[Pack, ...]  # the packs that contain the frames
    packs_of: array[int] = field(repr=False)  # the pack of each frame
    at: array[int] = field(repr=False)  # the offset of each frame in its pack
    packed: array[int] = field(repr=False)  # the compressed size of each frame
    sizes: array[int] = field(repr=False)  # the decompressed size of each frame
    _first: Sequence[int] = field(repr=False)  # the first piece of each frame, and the number of pieces
    entries: array[int] = field(repr=False)  # of each piece, as in `Piece`
    offsets: array[int] = field(repr=False)
    starts: array[int] = field(repr=False)
    lengths: array[int] = field(repr=False)
    tags: array[int] = field(repr=False)  # of each piece; empty: the index has none

    def __len__(self) -> int:
        return len(self.at)

    def piece(self, number: int) -> Piece:
        """One piece; pieces are numbered through all frames."""
        tag = self.tags[number] if self.tags else 0
        return Piece(self.entries[number], self.offsets[number], self.starts[number], self.lengths[number], tag)

    def start_of(self, number: int) -> int:
        """The offset of a piece in its decompressed frame."""
        return self.starts[number]

    def place(self, number: int) -> tuple[int, int]:
        """The offset of a frame in its pack, and its compressed size."""
        return self.at[number], self.packed[number]

    def pack_of(self, number: int) -> int:
        """The pack of a frame."""
        return self.packs_of[number]

    def content_bytes(self, number: int) -> int:
        """The decompressed size of a frame."""
        return self.sizes[number]

    def pieces_of(self, number: int) -> range:
        """The numbers of a frame's pieces."""
        return range(self._first[number], self._first[number + 1])

    def frame_of(self, number: int) -> int:
        """The frame of a piece."""
        return bisect_right(self._first, number) - 1

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
            while self._first[frame + 1] <= number:
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
        of, piece_count, tag_count, packs, packs_of, at, sizes = _read_frames(reader)
        if of != manifest.sha256:
            _refuse(f"it belongs to manifest {of.hex()}, not {manifest.sha256.hex()}")
        tails, per_frame = reader.column(4, len(sizes)), reader.column(4, len(sizes))
        columns = [reader.column(width, piece_count) for width in (4, 8, 4, 4)]
        tags = reader.column(8, tag_count)
        reader.end()
        if sum(per_frame) != piece_count:
            _refuse("its counts are inconsistent")
        first = array("I", accumulate(per_frame, initial=0))
        pieces = _Pieces(manifest, columns, tags)
        contents = array("I", map(operator.add, pieces.read(per_frame), tails))
        for size, compressed in zip(contents, sizes, strict=True):
            if not 0 < size <= MAX_FRAME_BYTES or compressed > most_compressed(size):
                _refuse(f"a frame of {compressed} bytes with {size}; at most {MAX_FRAME_BYTES} are allowed")
        if not known:
            pieces.check()
        return cls(of, packs, packs_of, at, sizes, contents, first, *pieces.columns)

    @staticmethod
    def encode(
        manifest: Manifest,
        packs: Sequence[Pack],
        frames: Iterable[tuple[int, int, int, int, int]],
        pieces: Iterable[tuple[int, int, int, int, int]],
        *,
        tags: bool,
    ) -> bytes:
        """The bytes that `parse` reads.

        Args:
            frames: pack, offset in it, compressed size, decompressed size, and number of pieces; in order.
            pieces: entry, offset, start, length and tag, as in `Piece`; frame by frame. Each blob must be listed once.
        """
        per_pack, ends = [0] * len(packs), [0] * len(packs)
        gaps, packed, tails, counts, tag_values = array("Q"), array("I"), array("I"), array("I"), array("Q")
        columns = array("I"), array("Q"), array("I"), array("I")
        steps, jumps, moves, given = columns
        expected = array("Q", bytes(8 * len(manifest)))
        before, listed = -1, iter(pieces)
        for pack, at, compressed, content, count in frames:
            per_pack[pack] += 1
            gaps.append(at - ends[pack])
            ends[pack] = at + compressed
            packed.append(compressed)
            counts.append(count)
            end = used = 0
            for entry, offset, start, length, tag in islice(listed, count):
                part = offset + length != manifest.size(entry)
                step, jump, move = entry - before - 1, offset - expected[entry], start - end
                steps.append(step and zigzag(step))  # nearly all are 0, and calls take time
                jumps.append(jump and zigzag(jump))
                moves.append(move and zigzag(move))
                given.append(length if part else 0)
                if tags and (offset or part):
                    tag_values.append(tag)
                before, expected[entry] = entry, offset + length
                end = start + length
                used = max(used, end)
            tails.append(content - used)
        shared = [pack.dictionary or PackedRef(ObjectRef("00" * 32, 0), 0) for pack in packs]
        return b"".join(
            (
                _MAGIC,
                manifest.sha256,
                *(len(each).to_bytes(4, "little") for each in (packs, packed, steps, tag_values)),
                b"".join(bytes.fromhex(pack.object.sha256) for pack in packs),
                pack_column(8, (pack.object.bytes for pack in packs)),
                b"".join(bytes.fromhex(packed.object.sha256) for packed in shared),
                pack_column(4, (packed.object.bytes for packed in shared)),
                pack_column(4, (packed.size for packed in shared)),
                pack_column(4, per_pack),
                pack_column(8, gaps),
                pack_column(4, packed),
                pack_column(4, tails),
                pack_column(4, counts),
                *(pack_column(width, column) for width, column in zip((4, 8, 4, 4), columns, strict=True)),
                pack_column(8, tag_values),
            )
        )


class _Pieces:
    """Decodes pieces in place: columns of differences become columns of absolute values."""

    def __init__(self, manifest: Manifest, columns: list[array[int]], tags: array[int]) -> None:
        self._manifest = manifest
        self._coded_tags = tags
        entries, offsets, starts, lengths = columns
        self.columns = (entries, offsets, starts, lengths, array("Q"))

    def read(self, per_frame: Iterable[int]) -> Iterator[int]:
        """Decode the pieces; yields the end of the last one in each frame.

        Args:
            per_frame: the number of pieces in each frame.
        """
        entries, offsets, starts, lengths, tags = self.columns
        coded = zip(range(len(entries)), entries, offsets, starts, lengths, strict=True)
        coded_tags = iter(self._coded_tags)
        size_of, entry, expected = self._manifest.size, -1, array("Q", (0,)) * len(self._manifest)
        for in_frame in per_frame:
            place = used = 0
            for number, step, jump, move, given in islice(coded, in_frame):
                entry += 1 + (step and unzigzag(step))  # nearly all are 0, and calls take time
                if not 0 <= entry < len(expected):
                    _refuse("a piece of an entry that does not exist")
                offset, start = expected[entry] + (jump and unzigzag(jump)), place + (move and unzigzag(move))
                left = size_of(entry) - offset
                length = given or left
                if offset < 0 or start < 0 or not 0 < length <= left or start + length > MAX_FRAME_BYTES:
                    _refuse("a piece outside its file or frame")
                place = start + length
                expected[entry] = offset + length
                used = max(used, place)
                entries[number], offsets[number], starts[number], lengths[number] = entry, offset, start, length
                if self._coded_tags:
                    tag = next(coded_tags, None) if offset or length != left else 0
                    if tag is None:
                        _refuse("too few tags")
                    tags.append(tag)
            yield used
        if next(coded_tags, None) is not None:
            _refuse("too many tags")

    def check(self) -> None:
        """Check that the pieces cover every blob of the manifest, each byte once."""
        entries, offsets, _, lengths, _ = self.columns
        reached = array("Q", (0,)) * len(self._manifest)
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
            size = self._manifest.size(entry)
            if end == 0 and size and shared.setdefault(self._manifest.digest(entry), size) != size:
                _refuse("the same digest with different sizes")
            if end not in (0, size):
                _refuse(f"it has only {end} of the {size} bytes of {self._manifest.name(entry)}")
        for entry, end in enumerate(reached):
            if end and shared.pop(self._manifest.digest(entry), end) != end:
                _refuse("the same digest with different sizes")
        if shared:
            _refuse(f"{len(shared)} blobs are missing")


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
    frame = 0
    for number, count in enumerate(per_pack):
        end = 0
        for _ in range(count):
            start = end + gaps[frame]
            end = start + sizes[frame]
            if not sizes[frame] or end > packs[number].object.bytes:
                _refuse("a frame outside its pack")
            packs_of.append(number)
            at.append(start)
            frame += 1
    return packs_of, at


def _refuse(reason: str) -> NoReturn:
    raise ManifestError(f"index: {reason}")
