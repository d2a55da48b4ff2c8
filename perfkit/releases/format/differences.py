"""Byte-by-byte differences between content and nearly equal old content: mostly zeros.

In a new build of a program, nearly all bytes are those of the old one at another place, but addresses differ by a
constant here and there, so that exact matches are short. After prediction from old content, zeros and small numbers
remain. LZMA codes them in 10 to 15 % less space than zstd; if they are few, bzip2 takes even less. Where numbers have
changed throughout, zstd codes planes of their bytes smallest, and decodes them a hundred times as fast as the other two
(docs/adr/0004-releases.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain

from perfkit.archives.decompress import Decoder, decode_frame
from perfkit.errors import ManifestError
from perfkit.releases.format.columns import Reader, pack_column
from perfkit.releases.format.zstd import compress, decompress_stream

try:
    import bz2
    import lzma
except ImportError:  # CPython was built without these libraries
    lzma = None  # type: ignore[assignment]

AVAILABLE = lzma is not None

_DICT_BYTES = 4 << 20
_CHUNK_BYTES = 64 << 10  # numbers of this size are added fastest
_NEGATED = bytes(-byte & 0xFF for byte in range(256))
_RUN = re.compile(rb"[^\0]+(?:\0{1,3}[^\0]+)*")  # of differences; a few zeros cost less than another run
_BZIP2, _ZSTD = b"BZh", b"\x28\xb5\x2f\xfd"  # start a frame; no frame of LZMA2 starts with either
_PLANES = 8  # the width of a number; narrower ones repeat in it
_PLANES_LEVEL = 6  # higher ones save half a percent
_PLANES_COST = 1.01  # times the bytes of the others, for what is decoded a hundred times as fast


def encode_differences(content: bytes, sources: Sequence[bytes], gaps: Sequence[int]) -> tuple[bytes, int]:
    """A frame from which `restore` makes `content` with the same sources and gaps, and how many bytes it decodes to.

    It has the bytes of the gaps, and then all differences or only the nonzero ones, whichever is smaller.

    Args:
        sources: the old content that predicts the new one.
        gaps: the bytes of new content before each source.
    """
    literals, predicted, place = [], [], 0
    for gap, source in zip(gaps, sources, strict=True):
        literals.append(content[place : place + gap])
        predicted.append(content[place + gap : place + gap + len(source)])
        place += gap + len(source)
    extra = b"".join((*literals, content[place:]))
    differences = _sums(b"".join(predicted), b"".join(sources).translate(_NEGATED))
    runs = _runs(differences)
    forms = [extra + differences] if len(runs) >= len(differences) else [extra + differences, extra + runs]
    frame, form = min(((bz2.compress(form), form) for form in forms), key=lambda each: len(each[0]))
    planes = compress(_planes(forms[0]), level=_PLANES_LEVEL)
    # LZMA takes 15 times as long as bzip2, so it is tried only on the form that bzip2 makes smaller.
    smaller = min(((_lzma(form), len(form)), (frame, len(form))), key=lambda each: len(each[0]))
    return (planes, len(forms[0])) if len(planes) <= _PLANES_COST * len(smaller[0]) else smaller


def no_differences() -> tuple[bytes, int]:
    """As `encode_differences`, for content that is as predicted."""
    runs = _runs(b"")
    return _lzma(runs), len(runs)


def _lzma(form: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": _DICT_BYTES}]
    return lzma.compress(form, lzma.FORMAT_RAW, filters=filters)


def _runs(differences: bytes) -> bytes:
    """The number of runs of differences; the zeros before each; their lengths; and their bytes."""
    found = [match.span() for match in _RUN.finditer(differences)]
    ends = [0, *(end for _, end in found)]
    gaps = pack_column(4, (start - last for (start, _), last in zip(found, ends, strict=False)))
    lengths = pack_column(4, (end - start for start, end in found))
    return b"".join((len(found).to_bytes(4, "little"), gaps, lengths, *(differences[slice(*run)] for run in found)))


def restore(
    frame: Iterator[bytes], decoded: int, literals: int, sources: bytearray, pieces: Iterable[tuple[int, int]]
) -> bytearray:
    """The content of a frame.

    Args:
        frame: its bytes, in chunks.
        decoded: how many bytes it decodes to, at least `literals`.
        literals: how many bytes of the content are in no source.
        sources: the old content, concatenated; it is overwritten.
        pieces: the gap before each source, and the source's length.

    Raises:
        ManifestError: the frame is damaged or has another size, or this CPython has no bz2 or lzma module.
    """
    data, first = bytearray(), next(frame, b"")
    in_planes, chunks = first.startswith(_ZSTD), chain((first,), frame)
    if in_planes:
        parts = decompress_stream(chunks, decoded)
    else:
        parts = decode_frame(_decoder(first), chunks, decoded, "a compressed frame")
    for part in parts:
        data += part
    in_runs = decoded < literals + len(sources)
    if in_planes and not in_runs:
        data = _merged(data)
    extra = data[:literals]
    del data[:literals]
    if in_runs:
        data = _spread(data, len(sources))
    for start in range(0, len(sources), _CHUNK_BYTES):
        here = slice(start, start + _CHUNK_BYTES)
        sources[here] = _sums(data[here], sources[here])
    del data
    if not extra:
        return sources
    content = bytearray()
    literal = place = 0
    for gap, length in pieces:
        content += extra[literal : literal + gap]
        content += sources[place : place + length]
        literal += gap
        place += length
    content += extra[literal:]
    return content


def _planes(content: bytes) -> bytes:
    """Every eighth byte from the first, every eighth byte from the second, and so on."""
    return b"".join(content[at::_PLANES] for at in range(_PLANES))


def _merged(planes: bytearray) -> bytearray:
    """The inverse of `_planes`."""
    content, place = bytearray(len(planes)), 0
    for at in range(_PLANES):
        size = len(range(at, len(planes), _PLANES))
        content[at::_PLANES] = planes[place : place + size]
        place += size
    return content


def _decoder(first: bytes) -> Decoder:
    if lzma is None:
        raise ManifestError("this delta needs CPython's bz2 and lzma modules, which this installation does not have")
    if first.startswith(_BZIP2):
        return bz2.BZ2Decompressor()
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": _DICT_BYTES}]
    return lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=filters)


def _spread(runs: bytes | bytearray, size: int) -> bytearray:
    """The inverse of `_runs`."""
    reader = Reader(bytes(runs), "delta", b"")
    count = reader.number()
    gaps, lengths = reader.column(4, count), reader.column(4, count)
    if sum(gaps) + sum(lengths) > size:
        raise ManifestError("delta: the differences are longer than the content")
    differences = bytearray(size)
    place = 0
    for gap, length in zip(gaps, lengths, strict=True):
        place += gap
        differences[place : place + length] = reader.take(length)
        place += length
    reader.end()
    return differences


def _sums(left: bytes | bytearray, right: bytes | bytearray) -> bytes:
    """The sum of each pair of bytes, modulo 256: the low seven bits are added, and the eighth without carry."""
    size = len(left)
    if left == bytes(size):
        return bytes(right)
    a, b = int.from_bytes(left, "little"), int.from_bytes(right, "little")
    low, high = _every(0x7F, size), _every(0x80, size)
    return (((a & low) + (b & low)) ^ ((a ^ b) & high)).to_bytes(size, "little")


@lru_cache(4)
def _every(byte: int, size: int) -> int:
    """A number of `size` bytes that are all the same."""
    return int.from_bytes(bytes((byte,)) * size, "little")
