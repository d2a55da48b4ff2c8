"""Every parser of foreign or stored data, on mutated valid input: the right result or a typed error, nothing else.

`PERFKIT_TEST_MUTATIONS` is the number of inputs for each parser, and `PERFKIT_TEST_SEED` another series of them. A
failure names its seed; `mutated(samples, seed)` makes the same input again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from perfkit.archives import tar, zip
from perfkit.downloads.checksum_files import ChecksumFile
from perfkit.downloads.checksums import parse_checksum
from perfkit.downloads.request import split_line
from perfkit.errors import PerfkitError
from perfkit.filesystem.rootdir import RootDir
from perfkit.minisign.public_keys import PublicKey
from perfkit.minisign.secret_keys import SecretKey
from perfkit.minisign.signatures import BadSignatureError, Signature, verify
from perfkit.releases.format.delta import Delta
from perfkit.releases.format.frames import decode_range
from perfkit.releases.format.index import Index
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.format.pointer import Pointer
from perfkit.releases.format.zstd import decompress
from perfkit.releases.publish.publisher import publish
from perfkit.releases.publish.site import History as SiteHistory
from perfkit.releases.publish.site import Site
from perfkit.releases.statcache import StatCache
from perfkit.transactions.changeset import ChangeSet
from perfkit.transactions.history import History
from perfkit.transactions.journal import check_ops, write_ops
from perfkit.transactions.layout import is_private
from perfkit.transactions.object_store import ObjectStore
from perfkit.transactions.records import JournalOp, Previous
from perfkit.transactions.tree import Tree
from perfkit.updates.hold import HoldReason, hold_on, write_holds
from perfkit.updates.installed import encode_record, read_installed
from perfkit.updates.signers import Signers, Trust
from perfkit.updates.source_types import SourceType
from perfkit.updates.sources.url_lists import parse_metalink, parse_urls
from perfkit.updates.status import status
from perfkit.zsync.control import parse_control
from tests.support.archive_tools import FILES, Ranges, make_tar, make_zip
from tests.support.mutations import mutated
from tests.support.release_client import Client
from tests.support.signing import NEW, OLD
from tests.support.trees import write_tree

pytestmark = pytest.mark.once

INPUTS = int(os.environ.get("PERFKIT_TEST_MUTATIONS", "300"))
SEED = os.environ.get("PERFKIT_TEST_SEED", "1")
SMALL = {"a/b.txt": b"one\n" * 3000, "c": b"two" * 50, "ünï": b"", "d/e/f": bytes(range(256)) * 20}


class Parser(NamedTuple):
    """Valid input, and what reads it; `parse` also checks that a result is a right one, where that can be known."""

    samples: Sequence[bytes]
    parse: Callable[[bytes], object]


class Release(NamedTuple):
    """Two releases of a site, as their files."""

    client: Client
    old: Manifest
    root: Path


@pytest.fixture(scope="module")
def sample_release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    root = tmp_path_factory.mktemp("mutations")
    program = b"\0" + random.Random(1).randbytes(5000)
    publish(str(write_tree(root / "src", {**SMALL, "program": program})), str(root / "site"), version="1")
    old = Client(root / "site").manifest
    changed = {
        "a/b.txt": SMALL["a/b.txt"] + b"more",
        "new": b"x" * 999,
        "program": program[:900] + b"!" + program[900:],
    }
    publish(
        str(write_tree(root / "src", {**SMALL, **changed})),
        str(root / "site"),
        version="2",
    )
    return Release(Client(root / "site"), old, root)


@pytest.fixture(scope="module")
def sample_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A managed tree with a history."""
    root = tmp_path_factory.mktemp("tree")
    manifest = Manifest.of(())
    record = {"type": SourceType.RELEASE, "url": "http://x/", "serial": 7, "record": lambda: {"etag": "x"}}
    for data in (b"one", b"two"):
        source = SimpleNamespace(**record, version=data.decode())
        with Tree(root) as managed, managed.transaction({"version": "1"}) as tx:
            tx.write("a", data)
            tx.write_private(".perfkit/manifest", manifest.raw)
            tx.write_private(".perfkit/release", encode_record(source, manifest))
    return root


