"""`sync` from servers that answer to ranges in ways of their own: one plain GET decides, and the tree is right."""

from __future__ import annotations

import gzip
import hashlib
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit import Toolkit
from perfkit.archives.members import Selection
from tests.support.archive_tools import make_tar, make_zip
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.sites import publish
from tests.support.tools import need
from tests.support.trees import Tree, tree_of

pytestmark = pytest.mark.once

Start = Callable[..., MisbehavingServer]
Files = dict[str, bytes]  # by path on the server
RNG = random.Random(9)
OLD = {f"f{number}": RNG.randbytes(9000) for number in range(20)}
NEW = {**OLD, "f3": RNG.randbytes(9000), "new": b"new", "empty": b""}


def tag(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()}"'


def refused(status: str) -> Callable[[Exchange, bytes], None]:
    return lambda x, body: x.respond(status)


def slice_without(**headers: str) -> Callable[[Exchange, bytes], None]:
    """The right bytes with status 206, and this Content-Range, or none."""

    def answer(exchange: Exchange, body: bytes) -> None:
        start, end = exchange.asked.range or (0, None)
        exchange.respond("206 Partial Content", body[start:end], ETag=tag(body), **headers)

    return answer


def short(exchange: Exchange, body: bytes) -> None:
    """Less than was asked, said rightly."""
    start, end = exchange.asked.range or (0, None)
    part = body[start : min(end or len(body), start + 3000)]
    span = f"bytes {start}-{start + len(part) - 1}/{len(body)}"
    exchange.respond("206 Partial Content", part, ETag=tag(body), Content_Range=span)


def parts(exchange: Exchange, body: bytes) -> None:
    start, end = exchange.asked.range or (0, None)
    head = f"--b\r\nContent-Range: bytes {start}-{(end or len(body)) - 1}/{len(body)}\r\n\r\n".encode()
    kind = "multipart/byteranges; boundary=b"
    exchange.respond("206 Partial Content", head + body[start:end] + b"\r\n--b--\r\n", Content_Type=kind)


ODD = {
    **{f"{status.partition(' ')[0]} to ranges": refused(status) for status in (
        "204 No Content", "400 Bad Request", "403 Forbidden", "405 Not Allowed", "406 Not Acceptable",
        "416 Range Not Satisfiable", "500 Error", "501 Not Implemented",
    )},
    "no Content-Range": slice_without(),
    "no unit": slice_without(Content_Range="0-99/100"),
    "no numbers": slice_without(Content_Range="bytes */*"),
    "negative": slice_without(Content_Range="bytes 0--1/0"),
    "short": short,
    "multipart": parts,
    "the whole file": lambda x, body: x.respond("200 OK", body, ETag=tag(body)),
    "the whole file as a range": lambda x, body: x.respond(
        "206 Partial Content", body, ETag=tag(body), Content_Range=f"bytes 0-{len(body) - 1}/{len(body)}"),
}  # fmt: skip


NAMES = {"zip": "x.zip", "tar": "x.tar.gz", "zsync": "x.bin.zsync", "release": ""}


@pytest.fixture(scope="module", params=NAMES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Files]]:
    """A kind of source, and what a server has of it for OLD, and then for NEW."""
    kind, root = request.param, tmp_path_factory.mktemp("served")
    return kind, [files_of(kind, root, tree, str(version)) for version, tree in enumerate((OLD, NEW))]


def files_of(kind: str, root: Path, tree: Tree, version: str) -> Files:
    if kind == "zip":
        return {"x.zip": make_zip(tree)}
    if kind == "tar":
        return {"x.tar.gz": make_tar(tree, mode="w:gz")}
    if kind == "zsync":
        pytest.importorskip("numpy")
        need("zsyncmake")
        (root / "x.bin").write_bytes(b"".join(tree.values()))
        command = ["zsyncmake", "-u", "x.bin", "-o", "x.bin.zsync", "x.bin"]
        subprocess.run(command, cwd=root, check=True, capture_output=True)
        return {name: (root / name).read_bytes() for name in ("x.bin", "x.bin.zsync")}
    with Toolkit() as kit:
        site = publish(kit, root, tree, version)
    return {str(path.relative_to(site)): path.read_bytes() for path in site.rglob("*") if path.is_file()}


@pytest.mark.parametrize("oddity", ODD)
def test_the_tree_is_right(
    kit: Toolkit, misbehaving: Start, tmp_path: Path, served: tuple[str, list[Files]], oddity: str
) -> None:
    """Install and update."""
    kind, versions = served
    files: Files = {}

    def handler(exchange: Exchange) -> None:
        body = files.get(exchange.asked.path.lstrip("/"))
        if body is None:
            return exchange.respond("404 Not Found")
        if exchange.asked.headers.get("if-none-match") == tag(body):
            return exchange.respond("304 Not Modified", ETag=tag(body))
        if exchange.asked.range:
            return ODD[oddity](exchange, body)
        return exchange.serve(body, etag=tag(body))

    server = misbehaving(handler)
    for tree, now in zip((OLD, NEW), versions, strict=True):
        files.update(now)
        kit.sync(f"{server.url}/{NAMES[kind]}", tmp_path / "tree")
        assert tree_of(tmp_path / "tree") == ({"x.bin": files["x.bin"]} if kind == "zsync" else tree)


def test_one_warning(kit: Toolkit, misbehaving: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """However many ranges are refused."""
    site = publish(kit, tmp_path, OLD, "1")
    server = misbehaving(lambda x: x.respond("200 OK", (site / x.asked.path[1:]).read_bytes()))
    kit.sync(server.url, tmp_path / "tree", type="release", selection=Selection(include=("f0", "f10", "f19")))
    assert sum(asked.range is not None for asked in server.requests) > 1
    assert caplog.text.count("falling back to whole packs") == 1


@pytest.mark.parametrize("coding", ["gzip", "x-gzip"])
def test_packed_tars_that_are_labelled(kit: Toolkit, misbehaving: Start, tmp_path: Path, coding: str) -> None:
    """Update, repair and an unchanged one, where the server calls the packing a content coding."""
    body = [make_tar(OLD, mode="w:gz")]

    def handler(exchange: Exchange) -> None:
        etag = tag(body[0])
        if exchange.asked.headers.get("if-none-match") == etag:
            return exchange.respond("304 Not Modified", ETag=etag)
        return exchange.serve(body[0], etag=etag, Content_Encoding=coding)

    url = f"{misbehaving(handler).url}/x.tar.gz"
    kit.sync(url, tmp_path / "tree")
    assert kit.sync(url, tmp_path / "tree").route == "none"
    body[0] = gzip.compress(make_tar(NEW))
    kit.sync(url, tmp_path / "tree")
    (tmp_path / "tree/f1").unlink()
    assert kit.verify(tmp_path / "tree", repair=True).intact
    assert tree_of(tmp_path / "tree") == NEW
