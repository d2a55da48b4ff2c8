"""Plain files and archives with a signature beside them: who has to sign what `sync` installs of them."""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perfkit import CheckFailedError, Config, ConfigError, SignatureError, SyncReport, Toolkit
from perfkit.minisign.secret_keys import SecretKey
from perfkit.testing import FakeOrigin
from tests.support.archive_tools import make_tar, make_zip
from tests.support.signing import NEW, OLD, THIRD, public, publish_signed, refused
from tests.support.trees import Tree, tree_of

pytestmark = pytest.mark.once

SITE = "https://example.org/"
ONE: Tree = {"a": b"one\n", "b": b"same\n" * 1000}
TWO: Tree = {"a": b"two\n", "b": b"same\n" * 1000}
NAMES = {"zip": "pack.zip", "tar": "pack.tar.gz", "file": "rules.txt"}


def packed(kind: str, tree: Tree) -> bytes:
    return make_zip(tree) if kind == "zip" else make_tar(tree, mode="w:gz") if kind == "tar" else tree["a"]


class Place(SimpleNamespace):
    """A server, and a tree."""

    tree: Path
    kit: Toolkit
    web: FakeOrigin

    def offer(self, name: str, content: bytes, key: SecretKey | None = OLD, *, of: bytes | None = None) -> None:
        """Put a file on the server, with the signature of a key, or that of another content."""
        self.web.add(SITE + name, content)
        self.web.remove(f"{SITE}{name}.minisig")
        if key is not None:
            self.web.add(f"{SITE}{name}.minisig", key.sign(content if of is None else of, "x"))

    def sync(self, name: str, *keys: SecretKey, **options: Any) -> SyncReport:
        return self.kit.sync(SITE + name, self.tree, public_keys=public(*keys), **options)

    def refused(self, name: str, *keys: SecretKey, error: type[Exception] = SignatureError, **options: Any) -> str:
        """Why a sync fails, which leaves the tree and what it remembers as they were."""
        with refused(self.tree, error) as failure:
            self.sync(name, *keys, **options)
        return str(failure.value)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    with FakeOrigin() as web, Toolkit(Config(retries=0), transport=web) as kit:
        (tmp_path / "tree").mkdir()
        yield Place(tree=tmp_path / "tree", kit=kit, web=web)


@pytest.mark.parametrize("kind", NAMES)
def test_a_signed_file(here: Place, kind: str) -> None:
    """It is verified whole, and again when it changes, also without the key; nothing is fetched when it has not."""
    name = NAMES[kind]
    here.offer(name, packed(kind, ONE))
    here.sync(name, OLD)
    installed = tree_of(here.tree)
    assert installed == (ONE if kind != "file" else {name: ONE["a"]})
    assert [here.sync(name, *keys).requests for keys in ((), (OLD,))] == [1, 1]
    changed = packed(kind, TWO)
    for key, content in ((None, changed), (NEW, changed), (OLD, packed(kind, ONE) + b"x")):
        here.offer(name, changed, key, of=content)
        here.refused(name)
        here.refused(name, OLD)
    here.offer(name, changed)
    here.sync(name)
    assert tree_of(here.tree) == (TWO if kind != "file" else {name: TWO["a"]})


@pytest.mark.parametrize("kind", NAMES)
def test_what_was_fetched_before_is_verified(here: Place, kind: str) -> None:
    """A key that is given later verifies what is installed; one that did not sign it is not remembered."""
    name = NAMES[kind]
    here.offer(name, packed(kind, ONE))
    here.sync(name)
    here.refused(name, NEW)
    assert here.sync(name, OLD).requests > 1
    assert here.sync(name).requests == 1
    here.offer(name, packed(kind, TWO), None)
    here.refused(name)


def test_unverified_bytes_are_not_taken_from_an_earlier_run(here: Place) -> None:
    """A sync without a key fetched the archive, and failed; the next one has a key."""
    here.offer("pack.zip", packed("zip", ONE), None)

    def refuse(staged: object) -> None:
        raise ValueError("no")

    with pytest.raises(CheckFailedError):
        here.sync("pack.zip", check=refuse)
    assert "not signed" in here.refused("pack.zip", OLD, retry_rejected=True)


def test_a_rollback_to_what_was_not_signed(here: Place) -> None:
    """The next sync does not take it for verified, though the server says that it is unchanged."""
    here.offer("old.zip", packed("zip", ONE), None)
    here.offer("pack.zip", packed("zip", TWO))
    here.sync("old.zip")
    here.sync("pack.zip", OLD)
    here.kit.rollback(here.tree, hold=False)
    assert tree_of(here.tree) == ONE
    assert "not signed" in here.refused("old.zip")
    here.sync("pack.zip")
    assert tree_of(here.tree) == TWO


