"""Gates and the number of streams, on a clock that only the test moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from perfkit.downloads.concurrency import AdaptiveController, HostLimiter
from perfkit.downloads.http.network_path import NetworkPath

pytestmark = pytest.mark.once


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


# -- limiter -----------------------------------------------------------------------------------------------------------


def test_a_host_takes_so_many() -> None:
    """And others are not concerned."""
    limiter = HostLimiter(2, clock=Clock())
    assert [limiter.enter("a"), limiter.enter("a"), limiter.enter("a"), limiter.enter("b")] == [True, True, False, True]
    limiter.leave("a")
    assert limiter.enter("a")


def test_a_closed_host_opens_in_time() -> None:
    """The longest requested wait holds."""
    clock = Clock()
    limiter = HostLimiter(2, clock=clock)
    limiter.pause("a", 30.0)
    limiter.pause("a", 5.0)
    assert limiter.resumes_s("a") == 130.0
    clock.now = 129.9
    assert not limiter.enter("a")
    assert limiter.enter("b")
    clock.now = 130.0
    assert limiter.enter("a")


def places(limiter: HostLimiter, host: str) -> int:
    """How many more it takes."""
    taken = 0
    while limiter.enter(host):
        taken += 1
    return taken


def test_a_host_that_refuses_is_asked_for_as_much_as_it_takes() -> None:
    """Four refusals at once leave the four that work; one more is tried after a time, which grows."""
    clock = Clock()
    limiter = HostLimiter(8, clock=clock)
    assert places(limiter, "a") == 8
    for order in ("refused leave refused leave", "refused refused leave leave"):  # whatever the threads' turns
        for what in order.split():
            getattr(limiter, what)("a")
    assert places(limiter, "a") == 0
    clock.now += 10.0
    assert places(limiter, "a") == 1
    clock.now += 0.1
    limiter.refused("a")
    limiter.leave("a")
    clock.now += 9.9
    assert places(limiter, "a") == 0
    clock.now += 10.0
    assert places(limiter, "a") == 1
    clock.now += 20.0
    assert places(limiter, "a") == 1


def test_a_host_that_refuses_everything_is_asked_for_one() -> None:
    limiter = HostLimiter(8, clock=Clock())
    assert places(limiter, "a") == 8
    others = []
    for _ in range(8):
        others.append(limiter.refused("a"))
        limiter.leave("a")
    assert others == [True] * 7 + [False]  # whether other requests were under way
    assert places(limiter, "a") == 1


# -- the controller --------------------------------------------------------------------------------------------------


class Bench:
    """A link whose goodput is a function of the number of streams."""

    def __init__(
        self,
        goodput: Callable[[int], float],
        *,
        ceiling: int = 8,
        cpu: float = 0.1,
        throttled: bool = False,
        busy: Callable[[int], int] = lambda target: target,
        path: Callable[[int], NetworkPath | None] = lambda target: None,
    ) -> None:
        self.clock = Clock()
        self.controller = AdaptiveController(ceiling, clock=self.clock)
        self.goodput, self.cpu, self.throttled, self.busy, self.path = goodput, cpu, throttled, busy, path
        self.received, self.cpu_s = 0.0, 0.0

    def run(self, seconds: float) -> list[int]:
        """The targets over that time, without repetitions."""
        targets = [self.controller.target]
        for _ in range(int(seconds * 10)):
            self.clock.now += 0.1
            self.received += 0.1 * self.goodput(self.controller.target)
            self.cpu_s += 0.1 * self.cpu
            self.controller.observe(
                received_bytes=int(self.received),
                files_done=0,
                busy=self.busy(self.controller.target),
                cpu_s=self.cpu_s,
                throttled=self.throttled,
                path=self.path(self.controller.target),
            )
            if self.controller.target != targets[-1]:
                targets.append(self.controller.target)
        return targets


def test_it_starts_low_and_doubles_while_that_pays() -> None:
    assert Bench(lambda streams: 1e6 * streams).run(10) == [1, 2, 4, 8]


def test_it_takes_back_a_step_that_did_not_pay() -> None:
    """A link that four streams fill stays at four. The step is tried again, ever less often."""
    bench = Bench(lambda streams: 1e6 * min(streams, 4))
    assert bench.run(2) == [1, 2, 4, 8, 4]
    assert bench.run(120).count(8) == 12


class Bursts(Bench):
    """A server that limits each connection to 8 MB/s, as nginx does: it sends 2 MB at once, and nothing for 0.25 s."""

    def __init__(self, first_s: float) -> None:
        super().__init__(self._arrived, ceiling=16)
        self.next_s = [self.clock.now + first_s]

    def _arrived(self, streams: int) -> float:
        self.next_s += [self.clock.now] * (streams - len(self.next_s))
        total = 0.0
        for stream, due_s in enumerate(self.next_s):
            if due_s < self.clock.now:
                total += 2e6
                self.next_s[stream] += 0.25
                self.controller.waited(0.25)
        return total / 0.1


@pytest.mark.parametrize("first_s", [0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.25])
def test_bursts_of_a_server_that_limits_each_connection(first_s: float) -> None:
    """They make the goodput of a short window chance: a step that seemed not to pay was not tried again for 10 s."""
    assert Bursts(first_s).run(1.5) == [1, 2, 4, 8, 16]


def test_a_large_burst_at_the_beginning() -> None:
    """After which each stream has 1 MB/s: the first comparison says that others do not pay."""
    bench = Bench(lambda streams: 50e6, ceiling=4)
    bench.run(0.2)
    bench.goodput = lambda streams: 1e6 * streams
    assert bench.run(6) == [1, 2, 1, 2, 4]


def test_pauses_that_the_distance_explains() -> None:
    """A connection that begins over a distance pauses after each round, and that says nothing of the server."""
    bench = Bench(lambda streams: bench.controller.waited(0.2) or 1e6, ceiling=16)
    bench.controller.answered(0.2)
    assert bench.run(3) == [8, 16, 8]


def test_it_never_passes_its_ceiling() -> None:
    assert max(Bench(lambda streams: 1e6 * streams, ceiling=5).run(120)) == 5
    assert Bench(lambda streams: 1e6, ceiling=1).run(20) == [1]


def test_over_a_distance_it_starts_with_eight() -> None:
    """And judges a step by windows of several answers only, after the new streams have begun."""
    bench = Bench(lambda streams: 1e6 * streams, ceiling=16)
    bench.controller.answered(0.2)
    assert bench.run(0.8) == [8]
    assert bench.run(0.5) == [8, 16]


def test_streams_are_added_while_packets_do_not_queue() -> None:
    """Whatever they gain at first: they pay where each is limited, by losses or by the server."""
    bench = Bench(lambda streams: 1e6, ceiling=32, path=lambda streams: NetworkPath(0.085, 0.08, 3))
    bench.controller.answered(0.08)
    assert bench.run(0.5) == [8, 16, 32]


def test_streams_are_not_added_while_packets_queue() -> None:
    """What more streams gain then, others lose. The least round trip is that of an empty queue, seen once."""
    bench = Bench(lambda streams: 1e6 * streams, ceiling=16, path=lambda streams: NetworkPath(0.13, 0.08, 3))
    bench.controller.answered(0.08)
    assert bench.run(10) == [8]
    bench.path = lambda streams: NetworkPath(0.13, 0.12, 3)  # all connections have been made while there was a queue
    assert bench.run(10) == [8]


@pytest.mark.parametrize("busy", [16, 4])
def test_a_queue_is_remembered_for_a_while(busy: int) -> None:
    """It empties now and then, and what was lost until then was not lost by chance; whether or not there are as many
    streams as wanted, which a server may not allow.
    """
    bench = Bench(
        lambda streams: 1e6 * streams,
        ceiling=16,
        path=lambda streams: NetworkPath(0.13, 0.08, 3),
        busy=lambda target: busy,
    )
    bench.controller.answered(0.08)
    bench.run(5)
    bench.path = lambda streams: NetworkPath(0.081, 0.08, 3)
    bench.run(1)
    assert bench.controller.congested
    bench.run(2)
    assert not bench.controller.congested


@pytest.mark.parametrize(("trip_s", "remembered"), [(0.02, False), (0.08, True), (0.01, True)])
def test_a_queue_is_remembered_for_some_round_trips(trip_s: float, remembered: bool) -> None:
    """Losses that slow a connection soon after would have to be those of a queue for as long as that; from 20 ms on."""
    full = NetworkPath(2 * trip_s, trip_s, 3)
    bench = Bench(lambda streams: 1e6 * streams, ceiling=16, path=lambda streams: full)
    bench.controller.answered(trip_s)
    bench.run(5)
    bench.path = lambda streams: NetworkPath(trip_s, trip_s, 3)
    bench.run(1)
    assert bench.controller.congested is remembered


def test_goodput_decides_where_there_is_no_distance() -> None:
    """On loopback and in a local network, the kernel's round trips say nothing of queues."""
    bench = Bench(lambda streams: 1e6 * min(streams, 2), path=lambda streams: NetworkPath(0.0005, 0.0001, 0))
    assert bench.run(2) == [1, 2, 4, 2]


