"""What happens if another thread runs between two steps. Each test gives it the time that a loaded machine may."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from perfkit import PerfkitError, Request, Snapshot, Toolkit
from perfkit.downloads import manager
from perfkit.downloads.destination import Destination, PathClaims
from perfkit.downloads.http import dial, outage
from perfkit.downloads.http.outage import OutageWatch
from perfkit.downloads.partial_file import PartialFile
from perfkit.downloads.segments import Runner, SegmentMap
from perfkit.downloads.transfer import Transfer
from perfkit.progress.meter import FileMeter, Meter
from perfkit.progress.stage import Stage
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.network import BODY
from tests.support.waiting import wait_until

Start = Callable[[Callable[[Exchange], None]], MisbehavingServer]

_SOON_S = 0.2  # for another thread to do what it should not


def begun(path: Path, kind: type[PartialFile] = PartialFile) -> PartialFile:
    """A partial file of 100 bytes, all of which are missing."""
    partial = kind(str(path), "http://example.com/f")
    partial.create(100)
    partial.map.set_size(100)
    return partial


def claimed(ranges: SegmentMap) -> Runner:
    runner = ranges.claim()
    assert runner is not None
    return runner


def test_a_partial_file_is_closed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second `close` of a descriptor would fail, or close what another thread has opened since."""

    class Slow(PartialFile):
        @property  # type: ignore[override]
        def _directory(self) -> int:
            """Read in the middle of `close`: two workers that leave at once are both there."""
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(_SOON_S)
            return -1

        @_directory.setter
        def _directory(self, descriptor: int) -> None: ...

    both = threading.Barrier(2)
    partial = begun(tmp_path / "f", Slow)
    worker = claimed(partial.map)
    partial.retire()
    partial.map.release(worker)
    closed: list[int] = []
    monkeypatch.setattr(os, "close", lambda descriptor, close=os.close: closed.append(descriptor) or close(descriptor))
    descriptor = partial.descriptor
    threads = [threading.Thread(target=partial.close_if_retired) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert closed.count(descriptor) == 1


def test_a_partial_file_stays_open_for_the_slower_of_two_workers(tmp_path: Path) -> None:
    """Else that one could write into a file that another thread has opened under the same number."""
    partial = begun(tmp_path / "f")
    first = claimed(partial.map)
    slower = partial.map._run(first.segment, 0)
    partial.map.advance(first, 100)
    partial.map.release(first)
    partial.retire()
    assert partial.descriptor >= 0
    assert slower.cancel.cancelled
    partial.map.release(slower)
    partial.close_if_retired()
    assert partial.descriptor < 0


def test_two_workers_start_over_at_once(
    kit: Toolkit, misbehaving: Start, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One goes to the mirror, while the other has got the whole file in place of a range. The former failed over it and
    never left the file, so the batch never ended.
    """
    answered, failed, started_over = threading.Event(), threading.Event(), threading.Event()
    raised: list[BaseException] = []

    def origin(x: Exchange) -> None:
        if x.number == 1:
            x.serve(BODY, pause=lambda: answered.wait(100) and x.reset())
        else:
            x.respond("200 OK", BODY, ETag='"v1"')

    def start_over(*args: Any, original: Any = Transfer._start_over) -> Any:
        answered.set()
        failed.wait(100)
        try:
            return original(*args)
        finally:
            started_over.set()

    def retrying(*args: Any, original: Any = FileMeter.retrying) -> None:
        failed.set()
        started_over.wait(100)
        original(*args)

    def run(*args: Any, original: Any = Transfer.run) -> None:
        try:
            original(*args)
        except BaseException as error:
            raised.append(error)

    monkeypatch.setattr(SegmentMap, "merge_back", lambda *_: False)  # as for a range that is under way
    monkeypatch.setattr(Transfer, "_start_over", start_over)
    monkeypatch.setattr(FileMeter, "retrying", retrying)
    monkeypatch.setattr(Transfer, "run", run)
    first, mirror = misbehaving(origin), misbehaving(lambda x: x.serve(BODY))
    kit.download_many([Request(f"{first.url}/f", mirrors=(f"{mirror.url}/f",), retries=0, segments=2)], out)
    assert raised == []
    assert (out / "f").read_bytes() == BODY


def test_a_ctrl_c_while_a_download_is_refused(kit: Toolkit, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the batch. The refused download counted as busy for ever, and the batch waited for it."""
    interrupts = [KeyboardInterrupt]

    def leave(*args: Any, original: Any = Transfer.leave, **options: Any) -> None:
        if interrupts:
            raise interrupts.pop()
        original(*args, **options)

    def download() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            kit.download_many([("http://127.0.0.1:9/1", "f"), ("http://127.0.0.1:9/2", "f")], out)

    monkeypatch.setattr(Transfer, "leave", leave)
    caller = threading.Thread(target=download, daemon=True)
    caller.start()
    caller.join(100)
    assert not caller.is_alive()


def test_a_ctrl_c_while_a_download_begins(
    make_kit: Callable[..., Toolkit], misbehaving: Start, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run begins with its own numbers. It was taken for one beside the interrupted one, which never ended."""
    interrupts, ended = [KeyboardInterrupt], []

    def expect(*args: Any, original: Any = Meter.expect) -> None:
        if interrupts:
            raise interrupts.pop()
        original(*args)

    class Counting:
        def update(self, snapshot: Snapshot) -> None: ...

        def finish(self, snapshot: Snapshot) -> None:
            ended.append(snapshot.files_done)

    monkeypatch.setattr(Meter, "expect", expect)
    url = misbehaving(lambda x: x.respond("200 OK", b"abc")).url
    kit = make_kit(progress=Counting())
    with pytest.raises(KeyboardInterrupt):
        kit.download(f"{url}/f", out / "f")
    for _ in range(2):
        kit.download(f"{url}/f", out / "f")
    assert ended == [0, 1, 1]


def test_a_run_ends_with_its_own_numbers(make_kit: Callable[..., Toolkit], misbehaving: Start, out: Path) -> None:
    """Also if another thread's begins at the same moment. The summary said that none of no files had come."""
    ended: list[int] = []

    class Counting:
        def update(self, snapshot: Snapshot) -> None: ...

        def finish(self, snapshot: Snapshot) -> None:
            ended.append(snapshot.files_done)

    kit = make_kit(progress=Counting())
    downloads = kit._downloads
    downloads._ticking = True  # so that the first thread gets to its end
    url = misbehaving(lambda x: x.respond("200 OK", b"abc")).url
    ending = threading.Thread(target=kit.download, args=(f"{url}/f", out / "f"))
    with downloads._tick_lock:  # a display holds the first thread up
        ending.start()
        wait_until(lambda: (out / "f").exists() and not downloads._scheduler._queues)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not downloads._batches, timeout_s=_SOON_S)
        batch = manager._Batch(announced=False)
        batch.context = downloads._make_context(batch, downloads._root)
        downloads._join(batch, "download")
    ending.join()
    downloads._leave(batch)
    assert ended == [1]


def test_what_threads_do_is_displayed_by_one_at_a_time(
    make_kit: Callable[..., Toolkit], misbehaving: Start, out: Path
) -> None:
    """A download ends in one thread while another's display of a stage takes its time."""
    displaying, ended, inside = threading.Event(), threading.Event(), threading.Lock()
    overlapped: list[bool] = []

    class Slow:
        def update(self, snapshot: Snapshot) -> None:
            if snapshot.phase == "hashing":
                with inside:
                    displaying.set()
                    ended.wait(_SOON_S)

        def finish(self, snapshot: Snapshot) -> None:
            overlapped.append(inside.locked())
            ended.set()

    def stage() -> None:
        with Stage(kit._progress, "hashing") as shown:
            shown._began_s -= 60
            shown._drawn_s -= 60
            shown.count(files=1)

    kit, staging = make_kit(progress=Slow()), threading.Thread(target=stage)
    url = misbehaving(lambda x: x.respond("200 OK", b"abc")).url
    staging.start()
    displaying.wait(100)
    kit.download(f"{url}/f", out)
    staging.join()
    assert overlapped == [False, False]


def test_a_download_that_begins_while_the_kit_is_closed(
    kit: Toolkit, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves nothing open."""

    class Batch(manager._Batch):
        def __init__(self, *, announced: bool) -> None:
            super().__init__(announced=announced)
            kit.close()

    monkeypatch.setattr(manager, "_Batch", Batch)
    with pytest.raises(PerfkitError):
        kit.download("http://127.0.0.1:9/f", out)
    assert kit._downloads._network is None


def test_an_outage_is_looked_for_by_one_thread(make_kit: Callable[..., Toolkit], misbehaving: Start) -> None:
    """Also while a first request waits for its answer."""
    kit = make_kit()
    downloads = kit._downloads
    transport = downloads._start().transport
    alone: list[bool] = []
    transport.expire = lambda: alone.append(downloads._tick_lock._is_owned())  # type: ignore[method-assign,attr-defined]
    server = misbehaving(lambda x: x.respond("200 OK", b"abc"))
    assert downloads.probe(f"{server.url}/f", most=10).first == b"abc"
    assert alone
    assert all(alone)


class Read:
    """A connection whose read ends while it is looked at."""

    looked = False

    @property
    def waits_since_s(self) -> float | None:
        self.looked = not self.looked
        return time.monotonic() if self.looked else None


def test_a_read_ends_while_an_outage_is_looked_for() -> None:
    OutageWatch().look([Read()])  # type: ignore[list-item]


def test_the_search_for_an_outage_is_closed_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """By `Toolkit.close` in another thread."""
    watch, answered = OutageWatch(), outage._answered
    monkeypatch.setattr(outage, "_answered", lambda probe: watch.close() or answered(probe))
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sock:
        silent = SimpleNamespace(sock=sock, waits_since_s=0.0, interrupt=lambda: None)
        watch.look([silent])  # type: ignore[list-item]
        watch.look([silent])  # type: ignore[list-item]
    watch.close()


def test_a_server_that_names_a_file_twice(tmp_path: Path) -> None:
    """With two names, such as the time of each request: both are free again when it has ended."""
    claims, request = PathClaims(), Request("http://example.com/f")
    destination = Destination(request, str(tmp_path / "f"), claims, named=False)
    claims.claim(destination.first_path, destination)
    for name in ("first", "second"):
        destination.take_name(request.url, [name])
    claims.release(destination)
    for name in ("f", "first", "second"):
        claims.claim(str(tmp_path / name), Destination(request, str(tmp_path / name), claims, named=True))


def test_a_fork_forgets_for_which_hosts_connections_were_begun() -> None:
    """The child has none of them, so it begins its own."""
    place = ("192.0.2.1", 80)
    dial._shared.add(place)
    try:
        if (child := os.fork()) == 0:
            os._exit(place in dial._shared)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        dial._shared.discard(place)


class _FailsAtFirst:
    """A display that raises at the end of its first run."""

    def __init__(self) -> None:
        self.runs = 0

    def update(self, snapshot: Snapshot) -> None: ...

    def finish(self, snapshot: Snapshot) -> None:
        self.runs += 1
        if self.runs == 1:
            raise RuntimeError("as the test requested")


def test_an_iterator_that_is_collected_in_one_of_its_workers(
    make_kit: Callable[..., Toolkit], misbehaving: Start, out: Path
) -> None:
    """It ends, and the worker does not wait for itself. An exception that is kept can keep the iterator until then; one
    of a display is logged, and ends no worker.
    """
    begun: list[str] = []

    class Collects(requests.auth.AuthBase):
        def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
            begun.append(threading.current_thread().name)
            wait_until(lambda: abandoned)
            gc.collect()
            return request

    abandoned: list[bool] = []
    server = misbehaving(lambda x: x.respond("200 OK", b"small"))
    kit = make_kit(progress=_FailsAtFirst(), auth=Collects())

    def abandon() -> None:
        results = kit.iter_downloads((f"{server.url}/{n}" if n else server.url[1:] for n in range(100)), out)
        cycle: list[Any] = [results]
        cycle.append(cycle)
        assert next(results)[1].error is not None
        wait_until(lambda: begun)

    gc.disable()
    try:
        abandon()
        abandoned.append(True)
        wait_until(lambda: not kit._downloads._batches and not kit._downloads._scheduler._workers)
    finally:
        gc.enable()
    assert begun[0].startswith("perfkit")
    assert kit.download(server.url, out / "other").bytes == 5
