"""One wrong behaviour a test: right bytes or a typed error, in bounded time, and no wrong file under the final name."""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perfkit import (
    Download,
    HTTPStatusError,
    IntegrityError,
    RemoteChangedError,
    Request,
    Toolkit,
    TransferError,
    TransferTimeoutError,
)
from tests.support.fakes import Exchange, Handler, MisbehavingServer, http_date

BODY = random.Random(4).randbytes(1 << 20)
OTHER = random.Random(5).randbytes(1 << 20)
SHA256 = f"sha256:{hashlib.sha256(BODY).hexdigest()}"

Start = Callable[..., MisbehavingServer]


@pytest.fixture(autouse=True)
def bounded_time() -> Iterator[None]:
    """Every wrong server is dealt with in bounded time."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 15


def fetch(kit: Toolkit, server: MisbehavingServer, where: Path, **options: object) -> Download:
    return kit.download(f"{server.url}/file", where / "file", **options)  # type: ignore[arg-type]


def assert_right(where: Path, body: bytes = BODY) -> None:
    assert (where / "file").read_bytes() == body
    assert os.listdir(where) == ["file"], "partial files stay behind"


def assert_fails(
    kit: Toolkit, server: MisbehavingServer, where: Path, error: type[Exception], **options: object
) -> Exception:
    """The download fails, the old file stays, and nothing else does."""
    (where / "file").write_bytes(b"old")
    with pytest.raises(error) as caught:
        fetch(kit, server, where, **options)
    assert (where / "file").read_bytes() == b"old"
    assert os.listdir(where) == ["file"], "partial files stay behind"
    return caught.value


# -- ranges --------------------------------------------------------------------------------------------------------


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
    """More than asked for is refused; where the range asked for was open, nothing is past it."""

    def handler(x: Exchange) -> None:
        if x.number == 1:
            return x.serve(BODY, pause=lambda: x.server.wait_for(4))
        assert x.asked.range is not None
        x.head("206 Partial Content", ETag='"v1"', Content_Length="10", Content_Range="bytes 900000-900009/1048576")
        x.send(BODY[900000:900010])

    with pytest.raises(TransferError):
        fetch(kit, misbehaving(handler), tmp_path)
    assert not (tmp_path / "file").exists()


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


def cut_at_half(x: Exchange) -> None:
    x.head("200 OK", Content_Length=str(len(BODY)), ETag='"v1"')
    x.send(BODY[: len(BODY) // 2])
    x.hang_up()


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


# -- bodies --------------------------------------------------------------------------------------------------------


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


def test_a_byte_a_second(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """A drip is a stall: given up in bounded time."""

    def handler(x: Exchange) -> None:
        x.head("200 OK", Content_Length=str(len(BODY)))
        x.drip(BODY, 0.3)

    assert_fails(kit, misbehaving(handler), tmp_path, TransferTimeoutError)


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


def test_stalled_for_ever(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Silence in the middle of a body is a time-out."""

    def handler(x: Exchange) -> None:
        x.head("200 OK", Content_Length=str(len(BODY)))
        x.send(BODY[:100])
        x.stall()

    assert_fails(kit, misbehaving(handler), tmp_path, TransferTimeoutError)


