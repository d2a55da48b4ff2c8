"""Differences between content and a prediction of it, byte by byte: mostly zeros where code or tables have shifted.

In a new build of a program, nearly all bytes are those of the old one at another place, but addresses differ by a
constant here and there, so that exact matches are short. Predicted by copies of old content, the rest is zeros and
small numbers, which LZMA codes in 10 to 15 % less than zstd (docs/adr/0004-releases.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from perfkit.archives.decompress import decode_frame
from perfkit.errors import ManifestError
from perfkit.releases.format.columns import Reader, pack_column

try:
    import lzma
except ImportError:  # CPython was built without liblzma
    lzma = None  # type: ignore[assignment]

__all__ = ["AVAILABLE", "encode_differences", "no_differences", "restore"]

AVAILABLE = lzma is not None

_DICT_BYTES = 4 << 20
_CHUNK_BYTES = 128 << 10
_NEGATED = bytes(-byte & 0xFF for byte in range(256))
_RUN = re.compile(rb"[^\0]+(?:\0{1,3}[^\0]+)*")  # of differences; a few zeros cost less than another run


def encode_differences(content: bytes, prediction: bytes | bytearray) -> tuple[bytes, int]:
    """A frame from which `restore` makes `content` with the same prediction, and the bytes that it decodes to.

    It has all differences, or only those that are not 0 where that is smaller.

    Args:
        prediction: as long as `content`.
    """
    differences = _sums(content, prediction.translate(_NEGATED))
    forms = [differences]
    runs = _runs(differences)
    if len(runs) < len(differences):
        forms.append(runs)
    return min(map(_frame, forms), key=lambda frame: len(frame[0]))


def no_differences() -> tuple[bytes, int]:
    """As `encode_differences`, for content that is as predicted."""
    return _frame(_runs(b""))


def _frame(form: bytes) -> tuple[bytes, int]:
    assert lzma is not None, "publishing differences needs CPython's lzma module"
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": _DICT_BYTES}]
    return lzma.compress(form, format=lzma.FORMAT_RAW, filters=filters), len(form)


def _runs(differences: bytes) -> bytes:
    """The number of runs of differences; the zeros before each; their lengths; and their bytes."""
    found = [match.span() for match in _RUN.finditer(differences)]
    ends = [0, *(end for _, end in found)]
    gaps = pack_column(4, (start - last for (start, _), last in zip(found, ends, strict=False)))
    lengths = pack_column(4, (end - start for start, end in found))
    return b"".join((len(found).to_bytes(4, "little"), gaps, lengths, *(differences[slice(*run)] for run in found)))


def restore(frame: Iterable[bytes], decoded: int, prediction: bytearray) -> Iterator[bytes]:
    """The content of a frame, in chunks of at most 128 KiB.

    Args:
        frame: its bytes, in chunks.
        decoded: the bytes that it decodes to: as many as the prediction has, or fewer where it has runs.
        prediction: as long as the content.

    Raises:
        ManifestError: the frame is damaged or has another size, or this CPython has no lzma module.
    """
    if lzma is None:
        raise ManifestError("this delta needs CPython's lzma module, which this installation does not have")
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": _DICT_BYTES}]
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=filters)
    chunks = decode_frame(decoder, frame, decoded, "a compressed frame")
    if decoded < len(prediction):
        chunks = _spread(b"".join(chunks), len(prediction))
    place = 0
    for differences in chunks:
        end = place + len(differences)
        yield _sums(differences, prediction[place:end])
        place = end


def _spread(runs: bytes, size: int) -> Iterator[bytes]:
    """The inverse of `_runs`, in chunks."""
    reader = Reader(runs, "delta", b"")
    count = reader.number()
    gaps, lengths = reader.column(4, count), reader.column(4, count)
    if sum(gaps) + sum(lengths) > size:
        raise ManifestError("delta: its differences are longer than what they belong to")
    differences = bytearray(size)
    place = 0
    for gap, length in zip(gaps, lengths, strict=True):
        place += gap
        differences[place : place + length] = reader.take(length)
        place += length
    reader.end()
    for start in range(0, size, _CHUNK_BYTES):
        yield bytes(differences[start : start + _CHUNK_BYTES])


def _sums(left: bytes, right: bytes | bytearray) -> bytes:
    """The sum of each pair of bytes, modulo 256: seven bits are added at once, and the eighth without carry."""
    size = len(left)
    if left.count(0) == size:
        return bytes(right)
    low = int.from_bytes(b"\x7f" * size, "little")
    a, b = int.from_bytes(left, "little"), int.from_bytes(right, "little")
    return (((a & low) + (b & low)) ^ ((a ^ b) & ~low)).to_bytes(size, "little")