def test_the_first_answer_counts_in_full() -> None:
    controller = AdaptiveController(8, clock=Clock())
    controller.answered(0.004)
    assert (controller.answer_s, controller.target) == (0.004, 1)
    controller.answered(0.012)
    assert controller.answer_s == 0.005


def test_it_holds_still_while_the_throttle_limits() -> None:
    assert Bench(lambda streams: 1e6, throttled=True).run(30) == [1]


def test_it_begins_with_as_many_streams_as_the_limit_needs() -> None:
    """The first windows of more would exceed it. If they turn out to be too few, others come after a second."""
    clock = Clock()
    controller = AdaptiveController(8, rate=lambda: 1 << 20, clock=clock)
    controller.answered(0.16)
    assert controller.target == 3
    path = NetworkPath(0.08, 0.08, 0)
    targets = []
    for tenth in range(25):
        clock.now += 0.1
        controller.observe(received_bytes=tenth * 10_000, files_done=0, busy=8, cpu_s=0.0, throttled=False, path=path)
        targets.append(controller.target)
    assert targets[9] == 3
    assert targets[-1] == 8


def test_it_holds_still_with_too_little_to_do() -> None:
    assert Bench(lambda streams: 1e6 * streams, busy=lambda target: target - 1).run(30) == [1]


