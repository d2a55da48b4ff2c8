"""Answers that real servers give, and the right bytes all the same (rules of SERVERS.md)."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit import Toolkit, TransferError
from tests.support.fakes import Exchange, MisbehavingServer

Start = Callable[..., MisbehavingServer]
MakeKit = Callable[..., Toolkit]

BODY = random.Random(6).randbytes(1 << 20)


def cut(x: Exchange, at: int) -> None:
    x.head("200 OK", Content_Length=str(len(BODY)), ETag='"v1"')
    x.send(BODY[:at])
    x.hang_up()


@pytest.mark.parametrize("named", [True, False])
def test_a_slice_with_status_200(make_kit: MakeKit, misbehaving: Start, tmp_path: Path, named: bool) -> None:
    """With Content-Range, or only shorter than a file of that ETag is: it never becomes the file."""

    def handler(x: Exchange) -> None:
        if x.number == 1:
            return cut(x, len(BODY) // 2)
        start = x.asked.range[0] if x.asked.range else 0
        slice_of = {"Content_Range": f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"} if named else {}
        return x.respond("200 OK", BODY[start:], ETag='"v1"', **slice_of)

    make_kit(workers=1).download(f"{misbehaving(handler).url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY


def test_other_bytes_under_the_same_names(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """Size, date and ETag are those of the partial file; its last bytes are not: everything is fetched anew."""
    other = BODY[::-1]
    server = misbehaving(lambda x: cut(x, len(BODY) // 2) if x.number == 1 else x.serve(other))
    with pytest.raises(TransferError):
        make_kit(retries=0, workers=1).download(f"{server.url}/f", tmp_path / "f")
    make_kit(workers=1).download(f"{server.url}/f", tmp_path / "f")
    assert server.requests[1].range is not None
    assert (tmp_path / "f").read_bytes() == other


def test_a_gz_that_is_labelled_as_a_coding(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    stored = gzip.compress(BODY)
    server = misbehaving(lambda x: x.respond("200 OK", stored, Content_Encoding="gzip", ETag='"v1"'))
    kit.download(f"{server.url}/a.tar.gz", tmp_path / "a.tar.gz")
    assert (tmp_path / "a.tar.gz").read_bytes() == stored
    with pytest.raises(TransferError, match="Content-Encoding"):
        kit.download(f"{server.url}/a.tar", tmp_path / "a.tar")


def test_a_redirector_is_asked_again(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """The mirror that it named breaks off; the next one has the same version."""

    def handler(x: Exchange) -> None:
        if x.asked.path == "/f":
            mirror = sum(each.path == "/f" for each in x.server.requests)
            return x.respond("302 Found", Location=f"/mirror-{mirror}")
        return cut(x, len(BODY) // 2) if x.asked.path == "/mirror-1" else x.serve(BODY)

    server = misbehaving(handler)
    download = make_kit(workers=1).download(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY
    assert [each.path for each in server.requests] == ["/f", "/mirror-1", "/f", "/mirror-2"]
    assert download.bytes_received < 1.2 * len(BODY)


def test_progress_forgives(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """A path that breaks every connection gets the file through, in more attempts than `retries`."""

    def handler(x: Exchange) -> None:
        start = x.asked.range[0] if x.asked.range else 0
        if x.asked.range is None:
            x.head("200 OK", Content_Length=str(len(BODY)), ETag='"v1"')
        else:
            x.head(
                "206 Partial Content",
                Content_Length=str(len(BODY) - start),
                Content_Range=f"bytes {start}-{len(BODY) - 1}/{len(BODY)}",
                ETag='"v1"',
            )
        x.send(BODY[start : start + 100_000])
        x.hang_up()

    download = make_kit(workers=1, retries=2).download(f"{misbehaving(handler).url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY
    assert download.retries > 5


def test_a_204_is_an_empty_file(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """hapi answers so; curl and others take it for one, too."""
    kit.download(f"{misbehaving(lambda x: x.respond('204 No Content')).url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b""


def test_each_range_is_refused_as_if_the_file_had_changed(
    make_kit: MakeKit, misbehaving: Start, tmp_path: Path
) -> None:
    """CherryPy with ETags answers If-Match with a range by 412: without it, the ranges are good."""

    def handler(x: Exchange) -> None:
        if x.asked.range and "if-match" in x.asked.headers:
            return x.respond("412 Precondition Failed")
        return cut(x, len(BODY) // 2) if x.asked.range is None else x.serve(BODY)

    server = misbehaving(handler)
    make_kit(workers=1).download(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY


@pytest.mark.parametrize("etag", ['"v1"', 'W/"v1"', "v1"])
def test_a_version_that_is_named_again_is_not_fetched_again(
    kit: Toolkit, misbehaving: Start, tmp_path: Path, etag: str
) -> None:
    """A server without conditional requests (Koa, Litestar, FastAPI's FileResponse)."""

    def handler(x: Exchange) -> None:
        x.asked.headers.pop("if-none-match", None)
        x.respond("200 OK", BODY, ETag=etag)

    server = misbehaving(handler)
    assert not kit.download(f"{server.url}/f", tmp_path / "f").unchanged
    again = kit.download(f"{server.url}/f", tmp_path / "f")
    assert again.unchanged
    assert again.bytes_received == 0


@pytest.mark.parametrize("back", [True, False])
def test_a_304_to_a_date_alone(kit: Toolkit, misbehaving: Start, tmp_path: Path, back: bool) -> None:
    """It comes for an older file too: the file's date decides, by one plain GET whose body is left."""
    dates = ["Mon, 02 Nov 2026 10:00:00 GMT"]

    def handler(x: Exchange) -> None:
        if "if-modified-since" in x.asked.headers:
            return x.respond("304 Not Modified")
        return x.respond("200 OK", BODY if len(dates) == 1 else b"older", Last_Modified=dates[-1])

    server = misbehaving(handler)
    kit.download(f"{server.url}/f", tmp_path / "f")
    if back:
        dates.append("Sun, 01 Nov 2026 10:00:00 GMT")
    again = kit.download(f"{server.url}/f", tmp_path / "f")
    assert again.unchanged is not back
    assert (tmp_path / "f").read_bytes() == (b"older" if back else BODY)
