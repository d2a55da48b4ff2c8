"""Signed releases: who has to sign what a tree installs, what a tree remembers of it, and what is refused."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perfkit import (
    Config,
    ConfigError,
    ExpiredError,
    HTTPStatusError,
    ManifestError,
    SignatureError,
    StaleSourceError,
    SyncReport,
    Toolkit,
    UpdateError,
)
from perfkit.minisign import signatures
from perfkit.minisign.public_keys import PublicKey
from perfkit.minisign.secret_keys import SecretKey
from perfkit.releases.format.pointer import Pointer
from perfkit.testing import FakeOrigin
from perfkit.updates.signers import Signers
from perfkit.updates.sources import release_source
from tests.support.signing import NEW, OLD, THIRD, change_pointer, public, publish_signed, refused, signature_file
from tests.support.trees import Tree, tree_of

pytestmark = pytest.mark.once

URL = "https://example.org/rules/"
ONE: Tree = {"a": b"one\n", "b": b"same\n"}
TWO: Tree = {"a": b"two\n", "b": b"same\n"}
Sync = Callable[..., SyncReport]


class Place(SimpleNamespace):
    """A site, and a tree that follows it."""

    site: Path
    tree: Path
    kit: Toolkit
    web: FakeOrigin

    def sync(self, *keys: SecretKey, url: str = URL, **options: Any) -> SyncReport:
        return self.kit.sync(url, self.tree, public_keys=public(*keys), **options)

    @property
    def remembered(self) -> dict[str, Any]:
        """What the tree remembers of those who sign."""
        found: dict[str, Any] = json.loads((self.tree / ".perfkit/trust").read_bytes())
        return found

    def refused(self, *keys: SecretKey, error: type[Exception] = SignatureError, **options: Any) -> str:
        """Why a sync fails, which leaves the tree and what it remembers as they were."""
        with refused(self.tree, error) as failure:
            self.sync(*keys, **options)
        return str(failure.value)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    """Version 1 is published, signed by OLD, and nothing is installed."""
    with FakeOrigin() as web, Toolkit(Config(retries=0), transport=web) as kit:
        place = Place(site=tmp_path / "site", tree=tmp_path / "tree", kit=kit, web=web)
        publish_signed(place.site, ONE, "1", OLD)
        place.tree.mkdir()
        web.mount(URL, place.site)
        yield place


def test_a_signed_release(here: Place) -> None:
    """It is installed, and one request more than without a signature is made."""
    report = here.sync(OLD)
    assert tree_of(here.tree) == ONE
    assert here.remembered["keys"] == [str(OLD.public)]
    with Toolkit(transport=here.web) as kit:
        assert kit.sync(URL, here.tree.with_name("unsigned")).requests == report.requests - 1


@pytest.mark.parametrize("keys", [(), (OLD,)])
def test_nothing_to_do(here: Place, monkeypatch: pytest.MonkeyPatch, keys: tuple[SecretKey, ...]) -> None:
    """One request, and nothing is verified again."""
    here.sync(OLD)
    monkeypatch.setattr(signatures, "verify", None)
    for _ in range(2):
        assert (here.sync(*keys).requests, here.remembered["pointer"]) == (
            1,
            hashlib.sha256((here.site / "perfkit.json").read_bytes()).hexdigest(),
        )


def test_a_tree_that_followed_the_site_before(here: Place) -> None:
    """A key that is given later verifies the release that is installed, by one more request."""
    here.sync()
    report = here.sync(OLD)
    assert (report.route, report.requests) == ("none", 2)
    assert here.remembered["keys"] == [str(OLD.public)]


def test_what_is_staged_is_verified(here: Place) -> None:
    """A pointer that an unsigned sync has left is not taken for a verified one."""
    publish_signed(here.site, TWO, "2")
    here.sync()
    assert "not signed by the key" in here.refused(OLD)


@pytest.mark.parametrize("keys", [(), (OLD,), (OLD, NEW)])
def test_a_tree_remembers_that_it_was_signed(here: Place, keys: tuple[SecretKey, ...]) -> None:
    """A release that is unsigned, or signed by others, is refused from then on, and the error says what to do."""
    here.sync(OLD)
    for signers in ((), (NEW,)):
        publish_signed(here.site, {**TWO, "signers": b"%d" % len(signers)}, "2", *signers)
        why = here.refused(*keys)
        assert f"not signed by the key {OLD.public.name}" in why
        assert "objects/" in why
        assert f"remove {here.tree}/.perfkit/trust" in why
        assert "signs with both for a while" in why


def test_the_first_key_is_not_theirs(here: Place) -> None:
    """Nothing is installed and nothing remembered; the right key works afterwards."""
    assert f"not signed by the key {NEW.public.name}" in here.refused(NEW)
    here.sync(OLD)
    assert tree_of(here.tree) == ONE


def test_a_new_key(here: Place) -> None:
    """A release with both signatures leads from the old key to the new one, whenever a tree makes the step."""
    here.sync(OLD)
    assert f"not signed by the key {NEW.public.name}" in here.refused(NEW)  # though this pointer was verified before
    publish_signed(here.site, TWO, "2", OLD, NEW)
    here.sync()
    assert here.remembered["keys"] == [str(OLD.public)]
    here.sync(NEW)
    assert here.remembered["keys"] == [str(NEW.public)]
    publish_signed(here.site, ONE, "3", NEW)
    assert here.sync().version == "3"
    publish_signed(here.site, TWO, "4", OLD)
    assert f"not signed by the key {NEW.public.name}" in here.refused()
    assert f"not signed by the key {NEW.public.name}" in here.refused(OLD)


def test_several_keys(here: Place) -> None:
    """So many of them have to sign as the caller says, in any order; a tree remembers that, too."""
    options: dict[str, Any] = {"threshold": 2}
    why = here.refused(OLD, NEW, THIRD, **options)
    assert "not signed by 2 of the keys" in why
    publish_signed(here.site, ONE, "1", THIRD)
    here.sync(OLD, NEW, THIRD, **options)
    publish_signed(here.site, TWO, "2", THIRD)
    assert "2 of the keys" in here.refused()
    assert "2 of the keys" in here.refused(THIRD)
    publish_signed(here.site, TWO, "2", NEW)
    assert here.sync(THIRD, NEW, OLD, **options).version == "2"


def test_one_key_counts_once(here: Place) -> None:
    """Given twice, or under another id."""
    other_id = PublicKey(NEW.public.id, OLD.public.key)
    for keys in ([OLD.public, OLD.public], [OLD.public, other_id]):
        with pytest.raises(ConfigError, match="threshold must be from 1 to the number of public keys"):
            here.kit.sync(URL, here.tree, public_keys=keys, threshold=2)
    signers = Signers((OLD.public, other_id, THIRD.public), 2)
    assert not signers.are_enough([OLD.public, other_id])
    assert signers.are_enough([OLD.public, THIRD.public])


@pytest.mark.parametrize("threshold", [0, -1, 2, "1", None])
def test_thresholds_that_cannot_be(here: Place, threshold: Any) -> None:
    assert "threshold" in here.refused(OLD, error=ConfigError, threshold=threshold)


def test_what_is_remembered_outlasts_a_rollback(here: Place) -> None:
    """Back to before the first signed release, an unsigned one is refused, and an older one too."""
    publish_signed(here.site, TWO, "2", OLD)
    shutil.copytree(here.site, here.site.with_name("mirror"))
    publish_signed(here.site, ONE, "3", OLD)
    here.sync(OLD)
    here.kit.rollback(here.tree, to=0, hold=False)
    assert tree_of(here.tree) == {}
    here.web.mount(URL, here.site.with_name("mirror"))
    assert "older release" in here.refused(error=StaleSourceError)
    here.web.mount(URL, here.site)
    publish_signed(here.site, TWO, "4")
    assert "not signed by the key" in here.refused()


def test_what_is_remembered_holds_for_every_url(here: Place) -> None:
    """A mirror that is behind is refused though nothing was ever installed from it, unless that is allowed."""
    mirror = "https://mirror.example/"
    here.web.mount(mirror, shutil.copytree(here.site, here.site.with_name("mirror")))
    publish_signed(here.site, TWO, "2", OLD)
    here.sync(OLD)
    assert "with the same signature" in here.refused(url=mirror, error=StaleSourceError)
    assert here.sync(url=mirror, allow_older=True).version == "1"
    assert here.sync(url=mirror).route == "none"
    assert here.sync().version == "2"
    assert here.refused(url=mirror, error=StaleSourceError)


def test_an_expired_release(here: Place) -> None:
    """It is refused with an error of its own, unless allowed, and what was refused is not remembered."""
    change_pointer(here.site, [OLD], expires_s=1_700_000_000)
    assert "until 2023-11-14 22:13:20 UTC" in here.refused(OLD, error=ExpiredError)
    with pytest.raises(ExpiredError):
        here.kit.plan(URL, here.tree, public_keys=public(OLD))
    assert here.sync(OLD, allow_expired=True).version == "1"
    assert "--allow-expired" in here.refused(error=ExpiredError)
    assert "--allow-expired" in here.refused(error=ExpiredError, allow_older=True)


def test_an_unsigned_release_can_expire(here: Place) -> None:
    """Which tells of a mirror that has stopped."""
    change_pointer(here.site, [], expires_s=1_700_000_000)
    assert "until 2023" in here.refused(error=ExpiredError)


def test_a_release_expires_while_it_is_installed(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the site answers that nothing has changed; publishing again renews it, and there is nothing to do."""
    publish_signed(here.site, ONE, "1", OLD, expires_s=3600)
    here.sync(OLD)
    serial = here.remembered["serial"]
    now = time.time() + 3601
    later = SimpleNamespace(time=lambda: now, strftime=time.strftime, gmtime=time.gmtime)
    monkeypatch.setattr(release_source, "time", later)
    assert "until" in here.refused(error=ExpiredError)
    publish_signed(here.site, ONE, "1", OLD, expires_s=7200)
    assert (here.sync().route, here.remembered["serial"]) == ("none", serial)


