"""Byte-by-byte differences between content and nearly equal old content: mostly zeros.

In a new build of a program, nearly all bytes are those of the old one at another place, but addresses differ by a
constant here and there, so that exact matches are short. After prediction from old content, zeros and small numbers
remain. LZMA codes them in 10 to 15 % less space than zstd; if they are few, bzip2 takes even less. Where numbers have
changed throughout, zstd codes planes of their bytes smallest, and decodes them a hundred times as fast as the other two
(docs/adr/0004-releases.md).
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
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
_CHUNK_BYTES = 16 << 10  # that are added at once, unless their differences are zeros
_SHORT_RUN = 16  # one of fewer bytes is added byte by byte
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
) -> Iterator[bytes | bytearray]:
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
    differences = _Runs(stream.take(decoded - literals), size - literals) if in_runs else stream
    inserts: list[tuple[int, bytes]] = []
    sources: list[bytes] = []
    length = place = 0
    for gap, source in pieces:
        if gap:
            inserts.append((length, extra[place : place + gap]))
            place += gap
        sources.append(source)
        length += len(source)
        if length >= _OUTPUT_BYTES:
            yield _insert(differences.add_to(b"".join(sources)), inserts)
            sources.clear()
            inserts.clear()
            length = 0
    yield _insert(differences.add_to(b"".join(sources)), [*inserts, (length, extra[place:])])
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
    """Takes any number of bytes from chunks: all differences, after the literals."""

    def __init__(self, chunks: Iterable[bytes | bytearray]) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")

    def take(self, count: int) -> bytes:
        """The next bytes, which must be there."""
        parts = []
        while count:
            self._rest = self._rest or memoryview(next(self._chunks))
            parts.append(self._rest[:count])
            self._rest = self._rest[count:]
            count -= len(parts[-1])
        return b"".join(parts)

    def add_to(self, content: bytes) -> bytes:
        """The sum of old content and the next differences."""
        return _sums(self.take(len(content)), content)


class _Runs:
    """What `_runs` makes of differences.

    Args:
        size: bytes of content that they belong to.
    """

    def __init__(self, runs: bytes, size: int) -> None:
        reader = Reader(runs, "delta", b"")
        count = reader.number()
        gaps, lengths = reader.column(4, count), reader.column(4, count)
        if sum(gaps) + sum(lengths) > size:
            raise ManifestError("delta: the differences are longer than the content")
        edges = array("I", accumulate(chain.from_iterable(zip(gaps, lengths, strict=True))))
        self._starts, self._ends = edges[::2], edges[1::2]
        self._bytes = reader.take(sum(lengths))
        self._place = self._done = 0  # of the content, and of the bytes of runs
        reader.end()

    def add_to(self, content: bytes) -> bytes | bytearray:
        """The sum of old content and the next differences."""
        start, self._place = self._place, self._place + len(content)
        runs = slice(bisect_right(self._ends, start), bisect_left(self._starts, self._place))
        if runs.start == runs.stop:
            return content
        changed, differences, done = bytearray(content), self._bytes, self._done
        for begin, end in zip(self._starts[runs], self._ends[runs], strict=True):
            first, last = max(0, begin - start), min(end - start, len(content))
            if last - first < _SHORT_RUN:  # as most are
                for place in range(first, last):
                    changed[place] = changed[place] + differences[done] & 0xFF
                    done += 1
            else:
                changed[first:last] = _sums(differences[done : done + last - first], content[first:last])
                done += last - first
        self._done = done
        return changed


def _insert(content: bytes | bytearray, inserts: Sequence[tuple[int, bytes]]) -> bytes | bytearray:
    """The content with other bytes before each of these places, which are in order."""
    if not inserts:
        return content
    parts, start = list[bytes | bytearray](), 0
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


def _sums(left: bytes, right: bytes) -> bytes:
    """The sum of each pair of bytes, modulo 256."""
    chunks = (slice(start, start + _CHUNK_BYTES) for start in range(0, len(left), _CHUNK_BYTES))
    return b"".join(_sum(left[each], right[each]) for each in chunks)


def _sum(left: bytes, right: bytes) -> bytes:
    """`_sums` of at most a chunk: the low seven bits of each byte are added, and the eighth without carry."""
    size = len(left)
    if left == _ZEROS[:size]:
        return right
    a, b = int.from_bytes(left, "little"), int.from_bytes(right, "little")
    return (((a & _LOW) + (b & _LOW)) ^ ((a ^ b) & _HIGH)).to_bytes(size, "little")