def test_silence_instead_of_an_answer(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """A server that takes requests and never answers is a time-out."""
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


# -- statuses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after(kit: Toolkit, misbehaving: Start, tmp_path: Path, status: str, form: str) -> None:
    """Both forms are obeyed: the next request comes no sooner."""
    times: list[float] = []

    def handler(x: Exchange) -> None:
        times.append(time.time())
        if x.number == 1:
            x.respond(status, Retry_After="1" if form == "seconds" else http_date(2))
        else:
            x.serve(BODY[:1000])

    fetch(kit, misbehaving(handler), tmp_path)
    assert_right(tmp_path, BODY[:1000])
    assert times[1] - times[0] >= 0.95


def test_retry_after_holds_for_the_whole_host(
    make_kit: Callable[..., Toolkit], misbehaving: Start, tmp_path: Path
) -> None:
    """One file is told to wait; the others of that host wait too, and those of another host do not."""
    times: list[float] = []

    def handler(x: Exchange) -> None:
        times.append(time.monotonic())
        if x.number == 1:
            x.respond("429 Too Many Requests", Retry_After="1")
        else:
            x.serve(b"x")

    busy = misbehaving(handler)
    free_times: list[float] = []
    free = misbehaving(lambda x: (free_times.append(time.monotonic()), x.serve(b"y"))[0])
    names = [(f"{busy.url}/{n}", f"busy{n}") for n in range(5)] + [(f"{free.url}/{n}", f"free{n}") for n in range(5)]
    make_kit(workers=1).download_many(names, tmp_path)
    assert times[1] - times[0] >= 0.95
    assert max(free_times) < times[1]


def test_absurd_retry_after(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """A day is not waited for: the error says what was asked."""
    server = misbehaving(lambda x: x.respond("503 Service Unavailable", Retry_After="86400"))
    error = assert_fails(kit, server, tmp_path, HTTPStatusError)
    assert "86400" in str(error)
    assert len(server.requests) == 1


@pytest.mark.parametrize("value", ["soon", "-3", "1e99", "Wed, 99 Foo 2026 99:99:99 GMT"])
def test_unreadable_retry_after(kit: Toolkit, misbehaving: Start, tmp_path: Path, value: str) -> None:
    """Nonsense is as if it were not there."""
    server = misbehaving(lambda x: x.respond("503 Nope", Retry_After=value) if x.number == 1 else x.serve(b"abc"))
    fetch(kit, server, tmp_path)
    assert_right(tmp_path, b"abc")


@pytest.mark.parametrize("status", [500, 502, 504, 408])
def test_server_errors_are_retried(kit: Toolkit, misbehaving: Start, tmp_path: Path, status: int) -> None:
    """A hiccup costs a retry."""
    server = misbehaving(lambda x: x.respond(f"{status} Hiccup") if x.number < 3 else x.serve(b"abc"))
    assert fetch(kit, server, tmp_path).retries == 2
    assert_right(tmp_path, b"abc")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451, 501])
def test_final_errors_are_not(kit: Toolkit, misbehaving: Start, tmp_path: Path, status: int) -> None:
    """Asking again would not help."""
    server = misbehaving(lambda x: x.respond(f"{status} No", b"<html>no</html>"))
    error = assert_fails(kit, server, tmp_path, HTTPStatusError)
    assert isinstance(error, HTTPStatusError)
    assert error.status == status
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", ["204 None", "205 Reset", "299 Odd", "304 Not Modified", "101 Switching", "999 X"])
def test_odd_statuses(kit: Toolkit, misbehaving: Start, tmp_path: Path, status: str) -> None:
    """What is no answer to a GET of a file becomes no file."""
    server = misbehaving(lambda x: x.respond(status))
    with pytest.raises(TransferError):
        fetch(kit, server, tmp_path)
    assert os.listdir(tmp_path) == []


# -- redirects -----------------------------------------------------------------------------------------------------


