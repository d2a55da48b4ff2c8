"""Limits shared by several Toolkits: divided on a clock that only the test moves; kept by Toolkits against a server."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit import Config, Toolkit
from perfkit.downloads.shared_limits import Lease, SharedLimits, Use
from tests.support.clock import Clock
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.kits import QUICK

RATE = 20_000_000


class Worker:
    """Asks four times a second, and uses what it gets: all of it, or as much as it wants."""

    def __init__(self, limits: SharedLimits, name: str, wants: float = float("inf")) -> None:
        self.limits, self.name, self.wants = limits, name, wants
        self.used, self.rate, self.until_s = 0, 0, 0.0

    def use(self, now: float, seconds: float) -> int:
        used = round(min(self.rate, self.wants) * seconds) if now < self.until_s else 0
        self.used += used
        return used

    def ask(self, now: float) -> None:
        lease = self.limits.lease(self.name, Use(self.used))
        assert lease.rate is not None
        self.used, self.rate, self.until_s = 0, lease.rate, now + lease.seconds


def seconds_of(workers: Callable[[int], list[Worker]], clock: Clock, duration_s: int) -> list[int]:
    """Bytes in each second; `workers` tells who works in each quarter of one. They ask one after another."""
    seconds = []
    for second in range(duration_s):
        received = 0
        for quarter in range(4):
            now = workers(4 * second + quarter)
            for each in now:
                clock.now += 0.25 / len(now)
                received += sum(other.use(clock.now, 0.25 / len(now)) for other in now)
                each.ask(clock.now)
        seconds.append(received)
    return seconds


@pytest.mark.parametrize("silent", [pytest.param(False, id="killed"), pytest.param(True, id="paused")])
def test_the_rate_is_kept_while_workers_come_and_go(silent: bool) -> None:
    """Of four workers one is lost after 3 s, and another joins after 6 s: the mean of 10 s is within 5 %, and no second
    is 15 % above the limit.
    """
    clock = Clock()
    limits = SharedLimits(RATE, 16, clock=clock)
    four, late = [Worker(limits, str(number)) for number in range(4)], Worker(limits, "late")

    def at_work(quarter: int) -> list[Worker]:
        if quarter == 12 and not silent:
            limits.release("0")
        return four if quarter < 12 else four[1:] if quarter < 24 else [*four[1:], late]

    received = seconds_of(at_work, clock, 10)
    assert abs(sum(received) / 10 / RATE - 1) <= 0.05
    assert max(received) <= 1.15 * RATE


def test_what_one_does_not_want_is_left_to_others() -> None:
    """Three that can use little, or nothing, and one that takes the rest."""
    clock = Clock()
    limits = SharedLimits(RATE, 16, clock=clock)
    workers = [Worker(limits, "a", 1e6), Worker(limits, "b", 0), Worker(limits, "c", 0), Worker(limits, "d")]
    received = seconds_of(lambda quarter: workers, clock, 10)
    assert sum(received[2:]) / 8 == pytest.approx(RATE, rel=0.05)
    assert max(received) <= 1.15 * RATE


def test_connections_are_divided_and_never_exceed_the_limit() -> None:
    """Five that want all of 16 get 3 each, and one more; a host that one was asked not to ask, none asks."""
    clock = Clock()
    limits = SharedLimits(None, 16, clock=clock)
    leases: dict[str, Lease] = {}
    for _ in range(3):
        for name in "abcde":
            leases[name] = limits.lease(name, Use(0, {"host:80": 16}))
            assert sum(each.connections["host:80"] for each in leases.values()) <= 16
    assert sorted(each.connections["host:80"] for each in leases.values()) == [3, 3, 3, 3, 4]
    assert leases["a"].rate is None
    limits.lease("a", Use(paused_s={"host:80": 30.0}))
    clock.now += 10
    assert limits.lease("b", Use()).paused_s == {"host:80": 20.0}


def test_many_holders_ask_less_often() -> None:
    """No store is asked more than 500 times a second."""
    limits = SharedLimits(RATE, 16, clock=Clock())
    leases = [limits.lease(str(number), Use()) for number in range(1000)]
    assert (leases[0].renew_s, leases[-1].renew_s) == (0.25, 2.0)


def test_a_child_can_use_limits_that_another_thread_used_during_the_fork() -> None:
    """The fork waits until that thread has its lease: the child has no thread that could release a lock."""
    inside, main = threading.Event(), threading.current_thread()

    def clock() -> float:
        if threading.current_thread() is not main:
            inside.set()
            threading.Event().wait(0.3)  # in the middle of a lease
        return 0.0

    limits = SharedLimits(RATE, 16, clock=clock)
    other = threading.Thread(target=limits.lease, args=("a", Use()))
    other.start()
    assert inside.wait(100)
    if (child := os.fork()) == 0:
        signal.alarm(30)  # ends it if it hangs
        try:
            limits.lease("b", Use())
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    other.join()


class Crowd:
    """A server's answer that counts the requests under way."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = 0
        self.refused_s: float | None = None
        self.asked_s: list[float] = []

    def __call__(self, exchange: Exchange) -> None:
        with self.lock:
            self.asked_s.append(time.monotonic())
            refuse, self.refused_s = self.refused_s, None
            self.now += 1
            self.most = max(self.most, self.now)
        if refuse is None:
            time.sleep(0.02)
        with self.lock:
            self.now -= 1  # first: the next request comes as soon as the client has all of this response
        if refuse is None:
            exchange.serve(b"x" * 1000)
        else:
            exchange.respond("503 Service Unavailable", Retry_After="1")


def test_toolkits_share_connections_and_retry_after(tmp_path: Path) -> None:
    """Two Toolkits with three connections together; while one was asked to wait, the other makes no request either."""
    crowd = Crowd()
    limits = SharedLimits(None, 3)
    config = Config(**{**QUICK, "adaptive": False, "retries": 3})
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(MisbehavingServer(crowd))
        kits = [stack.enter_context(Toolkit(config, limits=limits)) for _ in range(2)]

        def fetch(kit: Toolkit, number: int) -> None:
            kit.download_many([(f"{server.url}/{at}", f"{number}-{at}") for at in range(20)], tmp_path)

        threads = [threading.Thread(target=fetch, args=each) for each in zip(kits, (0, 1), strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 1 < crowd.most <= 3
        crowd.refused_s = 1.0
        kits[0].download(f"{server.url}/a", tmp_path / "a")
        gap_s = crowd.asked_s[-1] - crowd.asked_s[-2]
        assert gap_s >= 1
    assert len(list(tmp_path.iterdir())) == 41


def test_a_store_that_stops_answering_ends_the_lease(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is received without a lease; the download goes on as soon as the store answers again. It is asked five
    times a second at most.
    """
    limits = SharedLimits(None, 4)
    asked_s: list[float] = []

    class Broken:
        def lease(self, holder: str, use: Use) -> Lease:
            asked_s.append(time.monotonic())
            if len(asked_s) < 3:
                raise OSError("out of reach")
            return limits.lease(holder, use)

        def release(self, holder: str) -> None:
            raise OSError("out of reach")

    with MisbehavingServer(Crowd()) as server, Toolkit(Config(**QUICK), limits=Broken()) as kit:
        assert kit.download(f"{server.url}/a", tmp_path / "a").bytes == 1000
        assert len(asked_s) >= 3
    assert "did not answer" in caplog.text
    assert all(later - earlier >= 0.2 for earlier, later in itertools.pairwise(asked_s))