def test_it_tries_fewer_while_the_processor_limits() -> None:
    """Threads that fight for the interpreter are slower than one."""
    for goodput, targets in ((lambda streams: 1e6 / streams, [2, 1]), (lambda streams: 1e6 * streams, [2, 1, 2])):
        bench = Bench(goodput, cpu=1.0)
        bench.controller.target = 2
        assert bench.run(5) == targets


def test_over_a_distance_it_keeps_its_streams_while_the_processor_limits() -> None:
    """Small files take a round trip each, and have as many requests under way as wait for one: fewer streams would be
    without effect until the processor is idle, and then too few.
    """
    bench = Bench(lambda streams: 1e6, ceiling=64, path=lambda streams: NetworkPath(0.02, 0.02, 0), cpu=0.1)
    bench.controller.answered(0.02)
    assert bench.run(0.3) == [8, 16]
    bench.cpu = 1.0
    assert bench.run(5) == [16]
    bench.cpu = 0.1
    assert bench.run(0.3)[-1] > 16


def test_large_files_over_tls_have_two_streams() -> None:
    """However busy the processor is: they are decrypted without the interpreter's lock, on any core."""
    bench = Bench(lambda streams: 1e6, cpu=1.0)
    bench.controller.decrypts()
    assert bench.run(30) == [2]


def test_it_adds_streams_when_the_first_brings_nothing() -> None:
    """A stalled stream is not waited for alone."""
    assert Bench(lambda streams: 0.0).run(2)[:2] == [1, 2]


def test_not_adaptive_is_the_ceiling() -> None:
    controller = AdaptiveController(6, adaptive=False)
    assert controller.target == 6
    assert not controller.observe(received_bytes=1, files_done=1, busy=1, cpu_s=0.0, throttled=False)