def test_publishing_again_without_expiry(here: Place) -> None:
    """The pointer of an unchanged tree no longer expires; a signature that is missing is added."""
    publish_signed(here.site, ONE, "1", OLD, expires_s=3600)
    assert Pointer.parse((here.site / "perfkit.json").read_bytes()).expires_s > time.time()
    publish_signed(here.site, ONE, "1", OLD)
    assert b"expires" not in (here.site / "perfkit.json").read_bytes()
    before = (here.site / "perfkit.json").stat()
    publish_signed(here.site, ONE, "1", OLD, NEW)
    after = (here.site / "perfkit.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert here.sync(OLD, NEW, threshold=2).version == "1"


def test_a_pointer_that_is_replaced_before_its_signature_is_fetched(here: Place, monkeypatch: Any) -> None:
    """Each has the name of its pointer, so that the two always belong together."""
    fetch = release_source.SiteClient.signature

    def publish_before(client: Any, path: str) -> bytes:
        publish_signed(here.site, TWO, "2", OLD)
        return fetch(client, path)

    monkeypatch.setattr(release_source.SiteClient, "signature", publish_before)
    assert here.sync(OLD).version == "1"
    monkeypatch.undo()
    assert here.sync().version == "2"


@pytest.mark.parametrize("change", [
    lambda data: data[:100],
    lambda data: b"",
    lambda data: data + b"x" * (20 << 10),
    lambda data: OLD.sign(b"another file", "x"),
    lambda data: NEW.sign(b"another file", "x"),
])  # fmt: skip
def test_a_signature_that_is_not_one(here: Place, change: Callable[[bytes], bytes]) -> None:
    """It is as if there were none; when the right one is there, it is installed."""
    here.sync(OLD)
    publish_signed(here.site, TWO, "2", OLD)
    path = signature_file(here.site, OLD)
    data = path.read_bytes()
    path.write_bytes(change(data))
    assert f"not signed by the key {OLD.public.name}" in here.refused(OLD)
    assert not (here.tree / ".perfkit/fetch/perfkit.json").exists()  # it may have been damaged on its way
    path.write_bytes(data)
    here.sync(OLD)


def test_a_server_that_is_busy(here: Place) -> None:
    """This is no reason to think that there is no signature."""
    name = signature_file(here.site, OLD).name
    here.web.fail(f"{URL}objects/{name}", status=503)
    assert "503" in here.refused(OLD, error=HTTPStatusError)
    here.sync(OLD)


def test_it_is_verified_before_it_is_parsed(here: Place) -> None:
    """What is no pointer at all is refused for its signature; with one, it is damaged."""
    pointer = here.site / "perfkit.json"
    pointer.write_bytes(b"[" * 60_000)
    assert "not signed by the key" in here.refused(OLD)
    signature_file(here.site, OLD).write_bytes(OLD.sign(pointer.read_bytes(), "x"))
    refusal = here.refused(OLD, error=ManifestError)
    assert refusal.startswith("http")
    assert "perfkit.json: not JSON" in refusal


def test_a_dry_run_verifies_and_remembers_nothing(here: Place) -> None:
    with pytest.raises(SignatureError):
        here.kit.plan(URL, here.tree, public_keys=public(NEW))
    assert here.kit.plan(URL, here.tree, public_keys=public(OLD)).added == ("a", "b")
    assert not (here.tree / ".perfkit").exists()


def test_a_repair_is_verified(here: Place) -> None:
    """By the keys that the tree remembers; and from the right site the tree is repaired."""
    here.sync(OLD)
    pointer = here.site / "perfkit.json"
    right = pointer.read_bytes()
    pointer.write_bytes(right + b"\n")
    (here.tree / "a").unlink()
    with pytest.raises(SignatureError):
        here.kit.verify(here.tree, repair=True)
    pointer.write_bytes(right)
    here.kit.verify(here.tree, repair=True)
    assert tree_of(here.tree) == ONE


def test_an_earlier_release(here: Place) -> None:
    """It follows from the current pointer, which is verified, and whose serial is remembered."""
    publish_signed(here.site, TWO, "2", OLD)
    assert "not signed by the key" in here.refused(NEW, release="1")
    assert here.sync(OLD, release="1").version == "1"
    assert tree_of(here.tree) == ONE
    assert here.remembered["serial"] == Pointer.parse((here.site / "perfkit.json").read_bytes()).serial
    (here.tree / "a").unlink()
    here.kit.verify(here.tree, repair=True)
    assert tree_of(here.tree) == ONE
    change_pointer(here.site, [], expires_s=2_000_000_000)
    assert "not signed by the key" in here.refused(release="1")
    change_pointer(here.site, [OLD], expires_s=1_700_000_000)
    assert "until 2023" in here.refused(release="1", error=ExpiredError)
    publish_signed(here.site, TWO, "2", OLD)
    assert here.sync().version == "2"


def test_a_signed_release_from_the_future(here: Place) -> None:
    """By a publisher whose clock is wrong: it is not remembered as the latest, so the next one is installed."""
    here.sync(OLD)
    shutil.copytree(here.site, here.site.with_name("mirror"))
    change_pointer(here.site, [OLD], serial=1 << 50)
    assert "more than a day ahead" in here.refused(error=UpdateError)
    assert "more than a day ahead" in here.refused(error=UpdateError, release="1")
    here.web.mount(URL, here.site.with_name("mirror"))
    assert here.sync().route == "none"


def test_the_first_signed_and_current_mirror_is_used(here: Place) -> None:
    """The first that is signed and current is taken. None that is behind hides that the newest release has expired."""
    mirror = "https://mirror.example/"
    here.web.mount(mirror, shutil.copytree(here.site, here.site.with_name("mirror")))
    publish_signed(here.site, TWO, "2", OLD)
    publish_signed(here.site, TWO, "2x", NEW)
    assert here.sync(OLD, mirrors=[mirror]).version == "1"
    publish_signed(here.site, TWO, "3", OLD)
    assert here.sync(mirrors=[mirror]).version == "3"
    assert here.sync(url=mirror, mirrors=[URL]).route == "none"
    assert here.sync(url=mirror, mirrors=[f"{mirror}perfkit.json"]).route == "none"  # all are behind: nothing new
    change_pointer(here.site, [OLD], expires_s=1_700_000_000)
    for url, other in ((URL, mirror), (mirror, URL)):
        assert "until 2023" in here.refused(url=url, mirrors=[other], error=ExpiredError)


@pytest.mark.parametrize("record", [
    b"", b"{", b"[]", b"null", b'{"keys": ["RW"], "threshold": 1, "pointer": "", "serial": 1}',
    b'{"keys": [], "threshold": 0, "pointer": "", "serial": 1}',
    b'{"keys": [], "threshold": 1, "pointer": "", "serial": "1"}', b'{"threshold": 1}', b"[" * 100_000,
])  # fmt: skip
def test_a_damaged_record(here: Place, record: bytes) -> None:
    """It does not count as none."""
    here.sync(OLD)
    (here.tree / ".perfkit/trust").write_bytes(record)
    assert "is damaged" in here.refused(error=UpdateError)
    assert "is damaged" in here.refused(OLD, error=UpdateError)


def test_without_cryptography(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing passes for signed; a sync with nothing to do does not need it."""
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    assert "perfkit[sign]" in here.refused(OLD, error=ConfigError)
    monkeypatch.undo()
    here.sync(OLD)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    assert here.sync(OLD).route == "none"


def test_signatures_of_earlier_pointers_go_with_them(here: Place) -> None:
    """After the grace of other unused objects; those of the current pointer stay, whoever made them."""
    first = signature_file(here.site, OLD)
    publish_signed(here.site, TWO, "2", OLD)
    assert first.exists()
    publish_signed(here.site, ONE, "3", OLD, grace_s=0)
    assert not first.exists()
    assert [path.name for path in here.site.glob("objects/*.minisig")] == [signature_file(here.site, OLD).name]


@pytest.mark.parametrize(("url", "signed", "warned"), [
    ("http://rules.example/", False, True),
    ("http://rules.example/", True, False),
    ("https://rules.example/", False, False),
    ("http://localhost/", False, False),
    ("http://127.0.0.9:8000/", False, False),
    ("http://[::1]/", False, False),
    ("http://localhost.example/", False, True),
])  # fmt: skip
def test_plain_http_without_a_signature(
    here: Place, caplog: pytest.LogCaptureFixture, url: str, signed: bool, warned: bool
) -> None:
    """It is said once for a tree, and not where the machine talks to itself."""
    here.web.mount(url, here.site)
    for number in range(2):
        with caplog.at_level(logging.WARNING, logger="perfkit"):
            here.sync(*([OLD] if signed and not number else []), url=url)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warned
    assert all(url in record.getMessage() and "plain http" in record.getMessage() for record in caplog.records)
