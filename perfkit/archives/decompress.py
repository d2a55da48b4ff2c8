"""Decompress streams chunk by chunk: gzip, bzip2, xz, zstd or none, detected by the first bytes.

Memory is bounded whatever a stream claims: a chunk of input, a chunk of output, and the window of the format.
"""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from perfkit.archives import limits
from perfkit.errors import ManifestError

if sys.version_info >= (3, 14):
    from compression import zstd as zstd
else:
    from backports import zstd as zstd

_MAGIC = {
    "gzip": re.compile(rb"\x1f\x8b\x08"),
    "bzip2": re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),  # RFC 8878 sections 3.1.1 and 3.1.2
}
CHUNK_BYTES = 256 << 10
MAGIC_BYTES = 10  # that `detect_compression` looks at
_OUTPUT_BYTES = 128 << 10


def detect_compression(first: bytes) -> str | None:
    """The compression of a stream with these first bytes (MAGIC_BYTES, if it has as many); None if uncompressed."""
    return next((name for name, magic in _MAGIC.items() if magic.match(first)), None)


class Readable(Protocol):
    """A binary stream, read forwards."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""


class Decoder(Protocol):
    """The interface that the decompressors of bz2, lzma and zstd share: one frame."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /, max_length: int = -1) -> bytes: ...


class InflateDecoder:
    """zlib with this interface. `wbits` is 31 for gzip and -15 for raw deflate."""

    def __init__(self, wbits: int) -> None:
        self._inflate = zlib.decompressobj(wbits)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes, /, max_length: int = -1) -> bytes:
        tail = self._inflate.unconsumed_tail
        output = self._inflate.decompress(tail + data if tail else data, max(max_length, 0))
        full = len(output) == max_length  # zlib may hold more, even when it has taken all input
        self.needs_input = not (full or self._inflate.unconsumed_tail)
        return output


def zstd_decoder() -> Decoder:
    """A decoder of one zstd frame."""
    window_log = limits.WINDOW_BYTES.bit_length() - 1
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: window_log})


def _decoder(name: str) -> Decoder:
    if name == "gzip":
        return InflateDecoder(31)
    if name == "bzip2":
        import bz2

        return bz2.BZ2Decompressor()
    if name == "xz":
        import lzma

        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=limits.WINDOW_BYTES)
    return zstd_decoder()


def decode_frame(decoder: Decoder, data: Iterable[bytes], size: int, what: str) -> Iterator[bytes]:
    """The `size` bytes that `data`, one frame, decodes to, in chunks of at most 128 KiB; never more than `size`.

    Args:
        what: the frame, for messages.

    Raises:
        ManifestError: damaged, truncated, followed by other bytes, or of another size; discard what was yielded before.
        Anything that `data` raises.
    """
    left = size
    for chunk in data:
        if decoder.eof:
            raise ManifestError(f"{what} is followed by other bytes")
        while True:
            output = _decode(decoder, chunk, min(_OUTPUT_BYTES, left + 1), what)
            chunk = b""
            left -= len(output)
            if left < 0:
                raise ManifestError(f"{what} decompresses to more than {size} bytes")
            if output:
                yield output
            if decoder.eof or decoder.needs_input:
                break
        if decoder.unused_data:
            raise ManifestError(f"{what} is followed by other bytes")
    if not decoder.eof:
        raise ManifestError(f"{what} is truncated")
    if left:
        raise ManifestError(f"{what} decompresses to {size - left} bytes instead of {size}")


def _decode(decoder: Decoder, data: bytes, limit: int, what: str) -> bytes:
    """The next output, at most `limit` bytes, which may be none."""
    try:
        return decoder.decompress(data, limit)
    except Exception as error:  # zlib.error, LZMAError, ZstdError, EOFError, and OSError from bz2
        raise ManifestError(f"{what} is damaged, or needs too much memory: {error}") from error


def decompressed(source: Readable) -> Iterator[bytes]:
    """The content of a stream, compressed or not, in chunks of at most CHUNK_BYTES. It has been checked only when the
    iterator has ended. One layer only: an archive in an archive is a file.

    Raises:
        ManifestError: damaged, truncated, a decompression bomb, or followed by other data.
    """
    packed = unpacked = 0

    def read(rest: bytes, least: int) -> bytes:
        nonlocal packed
        while len(rest) < least and (more := source.read(CHUNK_BYTES)):
            packed += len(more)
            rest += more
        return rest

    for output in _outputs(read):
        unpacked += len(output)
        limits.check_ratio(unpacked, packed)
        yield output


def _outputs(read: Callable[[bytes, int], bytes]) -> Iterator[bytes]:
    """Decompress a stream; `read(rest, least)` appends to `rest` until it has `least` bytes, or there are no more."""
    data = read(b"", MAGIC_BYTES)
    compression = detect_compression(data)
    if compression is None:
        while data:
            yield data
            data = read(b"", 1)
        return
    what = f"the {compression} stream"
    while detect_compression(data) == compression:  # one or several, one after the other
        decoder = _decoder(compression)
        while not decoder.eof:
            if decoder.needs_input and not (data := read(data, 1)):
                raise ManifestError(f"{what} is truncated")
            output = _decode(decoder, data, CHUNK_BYTES, what)
            data = b""
            if output:
                yield output
        data = read(decoder.unused_data, MAGIC_BYTES)
    while data:
        if data.strip(b"\0"):
            raise ManifestError(f"{what} is followed by other data")
        data = read(b"", 1)
