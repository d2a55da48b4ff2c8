"""Read and write the files of a release, as docs/format.md specifies them."""

import re
from typing import TypeGuard

from perfkit.errors import ConfigError

POINTER_NAME = "perfkit.json"  # the file name of the pointer; it identifies a site
MAX_AHEAD_MS = 86_400_000  # how far a publisher's clock, which serials come from, may be ahead of a client's


def is_version(value: object) -> TypeGuard[str]:
    """Whether a value can be the version of a release: one line of 1 to 200 printable characters."""
    return isinstance(value, str) and 1 <= len(value) <= 200 and value.isprintable()


def is_channel(name: str) -> bool:
    """Whether this is a valid name of a channel."""
    return re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", name) is not None


def channel_name(channel: str) -> str:
    """The file name of a channel's pointer, which is beside the site's own.

    Raises:
        ConfigError: the name of the channel is invalid.
    """
    if not is_channel(channel):
        raise ConfigError(f"{channel!r} is not the name of a channel: up to 64 letters, digits, '.', '_' and '-'")
    return f"perfkit-{channel}.json"


def signature_path(pointer_sha256: str, key_name: str) -> str:
    """Where the signature of a pointer by a key is, relative to the pointer.

    The path has the digest of the pointer, so that a client always gets the signature of the pointer that it has,
    whatever a cache or a mirror keeps of the site.
    """
    return f"objects/{pointer_sha256}-{key_name}.minisig"


def most_compressed(size: int) -> int:
    """The maximum size of a zstd frame with `size` bytes of content: more than ZSTD_compressBound in zstd.h."""
    return size + size // 128 + 1024


def most_content(compressed: int) -> int:
    """The maximum size of what may be decompressed into memory from this many bytes."""
    return (8 << 20) + 200 * compressed
