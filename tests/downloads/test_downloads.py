"""Downloads as a user makes them: segments, the rate limit, one Toolkit with many callers."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perfkit import (
    CallbackProgress,
    Config,
    ConfigError,
    HTTPStatusError,
    IntegrityError,
    Request,
    Snapshot,
    Toolkit,
    TransferError,
)
from perfkit.downloads.checksums import Checksum, RunningDigest
from perfkit.downloads.partial_file import PartialFile
from perfkit.downloads.scheduler import Scheduler
from perfkit.server.server import Server
from tests.support.fakes import Exchange, Start
from tests.support.kits import MakeKit
from tests.support.network import BODY, SHA256, serve_body
from tests.support.waiting import wait_until

# -- segments ----------------------------------------------------------------------------------------------------------


def test_a_large_file_comes_in_segments(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """Idle workers share the file while the first stream is under way."""
    server = misbehaving(lambda x: x.serve(BODY, pause=lambda: x.server.wait_for(4), pause_at=0))
    download = make_kit().download(f"{server.url}/file", out / "file", checksum=SHA256)
    assert (out / "file").read_bytes() == BODY
    assert download.segments == 4
    assert download.checksum == SHA256
    assert download.bytes == len(BODY)
    assert all(each.method == "GET" for each in server.requests)
    assert "range" not in server.requests[0].headers, "shared caches would not store the answer"
    assert all(each.headers["if-match"] == '"v1"' for each in server.requests[1:])
    assert all(each.headers["accept-encoding"] == "identity" for each in server.requests)


def test_a_large_file_is_hashed_while_it_arrives(
    make_kit: MakeKit, misbehaving: Start, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server sends the second half when some of the first has been hashed."""
    digests: list[RunningDigest] = []
    make = RunningDigest.__init__

    def noted(digest: RunningDigest, checksums: tuple[Checksum, ...]) -> None:
        make(digest, checksums)
        digests.append(digest)

    monkeypatch.setattr(RunningDigest, "__init__", noted)
    monkeypatch.setattr("perfkit.downloads.transfer._HASH_BEHIND_BYTES", len(BODY))
    server = misbehaving(lambda x: x.serve(BODY, pause=lambda: wait_until(lambda: digests and digests[-1].position)))
    kit = make_kit(workers=1, segments=1)
    assert kit.download(f"{server.url}/file", out / "file", checksum=SHA256).checksum == SHA256
    with pytest.raises(IntegrityError):
        kit.download(f"{server.url}/file", out / "wrong", checksum=f"sha256:{'0' * 64}")
    assert not (out / "wrong").exists()
    assert len(digests) == 2


