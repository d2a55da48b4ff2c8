"""Decode frames of packs, and split files into the pieces that indexes list.

Content is not verified here: the caller compares the SHA-256 of a complete file with the manifest.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from itertools import pairwise
from typing import BinaryIO

from perfkit.archives.decompress import Readable
from perfkit.errors import ManifestError
from perfkit.releases.format.index import Index, PackRange, Piece
from perfkit.releases.format.zstd import decompress_stream, dictionary, zstd

Write = Callable[[int, int, memoryview], object]  # entry of the manifest, offset in the file, bytes

CUT_ABOVE_BYTES = 64 << 10  # a file up to this size is one piece
LEAST_PIECE_BYTES = 8 << 10  # only the last piece of a large file is shorter; every part of a piece is
_LONG_LINE_BYTES = 1 << 10
# Three bytes that end a line where there is no line feed: their lowest three bits are 3; 4, 6 or 7; and 1. They come
# every 170 bytes in random content, and often enough in text, digits, hexadecimal, Base64 or DNA.
_MARK = re.compile(
    b"".join(
        b"[%b]" % b"".join(b"\\x%02x" % each for each in range(256) if each % 8 in bits)
        for bits in ((3,), (4, 6, 7), (1,))
    )
)
_READ_BYTES = 64 << 10


def decode_range(
    index: Index, fetched: PackRange, file: BinaryIO, write: Write, *, wanted: Sequence[int], shared: bytes | None
) -> None:
    """Decode a range of a pack.

    Args:
        fetched: one of `index.ranges`.
        file: positioned at the first byte of that range.
        write: called with each part of each wanted piece; parts of one file come in the order of its pieces.
        wanted: numbers of pieces, in ascending order.
        shared: the content of the pack's dictionary; None: it has none.

    Raises:
        ManifestError: a frame is damaged, or is not what the index says.
    """
    trained = None if shared is None else dictionary(shared)
    at = fetched.start
    for number in fetched.frames:
        start, size = index.at[number], index.packed[number]
        _skip(file, start - at)
        at = start + size
        each = index.pieces_of(number)
        chosen = wanted[bisect_left(wanted, each.start) : bisect_left(wanted, each.stop)]
        _unpack_frame(index, number, _take(file, size), write, chosen, trained)


def _unpack_frame(
    index: Index, number: int, data: Iterator[bytes], write: Write, wanted: Sequence[int], shared: zstd.ZstdDict | None
) -> None:
    start_of = index.starts.__getitem__
    in_order = all(one <= other for one, other in pairwise(map(start_of, wanted)))
    later = iter(wanted if in_order else sorted(wanted, key=start_of))
    following = next(later, None)
    begun: list[Piece] = []  # pieces that reach into the next chunk
    position = 0
    for chunk in decompress_stream(data, index.sizes[number], shared):
        view, end = memoryview(chunk), position + len(chunk)
        left, begun = iter(begun), []
        while True:
            piece = next(left, None)
            if piece is None:
                if following is None or start_of(following) >= end:
                    break
                piece, following = index.piece(following), next(later, None)
            start, stop = max(piece.start, position), min(piece.start + piece.length, end)
            write(piece.entry, piece.offset + start - piece.start, view[start - position : stop - position])
            if piece.start + piece.length > end:
                begun.append(piece)
        position = end


def _take(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size:
        data = file.read(min(size, _READ_BYTES))
        if not data:
            raise ManifestError("a range of a pack is truncated")
        size -= len(data)
        yield data


def _skip(file: BinaryIO, size: int) -> None:
    for _ in _take(file, size):
        pass


def tag(data: bytes) -> int:
    """The tag of a piece in an index: the first 8 bytes of its SHA-256, little-endian."""
    return tag_of_digest(hashlib.sha256(data).digest())


def tag_of_digest(digest: bytes) -> int:
    """The tag of a piece with this SHA-256."""
    return int.from_bytes(digest[:8], "little")


def split_pieces(file: Readable) -> Iterator[bytes]:
    """Split a file into content-defined pieces of 8 to 128 KiB, so that an edit changes only the pieces around it."""
    return _split(file, LEAST_PIECE_BYTES, 24 << 10, 128 << 10)


def split_parts(content: bytes, piece_bytes: int) -> Iterator[bytes]:
    """Split content into parts below 8 KiB in the same way, as a piece of that size is split.

    A piece can be a whole file. A part of a piece is one part again if the size of the piece is given.
    """
    least, mean = (512, 1 << 10) if piece_bytes >= LEAST_PIECE_BYTES else (256, 256)
    return _split(BytesIO(content), least, mean, LEAST_PIECE_BYTES - 1)


def _split(file: Readable, least: int, mean: int, most: int) -> Iterator[bytes]:
    """Lines end after a line feed; if 1,024 bytes have none, after the first mark in them. The CRC-32 and the length of
    a line decide whether a piece ends after it (see `docs/format.md`).
    """
    piece = bytearray()
    rest = b""
    while True:
        data = file.read(_READ_BYTES)
        block = rest + data
        position, last = 0, len(block) - _LONG_LINE_BYTES if data else len(block) - 1
        while position <= last:  # the rest of a later line may follow
            line = block[position : _line_end(block, position)]
            position += len(line)
            if len(piece) + len(line) > most:
                yield bytes(piece)
                piece.clear()
            piece += line
            if len(piece) >= least and zlib.crc32(line) % (mean // len(line) + 1) == 0:
                yield bytes(piece)
                piece.clear()
        rest = block[position:]
        if not data:
            break
    if piece:
        yield bytes(piece)


def _line_end(block: bytes, start: int) -> int:
    limit = start + _LONG_LINE_BYTES
    if end := block.find(b"\n", start, limit) + 1:
        return end
    mark = _MARK.search(block, start, limit)
    return mark.end() if mark else limit
