"""Servers that get ranges and validators wrong: right bytes or a typed error, and no wrong file."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit import (
    IntegrityError,
    RemoteChangedError,
    Toolkit,
    TransferError,
)
from tests.support.fakes import Exchange, Handler, MisbehavingServer
from tests.support.misbehaviour import BODY, OTHER, SHA256, assert_fails, assert_right, cut_at_half, fetch

pytestmark = pytest.mark.usefixtures("bounded_time")


Start = Callable[..., MisbehavingServer]


def test_200_to_every_range(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """A server without ranges: right bytes, and no range is tried again and again."""
    server = misbehaving(lambda x: x.respond("200 OK", BODY, ETag='"v1"'))
    fetch(kit, server, tmp_path)
    assert_right(tmp_path)
    assert sum(each.range is not None for each in server.requests) <= 2


def test_no_ranges_by_its_own_word(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """`Accept-Ranges: none` is believed."""
    server = misbehaving(lambda x: x.respond("200 OK", BODY, ETag='"v1"', Accept_Ranges="none"))
    assert fetch(kit, server, tmp_path).segments == 1
    assert_right(tmp_path)
    assert len(server.requests) == 1


def test_200_to_later_ranges_only(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """206 at first, then 200 to every segment: the first stream goes on to the end."""

    def handler(x: Exchange) -> None:
        if x.number == 1:
            x.serve(BODY, pause=lambda: x.server.wait_for(2))
        else:
            x.respond("200 OK", BODY, ETag='"v1"')

    fetch(kit, misbehaving(handler), tmp_path)
    assert_right(tmp_path)


def test_200_at_an_offset_after_a_cut(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """The stream breaks, and the server has forgotten how to do ranges: the file is fetched from its start."""

    def handler(x: Exchange) -> None:
        if x.number == 1:
            x.head("200 OK", Content_Length=str(len(BODY)), ETag='"v1"')
            x.send(BODY[:300_000])
            x.hang_up()
        else:
            x.respond("200 OK", BODY, ETag='"v1"')

    fetch(kit, misbehaving(handler), tmp_path)
    assert_right(tmp_path)


def partial(change: Callable[[int, int, int], tuple[int, int, int]]) -> Handler:
    """Right to the first request; to later ones a 206 whose start, end and total are changed, with bytes to match."""

    def handler(x: Exchange) -> None:
        if x.number == 1:
            return x.serve(BODY, pause=lambda: x.server.wait_for(2))
        if x.asked.range is None:
            return x.serve(BODY)
        start, end, total = change(x.asked.range[0], x.asked.range[1] or len(BODY), len(BODY))
        x.head(
            "206 Partial Content",
            Content_Length=str(end - start),
            ETag='"v1"',
            Content_Range=f"bytes {start}-{end - 1}/{total}",
        )
        return x.send(BODY[start:end])

    return handler


def test_206_that_starts_earlier(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """The overlap is skipped."""
    fetch(kit, misbehaving(partial(lambda start, end, total: (max(0, start - 5000), end, total))), tmp_path)
    assert_right(tmp_path)


def test_206_that_starts_later(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Bytes are missing: refused, and the first stream brings the rest."""
    fetch(kit, misbehaving(partial(lambda start, end, total: (start + 7, end, total))), tmp_path)
    assert_right(tmp_path)