def test_a_forged_crc(here: Place) -> None:
    """What was installed, or lay there, before the key was given, is not taken for a member with the same CRC-32."""
    good, bad = b"plumless", b"buckeroo"
    assert zlib.crc32(good) == zlib.crc32(bad)
    here.offer("pack.zip", packed("zip", {"a": bad}), None)
    here.sync("pack.zip")
    here.offer("pack.zip", packed("zip", {"a": good}))
    here.sync("pack.zip", OLD)
    assert tree_of(here.tree) == {"a": good}
    here.tree = here.tree.with_name("other")
    here.tree.mkdir()
    (here.tree / "a").write_bytes(bad)
    here.sync("pack.zip", OLD)
    assert (here.tree / "a").read_bytes() == good


def test_a_new_key(here: Place) -> None:
    """Both are given until the file is signed by the new one: it has one signature."""
    here.offer("rules.txt", ONE["a"])
    here.sync("rules.txt", OLD)
    assert "give both" in here.refused("rules.txt", NEW)
    here.sync("rules.txt", OLD, NEW)
    here.offer("rules.txt", TWO["a"], NEW)
    here.sync("rules.txt", NEW)
    here.offer("rules.txt", ONE["a"], OLD)
    here.refused("rules.txt")
    here.refused("rules.txt", OLD, NEW)
    assert "one signature" in here.refused("rules.txt", OLD, NEW, error=ConfigError, threshold=2)


@pytest.mark.parametrize("signed", [True, False])
def test_a_fetched_checksum_file_has_to_be_signed(here: Place, signed: bool) -> None:
    """Where they are fetched, they have to be signed, and the file need not be; else the file has to be."""
    here.offer("rules.txt", ONE["a"], None)
    digest = hashlib.sha256(ONE["a"]).hexdigest()
    here.offer("SHA256SUMS", f"{digest}  rules.txt\n".encode(), OLD if signed else NEW)
    if signed:
        here.sync("rules.txt", OLD, checksums=f"{SITE}SHA256SUMS")
        assert here.sync("rules.txt", checksums=f"{SITE}SHA256SUMS").route == "none"
    else:
        here.refused("rules.txt", OLD, checksums=f"{SITE}SHA256SUMS")
        here.refused("rules.txt", OLD, checksums=f"sha256:{digest}")
    here.refused("rules.txt", OLD)


def test_a_dry_run_verifies_and_remembers_nothing(here: Place) -> None:
    here.offer("pack.zip", packed("zip", ONE))
    with pytest.raises(SignatureError):
        here.kit.plan(f"{SITE}pack.zip", here.tree, public_keys=public(NEW))
    assert here.kit.plan(f"{SITE}pack.zip", here.tree, public_keys=public(OLD)).added == ("a", "b")
    assert not (here.tree / ".perfkit").exists()


def test_a_repair_is_verified(here: Place) -> None:
    here.offer("pack.zip", packed("zip", ONE))
    here.sync("pack.zip", OLD)
    (here.tree / "b").unlink()
    here.web.remove(f"{SITE}pack.zip.minisig")
    with pytest.raises(SignatureError):
        here.kit.verify(here.tree, repair=True)
    here.offer("pack.zip", packed("zip", ONE))
    here.kit.verify(here.tree, repair=True)
    assert tree_of(here.tree) == ONE


def test_the_record_was_removed(here: Place) -> None:
    """By somebody who gives the key again: it is remembered, though the file is unchanged."""
    here.offer("rules.txt", ONE["a"])
    here.sync("rules.txt", OLD)
    (here.tree / ".perfkit/trust").unlink()
    here.sync("rules.txt", OLD)
    here.offer("rules.txt", TWO["a"], None)
    here.refused("rules.txt")


def test_no_file_takes_the_place_of_signed_releases(here: Place, tmp_path: Path) -> None:
    """Whatever the key has signed; but a release follows a file."""
    publish_signed(tmp_path / "site", TWO, "1", OLD)
    here.web.mount(f"{SITE}rules/", tmp_path / "site")
    here.offer("pack.zip", packed("zip", ONE))
    here.sync("pack.zip", OLD)
    here.sync("rules/")
    assert tree_of(here.tree) == TWO
    assert "accepts only releases signed by" in here.refused("pack.zip")
    assert "accepts only releases signed by" in here.refused("pack.zip", OLD, type="zip")


@pytest.mark.parametrize("type", ["urls", "metalink", "zsync"])
def test_what_has_no_signature(here: Place, type: str) -> None:
    """It is refused where a key is given, and where the tree remembers one."""
    here.offer("list.txt", f"{SITE}pack.zip\n".encode())
    assert "can be signed" in here.refused("list.txt", OLD, type=type, error=ConfigError)
    here.offer("pack.zip", packed("zip", ONE))
    here.sync("pack.zip", OLD)
    assert "accepts only signed sources" in here.refused("list.txt", type=type)
    assert "pack.zip" in here.refused("pack.zip", THIRD)


def test_plain_http_is_not_warned_of(here: Place, caplog: pytest.LogCaptureFixture) -> None:
    url = "http://rules.example/rules.txt"
    here.web.add(url, ONE["a"])
    here.web.add(f"{url}.minisig", OLD.sign(ONE["a"], "x"))
    with caplog.at_level(logging.WARNING, logger="perfkit"):
        here.kit.sync(url, here.tree, public_keys=public(OLD))
    assert not caplog.records
