"""Versions of a file at its origin: known ones are not fetched again, others than the wanted one are refused."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perfkit import Config, Download, HTTPStatusError, RemoteChangedError, Request, Toolkit, TransferError
from perfkit.downloads.http.semantics import Version
from perfkit.downloads.manager import DownloadManager
from perfkit.downloads.probe import Probe
from perfkit.errors import CancelledError, TransferTimeoutError
from perfkit.server.server import Server
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.kits import QUICK
from tests.support.waiting import wait_until

BODY = os.urandom(200_000)

Start = Callable[..., MisbehavingServer]


@pytest.fixture
def manager() -> Iterator[DownloadManager]:
    made = DownloadManager(Config(**QUICK))
    yield made
    made.close()


def fetch(kit: Toolkit, request: Request, out: Path) -> Download:
    ((_, download),) = kit.iter_downloads([request], out)
    return download


def test_a_known_version_is_no_file(kit: Toolkit, tmp_path: Path) -> None:
    """The result tells the version of what was fetched; with that, nothing is fetched again until it changes."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "pack").write_bytes(BODY)
    with Server(site) as server:
        first = fetch(kit, Request(server.url + "pack", "a"), tmp_path)
        assert first.version.etag
        again = fetch(kit, Request(server.url + "pack", "b", known=first.version), tmp_path)
        assert (again.unchanged, again.bytes, again.bytes_received, again.requests) == (True, 0, 0, 1)
        assert again.version == first.version
        assert not (tmp_path / "b").exists()
        (site / "pack").write_bytes(BODY[1:])
        third = fetch(kit, Request(server.url + "pack", "b", known=first.version), tmp_path)
        assert not third.unchanged
        assert third.version != first.version
        assert (tmp_path / "b").read_bytes() == BODY[1:]


@pytest.mark.parametrize("part", [None, (1000, 50_000)])
@pytest.mark.parametrize("obeys", [True, False])
def test_another_version_is_refused(
    kit: Toolkit, misbehaving: Start, tmp_path: Path, part: tuple[int, int] | None, obeys: bool
) -> None:
    """By the server's 412, or by the validator of an answer of a server that takes no notice of If-Match."""

    def answer(exchange: Exchange) -> None:
        if not obeys:
            exchange.asked.headers.pop("if-match", None)
        exchange.serve(BODY, etag='"v2"')

    server = misbehaving(answer)
    request = Request(f"{server.url}/pack", "pack", byte_range=part, only=Version(etag='"v1"'))
    assert isinstance(fetch(kit, request, tmp_path).error, RemoteChangedError)
    assert os.listdir(tmp_path) == []
    assert len(server.requests) == 2  # once more without the condition
    request = Request(f"{server.url}/pack", "pack", byte_range=part, only=Version(etag='"v2"'))
    assert fetch(kit, request, tmp_path).error is None
    assert not obeys or server.requests[-1].headers["if-match"] == '"v2"'


@pytest.mark.parametrize("part", [None, (1000, 50_000)])
@pytest.mark.parametrize("only", [Version(etag='"v1"'), Version(last_modified="Thu, 01 Jan 2026 11:00:00 GMT")])
def test_a_version_that_nothing_proves_is_refused(
    kit: Toolkit, misbehaving: Start, tmp_path: Path, part: tuple[int, int] | None, only: Version
) -> None:
    """An answer without a validator may be of any version; with a checksum, that decides."""

    def answer(exchange: Exchange) -> None:
        for name in ("if-match", "if-unmodified-since"):
            exchange.asked.headers.pop(name, None)
        exchange.serve(BODY, etag=None)

    server = misbehaving(answer)
    request = Request(f"{server.url}/pack", "pack", byte_range=part, only=only)
    assert isinstance(fetch(kit, request, tmp_path).error, RemoteChangedError)
    assert os.listdir(tmp_path) == []
    right = hashlib.sha256(BODY[slice(*part)] if part else BODY).hexdigest()
    request = Request(f"{server.url}/pack", "pack", byte_range=part, only=only, checksum=f"sha256:{right}")
    assert fetch(kit, request, tmp_path).error is None


