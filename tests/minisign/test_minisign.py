"""Keys and signatures: what minisign writes is read here, and what is written here minisign reads."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit import ConfigError
from perfkit.minisign import signatures
from perfkit.minisign.public_keys import PublicKey, decode, encode, read_public_keys
from perfkit.minisign.secret_keys import SecretKey
from perfkit.minisign.signatures import BadSignatureError, Signature, verify
from tests.support.signing import NEW, OLD
from tests.support.tools import need

CONTENT = b"content\n" * 1000

# Made by minisign 0.11: `minisign -G -W`, then `minisign -S` and `minisign -S -l` of the file `hello\n`.
KEY = "RWTNtWpfWa3380iL2bGwoO517ap3VjoUpDzQ+cx8Bau72QU1kfIEQwzy"
HASHED = b"""\
untrusted comment: signature from minisign secret key
RUTNtWpfWa3388YjHu8nsFGHQGRV3QbAJnyRxBlHhbB9LigMQfkqxHOocJxUPAErrfcNXjF/7qBsCu9VfUHj50TCJr88HBjxVg4=
trusted comment: timestamp:1795899782\tfile:f\thashed
+eyoJnB19tFXQcJl+kdrD9JXYoamAAXmqYTrXjqhPYeN+L8MPSecDhRkuUmUkoJtQ3Y5XgMYr/WvQfP5+897Cg==
"""


def minisign(*arguments: str | Path, password: str = "") -> str:
    need("minisign")
    ended = subprocess.run(
        ["minisign", *arguments], input=password, capture_output=True, text=True, timeout=100, check=True
    )
    return ended.stdout


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    """A file, its signature, and the key pair that made it, all written here."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    (tmp_path / "key").write_bytes(NEW.encode())
    (tmp_path / "key.pub").write_bytes(NEW.public.encode())
    (tmp_path / "file.minisig").write_bytes(NEW.sign(CONTENT, "about it"))
    return path


def test_minisign_verifies_what_is_signed_here(signed: Path) -> None:
    """With the file of the public key, and with its line; and it shows the trusted comment."""
    for key in (("-p", signed.with_name("key.pub")), ("-P", str(NEW.public))):
        assert "Trusted comment: about it" in minisign("-V", *key, "-m", signed)


@pytest.mark.parametrize("form", [(), ("-l",)])
def test_what_minisign_signs_is_verified_here(signed: Path, form: tuple[str, ...]) -> None:
    """With a key that was made here, in the form that it writes now and in the legacy one."""
    minisign("-S", *form, "-s", signed.with_name("key"), "-m", signed)
    signature = Signature.parse(signed.with_name("file.minisig").read_bytes())
    assert signature.hashed is not bool(form)
    assert verify(io.BytesIO(CONTENT), signature, [OLD.public, NEW.public]) == NEW.public


def test_keys_of_minisign(tmp_path: Path) -> None:
    """A pair that it made, without a password."""
    minisign("-G", "-W", "-p", tmp_path / "m.pub", "-s", tmp_path / "m.key")
    key = SecretKey.read(tmp_path / "m.key")
    assert read_public_keys([tmp_path / "m.pub", str(key.public)]) == (key.public,)
    shown = (tmp_path / "m.pub").read_text().split()[5]  # without leading zeros, by some versions
    assert shown.zfill(16) == key.public.name


def test_a_known_signature() -> None:
    """One that minisign made elsewhere, so that this is tested where it is not installed."""
    (key,) = read_public_keys([KEY])
    assert str(key) == KEY
    signature = Signature.parse(HASHED)
    assert verify(io.BytesIO(b"hello\n"), signature, [key]) == key
    assert signature.comment == b"timestamp:1795899782\tfile:f\thashed"
    with pytest.raises(BadSignatureError, match="not what the key F3F7AD595F6AB5CD signed"):
        verify(io.BytesIO(b"hello"), signature, [key])


def encrypted(key: SecretKey, password: str) -> bytes:
    """A secret key's file as minisign encrypts it, but with the least work that libsodium allows."""
    data = decode(key.encode().split(b"\n")[1])
    salt = bytes(range(32))
    mask = hashlib.scrypt(password.encode(), salt=salt, n=1024, r=8, p=1, dklen=104)
    limits = (32768).to_bytes(8, "little") + (16 << 20).to_bytes(8, "little")
    hidden = bytes(a ^ b for a, b in zip(data[54:], mask, strict=True))
    return b"untrusted comment: x\n" + encode(b"EdScB2" + salt + limits + hidden) + b"\n"


