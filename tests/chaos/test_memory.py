"""What a client needs of memory at most, whatever a site serves: each case in a process of its own."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit.releases.format.manifest import Entry, Manifest
from perfkit.releases.format.pointer import ObjectRef, PackedRef, Pointer
from perfkit.releases.format.zstd import compress, decompress
from perfkit.releases.publish.publisher import publish
from perfkit.server.server import Server
from tests.chaos.seeds import LONG, TIMEOUT_S, Cases
from tests.support.archive_tools import raw_zip
from tests.support.command import peak_mb
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.hostile import raw_manifest
from tests.support.trees import ONE, TWO, write_tree

pytestmark = [pytest.mark.once, pytest.mark.timeout(TIMEOUT_S)]

BOUND_MB = 80  # with any release, and whatever a server answers
BOUNDS_OF_LARGE_MB = {"zsync of zeros": 120, "zsync of many blocks": 280}  # which are in memory, and searched for

# -- releases ---------------------------------------------------------------------------------------------------------


class Site:
    """A site with two releases, whose pointer is then replaced."""

    def __init__(self, root: Path) -> None:
        self.root = root / "site"
        for version, tree in (("1", ONE), ("2", TWO)):
            publish(str(write_tree(root / "src", tree)), str(self.root), version=version)
        self.pointer = Pointer.parse((self.root / "perfkit.json").read_bytes())

    def put(self, data: bytes) -> ObjectRef:
        ref = ObjectRef(hashlib.sha256(data).hexdigest(), len(data))
        (self.root / ref.path).write_bytes(data)
        return ref

    def pack(self, raw: bytes, claimed: int | None = None) -> PackedRef:
        return PackedRef(self.put(compress(raw)), len(raw) if claimed is None else claimed)

    def offer(self, **changes: object) -> None:
        pointer = self.pointer._replace(deltas=(), **changes)  # type: ignore[arg-type]
        (self.root / "perfkit.json").write_bytes(pointer.encode())

    def offer_manifest(self, raw: bytes) -> None:
        self.offer(manifest=self.pack(raw), manifest_sha256=hashlib.sha256(raw).hexdigest())


def manifest_that_expands(site: Site) -> None:
    site.offer(manifest=site.pack(bytes(1 << 30), claimed=8 << 20))


def manifest_of_zeros(site: Site) -> None:
    site.offer_manifest(bytes(8 << 20))


def manifest_of_directories(site: Site) -> None:
    site.offer_manifest(raw_manifest([f"{number:03}/{'a/' * 1900}f".encode() for number in range(200)]))


def manifest_of_many_files(site: Site) -> None:
    site.offer_manifest(raw_manifest([b"%06d" % number for number in range(170_000)]))


def manifest_as_large_as_can_be(site: Site) -> None:
    site.offer_manifest(raw_manifest([b"%06d" % number for number in range(1_000_000)]))


def manifest_of_a_petabyte(site: Site) -> None:
    site.offer_manifest(Manifest.of([Entry("large", 1 << 50, bytes(32))]).raw)


def index_that_expands(site: Site) -> None:
    site.offer(solid=site.pack(bytes(1 << 30), claimed=8 << 20))


def index_of_zeros(site: Site) -> None:
    site.offer(solid=site.pack(bytes(8 << 20)), fine=site.pack(bytes(8 << 20)))


def index_of_ones(site: Site) -> None:
    raw = decompress((site.root / site.pointer.solid.object.path).read_bytes(), site.pointer.solid.size)
    site.offer(solid=site.pack(raw[:60] + b"\xff\xff\x0f\0" * (2 << 20)))


def pointer_of_text(text: bytes) -> Callable[[Site], None]:
    def offer(site: Site) -> None:
        (site.root / "perfkit.json").write_bytes(text * ((100 << 20) // len(text)))

    return offer


RELEASES: dict[str, Callable[[Site], None]] = {
    "manifest that expands": manifest_that_expands,
    "manifest of zeros": manifest_of_zeros,
    "manifest of directories": manifest_of_directories,
    "manifest of many files": manifest_of_many_files,
    "manifest as large as can be": manifest_as_large_as_can_be,
    "manifest of a petabyte": manifest_of_a_petabyte,
    "index that expands": index_that_expands,
    "index of zeros": index_of_zeros,
    "index of ones": index_of_ones,
    "pointer of spaces": pointer_of_text(b" "),
    "pointer of brackets": pointer_of_text(b"["),
}

# -- other sources ----------------------------------------------------------------------------------------------------


def tar_of_zeros() -> bytes:
    out = io.BytesIO()
    with gzip.open(out, "wb", compresslevel=9) as packed, tarfile.open(fileobj=packed, mode="w|") as archive:
        info = tarfile.TarInfo("zeros")
        info.size = 1 << 30
        archive.addfile(info, Zeros())  # type: ignore[arg-type]
    return out.getvalue()


METALINK = b'<metalink xmlns="urn:ietf:params:xml:ns:metalink">'


def zsync_of_many_blocks() -> bytes:
    """As many as are searched for in an older file."""
    head = b"zsync: 0.6.2\nFilename: x\nBlocksize: 64\nLength: %d\nHash-Lengths: 1,2,3\nURL: x\nSHA-1: %s\n\n"
    return head % (64 << 21, b"0" * 40) + random.Random(1).randbytes(5 << 21)


class Zeros:
    def read(self, size: int) -> bytes:
        return bytes(size)


SOURCES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "zip of many files": ("zip", lambda: raw_zip({"name": f"{number % 65_534:05}"} for number in range(65_535))),
    "tar of zeros": ("tar", tar_of_zeros),
    "metalink of nesting": ("metalink", lambda: b"<a>" * 10_000_000),
    "metalink of elements": ("metalink", lambda: METALINK + b"<file>" + b"<a/>" * 10_000_000),
    "metalink of one tag": ("metalink", lambda: METALINK + b'<file name="' + b"a" * (60 << 20)),
    "list of many files": ("urls", lambda: b"a\n" * 10_000_000),
    "list of one line": ("urls", lambda: b"http://a/" + b"x" * (60 << 20)),
    "zsync of zeros": ("zsync", lambda: b"zsync: 0.6.2\nFilename: x\nBlocksize: 64\nLength: 999999999\n"
                       b"Hash-Lengths: 2,4,16\nURL: x\nSHA-1: " + b"0" * 40 + b"\n\n" + bytes(60 << 20)),
    "zsync of many blocks": ("zsync", zsync_of_many_blocks),
}  # fmt: skip

# -- answers ----------------------------------------------------------------------------------------------------------


def endless(x: Exchange) -> None:
    x.head("200 OK", Transfer_Encoding="chunked")
    while True:
        x.send(b"10000\r\n" + bytes(65536) + b"\r\n")


def many_headers(x: Exchange) -> None:
    x.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        x.send(b"X: " + b"y" * 60_000 + b"\r\n")


def endless_line(x: Exchange) -> None:
    while True:
        x.send(b"x" * 65536)


def cookies(x: Exchange) -> None:
    fields = b"".join(b"Set-Cookie: c%d-%d=%s\r\n" % (x.number, each, b"v" * 500) for each in range(90))
    x.send(b"HTTP/1.1 302 Found\r\n" + fields + b"Location: /%d\r\nContent-Length: 0\r\n\r\n" % x.number)


def endless_redirect(x: Exchange) -> None:
    x.head("302 Found", Location=f"/{x.number}", Transfer_Encoding="chunked")
    while True:
        x.send(b"10000\r\n" + bytes(65536) + b"\r\n")


ANSWERS = {
    "endless body": endless,
    "endless headers": many_headers,
    "endless status line": endless_line,
    "cookies": cookies,
    "endless redirect": endless_redirect,
}

USABLE = {"index that expands", "index of ones"}  # there is another index
SHORT = {"manifest of directories"}


def sync(url: str, dest: Path, kind: str) -> tuple[int, float]:
    """Exit code and peak in MB."""
    return peak_mb("sync", "--quiet", url, dest, "--type", kind)


@pytest.mark.parametrize("case", [each for each in (*RELEASES, *SOURCES, *ANSWERS) if LONG or each in SHORT])
def test_memory_is_bounded(cases: Cases, tmp_path: Path, case: str) -> None:
    """An error, in little memory."""
    if case in RELEASES:
        site = Site(tmp_path)
        RELEASES[case](site)
        with Server(site.root) as server:
            code, peak = sync(server.url, tmp_path / "tree", "release")
    elif case in SOURCES:
        kind, make = SOURCES[case]
        (tmp_path / "source").write_bytes(make())
        write_tree(tmp_path / "tree", {"x": random.Random(2).randbytes(1 << 20)})
        with Server(tmp_path) as server:
            code, peak = sync(server.url + "source", tmp_path / "tree", kind)
    else:
        with MisbehavingServer(ANSWERS[case]) as misbehaving:
            code, peak = sync(misbehaving.url, tmp_path / "tree", "release")
    cases.ends["MB"] = round(peak)
    assert peak < BOUNDS_OF_LARGE_MB.get(case, BOUND_MB)
    assert code == 1 or case in USABLE