def test_redirect_loop(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Round and round is an error."""
    server = misbehaving(lambda x: x.respond("302 Found", Location="/file"))
    assert_fails(kit, server, tmp_path, TransferError)
    assert len(server.requests) <= 25


@pytest.mark.parametrize("location", ["ftp://example/x", "file:///etc/passwd", "http://[", "http://", "javascript:1"])
def test_redirect_to_nowhere(kit: Toolkit, misbehaving: Start, tmp_path: Path, location: str) -> None:
    """Only http and https are followed."""
    server = misbehaving(lambda x: x.respond("302 Found", Location=location))
    assert_fails(kit, server, tmp_path, TransferError)


def test_redirect_to_a_link_that_expires(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """A signed link dies in the middle: the original URL is resolved again, and the download goes on."""

    def handler(x: Exchange) -> None:
        if x.asked.path == "/file":
            links = sum(asked.path == "/file" for asked in x.server.requests)
            return x.respond("302 Found", Location=f"/signed-{links}")
        if x.asked.path == "/signed-1":
            if x.server.requests.count(x.asked) == 1 and x.asked.range is None:
                x.head("200 OK", Content_Length=str(len(BODY)), ETag='"v1"')
                x.send(BODY[:400_000])
                return x.hang_up()
            return x.respond("403 Forbidden", b"expired")
        return x.serve(BODY)

    server = misbehaving(handler)
    result = fetch(kit, server, tmp_path)
    assert_right(tmp_path)
    assert result.bytes_received < len(BODY) * 1.3
    assert any(asked.path == "/signed-2" for asked in server.requests)


def test_secrets_stay_with_their_origin(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Authorization, cookies and headers of the caller's own do not follow a redirect to another origin."""
    other = misbehaving(lambda x: x.serve(b"abc"))
    first = misbehaving(lambda x: x.respond("302 Found", Location=f"{other.url}/there"))
    headers = {"Authorization": "Bearer s", "Cookie": "s=1", "X-Api-Key": "s", "Accept": "text/x"}
    fetch(kit, first, tmp_path, headers=headers)
    assert_right(tmp_path, b"abc")
    assert {name: first.requests[0].headers[name.lower()] for name in headers} == headers
    leaked = set(other.requests[0].headers) & {"authorization", "cookie", "x-api-key"}
    assert not leaked
    assert other.requests[0].headers["accept"] == "text/x"


def test_secrets_stay_when_segments_go_straight_to_the_target(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Later segments skip the redirect, and take no secrets along either."""
    other = misbehaving(lambda x: x.serve(BODY, pause=lambda: x.server.wait_for(2)))
    first = misbehaving(lambda x: x.respond("302 Found", Location=f"{other.url}/there"))
    assert fetch(kit, first, tmp_path, headers={"X-Api-Key": "s"}).segments > 1
    assert_right(tmp_path)
    assert all("x-api-key" not in asked.headers for asked in other.requests)
    assert len(other.requests) > 1


def test_request_auth_stays_with_its_origin(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Credentials of one request go to its URL, and neither to mirrors elsewhere nor along redirects."""
    mirror = misbehaving(lambda x: x.serve(b"abc"))
    first = misbehaving(lambda x: x.respond("404 Not Found"))
    request = Request(f"{first.url}/file", "file", mirrors=(f"{mirror.url}/file",), auth=("me", "secret"))
    kit.download_many([request], tmp_path)
    assert first.requests[0].headers["authorization"] == "Basic " + base64.b64encode(b"me:secret").decode()
    assert "authorization" not in mirror.requests[0].headers


# -- headers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ('attachment; filename="../../etc/passwd"', "passwd"),
        ('attachment; filename="/etc/cron.d/evil"', "evil"),
        ('attachment; filename="..\\\\..\\\\evil.exe"', "evil.exe"),
        ('attachment; filename="C:\\\\Windows\\\\x.dll"', "x.dll"),
        ('attachment; filename=".bashrc"', "bashrc"),
        ('attachment; filename="CON"', "given"),
        ('attachment; filename="a\tb\x01c.txt"', "abc.txt"),
        ('attachment; filename=".."', "given"),
        ('attachment; filename=""', "given"),
        ("attachment; filename*=UTF-8''%e2%82%ac%20rates.txt", "\u20ac rates.txt"),
        ("attachment; filename*=UTF-8''..%2F..%2Fevil", "evil"),
        ("attachment; filename*=UTF-8''%00evil%0a", "evil"),
        ("attachment; filename*=nonsense", "nonsense"),
        ('attachment; filename="' + "x" * 3000 + '.bin"', "x" * 196 + ".bin"),
        ("attachment; filename=x" * 500, "given"),
        ('inline; filename="ok.txt"', "ok.txt"),
    ],
)
def test_hostile_content_disposition(kit: Toolkit, misbehaving: Start, tmp_path: Path, sent: str, name: str) -> None:
    """A name from the server is a plain file name inside the directory, or is not used."""
    server = misbehaving(lambda x: x.serve(b"abc", Content_Disposition=sent))
    result = kit.download(f"{server.url}/given", f"{tmp_path}/")
    assert os.listdir(tmp_path) == [name]
    assert result.path == str(tmp_path / name)


