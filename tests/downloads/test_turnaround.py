"""A file that has come gets its name while the server responds to the next request of its worker."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.auth import HTTPBasicAuth

from perfkit import Request, Toolkit
from perfkit.downloads.http import connection
from perfkit.downloads.partial_file import PartialFile
from perfkit.downloads.throttle import Toll
from perfkit.downloads.transfer import Transfer
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.waiting import wait_until

MakeKit = Callable[..., Toolkit]
Start = Callable[..., MisbehavingServer]
BODY = random.Random(3).randbytes(5000)


def serve(x: Exchange) -> None:
    x.serve(BODY)


def chunked(x: Exchange) -> None:
    x.head("200 OK", Transfer_Encoding="chunked")
    x.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY))


def until_closed(x: Exchange) -> None:
    x.head("200 OK", Connection="close")
    x.send(BODY)
    x.hang_up()


def files(server: MisbehavingServer, count: int) -> list[tuple[str, str]]:
    return [(f"{server.url}/{n}", f"{n}") for n in range(1, count + 1)]


@pytest.mark.parametrize("handler", [serve, chunked])
def test_the_next_request_is_sent_first(
    make_kit: MakeKit, misbehaving: Start, out: Path, handler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = misbehaving(handler)
    sent: list[bool] = []
    publish = PartialFile.publish

    def once_sent(partial: PartialFile, *args: Any, **options: Any) -> None:
        sent.append(server.wait_for(min(len(sent) + 2, 3)))
        publish(partial, *args, **options)

    monkeypatch.setattr(PartialFile, "publish", once_sent)
    make_kit(workers=1).download_many(files(server, 3), out)
    assert sent == [True] * 3
    assert [(out / f"{n}").read_bytes() for n in (1, 2, 3)] == [BODY] * 3


@pytest.mark.parametrize("first", [serve, chunked, until_closed])
@pytest.mark.parametrize("last", ["served", "refused", "reset", "cancelled"])
def test_whatever_becomes_of_the_next(
    make_kit: MakeKit, misbehaving: Start, out: Path, first: Callable[[Exchange], None], last: str
) -> None:
    """The file has its name before the next response comes."""
    kit = make_kit(workers=1, retries=0)
    there: list[bool] = []
    closing: list[threading.Thread] = []

    def handler(x: Exchange) -> None:
        if x.asked.path == "/1":
            return first(x)
        wait_until((out / "1").exists)
        there.append((out / "1").read_bytes() == BODY)
        if last == "served":
            return x.serve(BODY)
        if last == "refused":
            return x.respond("404 Not Found")
        if last == "cancelled":
            closing.append(threading.Thread(target=kit.close))
            closing[0].start()
            return x.stall()
        return x.reset()

    server = misbehaving(handler)
    results = dict(kit.iter_downloads(files(server, 2), out))
    assert set(there) == {True}  # a kept connection that is reset is tried again
    assert results[0].error is None
    assert (results[1].error is None) == (last == "served")
    assert sorted(path.name for path in out.iterdir()) == (["1", "2"] if last == "served" else ["1"])
    for thread in closing:
        thread.join()


def test_a_disk_that_fails_meanwhile(
    make_kit: MakeKit, misbehaving: Start, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the error of that file, and neither of the next nor of its connection."""
    server = misbehaving(serve)
    publish = PartialFile.publish

    def failing(partial: PartialFile, *args: Any, **options: Any) -> None:
        if partial.dest.endswith("/1"):
            assert server.wait_for(2)
            raise OSError(errno.EIO, "the disk is broken")
        publish(partial, *args, **options)

    monkeypatch.setattr(PartialFile, "publish", failing)
    results = dict(make_kit(workers=1, retries=0).iter_downloads(files(server, 3), out))
    broken, *others = (results[index] for index in range(3))
    assert isinstance(broken.error, OSError)
    assert broken.error.errno == errno.EIO
    assert [result.error for result in others] == [None, None]
    assert [result.requests for result in others] == [1, 1]
    assert sorted(path.name for path in out.iterdir()) == ["2", "3"]


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (Toll, "__enter__"),
        (Transfer, "_begin"),
        (requests.Session, "send"),
        (HTTPBasicAuth, "__call__"),
        (connection, "dial"),
    ],
)
def test_what_may_take_long_before_the_next_request_comes_after(
    make_kit: MakeKit, misbehaving: Start, out: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str
) -> None:
    """A throttle, an existing file that is hashed, a session or auth object of the caller's, or a new connection."""
    there: list[bool] = []
    real = getattr(where, name)

    def watched(*args: Any, **options: Any) -> Any:
        there.append((out / "1").exists())
        return real(*args, **options)

    monkeypatch.setattr(where, name, watched)
    server = misbehaving(until_closed if where is connection else serve)
    kit = make_kit(
        workers=1,
        retries=0,
        session=requests.Session() if where is requests.Session else None,
        auth=HTTPBasicAuth("user", "secret") if where is HTTPBasicAuth else None,
        rate_limit=100_000_000 if where is Toll else None,
    )
    checksum = f"sha256:{'0' * 64}" if where is Transfer else None
    asked = [Request(f"{server.url}/1", "1"), Request(f"{server.url}/2", "2", checksum=checksum)]
    assert len(dict(kit.iter_downloads(asked, out))) == 2
    assert there == [False, True]