def test_waiting_for_a_probe_locks_no_condition(
    manager: DownloadManager, misbehaving: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ctrl-C as a Condition is entered can leave it locked (it is no C code), and then the probe's thread hangs."""
    enter, entered, asked = threading.Condition.__enter__, [], threading.Event()

    def noted(condition: threading.Condition) -> bool:
        if asked.is_set() and threading.get_ident() == threading.main_thread().ident:
            entered.append(condition)
        return enter(condition)

    def answer(exchange: Exchange) -> None:
        asked.set()
        time.sleep(0.5)  # of which the other thread looks several times whether the answer is there
        asked.clear()
        exchange.serve(BODY)

    monkeypatch.setattr(threading.Condition, "__enter__", noted)
    monkeypatch.setattr("perfkit.downloads.http.transport._PATIENCE_S", 0.0)  # as if it took long
    assert manager.probe(misbehaving(answer).url, most=100).first == BODY[:100]
    assert entered == []


def test_a_probe_that_drips(misbehaving: Start) -> None:
    """It is a stall as for any file."""

    def answer(exchange: Exchange) -> None:
        exchange.head("200 OK", Content_Length="1000")
        exchange.drip(b"0" * 1000, 0.02)

    settings = Config(**{**QUICK, "retries": 0, "stall_window_s": 0.1})
    with contextlib.closing(DownloadManager(settings)) as manager, pytest.raises(TransferTimeoutError, match="stalled"):
        manager.probe(misbehaving(answer).url, most=1000)


def test_a_weak_tag_that_changed_is_another_version(
    manager: DownloadManager, kit: Toolkit, misbehaving: Start, tmp_path: Path
) -> None:
    """Though the date stayed: what a probe found, and what is wanted of it."""
    tag = 'W/"1"'
    server = misbehaving(lambda x: x.serve(BODY, etag=None, ETag=tag, Last_Modified="Thu, 01 Jan 2026 11:00:00 GMT"))
    found = manager.probe(f"{server.url}/pack", most=100)
    assert found.version.proof == (None, "Thu, 01 Jan 2026 11:00:00 GMT")
    request = Request(f"{server.url}/pack", "pack", byte_range=(100, 50_000), only=found.version)
    assert fetch(kit, request, tmp_path).error is None
    tag = 'W/"2"'
    for part in (None, (100, 50_000)):
        request = Request(f"{server.url}/pack", "again", byte_range=part, only=found.version)
        assert isinstance(fetch(kit, request, tmp_path).error, RemoteChangedError)


@pytest.mark.parametrize("part", [None, (0, len(BODY) - 1)])
@pytest.mark.parametrize("later", [{}, {"ETag": 'W/"2"', "Last_Modified": "Thu, 01 Jan 2026 11:00:00 GMT"}])
def test_ranges_of_another_version_are_never_joined(
    make_kit: Callable[..., Toolkit],
    misbehaving: Start,
    tmp_path: Path,
    part: tuple[int, int] | None,
    later: dict[str, str],
) -> None:
    """The first answer breaks off; what comes after it has no validator, or another weak tag with the same date."""
    first = {"ETag": 'W/"1"', "Last_Modified": "Thu, 01 Jan 2026 11:00:00 GMT"}
    other = BODY[::-1]

    def answer(exchange: Exchange) -> None:
        if exchange.number == 1:
            return exchange.serve(BODY, etag=None, pause=exchange.reset, **first)
        for name in ("if-match", "if-unmodified-since", "if-range"):
            exchange.asked.headers.pop(name, None)
        return exchange.serve(other, etag=None, **later)

    server = misbehaving(answer)
    request = Request(f"{server.url}/pack", "pack", byte_range=part, segments=1)
    assert fetch(make_kit(workers=1), request, tmp_path).error is None
    assert (tmp_path / "pack").read_bytes() == (other[slice(*part)] if part else other)


def test_what_is_resumed_is_of_the_wanted_version(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """A partial file of another version is thrown away, not continued."""
    etag, whole = '"v1"', False

    def answer(exchange: Exchange) -> None:
        exchange.serve(BODY, etag=etag, pause=None if whole else exchange.reset)

    server = misbehaving(answer)
    assert isinstance(fetch(kit, Request(f"{server.url}/pack", "pack"), tmp_path).error, TransferError)
    assert len(os.listdir(tmp_path)) == 2
    etag, whole = '"v2"', True
    download = fetch(kit, Request(f"{server.url}/pack", "pack", only=Version(etag='"v2"')), tmp_path)
    assert (download.error, download.resumed_from) == (None, 0)
    assert (tmp_path / "pack").read_bytes() == BODY


def test_a_probe_tells_what_is_there(manager: DownloadManager, tmp_path: Path) -> None:
    """Beginning, size, version and whether there are ranges, in one request; 304 if the version is known."""
    (tmp_path / "pack.zip").write_bytes(BODY)
    (tmp_path / "empty").write_bytes(b"")
    with Server(tmp_path) as server:
        seen = manager.probe(server.url + "pack.zip", most=100)
        assert (seen.first, seen.size, seen.ranges, seen.whole) == (BODY[:100], len(BODY), True, False)
        assert seen.version.proof[0] == seen.version.etag
        assert seen.content_type == "application/zip"
        assert manager.probe(server.url + "pack.zip", most=1 << 20).whole
        assert manager.probe(server.url + "pack.zip", most=100, known=seen.version).unchanged
        assert manager.probe(server.url + "empty", most=100).whole
        with pytest.raises(HTTPStatusError):
            manager.probe(server.url + "none", most=100)


def test_a_probe_at_a_server_without_ranges(manager: DownloadManager, misbehaving: Start) -> None:
    """What is sent too much is left, and a weak ETag is no validator."""
    server = misbehaving(lambda x: x.respond("200 OK", BODY, ETag='W/"v1"'))
    seen = manager.probe(server.url, most=100)
    assert (seen.first, seen.size, seen.ranges, seen.version.proves) == (BODY[:100], len(BODY), False, False)
    assert seen.version == Version('W/"v1"')


def test_a_probe_is_taken_again(manager: DownloadManager, misbehaving: Start) -> None:
    """After errors that pass by: a status, a reset, a body that ends early."""

    def answer(exchange: Exchange) -> None:
        match exchange.number:
            case 1:
                exchange.respond("503 Service Unavailable", Retry_After="0")
            case 2:
                exchange.head("206 Partial Content", Content_Length="100", Content_Range="bytes 0-99/200")
                exchange.send(b"few")
                exchange.hang_up()
            case _:
                exchange.serve(BODY)

    seen: Probe = manager.probe(misbehaving(answer).url, most=100)
    assert (seen.first, seen.requests) == (BODY[:100], 3)


@pytest.mark.parametrize("refused", ["probe", "transfer"])
def test_probes_and_transfers_pass_one_gate(
    manager: DownloadManager, misbehaving: Start, tmp_path: Path, refused: str
) -> None:
    """A host that asks one of them to wait is left alone by the other too."""
    times: list[float] = []
    told, second = threading.Event(), threading.Event()

    def answer(exchange: Exchange) -> None:
        times.append(time.monotonic())
        if exchange.number == 1:
            exchange.respond("429 Too Many Requests", Retry_After="1")
            told.set()
        else:
            second.set()
            exchange.serve(BODY)

    server = misbehaving(answer)
    work = {
        "probe": lambda: manager.probe(server.url, most=100),
        "transfer": lambda: manager.fetch(Request(server.url), str(tmp_path / "f")),
    }
    thread = threading.Thread(target=work.pop(refused))
    thread.start()
    assert told.wait(100)
    wait_until(lambda: manager._limiter.resumes_s(server.url.removeprefix("http://")) > 0)
    work.popitem()[1]()
    thread.join()
    assert times[1] - times[0] >= 0.95


def test_a_probe_takes_a_place_at_its_host(misbehaving: Start, tmp_path: Path) -> None:
    """Where one connection is allowed, a probe waits until a transfer is done."""
    inside: list[int] = []
    most: list[int] = []
    goes_on = threading.Event()

    def answer(exchange: Exchange) -> None:
        inside.append(exchange.number)
        most.append(len(inside))
        if exchange.number == 1:
            goes_on.wait(100)
        inside.remove(exchange.number)  # first: the next request comes as soon as the client has all of this response
        exchange.serve(BODY)

    server = misbehaving(answer)
    manager = DownloadManager(Config(**{**QUICK, "connections_per_host": 1}))
    try:
        fetching = threading.Thread(target=manager.fetch, args=(Request(server.url, segments=1), str(tmp_path / "f")))
        fetching.start()
        assert server.wait_for(1)
        probeing = threading.Thread(target=manager.probe, args=(server.url,), kwargs={"most": 100})
        probeing.start()
        assert not server.wait_for(2, 0.2)
        goes_on.set()
        fetching.join()
        probeing.join()
    finally:
        manager.close()
    assert len(server.requests) == 2
    assert max(most) == 1


def test_a_probe_does_not_wait_for_a_day(manager: DownloadManager, misbehaving: Start) -> None:
    server = misbehaving(lambda x: x.respond("503 Service Unavailable", Retry_After="86400"))
    with pytest.raises(HTTPStatusError, match="86400 s, more than retry_after_cap_s"):
        manager.probe(server.url, most=100)
    assert len(server.requests) == 1


@pytest.mark.parametrize("closed", [True, False])
def test_close_ends_a_probe_that_waits(manager: DownloadManager, closed: bool) -> None:
    """At a gate that is closed, or where there is no place."""
    if closed:
        manager._limiter.pause("127.0.0.1:9", 60)
    else:
        while manager._limiter.enter("127.0.0.1:9"):
            pass
    waits = threading.Timer(0.05, manager.close)
    waits.start()
    with pytest.raises(CancelledError):
        manager.probe("http://127.0.0.1:9/", most=100)
    waits.join()


def test_close_ends_a_probe(manager: DownloadManager, misbehaving: Start) -> None:
    """At once, from another thread."""
    server = misbehaving(lambda x: x.stall())

    def close() -> None:
        server.wait_for(1)
        manager.close()

    closer = threading.Thread(target=close)
    closer.start()
    with pytest.raises(CancelledError):
        manager.probe(server.url, most=100)
    closer.join()