def sealed(parse: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """With a right checksum, as somebody who forges a record makes it."""

    def parse_sealed(data: bytes) -> object:
        body = data.rpartition(b"\n")[0].rpartition(b"\n")[0] + b"\n"
        return parse(body + hashlib.sha256(body).hexdigest().encode() + b"\n")

    return parse_sealed


def nowhere(entry: int, offset: int, data: memoryview) -> None:
    """Where contents are written that nobody needs."""


def release_parsers(release: Release) -> dict[str, Parser]:
    client, pointer = release.client, release.client.pointer

    def read_delta(data: bytes) -> object:
        delta = Delta.open(io.BytesIO(data))
        draft = delta.draft(release.old)
        return delta.apply(delta.groups(release.old, draft), lambda span: bytes(span.length), nowhere)

    def read_index(data: bytes) -> object:
        index = Index.parse(data, client.manifest)
        return index.ranges(index.pieces(lambda entry: True))

    index = Index.parse(client.packed(pointer.fine), client.manifest)
    pieces = index.pieces(lambda entry: True)
    first_pack = index.packs[0]
    shared = client.packed(first_pack.dictionary) if first_pack.dictionary else None

    def read_frames(data: bytes) -> None:
        for fetched in index.ranges(pieces):
            if fetched.pack == 0:
                decode_range(index, fetched, io.BytesIO(data[fetched.start :]), nowhere, wanted=pieces, shared=shared)

    def read_manifest(data: bytes) -> None:
        manifest = Manifest.parse(data)
        assert Manifest.of(manifest).raw == data  # canonical: there is one form

    def read_pointer(data: bytes) -> None:
        found = Pointer.parse(data)
        assert Pointer.parse(found.encode()) == found

    packed = client.get(pointer.manifest.object)
    return {
        "pointer": Parser([(client.site / "perfkit.json").read_bytes()], read_pointer),
        "manifest": Parser([client.manifest.raw, release.old.raw], read_manifest),
        "index": Parser([client.packed(pointer.fine), client.packed(pointer.solid)], read_index),
        "frame": Parser([packed], lambda data: decompress(data, pointer.manifest.size)),
        "frames": Parser([(client.site / first_pack.object.path).read_bytes()], read_frames),
        "delta": Parser([client.get(delta.object) for delta in pointer.deltas], read_delta),
        "site history": Parser([Site(str(client.site)).get(pointer.history)], SiteHistory.parse),
    }


def tree_parsers(root: Path) -> dict[str, Parser]:
    own = root / ".perfkit"

    def in_place(name: str, parse: Callable[[], object]) -> Callable[[bytes], None]:
        before = (own / name).read_bytes()

        def parse_in_place(data: bytes) -> None:
            try:
                (own / name).write_bytes(data)
                parse()
            finally:
                (own / name).write_bytes(before)

        return parse_in_place

    def read_history() -> None:
        with contextlib.closing(RootDir(str(root))) as rootdir:
            history = History(rootdir, ObjectStore(rootdir))
            history.generations()
            changes = ChangeSet("stage/", "fetch/", lambda: pytest.fail("no file is needed"))
            history.changes_between([2, 1], undo=True, into=changes)
            assert all(is_private(name) or ".." not in name.split("/") for name in changes)
            list(history.needed_objects(history.timeline()))

    def read_state() -> object:
        return [len(read_installed(str(root)).manifest), read_installed(str(root)).highest_serial("http://x/")]

    def read_journal(data: bytes) -> None:
        try:
            check_ops(io.BytesIO(data))
        except ValueError as error:  # as it promises
            raise PerfkitError(error) from error

    journal = io.BytesIO()
    write_ops(journal, [
        JournalOp("mkdir", "b"), JournalOp("put", "b/c", ".perfkit/stage-1/1"), JournalOp("rmdir", "d", "", None),
        JournalOp("put", "a", ".perfkit/stage-1/2", Previous(f".perfkit/objects/{'ab' * 32}", 3, 10**18, 0o644, 5)),
        JournalOp("drop", "x", "", Previous("", 0, 5, 0o600, 6)),
    ])  # fmt: skip
    (own / "serials").write_bytes(json.dumps({"http://x/": 9}).encode())
    write_holds(str(root), [hold_on(HoldReason.PIN, "http://x/", "1", 7)])
    (own / "last-sync").write_bytes(b'{"checked_s": 1.5, "failed_s": 2.5, "error": "x"}')
    records = [(own / "history/1").read_bytes(), (own / "history/2").read_bytes()]
    read_record = in_place("history/2", read_history)
    read_timeline = in_place("state", read_history)
    return {
        "journal": Parser([journal.getvalue()], read_journal),
        "forged journal": Parser([journal.getvalue()], sealed(read_journal)),
        "state": Parser([(own / "state").read_bytes()], read_timeline),
        "forged state": Parser([(own / "state").read_bytes()], sealed(read_timeline)),
        "record": Parser(records, read_record),
        "forged record": Parser(records, sealed(read_record)),
        "release": Parser([(own / "release").read_bytes()], in_place("release", read_state)),
        "serials": Parser([(own / "serials").read_bytes()], in_place("serials", read_state)),
        "hold": Parser([(own / "hold").read_bytes()], in_place("hold", lambda: status(str(root)))),
        "last sync": Parser(
            [(own / "last-sync").read_bytes()], in_place("last-sync", lambda: status(str(root)).age_s())
        ),
        "owner": Parser(
            [b'{"boot": "x", "space": 1, "pid": 1, "began": "5", "token": "ab"}'], lambda data: lock(root, data)
        ),
    }


def lock(root: Path, data: bytes) -> None:
    (root / ".perfkit/owner").write_bytes(data)
    with Tree(root):
        pass


def stat_cache_parser(root: Path, manifest: Manifest) -> Parser:
    path = str(root / "statcache")
    cache = StatCache(manifest)
    cache.save(path)
    rows = {"a": ["ab" * 32, 1, 2, 3, 0o644]}
    sample = Path(path).read_bytes() + json.dumps({"rows": rows}).encode() + b"\n"

    def read(data: bytes) -> None:
        Path(path).write_bytes(data)
        found = StatCache.load(path, manifest, lambda digest: None)
        assert len(found.manifest) == len(manifest)

    return Parser([sample], read)


def archive_parsers() -> dict[str, Parser]:
    small = {**FILES, "pkg/data.bin": b"x" * 3000}

    def read_zip(data: bytes) -> None:
        members = zip.read_directory(Ranges(data), len(data))
        for fetched in zip.plan_ranges(members, gap=100):
            for _, content in zip.read_members(fetched, io.BytesIO(data[fetched.start : fetched.end])):
                for _ in content:
                    pass

    def read_tar(data: bytes) -> None:
        for _, content in tar.read_members(io.BytesIO(data)):
            for _ in content:
                pass

    return {
        "zip": Parser([make_zip(small), make_zip(small, stream=True)], read_zip),
        "tar": Parser([make_tar(small)], read_tar),
    }


ZSYNC = (
    b"zsync: 0.6.2\nFilename: f.iso\nMTime: Sat, 28 Nov 2026 12:00:00 +0000\nBlocksize: 2048\nLength: 5000\n"
    b"Hash-Lengths: 1,2,4\nURL: f.iso\nURL: http://mirror/f.iso\nSHA-1: " + b"ab" * 20 + b"\n\n" + bytes(range(18))
)
METALINK = (
    b'<?xml version="1.0"?><metalink xmlns="urn:ietf:params:xml:ns:metalink"><file name="a/b.iso"><size>100</size>'
    b'<hash type="sha-256">' + b"ab" * 32 + b'</hash><url priority="1">http://x/b.iso</url>'
    b'<url priority="2">https://y/b.iso</url></file></metalink>'
)
LISTS = [b"http://x/a\thello\n# c\n\nhttp://y/b\tdir/b\tsha256:" + b"cd" * 32 + b"\n", b"a.bin\n../b.bin\n"]


def signature_parsers(root: Path) -> dict[str, Parser]:
    content, path = b"content", root / "record"
    samples = [NEW.sign(content, "timestamp:1"), NEW.sign(content, "ü" * 100)]
    right = {(found.signature, found.comment) for found in map(Signature.parse, samples)}
    (root / ".perfkit").mkdir()
    remembered = Trust(str(root), Signers((NEW.public, OLD.public), 2), "ab" * 32, 7)
    remembered.remember(Trust(str(root)))

    def read_signature(data: bytes) -> None:
        try:
            signature = Signature.parse(data)
            verify(io.BytesIO(content), signature, [NEW.public])
        except BadSignatureError as error:  # as it promises
            raise PerfkitError(error) from error
        assert (signature.signature, signature.comment) in right

    def read_secret_key(data: bytes) -> None:
        path.write_bytes(data)
        assert SecretKey.read(path).seed == NEW.seed

    def read_trust(data: bytes) -> None:
        (root / ".perfkit/trust").write_bytes(data)
        signers = Trust.read(str(root)).signers
        assert signers is not None
        assert not signers.are_enough([])

    return {
        "signature": Parser(samples, read_signature),
        "public key": Parser([NEW.public.encode()], lambda data: PublicKey.parse(data.decode(errors="replace"))),
        "secret key": Parser([NEW.encode()], read_secret_key),
        "trust": Parser([(root / ".perfkit/trust").read_bytes()], read_trust),
    }


def list_parsers() -> dict[str, Parser]:
    def read_checksum(data: bytes) -> None:
        parse_checksum(data.decode(errors="surrogateescape"))
        split_line(data.decode(errors="surrogateescape"))

    def read_checksum_file(data: bytes) -> None:
        ChecksumFile(data.decode(errors="replace"), "sums").find("https://h/a")

    def read_urls(data: bytes) -> None:
        parse_urls(io.StringIO(data.decode(errors="replace")), base="http://x/list")

    return {
        "zsync": Parser([ZSYNC], lambda data: parse_control(data, bases=("http://x/f.zsync",))),
        "metalink": Parser([METALINK], lambda data: parse_metalink(io.BytesIO(data))),
        "urls": Parser(LISTS, read_urls),
        "checksum": Parser([b"sha256:" + b"ab" * 32, b"md5:" + b"cd" * 16], read_checksum),
        "checksum file": Parser([b"ab" * 32 + b"  a\nMD5 (b/a) = " + b"cd" * 16], read_checksum_file),
    }


@pytest.fixture(scope="module")
def parsers(sample_release: Release, sample_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Parser]:
    return {
        **signature_parsers(tmp_path_factory.mktemp("signatures")),
        **release_parsers(sample_release), **tree_parsers(sample_tree), **archive_parsers(), **list_parsers(),
        "stat cache": stat_cache_parser(sample_release.root, sample_release.client.manifest),
    }  # fmt: skip


NAMES = [
    "pointer",
    "manifest",
    "index",
    "frame",
    "frames",
    "delta",
    "site history",
    "journal",
    "forged journal",
    "state",
    "forged state",
    "record",
    "forged record",
    "release",
    "serials",
    "hold",
    "last sync",
    "owner",
    "stat cache",
    "zip",
    "tar",
    "zsync",
    "metalink",
    "urls",
    "checksum",
    "checksum file",
    "signature",
    "public key",
    "secret key",
    "trust",
]


def test_every_parser_is_tried(parsers: dict[str, Parser]) -> None:
    """And each accepts what is not mutated."""
    assert sorted(parsers) == sorted(NAMES)
    for name, parser in parsers.items():
        for sample in parser.samples:
            with contextlib.suppress(PerfkitError) if name == "zsync" else contextlib.nullcontext():
                parser.parse(sample)


@pytest.mark.parametrize("name", NAMES)
def test_mutated_input(parsers: dict[str, Parser], name: str) -> None:
    """A typed error, or what was read is right."""
    for number in range(INPUTS if name != "owner" else INPUTS // 20 + 1):
        seed = f"{SEED} {name} {number}"
        data = mutated(parsers[name].samples, seed)
        try:
            parsers[name].parse(data)
        except PerfkitError:
            continue
        except BaseException as error:
            raise AssertionError(f"seed {seed!r}: {type(error).__name__}: {error}") from error
