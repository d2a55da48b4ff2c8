"""The only door to zstd: frames of known size, decoded with bounded memory, counted as they come.

What a frame says of itself is never believed: the caller gives the size, and anything else is a `ManifestError`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from perfkit.errors import ManifestError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["MAX_WINDOW_LOG", "dictionary", "expand", "expand_stream", "train", "zstd"]

MAX_WINDOW_LOG = 23  # 8 MiB: no frame of a release needs more, and no decoder holds more
_CHUNK_BYTES = 256 << 10
_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG}


def expand(data: bytes, size: int, *, prefix: bytes = b"") -> bytes:
    """The `size` bytes that `data`, exactly one frame, stands for.

    Args:
        prefix: raw content that the frame was made against.

    Raises:
        ManifestError: it is no such frame, or its content has another size.
    """
    return b"".join(expand_stream((data,), size, prefix=prefix))


def expand_stream(
    data: Iterable[bytes], size: int, *, prefix: bytes = b"", shared: zstd.ZstdDict | None = None
) -> Iterator[bytes]:
    """The same from pieces of a frame, in pieces of at most 256 KiB; never yields more than `size` bytes.

    Args:
        shared: a dictionary from `dictionary`, instead of a prefix.

    Raises:
        ManifestError: as `expand`; what was yielded before is then worth nothing.
    """
    chosen = zstd.ZstdDict(prefix, is_raw=True).as_prefix if prefix else shared
    decoder = zstd.ZstdDecompressor(zstd_dict=chosen, options=_OPTIONS)
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


def dictionary(content: bytes) -> zstd.ZstdDict:
    """A dictionary in zstd's own format (RFC 8878 section 5), for `expand_stream`.

    Raises:
        ManifestError: it is none.
    """
    try:
        return zstd.ZstdDict(content)
    except ValueError as error:
        raise ManifestError(f"a dictionary is damaged: {error}") from error


def train(samples: list[bytes], size: int) -> bytes | None:
    """A dictionary of at most `size` bytes for contents like these; None where there is too little to learn from."""
    try:
        return zstd.train_dict(samples, size).dict_content
    except (ValueError, zstd.ZstdError):
        return None