def test_a_helper_that_ends_at_once_holds_up_nothing(
    make_kit: MakeKit, misbehaving: Start, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the download is cancelled just before: the helper ends before the worker goes on."""

    def spawn(_: Scheduler, function: Callable[[], None]) -> bool:
        helper = threading.Thread(target=function)
        helper.start()
        helper.join(0.3)  # at the latest, it waits for the worker
        return True

    monkeypatch.setattr(Scheduler, "spawn", spawn)
    monkeypatch.setattr(PartialFile, "hash_behind", lambda *_: None)
    monkeypatch.setattr("perfkit.downloads.transfer._HASH_BEHIND_BYTES", len(BODY))
    server = misbehaving(lambda x: x.serve(BODY))
    kit = make_kit(workers=1, segments=1)
    with concurrent.futures.ThreadPoolExecutor() as executor:
        download = executor.submit(kit.download, f"{server.url}/file", out / "file", checksum=SHA256)
        try:
            assert download.result(100).checksum == SHA256
        finally:
            kit.close()


def test_an_answer_that_a_cache_may_be_storing_stays_whole(
    make_kit: MakeKit, misbehaving: Start, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most caches keep nothing of an answer that is broken off: it is shared only if it takes long."""
    shared: list[bool] = []

    def handler(x: Exchange) -> None:
        x.serve(BODY, pause=lambda: shared.append(x.server.wait_for(x.number + 3, wait_s)), pause_at=0, Via="1.1 cache")

    server, wait_s = misbehaving(handler), 0.3
    assert make_kit().download(f"{server.url}/file", out / "file").segments == 1
    assert shared == [False]
    monkeypatch.setattr("perfkit.downloads.transfer._CACHE_FILL_S", 0.1)
    wait_s = 100.0
    assert make_kit().download(f"{server.url}/file", out / "again").segments == 4
    assert shared[1]
    assert (out / "file").read_bytes() == (out / "again").read_bytes() == BODY


def test_each_connection_takes_a_part_of_what_is_left(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """How much depends on how fast the others have been (test_segments.py)."""
    server = misbehaving(lambda x: x.serve(BODY, pause=lambda: x.server.wait_for(3)))
    make_kit(workers=3).download(f"{server.url}/file", out / "file")
    first, second, third = (each.range[0] if each.range else 0 for each in server.requests[:3])
    assert first == 0
    assert 0 < second != third > 0
    assert (out / "file").read_bytes() == BODY


def test_one_connection_if_segments_are_off(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    server = misbehaving(serve_body)
    assert make_kit(segments=1).download(f"{server.url}/file", out / "file").segments == 1
    assert len(server.requests) == 1


def test_a_straggler_is_hedged(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """One connection crawls at the end: a second try at its range finishes the file, and the crawl is cut."""
    crawling = threading.Event()

    def handler(x: Exchange) -> None:
        start = x.asked.range[0] if x.asked.range else 0
        if start > len(BODY) // 4 and not crawling.is_set():
            crawling.set()
            end = (x.asked.range or (0, None))[1] or len(BODY)
            x.head(
                "206 Partial Content",
                Content_Length=str(end - start),
                ETag='"v1"',
                Content_Range=f"bytes {start}-{end - 1}/{len(BODY)}",
            )
            x.drip(BODY[start:end], 0.001)
        else:
            x.serve(BODY, pause=lambda: crawling.wait(60))

    server = misbehaving(handler)
    kit = make_kit(workers=2, segments=3, stall_window_s=90.0, min_segment_bytes=128 << 10, read_timeout_s=90.0)
    download = kit.download(f"{server.url}/file", out / "file", checksum=SHA256)
    assert crawling.is_set()
    assert download.seconds < 90  # the crawl would take half an hour
    assert (out / "file").read_bytes() == BODY


def test_a_silent_connection_does_not_hold_up_the_end(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """Of one range the last bytes never come: they are fetched again while nothing else is left to do."""
    over, silenced = threading.Event(), threading.Event()

    def handler(x: Exchange) -> None:
        start, end = x.asked.range or (0, None)
        if start and not silenced.is_set():
            silenced.set()
            end = end or len(BODY)
            headers = {"Content_Length": str(end - start), "Content_Range": f"bytes {start}-{end - 1}/{len(BODY)}"}
            x.head("206 Partial Content", ETag='"v1"', **headers)
            x.send(BODY[start : end - 1000])
            over.wait(90)
        else:
            x.serve(BODY, pause=lambda: silenced.wait(60))

    server = misbehaving(handler)
    download = make_kit(workers=2, read_timeout_s=90.0).download(f"{server.url}/file", out / "file", checksum=SHA256)
    over.set()
    assert silenced.is_set()
    assert download.retries == 0
    assert download.seconds < 60
    assert (out / "file").read_bytes() == BODY


@pytest.mark.parametrize("settings", [{}, {"workers": 1 << 30, "segments": 1 << 30}, {"workers": 8, "buffer_bytes": 1}])
def test_chunked_body(make_kit: MakeKit, misbehaving: Start, out: Path, settings: dict[str, int]) -> None:
    """No length beforehand; the chunked coding itself marks the end, however little memory there is for each worker."""

    def handler(x: Exchange) -> None:
        x.head("200 OK", Transfer_Encoding="chunked")
        for start in range(0, len(BODY), 100_000):
            piece = BODY[start : start + 100_000]
            x.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        x.send(b"0\r\n\r\n")

    download = make_kit(**settings).download(f"{misbehaving(handler).url}/file", out / "file")
    assert (out / "file").read_bytes() == BODY
    assert download.length_known


def test_a_body_that_ends_with_its_connection(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    """Nothing shows whether it is complete, and the result says so."""

    def handler(x: Exchange) -> None:
        x.head("200 OK", Connection="close")
        x.send(BODY)
        x.hang_up()

    download = kit.download(f"{misbehaving(handler).url}/file", out / "file")
    assert (out / "file").read_bytes() == BODY
    assert not download.length_known
    assert download.checksum is None


def test_empty_files(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    """No range of an empty file can be satisfied, and none is requested."""
    server = misbehaving(lambda x: x.respond("416 Range Not Satisfiable" if x.asked.range else "200 OK"))
    download = kit.download(f"{server.url}/file", out / "file")
    assert (out / "file").read_bytes() == b""
    assert (download.bytes, download.error) == (0, None)


# -- the rate limit ----------------------------------------------------------------------------------------------------


def test_rate_limit_changes_while_running(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """So slow that it would take minutes, until the limit is lifted."""
    lifted: list[int] = []

    def lift(snapshot: Snapshot) -> None:
        if not lifted and snapshot.received_bytes:
            lifted.append(snapshot.received_bytes)
            kit.set_rate_limit(None)

    kit = make_kit(progress=CallbackProgress(lift), rate_limit=20_000)
    download = kit.download(f"{misbehaving(serve_body).url}/f", out / "f")
    assert lifted[0] < 100_000
    assert download.seconds < 30
    assert (out / "f").read_bytes() == BODY


@pytest.mark.parametrize("wrong", [0, -1, 1.5, float("nan"), True, "5M"])
def test_rate_limits_that_are_none(kit: Toolkit, wrong: int) -> None:
    with pytest.raises(ConfigError, match=r"(a rate limit|bytes_per_second) must be"):
        kit.set_rate_limit(wrong)


def test_rate_limit_of_one_transfer(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """It slows its own file and no other."""
    server = misbehaving(serve_body)
    body_s = 0.5
    kit, slow = make_kit(), Request(f"{server.url}/slow", "slow", rate_limit=int(len(BODY) / body_s))
    assert kit.download(slow, out).seconds > 0.8 * body_s
    endless = Request(f"{server.url}/endless", "endless", rate_limit=1000)
    with contextlib.closing(kit.iter_downloads([endless, (f"{server.url}/fast", "fast")], out)) as results:
        assert next(results)[0] == 1


def test_rate_limit_holds_together(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """Several files share one limit: it takes at least as long as the limit says."""
    server = misbehaving(lambda x: x.respond("200 OK", BODY[: 1 << 19]))
    kit = make_kit(rate_limit=4 << 20)
    results = kit.download_many([(f"{server.url}/{n}", str(n)) for n in range(4)], out)
    assert max(result.seconds for result in results) > 0.8 * (2 << 20) / (4 << 20)


def test_a_limit_above_any_network(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """A socket takes no buffer of 8 PiB."""
    kit = make_kit(rate_limit=1 << 60)
    assert kit.download(f"{misbehaving(serve_body).url}/f", out / "f").bytes == len(BODY)


# -- one Toolkit, many callers -----------------------------------------------------------------------------------------


def test_many_threads_share_one_toolkit(kit: Toolkit, site: Path, out: Path) -> None:
    """Each caller gets its own results and its own errors."""
    for n in range(20):
        (site / f"{n}").write_bytes(bytes([n]) * 1000)
    failures: list[BaseException] = []

    def caller(number: int) -> None:
        try:
            here = out / str(number)
            results = kit.download_many([(f"{server.url}{n}", f"{n}") for n in range(20)], here)
            assert [result.bytes for result in results] == [1000] * 20
            assert all((here / f"{n}").read_bytes() == bytes([n]) * 1000 for n in range(20))
            with pytest.raises(HTTPStatusError):
                kit.download(f"{server.url}missing-{number}", here / "missing")
        except BaseException as error:
            failures.append(error)

    with Server(site) as server:
        threads = [threading.Thread(target=caller, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_two_callers_one_destination(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """The second is refused while the first is at it."""
    begun, release = threading.Event(), threading.Event()

    def handler(x: Exchange) -> None:
        begun.set()
        x.serve(BODY, pause=lambda: release.wait(100))

    kit, server = make_kit(segments=1), misbehaving(handler)
    thread = threading.Thread(target=kit.download, args=(f"{server.url}/f", out / "f"))
    thread.start()
    begun.wait(100)
    try:
        with pytest.raises(TransferError, match="destination"):
            kit.download(f"{server.url}/g", out / "f")
    finally:
        release.set()
        thread.join()
    assert (out / "f").read_bytes() == BODY


def test_after_a_fork(kit: Toolkit, misbehaving: Start, out: Path) -> None:
    """The child of a process with a Toolkit in use can use it too (gunicorn, Celery prefork)."""
    server = misbehaving(serve_body)
    kit.download(f"{server.url}/f", out / "parent")
    child = os.fork()
    if child == 0:  # pragma: no branch
        try:
            kit.download(f"{server.url}/f", out / "child")
            kit.close()
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert (out / "child").read_bytes() == BODY
    kit.download(f"{server.url}/f", out / "parent2")
    assert (out / "parent2").read_bytes() == BODY


def test_fork_in_the_middle_of_a_download(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """The parent's transfer goes on in the parent; the child starts clean."""
    half, release = threading.Event(), threading.Event()

    def handler(x: Exchange) -> None:
        if x.asked.path == "/slow":
            half.set()
            x.serve(BODY, pause=lambda: release.wait(100))
        else:
            x.serve(BODY)

    kit, server = make_kit(segments=1), misbehaving(handler)
    thread = threading.Thread(target=kit.download, args=(f"{server.url}/slow", out / "slow"))
    thread.start()
    assert half.wait(100)
    child = os.fork()
    if child == 0:
        try:
            kit.download(f"{server.url}/f", out / "child")
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    release.set()
    thread.join()
    assert (out / "slow").read_bytes() == BODY
    assert (out / "child").read_bytes() == BODY


@pytest.mark.parametrize("use", ["next", "close", "collect", "toolkit"])
def test_fork_with_an_iterator_that_is_suspended(make_kit: MakeKit, misbehaving: Start, out: Path, use: str) -> None:
    """The child can end it, or be told that it is not its own; the parent goes on with it."""
    release = threading.Event()
    server = misbehaving(lambda x: x.serve(BODY, pause=(lambda: release.wait(60)) if x.asked.path == "/slow" else None))
    kit = make_kit(segments=1)
    results = kit.iter_downloads([f"{server.url}/quick", *[(f"{server.url}/slow", f"{n}") for n in range(4)]], out)
    first = next(results)
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # ends it if it hangs
        try:
            if use == "next":
                with pytest.raises(ConfigError, match="belong to the parent process"):
                    next(results)
            elif use == "close":
                results.close()  # type: ignore[attr-defined]
            elif use == "toolkit":
                kit.download(f"{server.url}/quick", out / "child")
                kit.close()
            del results
            gc.collect()
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    release.set()
    assert {each.error for _, each in [first, *results]} == {None}
    assert {each.name for each in out.iterdir()} - {"child"} == {"quick", "0", "1", "2", "3"}


def test_fork_in_the_middle_of_a_list(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """By the caller's own iterable: the child, which comes back into the call, is told so."""
    server, kit = misbehaving(serve_body), make_kit(segments=1)
    children = []

    def urls() -> Iterator[str]:
        yield f"{server.url}/a"
        children.append(os.fork())
        if children[-1] == 0:
            signal.alarm(30)
        yield f"{server.url}/b"

    try:
        results = kit.download_many(urls(), out)
    except ConfigError as error:
        os._exit(0 if children == [0] and "belong to the parent process" in str(error) else 1)
    assert len(results) == 2
    assert os.waitpid(children[0], 0)[1] == 0


def test_a_closed_toolkit(out: Path) -> None:
    """It says so, and may be closed again."""
    kit = Toolkit(Config())
    kit.close()
    kit.close()
    with pytest.raises(ConfigError, match="closed"):
        kit.download("http://127.0.0.1:9/", out / "f")


def test_without_a_with_block(misbehaving: Start, out: Path) -> None:
    kit = Toolkit()
    try:
        kit.download(f"{misbehaving(serve_body).url}/f", out / "f")
    finally:
        kit.close()
    assert (out / "f").read_bytes() == BODY


def test_progress_that_raises_ends_the_work(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """A callback's exception reaches the caller; nothing goes on behind its back."""

    def refuse(snapshot: Snapshot) -> None:
        if snapshot.received_bytes:
            raise RuntimeError("enough")

    server = misbehaving(lambda x: x.serve(BODY, pause=lambda: x.server.stopped.wait(100)))
    with pytest.raises(RuntimeError, match="enough"):
        make_kit(progress=CallbackProgress(refuse), segments=1).download(f"{server.url}/f", out / "f")
    assert not (out / "f").exists()


def test_progress_adds_up(make_kit: MakeKit, site: Path, out: Path) -> None:
    """The last snapshot has all files and all bytes."""
    seen: list[Snapshot] = []
    for n in range(30):
        (site / f"{n}").write_bytes(b"x" * 10_000)
    with Server(site) as server:
        kit = make_kit(progress=CallbackProgress(seen.append))
        kit.download_many([(f"{server.url}{n}", f"{n}") for n in range(30)], out)
        kit.download_many(((f"{server.url}{n}", f"{n}") for n in range(30)), out / "again")
    last = seen[-1]
    assert (last.files_done, last.files_total, last.received_bytes, last.total_bytes) == (30, 30, 300_000, 300_000)
