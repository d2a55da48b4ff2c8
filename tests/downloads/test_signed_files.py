"""Files with a signature beside them: it is verified before the file has its name."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perfkit import (
    BatchError,
    Config,
    ConfigError,
    Download,
    HTTPStatusError,
    IntegrityError,
    Request,
    SignatureError,
    Toolkit,
)
from perfkit.minisign.signatures import Signature
from perfkit.testing import FakeOrigin
from tests.downloads.test_existing_files import BODY
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.signing import NEW, OLD

URL = "https://example.org/f.iso?token=1"
SIGNATURE = "https://example.org/f.iso.minisig?token=1"
MIRROR = "https://mirror.example/g.iso"


@pytest.fixture
def web() -> Iterator[FakeOrigin]:
    """A file that is signed by NEW."""
    with FakeOrigin() as web:
        web.add(URL, BODY)
        web.add(SIGNATURE, NEW.sign(BODY, "it").decode())
        yield web


@pytest.fixture
def get(web: FakeOrigin, out: Path) -> Iterator[Callable[..., Download]]:
    """Download the file to `f`, if it is signed by NEW."""
    with Toolkit(Config(retries=1, backoff_base_s=0, segments=1), transport=web) as kit:  # tests count its requests
        yield lambda **options: kit.download(URL, out / "f", **{"public_keys": [NEW.public], **options})


def test_a_signed_file(get: Callable[..., Download], out: Path, web: FakeOrigin) -> None:
    """One request more; a file that is current is verified too."""
    assert get().requests == 2
    assert (out / "f").read_bytes() == BODY
    again = get(public_keys=[str(OLD.public), str(NEW.public)])
    assert (again.unchanged, again.requests) == (True, 2)
    for mirrors in ([], [MIRROR]):
        with pytest.raises(SignatureError, match=OLD.public.name):
            get(public_keys=[OLD.public], mirrors=mirrors)
    assert (out / "f").read_bytes() == BODY


SUMS = "https://example.org/SHA256SUMS"


def test_a_signed_file_of_checksums(get: Callable[..., Download], web: FakeOrigin, out: Path) -> None:
    """It takes the place of a signature of the file, and of one that was read for somebody who trusts anybody."""
    web.add(SUMS, text := f"{hashlib.sha256(BODY).hexdigest()}  f.iso\n")
    with pytest.raises(SignatureError, match=r"it is not signed: .*SHA256SUMS\.minisig"):
        get(checksum=SUMS)
    web.add(f"{SUMS}.minisig", OLD.sign(text.encode(), "sums").decode())
    with pytest.raises(SignatureError, match=OLD.public.name):
        get(checksum=SUMS)
    unsigned, signed = (
        Request(URL, name, checksum=SUMS, public_keys=keys) for name, keys in (("anybody", ()), ("f", (NEW.public,)))
    )
    with Toolkit(Config(workers=1), transport=web) as kit, pytest.raises(BatchError) as raised:
        kit.download_many([unsigned, signed], out)
    assert [type(result.error) for result in raised.value.results] == [type(None), SignatureError]
    (out / "anybody").unlink()
    web.add(f"{SUMS}.minisig", NEW.sign(text.encode(), "sums").decode())
    web.remove(SIGNATURE)
    assert get(checksum=SUMS).requests == 3
    assert get(checksum=SUMS).unchanged
    web.add(URL, BODY[::-1])
    with pytest.raises(IntegrityError):
        get(checksum=SUMS, resume=False)
    assert (out / "f").read_bytes() == BODY


def legacy() -> bytes:
    """As `minisign -l` signs."""
    from perfkit.minisign.signatures import load_ed25519

    private = load_ed25519().Ed25519PrivateKey.from_private_bytes(NEW.seed)
    signature = private.sign(BODY)
    return Signature(False, NEW.public.id, signature, b"x", private.sign(signature + b"x")).encode()


def test_the_legacy_form(get: Callable[..., Download], web: FakeOrigin) -> None:
    web.add(SIGNATURE, legacy().decode())
    assert get().bytes == len(BODY)


@pytest.mark.parametrize(("signature", "why"), [
    (None, "it is not signed: .*minisig.*404"),
    (b"<html>", "four lines"),
    (OLD.sign(BODY, "x"), f"signed by the key {OLD.public.name}"),
    (NEW.sign(BODY[:-1], "x"), "it is not what the key"),
    (NEW.sign(BODY, "x" * 20_000), "four lines"),
])  # fmt: skip
def test_what_is_not_signed(
    get: Callable[..., Download], web: FakeOrigin, out: Path, signature: bytes | None, why: str
) -> None:
    """No file appears, and a file that was there stays."""
    (out / "f").write_bytes(b"earlier")
    if signature is None:
        web.remove(SIGNATURE)
    else:
        web.add(SIGNATURE, signature.decode())
    with pytest.raises(SignatureError, match=why):
        get()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {"f": b"earlier"}


def test_the_next_mirror(get: Callable[..., Download], web: FakeOrigin, out: Path) -> None:
    """Where one has other bytes, or no signature, the next one is asked for both."""
    web.add(MIRROR, BODY)
    web.add(f"{MIRROR}.minisig", NEW.sign(BODY, "it").decode())
    web.add(URL, b"other bytes")
    web.add(SIGNATURE, NEW.sign(b"yet others", "it").decode())
    assert get(mirrors=[MIRROR]).bytes == len(BODY)
    (out / "f").unlink()
    web.remove(SIGNATURE)
    assert get(mirrors=[MIRROR]).bytes == len(BODY)


def test_a_busy_server(get: Callable[..., Download], web: FakeOrigin) -> None:
    """It is asked again; and that it stays busy does not say that there is no signature."""
    web.fail(SIGNATURE, status=503)
    assert get().retries == 1
    web.fail(SIGNATURE, status=503, times=5)
    with pytest.raises(HTTPStatusError, match="503"):
        get()


def test_secrets_go_where_those_of_the_file_go(misbehaving: Callable[..., MisbehavingServer], out: Path) -> None:
    """To the origin of the file for its signature, and to no mirror."""
    seen: list[tuple[str, Any]] = []

    def handler(x: Exchange) -> None:
        seen.append((x.asked.path, x.asked.headers.get("x-token")))
        x.respond("404 Not Found")

    first, second = misbehaving(handler), misbehaving(handler)
    with Toolkit(Config(retries=0)) as kit, pytest.raises(SignatureError):
        kit.download(
            f"{first.url}/f", out / "f", headers={"X-Token": "s"}, mirrors=[f"{second.url}/m"], public_keys=[NEW.public]
        )
    assert seen == [("/f.minisig", "s"), ("/m.minisig", None)]


def test_each_file_of_a_batch_is_verified(web: FakeOrigin, out: Path) -> None:
    """In a batch, each file has a result of its own."""
    web.add(MIRROR, BODY)
    requests = [Request(URL, "a", public_keys=(str(NEW.public),)), Request(MIRROR, "b", public_keys=(NEW.public,))]
    with Toolkit(transport=web) as kit, pytest.raises(BatchError) as failed:
        kit.download_many(requests, out)
    assert [type(each.error) for each in failed.value.results] == [type(None), SignatureError]
    assert [path.name for path in out.iterdir()] == ["a"]


def test_arguments_that_do_not_fit() -> None:
    """A part has no signature; what is no key is refused at once."""
    with pytest.raises(ConfigError, match="byte_range"):
        Request(URL, public_keys=(NEW.public,), byte_range=(0, 10))
    with pytest.raises(ConfigError, match="public key"):
        Request(URL, public_keys=("nothing",))
    with pytest.raises(ConfigError, match="must be a list of keys"):
        Request(URL, public_keys=str(NEW.public))  # type: ignore[arg-type]
    with Toolkit() as kit, pytest.raises(ConfigError, match="together with a Request"):
        kit.download(Request(URL), "f", public_keys=[NEW.public])


def test_without_cryptography(get: Callable[..., Download], monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(ConfigError, match=r"perfkit\[sign\]"):
        get()
    assert list(out.iterdir()) == []