def test_content_disposition_does_not_overwrite(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """The server may not choose to replace a file that did not come from it."""
    (tmp_path / "precious").write_bytes(b"mine")
    server = misbehaving(lambda x: x.serve(b"abc", Content_Disposition='attachment; filename="precious"'))
    with pytest.raises(TransferError, match="precious"):
        kit.download(f"{server.url}/given", f"{tmp_path}/")
    assert (tmp_path / "precious").read_bytes() == b"mine"
    assert os.listdir(tmp_path) == ["precious"]


@pytest.mark.parametrize("shape", ["one line", "many lines"])
def test_a_megabyte_of_headers(kit: Toolkit, misbehaving: Start, tmp_path: Path, shape: str) -> None:
    """Refused, not stored."""

    def handler(x: Exchange) -> None:
        if shape == "one line":
            x.send(b"HTTP/1.1 200 OK\r\nX-Big: " + b"x" * (1 << 20) + b"\r\n\r\n")
        else:
            lines = b"".join(b"X-%d: yyyyyyyyyyyyyyyy\r\n" % n for n in range(40_000))
            x.send(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n")
        x.hang_up()

    assert_fails(kit, misbehaving(handler), tmp_path, TransferError)


def test_headers_that_take_long_to_read(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """As many blanks as a head may have are read in no time, and the file is whole."""
    began_s = time.process_time()
    url = misbehaving(lambda x: x.serve(BODY, **{"X-Blank": "a" + " " * 60_000 + "b"})).url
    assert Path(kit.download(url, tmp_path / "file").path).read_bytes() == BODY
    assert time.process_time() - began_s < 2.0


@pytest.mark.parametrize("what", [b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_headers_that_never_end(
    make_kit: Callable[..., Toolkit], misbehaving: Start, tmp_path: Path, what: bytes
) -> None:
    """Headers that drip, or interim answers without end, are a time-out."""

    def handler(x: Exchange) -> None:
        while not x.server.stopped.wait(0.02):
            x.send(what if what.endswith(b"\r\n\r\n") else (what if x.keep else b"y"))
            x.keep = False

    assert_fails(make_kit(retries=0, connect_timeout_s=1.0), misbehaving(handler), tmp_path, TransferTimeoutError)


@pytest.mark.parametrize("data", [b"\0\1\2garbage\r\n\r\n", b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/9.9 abc\r\n\r\n", b""])
def test_garbage_instead_of_http(kit: Toolkit, misbehaving: Start, tmp_path: Path, data: bytes) -> None:
    """Not HTTP is a typed error."""

    def handler(x: Exchange) -> None:
        x.send(data)
        x.hang_up()

    assert_fails(kit, misbehaving(handler), tmp_path, TransferError)


# -- promises ------------------------------------------------------------------------------------------------------


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
    assert_fails(kit, misbehaving(lambda x: x.serve(OTHER, Repr_Digest=field)), tmp_path, IntegrityError)


def test_unreadable_repr_digest(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """What can't be read, or is of no known strength, promises nothing."""
    fields = "sha-256=:!!!:, md5=:AAAA:, sha-512=abc, unixsum=:AQ==:, ,=,sha-256=:AAAA:"
    assert fetch(kit, misbehaving(lambda x: x.serve(BODY, Repr_Digest=fields)), tmp_path).checksum is None
    assert_right(tmp_path)
