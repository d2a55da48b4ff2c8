"""The route that fetches frames of packs: decoding them, and finding pieces that the client already has.

Nothing here verifies content: whoever writes a file checks its SHA-256 against the manifest when it is whole.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import BinaryIO

from perfkit.errors import ManifestError
from perfkit.releases.format.index import Index, PackRange, Piece
from perfkit.releases.format.zstd import decompress_stream, dictionary, zstd

__all__ = ["CUT_ABOVE_BYTES", "Write", "decode_range", "split_pieces", "tag"]

Write = Callable[[int, int, memoryview], object]  # entry of the manifest, offset in the file, bytes

CUT_ABOVE_BYTES = 64 << 10  # a file up to this size is one piece
_LEAST_BYTES = 8 << 10
_MOST_BYTES = 128 << 10
_MEAN_BYTES = 24 << 10
_LONG_LINE_BYTES = 1 << 10
_LINES = re.compile(rb"[^\n]{0,1023}\n|[^\n]{1,1024}")
_READ_BYTES = 64 << 10


def decode_range(
    index: Index, fetched: PackRange, file: BinaryIO, write: Write, *, wanted: Sequence[int], shared: bytes | None
) -> None:
    """Decode a range of a pack.

    Args:
        fetched: one of `index.ranges`.
        file: at the first byte of that range.
        write: called with each part of each wanted piece; parts of one file come in the order that its pieces are in.
        wanted: numbers of pieces, in ascending order.
        shared: what the pack's dictionary object holds; None if it has none.

    Raises:
        ManifestError: a frame is damaged, or is not what the index says.
    """
    trained = None if shared is None else dictionary(shared)
    at = fetched.start
    for number in fetched.frames:
        start, size = index.place(number)
        _skip(file, start - at)
        at = start + size
        each = index.pieces_of(number)
        chosen = wanted[bisect_left(wanted, each.start) : bisect_left(wanted, each.stop)]
        _unpack_frame(index, number, _take(file, size), write, chosen, trained)


def _unpack_frame(
    index: Index, number: int, data: Iterator[bytes], write: Write, wanted: Sequence[int], shared: zstd.ZstdDict | None
) -> None:
    in_order = all(one <= other for one, other in pairwise(map(index.start_of, wanted)))
    later = iter(wanted if in_order else sorted(wanted, key=index.start_of))
    following = next(later, None)
    begun: list[Piece] = []
    position = 0
    for chunk in decompress_stream(data, index.content_bytes(number), shared):
        view, end = memoryview(chunk), position + len(chunk)
        while following is not None and index.start_of(following) < end:
            begun.append(index.piece(following))
            following = next(later, None)
        for piece in begun:
            start, stop = max(piece.start, position), min(piece.start + piece.length, end)
            write(piece.entry, piece.offset + start - piece.start, view[start - position : stop - position])
        begun = [piece for piece in begun if piece.start + piece.length > end]
        position = end


def _take(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size:
        data = file.read(min(size, _READ_BYTES))
        if not data:
            raise ManifestError("a range of a pack is cut short")
        size -= len(data)
        yield data


def _skip(file: BinaryIO, size: int) -> None:
    for _ in _take(file, size):
        pass


def tag(data: bytes) -> int:
    """What an index says of a piece: the first 8 bytes of its SHA-256, little-endian."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")


def split_pieces(file: BinaryIO) -> Iterator[bytes]:
    """The pieces of a file's content, cut where its lines say, so that an edit changes only the pieces around it.

    Lines end after a line feed, or after 1,024 bytes. A piece ends after a line whose CRC-32 times its length says so
    (see `docs/format.md`), not before 8 KiB and not after 128 KiB.
    """
    piece = bytearray()
    rest = b""
    while True:
        data = file.read(_READ_BYTES)
        block = rest + data
        position = 0
        for found in _LINES.finditer(block):
            if data and found.end() > len(block) - _LONG_LINE_BYTES:
                break  # more of this line may come
            line = found.group()
            position = found.end()
            if len(piece) + len(line) > _MOST_BYTES:
                yield bytes(piece)
                piece.clear()
            piece += line
            if len(piece) >= _LEAST_BYTES and zlib.crc32(line) % (_MEAN_BYTES // len(line) + 1) == 0:
                yield bytes(piece)
                piece.clear()
        rest = block[position:]
        if not data:
            break
    if piece:
        yield bytes(piece)
