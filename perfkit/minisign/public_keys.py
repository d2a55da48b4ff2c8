"""Public keys, as minisign writes them. A module of its own, since it is all that a sync with nothing to do needs."""

from __future__ import annotations

import binascii
import os
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

from perfkit.errors import ConfigError
from perfkit.redact import masked

KEY_KIND = b"Ed"  # how the data of every key begins
UNTRUSTED = b"untrusted comment: "  # how every file begins
MAX_FILE_BYTES = 16 << 10  # of a key or a signature
decode = partial(binascii.a2b_base64, strict_mode=True)  # raises ValueError for what is not base64
encode = partial(binascii.b2a_base64, newline=False)
_SHOWN = 60  # characters of what may be a secret key, given by mistake: the first ones are not secret


class PublicKey(NamedTuple):
    """A public key."""

    id: bytes  # 8 bytes that identify the key; signatures contain it
    key: bytes  # the 32-byte Ed25519 key

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Read a key: the base64 line, with or without the comment line before it.

        Raises:
            ConfigError: it is not a minisign public key.
        """
        try:
            data = decode(text.strip().rpartition("\n")[2])
        except ValueError:
            data = b""
        if len(data) != 42 or not data.startswith(KEY_KIND):
            raise ConfigError("not a minisign public key (a line of 56 characters that begins with RW)")
        return cls(data[2:10], data[10:])

    @property
    def name(self) -> str:
        """Its id, as minisign shows it."""
        return key_name(self.id)

    def __str__(self) -> str:
        return encode(KEY_KIND + self.id + self.key).decode()

    def encode(self) -> bytes:
        """The file that minisign reads."""
        return UNTRUSTED + f"minisign public key {self.name}\n{self}\n".encode()


AnyKey = PublicKey | str | os.PathLike[str]  # or its base64 line, or the path of its file


def read_public_keys(given: Iterable[AnyKey]) -> tuple[PublicKey, ...]:
    """Public keys, each given as its base64 line or by the path of its file; without duplicates.

    Raises:
        ConfigError: one of them is neither.
    """
    if isinstance(given, str | bytes | os.PathLike) or not isinstance(given, Iterable):
        raise ConfigError("public keys must be a list of keys, or of paths of files with a key")
    return tuple(dict.fromkeys(map(_read_public_key, given)))


def _read_public_key(given: AnyKey) -> PublicKey:
    if isinstance(given, PublicKey):
        return given
    if not isinstance(given, str | os.PathLike):
        raise ConfigError(f"a public key must be text or a path; got a {type(given).__name__}")
    text = os.fspath(given)
    try:
        return PublicKey.parse(text if is_key(text) else read_key_file(text))
    except ConfigError as error:
        raise ConfigError(f"public key {masked(text)[:_SHOWN]!r}: {error}") from error


def is_key(text: str) -> bool:
    """Whether it is the base64 line of a key, and not the path of its file."""
    return len(text) == 56 and text.startswith("RW")


def read_key_file(path: str) -> str:
    """The text of a file with a key.

    Raises:
        ConfigError: it can't be read.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"can't read a key from the file {masked(path)[:_SHOWN]!r}: {reason}") from error


def key_name(key_id: bytes) -> str:
    """The id of a key, as minisign shows it; older versions leave out leading zeros."""
    return f"{int.from_bytes(key_id, 'little'):016X}"
