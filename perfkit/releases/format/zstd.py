"""The frames of releases: zstd of known size, decoded with bounded memory.

The size in a frame's header is never trusted: the caller gives the size, and any other is a `ManifestError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from types import MappingProxyType

from perfkit.archives.decompress import decode_frame
from perfkit.archives.decompress import zstd as zstd
from perfkit.errors import ManifestError

MAX_WINDOW_LOG = 23  # 8 MiB: the maximum for frames of a release
MAGIC = b"\x28\xb5\x2f\xfd"  # of a frame
_NOISE_SHARE = 0.99  # what it compresses to
_NOISE_LEVEL = 9  # finds short equal ranges too, at 20 MiB/s or more
_LEAST_PREFIX_BYTES = 8  # minimum dictionary of libzstd
Base = zstd.ZstdDict | tuple[zstd.ZstdDict, int] | None
_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG}


def decompress(data: bytes, size: int, *, prefix: bytes | memoryview = b"") -> bytes:
    """The `size` bytes of `data`, which is exactly one frame.

    Args:
        prefix: the raw content that the frame was compressed against; less than 8 bytes are ignored.

    Raises:
        ManifestError: it is not such a frame, or its content has another size.
    """
    whole = BytesIO()
    whole.writelines(decompress_stream((data,), size, prefix_dictionary(prefix)))
    return whole.getvalue()


def decompress_stream(data: Iterable[bytes], size: int, base: Base = None) -> Iterator[bytes]:
    """As `decompress`, from chunks of a frame, in chunks of at most 128 KiB; never yields more than `size` bytes.

    Args:
        base: the dictionary of the frame, from `prefix_dictionary` or `dictionary`.

    Raises:
        ManifestError: as `decompress`; discard what was yielded before.
    """
    decoder = zstd.ZstdDecompressor(zstd_dict=base, options=_OPTIONS)
    return decode_frame(decoder, data, size, "a compressed frame")


def stored_content(frame: bytes, size: int) -> bytes | None:
    """The `size` bytes of a frame that stores them in one block as they are; None: it is another frame.

    This takes a tenth of the time of a decoder. See RFC 8878 sections 3.1.1.1 (header) and 3.1.1.2 (blocks).
    """
    head = len(frame) - size - 3
    if not frame.startswith(MAGIC) or head < 6 or frame[head : head + 3] != (size << 3 | 1).to_bytes(3, "little"):
        return None  # the block is the last one (bit 0), of type raw (bits 1 and 2 are zero)
    flags = frame[4]
    single, checksum = flags >> 5 & 1, flags >> 2 & 1
    expected = 6 - single + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6]
    return frame[head + 3 :] if head == expected and not checksum else None


def prefix_dictionary(prefix: bytes | bytearray | memoryview) -> Base:
    """A dictionary from a copy of raw content, for one frame that is compressed against it."""
    return zstd.ZstdDict(prefix, is_raw=True).as_prefix if len(prefix) >= _LEAST_PREFIX_BYTES else None


def dictionary(content: bytes) -> zstd.ZstdDict:
    """A dictionary in zstd's own format (RFC 8878 section 5), for `decompress_stream`.

    Raises:
        ManifestError: it is damaged.
    """
    try:
        return zstd.ZstdDict(content)
    except ValueError as error:
        raise ManifestError(f"a dictionary is damaged: {error}") from error


def compress(
    data: bytes,
    *,
    level: int = 19,
    prefix: bytes = b"",
    window_log: int = MAX_WINDOW_LOG,
    parameters: Mapping[int, int] = MappingProxyType({}),
) -> bytes:
    """One frame with its size in the header, and a window of at most 2**window_log bytes plus `prefix`.

    Args:
        parameters: of the compressor, in place of those that the level stands for.
    """
    options: dict[int, int] = {zstd.CompressionParameter.compression_level: level, **parameters}
    if len(data) > 1 << window_log:
        options[zstd.CompressionParameter.window_log] = window_log
    return zstd.compress(data, options=options, zstd_dict=prefix_dictionary(prefix))


def is_noise(data: bytes, *, before: bytes = b"") -> bool:
    """Whether content is compressed or encrypted already, and shares next to nothing with what was there before."""
    most = _NOISE_SHARE * len(data)
    if len(compress(data, level=1)) <= most:  # nearly all other content, in a tenth of the time
        return False
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: _NOISE_LEVEL,
        zstd.CompressionParameter.window_log: max(10, (len(before) + len(data)).bit_length()),
        zstd.CompressionParameter.enable_long_distance_matching: 1,
    }
    return len(zstd.compress(data, options=options, zstd_dict=prefix_dictionary(before))) > most


def compress_many(contents: Sequence[bytes], *, level: int, shared: zstd.ZstdDict | None) -> list[bytes]:
    """A frame for each content, as `compress` makes it, with the same dictionary."""
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: level,
        zstd.CompressionParameter.dict_id_flag: 0,
    }
    if max(map(len, contents), default=0) > 1 << MAX_WINDOW_LOG:
        options[zstd.CompressionParameter.window_log] = MAX_WINDOW_LOG
    compressor = zstd.ZstdCompressor(options=options, zstd_dict=shared.as_digested_dict if shared else None)
    return [compressor.compress(content, zstd.ZstdCompressor.FLUSH_FRAME) for content in contents]


def train(samples: list[bytes], size: int) -> bytes | None:
    """A dictionary of at most `size` bytes for contents like these samples; None: they are too few or too small."""
    try:
        return zstd.train_dict(samples, size).dict_content
    except (ValueError, zstd.ZstdError):
        return None
