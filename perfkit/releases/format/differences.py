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
from itertools import accumulate, chain

from perfkit.archives.decompress import Decoder, decode_frame
from perfkit.errors import ManifestError
from perfkit.releases.format.columns import Reader, pack_column
from perfkit.releases.format.zstd import MAGIC, compress, decompress_stream, is_noise

try:
    import bz2
    import lzma
except ImportError:  # CPython was built without these libraries
    lzma = None  # type: ignore[assignment]

AVAILABLE = lzma is not None

_DICT_BYTES = 4 << 20
_CHUNK_BYTES = 16 << 10  # that are added at once, unless all differences are zero
_ZEROS = bytes(_CHUNK_BYTES)
_LOW, _HIGH = (int.from_bytes(bytes((bits,)) * _CHUNK_BYTES, "little") for bits in (0x7F, 0x80))
_OUTPUT_BYTES = 64 << 10
_NEGATED = bytes(-byte & 0xFF for byte in range(256))
_RUN = re.compile(rb"[^\0]+(?:\0{1,3}[^\0]+)*")  # of differences; a few zeros cost less than another run
_BZIP2 = b"BZh"  # starts a frame; no frame of LZMA2 starts with it, or with zstd's MAGIC
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
    planes = compress(_planes(forms[0]), level=_PLANES_LEVEL)
    if all(map(is_noise, forms)):
        return planes, len(forms[0])  # the others would take seconds for each group, and save nothing
    frame, form = min(((bz2.compress(form), form) for form in forms), key=lambda each: len(each[0]))
    # LZMA takes 15 times as long as bzip2, so it is tried only on the form that bzip2 makes smaller.
    smaller = min(((_lzma(form), len(form)), (frame, len(form))), key=lambda each: len(each[0]))
    return (planes, len(forms[0])) if len(planes) <= _PLANES_COST * len(smaller[0]) else smaller


def no_differences() -> tuple[bytes, int]:
    """As `encode_differences`, for content that is as predicted."""
    runs = _runs(b"")
    return _lzma(runs), len(runs)


def _lzma(form: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": _DICT_BYTES, "pb": 0}]
    return lzma.compress(form, lzma.FORMAT_RAW, filters=filters)


def _runs(differences: bytes) -> bytes:
    """The number of runs of differences; the zeros before each; their lengths; and their bytes."""
    found = [match.span() for match in _RUN.finditer(differences)]
    ends = [0, *(end for _, end in found)]
    gaps = pack_column(4, (start - last for (start, _), last in zip(found, ends, strict=False)))
    lengths = pack_column(4, (end - start for start, end in found))
    return b"".join((len(found).to_bytes(4, "little"), gaps, lengths, *(differences[slice(*run)] for run in found)))


def restore(
    frame: Iterator[bytes], decoded: int, literals: int, size: int, pieces: Iterable[tuple[int, bytes]]
) -> Iterator[bytes]:
    """The content of a frame, in chunks.

    Args:
        frame: its bytes, in chunks.
        decoded: how many bytes it decodes to, at least `literals`.
        literals: how many bytes of the content are in no source.
        size: bytes of content.
        pieces: the old content in order, as the literals before each part of it, and the part.

    Raises:
        ManifestError: the frame is damaged or has another size, or this CPython has no bz2 or lzma module; discard what
            was yielded before.
        Anything that `pieces` raises.
    """
    in_runs = decoded < size
    parts = _decoded(frame, decoded, in_runs=in_runs)
    stream = _Stream(parts)
    extra = stream.take(literals)
    if in_runs:
        stream = _Stream([_spread(stream.take(decoded - literals), size - literals)])
    inserts: list[tuple[int, bytes]] = []
    old = bytearray()
    place = 0
    for gap, source in pieces:
        if gap:
            inserts.append((len(old), extra[place : place + gap]))
            place += gap
        old += source
        if len(old) >= _OUTPUT_BYTES:
            yield _insert(_sums(stream.take(len(old)), old), inserts)
            old.clear()
            inserts.clear()
    yield _insert(_sums(stream.take(len(old)), old), [*inserts, (len(old), extra[place:])])
    for _ in parts:  # is the end as it should be?
        pass


def _decoded(frame: Iterator[bytes], decoded: int, *, in_runs: bool) -> Iterator[bytes] | Iterator[bytearray]:
    first = next(frame, b"")
    chunks = chain((first,), frame)
    if not first.startswith(MAGIC):
        return decode_frame(_decoder(first), chunks, decoded, "a compressed frame")
    parts = decompress_stream(chunks, decoded)
    return parts if in_runs else _merged(parts, decoded)


class _Stream:
    """Takes any number of bytes from chunks."""

    def __init__(self, chunks: Iterable[bytes | bytearray]) -> None:
        self._chunks = iter(chunks)
        self._rest = bytearray()

    def take(self, count: int) -> bytes:
        """The next bytes, which must be there."""
        while len(self._rest) < count:
            self._rest += next(self._chunks)
        found = bytes(memoryview(self._rest)[:count])
        del self._rest[:count]
        return found


def _insert(content: bytes, inserts: Iterable[tuple[int, bytes]]) -> bytes:
    """The content with other bytes before each of these places, which are in order."""
    parts, start = list[bytes](), 0
    for place, literal in inserts:
        parts += (content[start:place], literal)
        start = place
    parts.append(content[start:])
    return b"".join(parts)


def _planes(content: bytes) -> bytes:
    """Every eighth byte from the first, every eighth byte from the second, and so on."""
    return b"".join(content[at::_PLANES] for at in range(_PLANES))


def _merged(parts: Iterable[bytes], size: int) -> Iterator[bytearray]:
    """The inverse of `_planes`, in chunks."""
    planes = memoryview(b"".join(parts))
    starts = list(accumulate((len(range(at, size, _PLANES)) for at in range(_PLANES)), initial=0))
    for start in range(0, size, _OUTPUT_BYTES):
        chunk = bytearray(min(_OUTPUT_BYTES, size - start))
        for at in range(min(_PLANES, len(chunk))):
            place = starts[at] + start // _PLANES
            chunk[at::_PLANES] = planes[place : place + len(range(at, len(chunk), _PLANES))]
        yield chunk


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


def _sums(left: bytes, right: bytes | bytearray) -> bytes:
    """The sum of each pair of bytes, modulo 256."""
    chunks = (slice(start, start + _CHUNK_BYTES) for start in range(0, len(left), _CHUNK_BYTES))
    return b"".join(_sum(left[each], right[each]) for each in chunks)


def _sum(left: bytes, right: bytes | bytearray) -> bytes | bytearray:
    """`_sums` of a chunk: the low seven bits of each byte are added, and the eighth without carry."""
    size = len(left)
    if left == _ZEROS[:size]:
        return right
    a, b = int.from_bytes(left, "little"), int.from_bytes(right, "little")
    return (((a & _LOW) + (b & _LOW)) ^ ((a ^ b) & _HIGH)).to_bytes(size, "little")