def test_206_that_ends_short(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Legal: the rest is asked for again."""
    fetch(kit, misbehaving(partial(lambda start, end, total: (start, min(end, start + 20_000), total))), tmp_path)
    assert_right(tmp_path)


def test_206_that_ends_short_without_a_validator(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """The rest may be of another version: the file is asked for in one piece."""

    def handler(x: Exchange) -> None:
        if x.asked.range is None:
            return x.respond("200 OK", BODY)
        body = bytes(len(BODY)) if x.number == 1 else BODY
        start, end = x.asked.range[0], x.asked.range[0] + len(BODY) // 2
        x.head(
            "206 Partial Content",
            Content_Length=str(len(body[start:end])),
            Content_Range=f"bytes {start}-{min(end, len(BODY)) - 1}/{len(BODY)}",
        )
        return x.send(body[start:end])

    fetch(kit, misbehaving(handler), tmp_path)
    assert_right(tmp_path)


def test_206_that_ends_past_what_was_asked(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """None of it is used: the file comes without ranges then."""

    def handler(x: Exchange) -> None:
        if x.asked.range is None:
            return x.serve(BODY, pause=lambda: x.server.wait_for(2))
        first = (x.asked.range[1] or len(BODY)) - 5
        x.head("206 Partial Content", ETag='"v1"', Content_Length="10", Content_Range=f"bytes {first}-{first + 9}/*")
        x.send(b"X" * 10)

    server = misbehaving(handler)
    fetch(kit, server, tmp_path)
    assert_right(tmp_path)
    assert any(each.range for each in server.requests)


def test_206_that_states_another_total(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Another total is another file: start over once, then say that it keeps changing."""

    def handler(x: Exchange) -> None:
        if x.asked.range is None:
            return x.serve(BODY, pause=lambda: x.server.wait_for(x.number + 1))
        start, end, total = x.asked.range[0], x.asked.range[1] or len(BODY), len(BODY) + x.number
        x.head(
            "206 Partial Content",
            Content_Length=str(end - start),
            Content_Range=f"bytes {start}-{end - 1}/{total}",
            ETag='"v1"',
        )
        x.send(BODY[start : start + 100_000])
        x.server.wait_for(x.number + 1)
        return x.send(BODY[start + 100_000 : end])

    assert_fails(kit, misbehaving(handler), tmp_path, RemoteChangedError)


def test_206_without_a_total(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """`bytes 0-99/*` does not tell where the file ends: it is asked for without a range."""

    def handler(x: Exchange) -> None:
        if x.asked.range is None:
            return x.respond("200 OK", BODY, ETag='"v1"')
        x.head("206 Partial Content", Content_Length="100", Content_Range="bytes 0-99/*", ETag='"v1"')
        x.send(BODY[:100])

    fetch(kit, misbehaving(handler), tmp_path)
    assert_right(tmp_path)


def test_206_with_contradicting_length(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Content-Length and Content-Range that disagree are both worthless."""

    def handler(x: Exchange) -> None:
        x.head("206 Partial Content", Content_Length="500", Content_Range=f"bytes 0-{len(BODY) - 1}/{len(BODY)}")
        x.send(BODY[:500])

    assert_fails(kit, misbehaving(handler), tmp_path, TransferError)


def test_etag_that_changes_between_segments(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """The file is replaced at the origin in the middle: everything comes from the new version."""
    state = {"changed": False}

    def handler(x: Exchange) -> None:
        if x.number == 1:
            x.serve(BODY, pause=lambda: x.server.wait_for(2))
        elif not state["changed"]:
            state["changed"] = True
            x.respond("412 Precondition Failed")
        else:
            x.serve(OTHER, etag='"v2"')

    fetch(kit, misbehaving(handler), tmp_path)
    assert_right(tmp_path, OTHER)


def test_etag_that_changes_without_a_412(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """A server that ignores If-Match is found out by the ETag of its 206."""

    def handler(x: Exchange) -> None:
        if x.number == 1:
            return x.serve(BODY, pause=lambda: x.server.wait_for(2))
        x.asked.headers.pop("if-match", None)
        x.serve(OTHER, etag='"v2"')

    fetch(kit, misbehaving(handler), tmp_path)
    assert_right(tmp_path, OTHER)


def test_etag_that_changes_with_every_answer(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """A file that never holds still is an error of its own."""

    def handler(x: Exchange) -> None:
        x.asked.headers.pop("if-match", None)
        x.serve(BODY, etag=f'"v{x.number}"', pause=x.stall)

    assert_fails(kit, misbehaving(handler), tmp_path, RemoteChangedError)


def test_body_that_changes_under_the_same_etag(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """A lie that no validator shows; a checksum does."""

    def handler(x: Exchange) -> None:
        if x.number == 1:
            x.serve(BODY, pause=lambda: x.server.wait_for(2))
        else:
            x.serve(OTHER)

    assert_fails(kit, misbehaving(handler), tmp_path, IntegrityError, checksum=SHA256)


def test_weak_etag_is_no_validator(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """With a weak ETag only, nothing is fetched in parts and nothing is resumed: a cut stream starts over."""

    def handler(x: Exchange) -> None:
        if x.number == 1:
            x.head("200 OK", Content_Length=str(len(BODY)), ETag='W/"v1"')
            x.send(OTHER[:500_000])
            x.hang_up()
        else:
            assert "if-range" not in x.asked.headers
            assert "if-match" not in x.asked.headers
            x.serve(BODY, etag='W/"v1"')

    server = misbehaving(handler)
    assert fetch(kit, server, tmp_path).segments == 1
    assert_right(tmp_path)
    assert [asked.range for asked in server.requests] == [None, None]


def test_gzip_coded_range(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Coded bytes are no bytes of the file: it is asked for again as one stream."""
    coded = gzip.compress(BODY)

    def handler(x: Exchange) -> None:
        if x.asked.range is not None:
            x.respond(
                "206 Partial Content",
                coded,
                Content_Encoding="gzip",
                ETag='"v1"',
                Content_Range=f"bytes 0-{len(coded) - 1}/{len(coded)}",
            )
        else:
            x.respond("200 OK", BODY, ETag='"v1"')

    fetch(kit, misbehaving(handler), tmp_path)
    assert_right(tmp_path)


def test_gzip_whatever_is_asked(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """A server that always codes: an error, unless a checksum says that the bytes are right as they are."""
    coded = gzip.compress(BODY)
    server = misbehaving(lambda x: x.respond("200 OK", coded, Content_Encoding="gzip"))
    assert_fails(kit, server, tmp_path, TransferError)
    fetch(kit, server, tmp_path, checksum=f"sha256:{hashlib.sha256(coded).hexdigest()}")
    assert_right(tmp_path, coded)


def test_content_range_on_a_200(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """It means nothing there: the body is the whole file."""
    server = misbehaving(lambda x: x.respond("200 OK", BODY, Content_Range="bytes 5-9/10", ETag='"v1"'))
    fetch(kit, server, tmp_path)
    assert_right(tmp_path)


def leave_half(kit: Toolkit, server: MisbehavingServer, where: Path) -> None:
    """A first run that leaves a partial file and its journal."""
    with pytest.raises(TransferError):
        fetch(kit, server, where)
    assert sorted(os.listdir(where)) == ["file.perfkit-part", "file.perfkit-part.json"]


@pytest.mark.parametrize("size", [len(BODY), len(BODY) // 3])
def test_416_to_a_resumed_range(
    make_kit: Callable[..., Toolkit], misbehaving: Start, tmp_path: Path, size: int
) -> None:
    """416 with the size we know, or with another: the file is fetched anew either way, never called complete."""
    kit = make_kit(retries=0, workers=1)
    now = BODY[:size]

    def handler(x: Exchange) -> None:
        if x.number == 1:
            cut_at_half(x)
        elif x.asked.range is not None and x.asked.range[0] > 0:
            x.respond("416 Range Not Satisfiable", Content_Range=f"bytes */{size}")
        else:
            x.serve(now, etag='"v2"')

    server = misbehaving(handler)
    leave_half(kit, server, tmp_path)
    fetch(kit, server, tmp_path)
    assert_right(tmp_path, now)


def test_multipart_answer(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Nobody asked for multipart/byteranges."""
    body = b"--x\r\nContent-Range: bytes 0-9/10\r\n\r\n0123456789\r\n--x--\r\n"
    server = misbehaving(
        lambda x: x.respond("206 Partial Content", body, Content_Type="multipart/byteranges; boundary=x")
    )
    assert_fails(kit, server, tmp_path, TransferError)