def test_an_encrypted_key(signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its password comes from the environment; minisign reads the same file."""
    path = signed.with_name("key")
    path.write_bytes(encrypted(NEW, "correct horse"))
    with pytest.raises(ConfigError, match=r"is encrypted.*PERFKIT_SIGN_PASSWORD"):
        SecretKey.read(path)
    monkeypatch.setenv("PERFKIT_SIGN_PASSWORD", "correct horse")
    assert SecretKey.read(path) == NEW
    monkeypatch.setenv("PERFKIT_SIGN_PASSWORD", "wrong")
    with pytest.raises(ConfigError, match=r"password .* is wrong"):
        SecretKey.read(path)
    minisign("-S", "-s", path, "-m", signed, password="correct horse\n")
    assert verify(io.BytesIO(CONTENT), Signature.parse(signed.with_name("file.minisig").read_bytes()), [NEW.public])


def damaged(change: Callable[[Signature], Signature]) -> bytes:
    return change(Signature.parse(NEW.sign(CONTENT, "about it"))).encode()


@pytest.mark.parametrize(("data", "why"), [
    (b"", "four lines"),
    (b"\n\n\n", "two comments"),
    (NEW.sign(CONTENT, "x").replace(b"trusted", b"tristed"), "two comments"),
    (NEW.sign(CONTENT, "x").replace(b"\nRU", b"\nXX"), "unknown kind"),
    (NEW.sign(CONTENT, "x").replace(b"=\n", b"\n"), "unknown kind"),
    (NEW.sign(CONTENT, "x" * (16 << 10)), "four lines"),
    (NEW.sign(CONTENT + b"!", "x"), "not what the key"),
    (OLD.sign(CONTENT, "x"), f"signed by the key {OLD.public.name}, not by {NEW.public.name}"),
    (damaged(lambda found: found._replace(comment=b"another")), "trusted comment .* was changed"),
    (damaged(lambda found: found._replace(comment_signature=bytes(64))), "trusted comment .* was changed"),
    (damaged(lambda found: found._replace(hashed=False)), "not what the key"),
    (damaged(lambda found: found._replace(key_id=OLD.public.id)), "signed by the key"),
])  # fmt: skip
def test_what_is_not_a_signature_of_it(data: bytes, why: str) -> None:
    """The reason is said."""
    with pytest.raises(BadSignatureError, match=why):
        verify(io.BytesIO(CONTENT), Signature.parse(data), [NEW.public])


def test_a_key_that_is_no_point_of_the_curve() -> None:
    """It verifies nothing."""
    key = PublicKey(NEW.public.id, b"\xff" * 32)
    with pytest.raises(BadSignatureError):
        verify(io.BytesIO(CONTENT), Signature.parse(NEW.sign(CONTENT, "x")), [key])


def test_a_legacy_signature_of_a_large_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would need the file in memory; the error says how to sign it instead."""
    monkeypatch.setattr(signatures, "_MAX_UNHASHED_BYTES", 100)
    data = damaged(lambda found: found._replace(hashed=False))
    with pytest.raises(BadSignatureError, match="minisign -SH"):
        verify(io.BytesIO(CONTENT), Signature.parse(data), [NEW.public])


def test_the_legacy_form_for_64_bytes(signed: Path) -> None:
    """It is refused, even where it is right: the current form signs exactly as many."""
    signed.write_bytes(bytes(64))
    minisign("-S", "-l", "-s", signed.with_name("key"), "-m", signed)
    signature = Signature.parse(signed.with_name("file.minisig").read_bytes())
    with pytest.raises(
        BadSignatureError, match=r"not accepted for a file of 64 bytes; sign it again with minisign -SH"
    ):
        verify(io.BytesIO(bytes(64)), signature, [NEW.public])


@pytest.mark.parametrize("given", ["RW", "nothing-there", KEY[:-1], "RW" + "!" * 54, 7])
def test_what_is_no_public_key(given: object) -> None:
    with pytest.raises(ConfigError, match="public key"):
        read_public_keys([given])  # type: ignore[list-item]


def test_one_key_is_not_a_list() -> None:
    with pytest.raises(ConfigError, match="must be a list of keys"):
        read_public_keys(KEY)


def test_a_secret_key_by_mistake(tmp_path: Path) -> None:
    """In the place of a public one it is not shown; and the other way round it is refused."""
    (tmp_path / "key").write_bytes(NEW.encode())
    (tmp_path / "key.pub").write_bytes(NEW.public.encode())
    for given in (tmp_path / "key", NEW.encode().decode().split("\n")[1]):
        with pytest.raises(ConfigError) as refused:
            read_public_keys([given])
        assert encode(NEW.seed).decode()[:20] not in str(refused.value)
        assert len(str(refused.value)) < 300
    with pytest.raises(ConfigError, match="not a secret key"):
        SecretKey.read(tmp_path / "key.pub")
    assert NEW.seed.hex() not in repr(NEW)
    assert repr(NEW.seed) not in repr(NEW)


def test_without_cryptography(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(ConfigError, match=r"pip install 'perfkit\[sign\]'"):
        SecretKey.generate()
