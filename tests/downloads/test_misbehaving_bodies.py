"""Servers whose bodies end early, never, or with other bytes: right bytes or a typed error, and no wrong file."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from perfkit import (
    IntegrityError,
    Toolkit,
    TransferError,
    TransferTimeoutError,
)
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.kits import SHORT_TIMEOUTS
from tests.support.misbehaviour import BODY, OTHER, SHA256, assert_fails, assert_right, cut_at_half, fetch
from tests.support.tools import first_everywhere

pytestmark = pytest.mark.usefixtures("bounded_time")


Start = Callable[..., MisbehavingServer]


# -- bodies ------------------------------------------------------------------------------------------------------------


def test_body_cut_short_is_resumed(make_kit: Callable[..., Toolkit], misbehaving: Start, tmp_path: Path) -> None:
    """The rest is fetched, not the whole."""
    server = misbehaving(lambda x: cut_at_half(x) if x.number == 1 else x.serve(BODY))
    result = fetch(make_kit(workers=1), server, tmp_path)
    assert_right(tmp_path)
    assert result.bytes_received == len(BODY)
    assert result.retries == 1
    assert server.requests[1].range == (len(BODY) // 2, None)


def test_body_always_cut_short(make_kit: Callable[..., Toolkit], misbehaving: Start, tmp_path: Path) -> None:
    """A 200 that always ends early is an error, and what it left is removed: nothing could resume it."""

    def handler(x: Exchange) -> None:
        x.head("200 OK", Content_Length=str(len(BODY)))
        x.send(BODY[:1000])
        x.hang_up()

    assert_fails(make_kit(), misbehaving(handler), tmp_path, TransferError)


def test_body_too_long(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """What follows the declared length is not the file's, and spoils no later request."""

    def handler(x: Exchange) -> None:
        x.head("200 OK", Content_Length=str(len(BODY)))
        x.send(BODY + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")

    server = misbehaving(handler)
    fetch(kit, server, tmp_path)
    assert_right(tmp_path)
    kit.download(f"{server.url}/file", tmp_path / "again", resume=False)
    assert (tmp_path / "again").read_bytes() == BODY


def test_reset_in_the_middle(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """A TCP reset is retried from where it struck."""

    def handler(x: Exchange) -> None:
        if x.number == 1:
            x.head("200 OK", Content_Length=str(len(BODY)), ETag='"v1"')
            x.send(BODY[:200_000])
            x.server.wait_for(2, 0.3)
            x.reset()
        else:
            x.serve(BODY)

    fetch(kit, misbehaving(handler), tmp_path)
    assert_right(tmp_path)


def test_a_byte_a_second(make_kit: Callable[..., Toolkit], misbehaving: Start, tmp_path: Path) -> None:
    """A drip is a stall: given up in bounded time."""

    def handler(x: Exchange) -> None:
        x.head("200 OK", Content_Length=str(len(BODY)))
        x.drip(BODY, 0.3)

    assert_fails(make_kit(**SHORT_TIMEOUTS), misbehaving(handler), tmp_path, TransferTimeoutError)


def test_drip_is_overtaken(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """One connection drips; the rest of the file, and then the drip's own range, come by the others."""

    def handler(x: Exchange) -> None:
        if x.number == 1:
            x.head("200 OK", Content_Length=str(len(BODY)), ETag='"v1"')
            x.drip(BODY, 0.3)
        else:
            x.serve(BODY)

    fetch(kit, misbehaving(handler), tmp_path)
    assert_right(tmp_path)


def test_stalled_for_ever(make_kit: Callable[..., Toolkit], misbehaving: Start, tmp_path: Path) -> None:
    """Silence in the middle of a body is a time-out."""

    def handler(x: Exchange) -> None:
        x.head("200 OK", Content_Length=str(len(BODY)))
        x.send(BODY[:100])
        x.stall()

    assert_fails(make_kit(**SHORT_TIMEOUTS), misbehaving(handler), tmp_path, TransferTimeoutError)


def test_silence_instead_of_an_answer(make_kit: Callable[..., Toolkit], misbehaving: Start, tmp_path: Path) -> None:
    """A server that takes requests and never answers is a time-out."""
    kit = make_kit(**SHORT_TIMEOUTS)
    assert_fails(kit, misbehaving(lambda x: x.stall()), tmp_path, TransferTimeoutError)


def test_chunked_body(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """No length, and an end that is marked."""

    def handler(x: Exchange) -> None:
        x.head("200 OK", Transfer_Encoding="chunked")
        for start in range(0, len(BODY), 70_000):
            chunk = BODY[start : start + 70_000]
            x.send(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        x.send(b"0\r\n\r\n")

    fetch(kit, misbehaving(handler), tmp_path)
    assert_right(tmp_path)


def test_chunked_body_cut_short(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Without its last chunk a body is not whole."""

    def handler(x: Exchange) -> None:
        x.head("200 OK", Transfer_Encoding="chunked")
        x.send(b"2710\r\n" + BODY[:10_000] + b"\r\n")
        x.hang_up()

    assert_fails(kit, misbehaving(handler), tmp_path, TransferError)


def test_body_that_ends_with_the_connection(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Neither length nor chunks: taken, and reported as what nobody can verify."""

    def handler(x: Exchange) -> None:
        x.head("200 OK", Connection="close")
        x.send(BODY)
        x.hang_up()

    result = fetch(kit, misbehaving(handler), tmp_path)
    assert_right(tmp_path)
    assert not result.length_known


@pytest.mark.parametrize("length", ["-5", "12abc", "99999999999999999999999", "", "5, 6"])
def test_content_length_that_is_none(kit: Toolkit, misbehaving: Start, tmp_path: Path, length: str) -> None:
    """A length that is no number never becomes a file."""

    def handler(x: Exchange) -> None:
        x.head("206 Partial Content", Content_Length=length, Content_Range=f"bytes 0-{len(BODY) - 1}/{len(BODY)}")
        x.send(BODY[:3])
        x.hang_up()

    assert_fails(kit, misbehaving(handler), tmp_path, TransferError)


def test_two_content_lengths(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Two lengths that differ are the beginning of request smuggling (RFC 9112 section 6.3)."""

    def handler(x: Exchange) -> None:
        x.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde")

    assert_fails(kit, misbehaving(handler), tmp_path, TransferError)


# -- promises ----------------------------------------------------------------------------------------------------------


def test_wrong_checksum(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """The error has both digests."""
    error = assert_fails(kit, misbehaving(lambda x: x.serve(OTHER)), tmp_path, IntegrityError, checksum=SHA256)
    assert isinstance(error, IntegrityError)
    assert error.expected == SHA256
    assert error.actual == f"sha256:{hashlib.sha256(OTHER).hexdigest()}"


@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512"])
def test_repr_digest(kit: Toolkit, misbehaving: Start, tmp_path: Path, algorithm: str) -> None:
    """A true Repr-Digest (RFC 9530) is verified and reported; a lying one is an error."""
    make = hashlib.new(algorithm.replace("-", ""), BODY)
    field = f"{algorithm}=:{base64.b64encode(make.digest()).decode()}:"
    result = fetch(kit, misbehaving(lambda x: x.serve(BODY, Repr_Digest=field)), tmp_path)
    assert_right(tmp_path)
    assert result.checksum == f"{make.name}:{make.hexdigest()}"
    error = assert_fails(kit, misbehaving(lambda x: x.serve(OTHER, Repr_Digest=field)), tmp_path, IntegrityError)
    assert "the server's Repr-Digest does not match" in str(error)


def test_unreadable_repr_digest(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """What can't be read, or is of no known strength, promises nothing."""
    fields = "sha-256=:!!!:, md5=:AAAA:, sha-512=abc, unixsum=:AQ==:, ,=,sha-256=:AAAA:"
    assert fetch(kit, misbehaving(lambda x: x.serve(BODY, Repr_Digest=fields)), tmp_path).checksum is None
    assert_right(tmp_path)


# -- what comes with a body and is none of it --------------------------------------------------------------------------


def drips(x: Exchange, data: bytes, every_s: float) -> None:
    """The data again and again, until the client goes."""
    with contextlib.suppress(OSError):
        while not x.server.stopped.wait(every_s):
            x.send(data)
    x.keep = False


@pytest.mark.parametrize(
    ("before", "drip"),
    [
        pytest.param(b"5;", b"x", id="an extension"),
        pytest.param(b"5\r\nhello\r\n5", b" ", id="the end of a size", marks=pytest.mark.once),
        pytest.param(b"5\r\nhello\r\n0\r\nX: ", b"y", id="a field of the trailer", marks=pytest.mark.once),
        pytest.param(b"5\r\nhello\r\n0\r\n", b"X: y\r\n", id="fields of the trailer", marks=pytest.mark.once),
    ],
)
def test_a_drip_between_chunks(
    make_kit: Callable[..., Toolkit], misbehaving: Start, tmp_path: Path, before: bytes, drip: bytes
) -> None:
    """Given up as overdue, though something always comes."""

    def handler(x: Exchange) -> None:
        x.head("200 OK", Transfer_Encoding="chunked")
        x.send(before)
        drips(x, drip, 0.2)

    server = misbehaving(handler)
    assert_fails(make_kit(**SHORT_TIMEOUTS, retries=1), server, tmp_path, TransferTimeoutError)
    assert len(server.requests) >= 2


@pytest.mark.parametrize(("extension_bytes", "good"), [(0, True), (100, True), (5000, False), (60_000, False)])
def test_chunk_extensions(
    make_kit: Callable[..., Toolkit], misbehaving: Start, tmp_path: Path, extension_bytes: int, good: bool
) -> None:
    """More of them than of the body is refused, before much of it has come."""

    def handler(x: Exchange) -> None:
        x.head("200 OK", Transfer_Encoding="chunked")
        extension = b";" + b"x" * extension_bytes if extension_bytes else b""
        with contextlib.suppress(OSError):
            for start in range(0, len(BODY), 1000):
                chunk = BODY[start : start + 1000]
                x.send(b"%x%s\r\n%s\r\n" % (len(chunk), extension, chunk))
            x.send(b"0\r\n\r\n")
        x.keep = good

    server = misbehaving(handler)
    if good:
        fetch(make_kit(), server, tmp_path)
        assert_right(tmp_path)
    else:
        assert "more extensions and trailers than body" in str(
            assert_fails(make_kit(), server, tmp_path, TransferError)
        )


@pytest.mark.parametrize("with_session", first_everywhere(False, True))
def test_a_drip_in_the_body_of_a_redirect(
    make_kit: Callable[..., Toolkit], misbehaving: Start, tmp_path: Path, with_session: bool
) -> None:
    """Nobody waits for the rest of it: the target is asked."""

    def handler(x: Exchange) -> None:
        if x.asked.path != "/file":
            return x.serve(BODY)
        x.head("302 Found", Location="/target", Content_Length="60000")
        return drips(x, b"x", 0.3)

    server = misbehaving(handler)
    fetch(make_kit(requests.Session() if with_session else None, segments=1), server, tmp_path)
    assert_right(tmp_path)
    assert [each.path for each in server.requests] == ["/file", "/target"]
