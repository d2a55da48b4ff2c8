"""Secret keys, as minisign writes them, with a password or without one."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from perfkit.errors import ConfigError
from perfkit.minisign.public_keys import KEY_KIND, UNTRUSTED, PublicKey, decode, encode, read_key_file
from perfkit.minisign.signatures import Signature, load_ed25519

Path = str | os.PathLike[str]

_PASSWORD = "PERFKIT_SIGN_PASSWORD"
_SCRYPT, _NO_KDF, _BLAKE2B = b"Sc", b"\0\0", b"B2"
_KEY_BYTES = 104  # what a password encrypts: id, seed, public key, checksum


@dataclass(frozen=True, slots=True)
class SecretKey:
    """A secret key."""

    public: PublicKey  # the public key that belongs to it
    seed: bytes = field(repr=False)  # 32 secret bytes

    @classmethod
    def generate(cls) -> SecretKey:
        """A new key.

        Raises:
            ConfigError: the package cryptography is missing.
        """
        seed = os.urandom(32)
        return cls(PublicKey(os.urandom(8), _public_bytes(seed)), seed)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> SecretKey:
        """Read a secret key of `perfkit keygen` or `minisign -G`; the password of an encrypted one is taken from the
        environment variable PERFKIT_SIGN_PASSWORD.

        Raises:
            ConfigError: it can't be read, or the password is missing or wrong.
        """
        shown = os.fspath(path)
        try:
            data = decode(read_key_file(shown).strip().rpartition("\n")[2])
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            data = b""
        if len(data) != 54 + _KEY_BYTES or data[:2] != KEY_KIND or data[2:4] not in (_SCRYPT, _NO_KDF):
            raise ConfigError(f"{shown} is not a secret key of minisign; perfkit keygen makes one")
        key = data[54:]
        if data[2:4] == _SCRYPT:
            if (password := os.environ.get(_PASSWORD)) is None:
                raise ConfigError(f"{shown} is encrypted: put its password into the variable {_PASSWORD}")
            mask = _stretch(password, data[6:38], *(int.from_bytes(data[at : at + 8], "little") for at in (38, 46)))
            key = bytes(a ^ b for a, b in zip(key, mask, strict=True))
        found = cls(PublicKey(key[:8], key[40:72]), key[8:40])
        if _public_bytes(found.seed) != found.public.key:
            wrong = f"the password in {_PASSWORD} is wrong, or " if data[2:4] == _SCRYPT else ""
            raise ConfigError(f"{shown}: {wrong}the secret key is damaged")
        return found

    def encode(self) -> bytes:
        """The file that minisign reads, not encrypted."""
        key = self.public.id + self.seed + self.public.key
        checksum = hashlib.blake2b(KEY_KIND + key, digest_size=32).digest()
        data = encode(KEY_KIND + _NO_KDF + _BLAKE2B + bytes(48) + key + checksum)
        return b"%sminisign secret key %s, not encrypted\n%s\n" % (UNTRUSTED, self.public.name.encode(), data)

    def sign(self, content: bytes, comment: str) -> bytes:
        """The `.minisig` file of this content, and of a comment of one line."""
        private = load_ed25519().Ed25519PrivateKey.from_private_bytes(self.seed)
        signature, trusted = private.sign(hashlib.blake2b(content).digest()), comment.encode()
        return Signature(True, self.public.id, signature, trusted, private.sign(signature + trusted)).encode()


def read_secret_keys(given: Path | Iterable[Path] | None, *published: Path) -> tuple[SecretKey, ...]:
    """The keys in these files.

    Args:
        published: directories that are published, so that no secret key may be in them.

    Raises:
        ConfigError: one is, or can't be read.
    """
    paths = () if given is None else [given] if isinstance(given, str | os.PathLike) else [*given]
    for path, directory in itertools.product(paths, published):
        if os.path.realpath(path).startswith(os.path.join(os.path.realpath(directory), "")):
            raise ConfigError(f"the secret key {path} lies in {directory}, which is published; move it elsewhere")
    return tuple(map(SecretKey.read, paths))


def _stretch(password: str, salt: bytes, operations: int, memory: int) -> bytes:
    """Stretch a password like libsodium's crypto_pwhash_scryptsalsa208sha256, which derives the parameters of scrypt
    (RFC 7914) from these limits.
    """
    operations, block_size = max(operations, 32768), 8
    memory_bound = operations >= memory // 32
    most = memory // (block_size * 128) if memory_bound else operations // (block_size * 4)
    cost_bits = max(1, (most // 2).bit_length())
    parallel = min(operations // 4 >> cost_bits, 0x3FFFFFFF) // block_size if memory_bound else 1
    try:
        return hashlib.scrypt(
            password.encode(), salt=salt, n=1 << cost_bits, r=block_size, p=parallel, maxmem=2**31 - 1, dklen=_KEY_BYTES
        )
    except (ValueError, MemoryError, OverflowError) as error:
        raise ConfigError(f"the password of the secret key can't be checked here: {error}") from error


def _public_bytes(seed: bytes) -> bytes:
    private = load_ed25519().Ed25519PrivateKey.from_private_bytes(seed)
    public: bytes = private.public_key().public_bytes_raw()
    return public
