"""Decompress streams chunk by chunk: gzip, bzip2, xz, zstd or none, detected by the first bytes.

Memory is bounded whatever a stream claims: a chunk of input, a chunk of output, and the window of the format.
"""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from typing import Protocol

from perfkit.archives.members import CHUNK_BYTES, Limits, Readable
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
_MAGIC_BYTES = 10
_OUTPUT_BYTES = 128 << 10


def detect_compression(first: bytes) -> str | None:
    """The compression of a stream with these first bytes (at least 10, if it has as many); None if uncompressed."""
    return next((name for name, magic in _MAGIC.items() if magic.match(first)), None)


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


def zstd_decoder(limits: Limits) -> Decoder:
    """A decoder of one zstd frame."""
    window_log = min(max(limits.window_bytes.bit_length() - 1, 10), 31)
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: window_log})


def _decoder(name: str, limits: Limits) -> Decoder:
    if name == "gzip":
        return InflateDecoder(31)
    if name == "bzip2":
        import bz2

        return bz2.BZ2Decompressor()
    if name == "xz":
        import lzma

        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=limits.window_bytes)
    return zstd_decoder(limits)


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


class DecompressedStream:
    """Decompresses `source`, forwards only, and one layer only: an archive in an archive is a file."""

    def __init__(self, source: Readable, limits: Limits) -> None:
        self._source = source
        self._limits = limits
        self.packed = self.unpacked = 0  # bytes read from `source`, and bytes of output
        self._rest = b""  # read, but not yet decoded
        self._lookahead()
        self.compression = detect_compression(self._rest)  # `gzip`, `bzip2`, `xz` or `zstd`; None: uncompressed
        self._decoder = _decoder(self.compression, limits) if self.compression else None
        self._what = f"the {self.compression} stream"

    def read_chunk(self) -> bytes:
        """The next bytes, CHUNK_BYTES at most; empty at the end, after the whole stream has been checked.

        Raises:
            ManifestError: damaged, truncated, a decompression bomb, or followed by other data.
        """
        if self._decoder is None:
            output, self._rest = self._rest or self._read(), b""
            self.unpacked += len(output)
            self._limits.check_ratio(self.unpacked, self.unpacked)
            return output
        while True:
            if self._decoder.eof and not self._next_stream():
                return b""
            if self._decoder.needs_input and not self._rest:
                self._rest = self._read()
                if not self._rest:
                    raise ManifestError(f"{self._what} is truncated")
            data, self._rest = self._rest, b""
            output = _decode(self._decoder, data, CHUNK_BYTES, self._what)
            if self._decoder.eof:
                self._rest = self._decoder.unused_data
            if output:
                self.unpacked += len(output)
                self._limits.check_ratio(self.unpacked, self.packed)
                return output

    def _next_stream(self) -> bool:
        """Continue with the next of several concatenated streams; returns False if this was the last."""
        assert self.compression is not None
        self._lookahead()
        if detect_compression(self._rest) == self.compression:
            self._decoder = _decoder(self.compression, self._limits)
            return True
        while self._rest:
            if self._rest.strip(b"\0"):
                raise ManifestError(f"{self._what} is followed by other data")
            self._rest = self._read()
        return False

    def _lookahead(self) -> None:
        while len(self._rest) < _MAGIC_BYTES and (more := self._read()):
            self._rest += more

    def _read(self) -> bytes:
        data = self._source.read(CHUNK_BYTES)
        self.packed += len(data)
        return data
