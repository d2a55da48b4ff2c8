"""Detached signatures: `minisign -V` verifies what is signed here, and `minisign -S` signs what is verified here.

Ed25519 (RFC 8032) comes from the package cryptography, which is loaded only when something is signed or verified.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from typing import IO, Any, NamedTuple

from perfkit.errors import ConfigError
from perfkit.minisign.public_keys import MAX_FILE_BYTES, UNTRUSTED, PublicKey, decode, encode, key_name

_MAX_UNHASHED_BYTES = 64 << 20  # of content that is signed itself, which has to be in memory
_READ_BYTES = 1 << 20
_HASHED, _UNHASHED = b"ED", b"Ed"  # a signature of the BLAKE2b-512 of the content, or (legacy) of the content itself
_TRUSTED = b"trusted comment: "


class BadSignatureError(Exception):
    """The signature is not valid; the message says why."""


class Signature(NamedTuple):
    """A signature, not yet verified."""

    hashed: bool  # whether it signs the BLAKE2b-512 of the content, as minisign does now, or the content itself
    key_id: bytes  # of the key that made it, according to the file
    signature: bytes  # of the content
    comment: bytes  # the trusted comment
    comment_signature: bytes  # of `signature` and `comment`

    @classmethod
    def parse(cls, data: bytes) -> Signature:
        """Read a `.minisig` file.

        Raises:
            BadSignatureError: it is not one.
        """
        lines = data[: MAX_FILE_BYTES + 1].split(b"\n")
        if len(data) > MAX_FILE_BYTES or len(lines) < 4:
            raise BadSignatureError("it is not a signature of minisign, which has four lines")
        untrusted, encoded, trusted, of_comment = (line.removesuffix(b"\r") for line in lines[:4])
        if not untrusted.startswith(UNTRUSTED) or not trusted.startswith(_TRUSTED):
            raise BadSignatureError("it is not a signature of minisign, which has two comments")
        try:
            signed, comment_signature = map(decode, (encoded, of_comment))
        except ValueError:
            signed = comment_signature = b""
        if len(signed) != 74 or len(comment_signature) != 64 or signed[:2] not in (_UNHASHED, _HASHED):
            raise BadSignatureError("it is a signature of an unknown kind")
        comment = trusted.removeprefix(_TRUSTED)
        return cls(signed[:2] == _HASHED, signed[2:10], signed[10:], comment, comment_signature)

    @property
    def key_name(self) -> str:
        """The id of its key, as minisign shows it."""
        return key_name(self.key_id)

    def encode(self) -> bytes:
        """The file that minisign reads."""
        signed = encode((_HASHED if self.hashed else _UNHASHED) + self.key_id + self.signature)
        return b"%ssignature from perfkit, key %s\n%s\n%s%s\n%s\n" % (
            UNTRUSTED, self.key_name.encode(), signed, _TRUSTED, self.comment, encode(self.comment_signature),
        )  # fmt: skip


def verify(
    content: IO[bytes],
    signature: Signature,
    keys: Collection[PublicKey],
    *,
    stopped: Callable[[], bool] = lambda: False,
) -> PublicKey:
    """Verify a signature of a file; returns the key that made it.

    Args:
        content: the file, open at its beginning.
        keys: the trusted keys.
        stopped: called now and then; once it returns true, reading stops, and the signature is not valid.

    Raises:
        BadSignatureError: it is not valid, or made by none of the keys.
        ConfigError: the package cryptography is missing.
        OSError: the file can't be read.
    """
    candidates = [key for key in keys if key.id == signature.key_id]
    if not candidates:
        wanted = " or ".join(key.name for key in keys)
        raise BadSignatureError(f"it is signed by the key {signature.key_name}, not by {wanted}")
    message = _hash(content, stopped) if signature.hashed else _read_all(content)
    for key in candidates:
        if _is_valid(key, signature.signature, message):
            if not _is_valid(key, signature.comment_signature, signature.signature + signature.comment):
                raise BadSignatureError(f"the trusted comment of its signature by {key.name} was changed")
            return key
    raise BadSignatureError(f"it is not what the key {signature.key_name} signed")


def _hash(content: IO[bytes], stopped: Callable[[], bool]) -> bytes:
    digest = hashlib.blake2b()
    while (data := content.read(_READ_BYTES)) and not stopped():
        digest.update(data)
    return digest.digest()


def _read_all(content: IO[bytes]) -> bytes:
    data = content.read(_MAX_UNHASHED_BYTES + 1)
    if len(data) > _MAX_UNHASHED_BYTES:
        reason = f"its signature is in the legacy form, which is for files of at most {_MAX_UNHASHED_BYTES >> 20} MiB"
        raise BadSignatureError(f"{reason}; sign it again with minisign -SH")
    if len(data) == hashlib.blake2b().digest_size:  # as long as what the current form signs
        reason = f"its signature is in the legacy form, which is not accepted for a file of {len(data)} bytes"
        raise BadSignatureError(f"{reason}; sign it again with minisign -SH")
    return data


def _is_valid(key: PublicKey, signature: bytes, message: bytes) -> bool:
    ed25519 = load_ed25519()
    from cryptography.exceptions import InvalidSignature

    try:
        ed25519.Ed25519PublicKey.from_public_bytes(key.key).verify(signature, message)
    except (InvalidSignature, ValueError):  # ValueError: the key is not a point of the curve
        return False
    return True


def load_ed25519() -> Any:
    """The module of cryptography that has Ed25519.

    Raises:
        ConfigError: cryptography is missing.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ConfigError("signatures need the package cryptography: pip install 'perfkit[sign]'") from error
    return ed25519
