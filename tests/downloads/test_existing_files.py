"""What is there already: asked about, kept, or fetched anew."""

from __future__ import annotations

import os
from pathlib import Path

from perfkit import (
    Toolkit,
)
from tests.support.fakes import Exchange, Start, http_date
from tests.support.network import BODY, SHA256, serve_body


def test_refresh_asks_whether_the_file_changed(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    """A 304 leaves the file alone; a new version replaces it."""
    version = ['"v1"', BODY]

    def handler(x: Exchange) -> None:
        if x.asked.headers.get("if-none-match") == version[0]:
            x.head("304 Not Modified", ETag=str(version[0]))
        else:
            x.serve(version[1], etag=version[0])  # type: ignore[arg-type]

    server = misbehaving(handler)
    kit.download(f"{server.url}/f", out / "f")
    inode = (out / "f").stat().st_ino
    count = len(server.requests)
    again = kit.download(f"{server.url}/f", out / "f")
    assert (again.unchanged, again.bytes_received, again.bytes, again.requests) == (True, 0, len(BODY), 1)
    assert len(server.requests) == count + 1
    assert (out / "f").stat().st_ino == inode
    version[:] = ['"v2"', BODY[::-1]]
    assert not kit.download(f"{server.url}/f", out / "f").unchanged
    assert (out / "f").read_bytes() == BODY[::-1]


def test_refresh_by_date_without_a_tag(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    modified = http_date(-3600)

    def handler(x: Exchange) -> None:
        if x.asked.headers.get("if-modified-since") == modified:
            x.head("304 Not Modified")
        else:
            x.serve(BODY, etag=None, Last_Modified=modified, Date=http_date(0))

    server = misbehaving(handler)
    kit.download(f"{server.url}/f", out / "f")
    assert kit.download(f"{server.url}/f", out / "f").unchanged


def test_a_file_touched_by_others_is_fetched_anew(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    """The conditional request is about the file that was downloaded, not one edited since."""
    server = misbehaving(serve_body)
    kit.download(f"{server.url}/f", out / "f")
    (out / "f").write_bytes(b"edited")
    kit.download(f"{server.url}/f", out / "f")
    assert (out / "f").read_bytes() == BODY
    assert not any("if-none-match" in each.headers for each in server.requests)


def test_a_file_that_has_the_checksum_is_not_requested(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    server = misbehaving(serve_body)
    (out / "f").write_bytes(BODY)
    same = kit.download(f"{server.url}/f", out / "f", checksum=SHA256)
    assert (same.unchanged, same.requests) == (True, 0)
    assert server.requests == []


def test_no_resume_fetches_everything(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    server = misbehaving(serve_body)
    (out / "f").write_bytes(BODY)
    assert not kit.download(f"{server.url}/f", out / "f", checksum=SHA256, resume=False).unchanged
    assert server.requests


def test_the_mode_of_a_replaced_file_stays(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    (out / "f").write_bytes(b"old")
    (out / "f").chmod(0o640)
    kit.download(f"{misbehaving(serve_body).url}/f", out / "f")
    assert (out / "f").stat().st_mode & 0o777 == 0o640


def test_the_mode_of_a_new_file_follows_the_umask(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    before = os.umask(0o027)
    try:
        kit.download(f"{misbehaving(serve_body).url}/f", out / "f")
    finally:
        os.umask(before)
    assert (out / "f").stat().st_mode & 0o777 == 0o640
