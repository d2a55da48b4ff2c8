"""Read and write the files of a release, as docs/format.md specifies them."""

import re

from perfkit.errors import ConfigError

__all__ = [
    "MAX_AHEAD_MS",
    "POINTER_NAME",
    "channel_name",
    "is_channel",
    "most_compressed",
    "most_content",
    "signature_path",
]

POINTER_NAME = "perfkit.json"  # of the pointer; a site is recognised by it
MAX_AHEAD_MS = 86_400_000  # how far the clock of a publisher, from which serials are, may be ahead of a client's


def is_channel(name: str) -> bool:
    """Whether a channel can be called that."""
    return re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", name) is not None


def channel_name(channel: str) -> str:
    """The name of the pointer to the release of a channel, beside the site's own.

    Raises:
        ConfigError: no channel can be called that.
    """
    if not is_channel(channel):
        raise ConfigError(f"{channel!r} is not the name of a channel: up to 64 letters, digits, '.', '_' and '-'")
    return f"perfkit-{channel}.json"


def signature_path(pointer_sha256: str, key_name: str) -> str:
    """Where the signature of a pointer by a key is, relative to the pointer.

    It is named after the pointer's bytes, so that a client that has one of the two has the right other one, whatever a
    cache or a mirror keeps of the site.
    """
    return f"objects/{pointer_sha256}-{key_name}.minisig"


def most_compressed(size: int) -> int:
    """The most bytes that `size` bytes may have as a zstd frame: more than ZSTD_compressBound in zstd.h."""
    return size + size // 128 + 1024


def most_content(compressed: int) -> int:
    """The most bytes that may be decompressed into memory from so many."""
    return (8 << 20) + 200 * compressed
