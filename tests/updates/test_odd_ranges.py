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
from tests.support.archive_tools import make_tar, make_zip
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.sites import publish
from tests.support.tools import need
from tests.support.trees import tree_of

Start = Callable[..., MisbehavingServer]
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


@pytest.mark.parametrize("kind", ["zip", "tar", "zsync", "release"])
@pytest.mark.parametrize("oddity", ODD)
def test_the_tree_is_right(kit: Toolkit, misbehaving: Start, tmp_path: Path, kind: str, oddity: str) -> None:
    """Install and update."""
    files: dict[str, bytes] = {}

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
    names = {"zip": "x.zip", "tar": "x.tar.gz", "zsync": "x.bin.zsync", "release": ""}
    for version, tree in enumerate((OLD, NEW)):
        if kind == "zip":
            files["x.zip"] = make_zip(tree)
        elif kind == "tar":
            files["x.tar.gz"] = make_tar(tree, mode="w:gz")
        elif kind == "zsync":
            pytest.importorskip("numpy")
            need("zsyncmake")
            files["x.bin"] = b"".join(tree.values())
            (tmp_path / "x.bin").write_bytes(files["x.bin"])
            command = ["zsyncmake", "-u", "x.bin", "-o", "x.bin.zsync", "x.bin"]
            subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
            files["x.bin.zsync"] = (tmp_path / "x.bin.zsync").read_bytes()
        else:
            site = publish(kit, tmp_path, tree, str(version))
            files.update({str(path.relative_to(site)): path.read_bytes() for path in site.rglob("*") if path.is_file()})
        kit.sync(f"{server.url}/{names[kind]}", tmp_path / "tree")
        expected = {"x.bin": files["x.bin"]} if kind == "zsync" else tree
        assert tree_of(tmp_path / "tree") == expected


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
