"""The only door to zstd: frames of known size, decoded with bounded memory, counted as they come.

What a frame says of itself is never believed: the caller gives the size, and anything else is a `ManifestError`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from io import BytesIO

from perfkit.errors import ManifestError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = [
    "MAX_WINDOW_LOG",
    "Base",
    "compress",
    "compress_many",
    "decompress",
    "decompress_stream",
    "dictionary",
    "prefix_dictionary",
    "train",
    "zstd",
]

MAX_WINDOW_LOG = 23  # 8 MiB: no frame of a release needs more, and no decoder holds more
_CHUNK_BYTES = 128 << 10
_LEAST_PREFIX_BYTES = 8  # libzstd takes no shorter dictionary
Base = zstd.ZstdDict | tuple[zstd.ZstdDict, int] | None

_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG}


def decompress(data: bytes, size: int, *, prefix: bytes | memoryview = b"") -> bytes:
    """The `size` bytes that `data`, exactly one frame, stands for.

    Args:
        prefix: raw content that the frame was made against; below 8 bytes it counts as none.

    Raises:
        ManifestError: it is no such frame, or its content has another size.
    """
    whole = BytesIO()
    whole.writelines(decompress_stream((data,), size, prefix_dictionary(prefix)))
    return whole.getvalue()


def decompress_stream(data: Iterable[bytes], size: int, base: Base = None) -> Iterator[bytes]:
    """The same from pieces of a frame, in pieces of at most 128 KiB; never yields more than `size` bytes.

    Args:
        base: what the frame was made with: from `prefix_dictionary` or `dictionary`.

    Raises:
        ManifestError: as `decompress`; what was yielded before is then worth nothing.
    """
    decoder = zstd.ZstdDecompressor(zstd_dict=base, options=_OPTIONS)
    left = size
    try:
        for piece in data:
            if decoder.eof:
                raise ManifestError("a compressed frame is followed by other bytes")
            while True:
                chunk = decoder.decompress(piece, max_length=min(_CHUNK_BYTES, left + 1))
                piece = b""
                left -= len(chunk)
                if left < 0:
                    raise ManifestError(f"a compressed frame holds more than the {size} bytes promised")
                if chunk:
                    yield chunk
                if decoder.eof or decoder.needs_input:
                    break
            if decoder.unused_data:
                raise ManifestError("a compressed frame is followed by other bytes")
    except zstd.ZstdError as error:
        raise ManifestError(f"a compressed frame is damaged: {error}") from error
    if not decoder.eof:
        raise ManifestError("a compressed frame is cut short")
    if left:
        raise ManifestError(f"a compressed frame holds {size - left} bytes; {size} were promised")


def prefix_dictionary(prefix: bytes | bytearray | memoryview) -> Base:
    """A copy of raw content, to decode a frame that was made against it; it counts for one frame."""
    return zstd.ZstdDict(prefix, is_raw=True).as_prefix if len(prefix) >= _LEAST_PREFIX_BYTES else None


def dictionary(content: bytes) -> zstd.ZstdDict:
    """A dictionary in zstd's own format (RFC 8878 section 5), for `decompress_stream`.

    Raises:
        ManifestError: it is none.
    """
    try:
        return zstd.ZstdDict(content)
    except ValueError as error:
        raise ManifestError(f"a dictionary is damaged: {error}") from error


def compress(data: bytes, *, level: int = 19, prefix: bytes = b"") -> bytes:
    """One frame that tells its size, whose window is no more than 8 MiB plus what `prefix` needs."""
    options: dict[int, int] = {zstd.CompressionParameter.compression_level: level}
    if len(data) > 1 << MAX_WINDOW_LOG:
        options[zstd.CompressionParameter.window_log] = MAX_WINDOW_LOG
    return zstd.compress(data, options=options, zstd_dict=prefix_dictionary(prefix))


def compress_many(contents: Iterable[bytes], *, level: int, shared: zstd.ZstdDict | None) -> list[bytes]:
    """A frame for each, made with the same dictionary."""
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: level,
        zstd.CompressionParameter.dict_id_flag: 0,
    }
    compressor = zstd.ZstdCompressor(options=options, zstd_dict=shared.as_digested_dict if shared else None)
    return [compressor.compress(content, zstd.ZstdCompressor.FLUSH_FRAME) for content in contents]


def train(samples: list[bytes], size: int) -> bytes | None:
    """A dictionary of at most `size` bytes for contents like these; None where there is too little to learn from."""
    try:
        return zstd.train_dict(samples, size).dict_content
    except (ValueError, zstd.ZstdError):
        return None
