"""Files that share the network: none waits for a large one, whatever limits the speed."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from perfkit import Config, Toolkit
from perfkit.downloads.concurrency import AdaptiveController, HostLimiter
from perfkit.downloads.scheduler import Scheduler
from perfkit.downloads.segments import Runner, SegmentMap
from perfkit.downloads.transfer import Task
from tests.support.fakes import Exchange, MisbehavingServer

MakeKit = Callable[..., Toolkit]
Start = Callable[..., MisbehavingServer]
BODY = random.Random(1).randbytes(1 << 20)


@pytest.mark.parametrize(
    "options",
    [
        {"workers": None, "adaptive": True},
        {"workers": 3, "adaptive": True},
        {"workers": None, "adaptive": True, "rate_limit": 4 << 20},
        {"workers": 3, "adaptive": False, "rate_limit": 4 << 20},
    ],
    ids=["default", "three", "throttled", "fixed"],
)
def test_small_files_do_not_wait_for_large_ones(
    make_kit: MakeKit, misbehaving: Start, out: Path, options: dict[str, object]
) -> None:
    """Two large files stop half-way until all small files have been asked for."""
    passed: list[bool] = []

    def handler(x: Exchange) -> None:
        if x.asked.path.startswith("/large"):
            x.serve(BODY, pause=lambda: passed.append(x.server.wait_for(22, 60.0)))
        else:
            x.serve(b"small")

    server = misbehaving(handler)
    names = ["large-1", "large-2", *(f"small-{n}" for n in range(20))]
    results = make_kit(segments=1, **options).download_many([(f"{server.url}/{name}", name) for name in names], out)
    assert passed == [True, True]
    assert all((out / name).read_bytes() == (BODY if "large" in name else b"small") for name in names)
    assert [result.requests for result in results] == [1] * 22


def test_files_begin_while_others_wait_for_a_round_trip_of_20_ms() -> None:
    """With as many streams as the controller wants, evenly spread over the round trip, which none outlasts."""
    scheduler = Scheduler(Config(), HostLimiter(16), AdaptiveController(8, adaptive=False), between=lambda: None)
    began = {Task(0, "", None): (mock.Mock(), n * 0.02 / 8) for n in range(8)}
    with mock.patch.object(scheduler, "_running", began):
        assert scheduler._may_begin(0.019)
        assert not scheduler._may_begin(0.0)  # those that begin together wait for the processor


@pytest.mark.parametrize("limit", [None, 16 << 20])
def test_as_many_files_as_workers(make_kit: MakeKit, misbehaving: Start, out: Path, limit: int | None) -> None:
    """Each file stops half-way until all have been asked for: `workers` are a wish."""
    passed: list[bool] = []
    server = misbehaving(lambda x: x.serve(BODY, pause=lambda: passed.append(x.server.wait_for(12, 60.0))))
    kit = make_kit(workers=12, connections_per_host=12, adaptive=True, segments=1, rate_limit=limit)
    kit.download_many([(f"{server.url}/{n}", f"{n}") for n in range(12)], out)
    assert passed == [True] * 12


@pytest.mark.parametrize("congested", [True, False])
def test_a_file_is_not_shared_on_a_full_link_while_others_wait(
    make_kit: MakeKit, misbehaving: Start, out: Path, monkeypatch: pytest.MonkeyPatch, congested: bool
) -> None:
    """That would gain nothing, and end the connection whose response is cut short."""
    monkeypatch.setattr("perfkit.downloads.scheduler._LONG_S", 0.0)
    monkeypatch.setattr("perfkit.config._FILES", 2)
    monkeypatch.setattr(AdaptiveController, "congested", congested)
    shared: list[bool] = []

    def handler(x: Exchange) -> None:
        x.serve(BODY, pause=lambda: shared.append(x.server.wait_for(3, 0.1 if congested else 60.0)), pause_at=0)

    server = misbehaving(handler)
    kit = make_kit(workers=None, segments=4, connections_per_host=4)
    kit.download_many([f"{server.url}/{n}" for n in range(3)], out)
    assert shared[0] is not congested


def test_nothing_is_fetched_twice_under_a_limit(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """All connections are slow then, and none of them is relieved: the limit is used for new bytes, to the end."""
    server = misbehaving(lambda x: x.serve(BODY))
    kit = make_kit(workers=4, segments=4, rate_limit=250_000)
    download = kit.download(f"{server.url}/f", out / "f")
    assert (out / "f").read_bytes() == BODY
    assert download.segments == 4
    assert download.bytes_received < 1.1 * len(BODY)


def test_a_host_that_takes_two(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """Some above are refused at first; then it is asked for no more than it takes, and everything comes."""
    lock, active, refused = threading.Lock(), [0], [0]

    def handler(x: Exchange) -> None:
        with lock:
            accepted = active[0] < 2
            active[0] += accepted
            refused[0] += not accepted
        if not accepted:
            return x.respond("503 Service Unavailable")
        x.head("200 OK", Content_Length=str(len(BODY)))
        x.send(BODY[:-1])
        x.server.wait_for(3, 60.0)  # the third is refused
        with lock:
            active[0] -= 1
        return x.send(BODY[-1:])

    server = misbehaving(handler)
    kit = make_kit(workers=8, segments=1, retries=8)
    results = kit.download_many([(f"{server.url}/{n}", f"{n}") for n in range(12)], out)
    assert all(result.error is None for result in results)
    assert 1 <= refused[0] == sum(result.retries for result in results) <= 8


def test_a_host_that_takes_two_segments(make_kit: MakeKit, misbehaving: Start, out: Path) -> None:
    """What it refuses goes back to the connection that had it before, or is left to the next that is free: no retry is
    needed, and nobody waits for the minute that it asks for.
    """
    refused: list[Runner] = []
    both = threading.Event()
    merge_back = SegmentMap.merge_back

    def merge(segments: SegmentMap, runner: Runner) -> bool:
        refused.append(runner)
        if len(refused) == 2:
            both.set()
        return merge_back(segments, runner)

    def handler(x: Exchange) -> None:
        if x.number in (3, 4):
            return x.respond("429 Too Many Requests", Retry_After="60")
        return x.serve(BODY, pause=lambda: both.wait(60.0), pause_at=0)

    server = misbehaving(handler)
    with mock.patch.object(SegmentMap, "merge_back", merge):
        make_kit(workers=4, segments=4, retries=0).download(f"{server.url}/f", out / "f")
    assert (out / "f").read_bytes() == BODY
    assert len(server.requests) >= 4
