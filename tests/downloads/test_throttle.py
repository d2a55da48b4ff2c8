"""The bandwidth limit, on a clock that only the test moves."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfkit import ConfigError
from perfkit.downloads.cancel import Cancel
from perfkit.downloads.throttle import Throttle, Toll


class Clock(Cancel):
    """Time that passes only in waits: a clock, and the Cancel that sleepers wait on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, timeout_s: float) -> bool:
        self.now += max(timeout_s, 1e-6)  # on a real clock some time passes too
        return self.cancelled


@pytest.mark.once
@given(st.integers(1_000, 10**9), st.lists(st.integers(1, 1 << 20), min_size=1, max_size=30))
def test_the_rate_holds(rate: int, counts: list[int]) -> None:
    """From the first byte on, no more than the rate and a small credit; and no less than the rate."""
    clock = Clock()
    throttle = Throttle(rate, clock=clock)
    for count in counts:
        throttle.charge(count, clock)
    due_s = sum(counts) / rate
    assert due_s - 0.031 <= clock.now <= due_s + 0.001


def test_idle_time_is_not_saved_up() -> None:
    """After a pause there is no burst."""
    clock = Clock()
    throttle = Throttle(1000, clock=clock)
    clock.now = 3600.0
    throttle.charge(1000, clock)
    assert clock.now - 3600.0 > 0.95


def test_a_change_takes_effect_on_who_is_waiting() -> None:
    """A sleeper sees the new rate at its next look, within a tenth of a second."""
    clock = Clock()
    throttle = Throttle(10, clock=clock)
    looks = 0

    def wait(timeout_s: float) -> bool:
        nonlocal looks
        looks += 1
        clock.now += timeout_s
        if looks == 5:
            throttle.set_rate(None)
        assert timeout_s <= 0.1
        return False

    clock.wait = wait  # type: ignore[method-assign]
    throttle.charge(1_000_000, clock)
    assert looks == 5
    throttle.charge(1_000_000, clock)
    assert looks == 5


def test_a_lower_rate_holds_from_the_change_on() -> None:
    clock = Clock()
    throttle = Throttle(100_000, clock=clock)
    throttle.charge(100_000, clock)
    before = clock.now
    throttle.set_rate(1_000)
    throttle.charge(1_000, clock)
    assert 0.9 <= clock.now - before <= 1.1


def test_cancelled_waits_end() -> None:
    cancel = Cancel()
    throttle = Throttle(1)
    thread = threading.Thread(target=throttle.charge, args=(1_000_000, cancel))
    thread.start()
    cancel.cancel()
    thread.join(100)
    assert not thread.is_alive()


@pytest.mark.parametrize(("rate", "most"), [(None, 512 << 10), (1, 1024), (1 << 20, 5242), (1 << 30, 512 << 10)])
def test_reads_are_small_at_low_rates(rate: int | None, most: int) -> None:
    assert Throttle(rate).quantum(512 << 10) == most


@pytest.mark.parametrize("rate", [0, -1])
def test_rates_that_are_none(rate: int) -> None:
    with pytest.raises(ConfigError):
        Throttle(rate)


@pytest.mark.once
@given(st.integers(1_000, 10**9), st.lists(st.integers(1, 1 << 20), min_size=1, max_size=30))
def test_what_the_kernel_takes_unseen_is_paid_for(rate: int, reads: list[int]) -> None:
    """At every moment of a body, what was read and no more than what was expected besides; and no more in all."""
    clock = Clock()
    throttle = Throttle(rate, clock=clock)
    size, read = sum(reads), 0
    with Toll((throttle, Throttle()), clock) as toll:
        began_s = clock.now
        toll.begin(size)
        for count in reads:
            toll.charge(count)
            read += count
            assert clock.now - began_s >= read / rate - 0.031
    assert clock.now - began_s <= size / rate + 0.001


@pytest.mark.once
@given(st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 10_000)), min_size=50, max_size=100))
def test_what_has_come_is_paid_for(flow: list[tuple[int, int]]) -> None:
    """Read or not; soon, and without a jump that would leave the line idle and then flood it."""
    clock = Clock()
    throttle = Throttle(1 << 20, clock=clock)
    size, read, come = sum(more for more, _ in flow), 0, 0
    with Toll((throttle,), clock) as toll:
        toll.begin(size)
        began_s = clock.now
        for more, most in flow:
            come += more
            count = min(most, come - read)
            read += count
            before_s, first = clock.now, clock.now == began_s
            toll.charge(count, come - read)
            assert first or clock.now - before_s <= 1.5 * count / (1 << 20) + 0.001
            assert clock.now - began_s >= read / (1 << 20) - 0.031
        toll.charge(size - read, 0)
    assert clock.now - began_s <= size / (1 << 20) + 0.001


def test_requests_that_begin_together_are_spread() -> None:
    """Each waits until what those before it bring unread has had its time."""
    clock = Clock()
    throttle = Throttle(1 << 20, clock=clock)
    begun = []
    for _ in range(8):
        with Toll((throttle,), clock) as toll:
            begun.append(clock.now)
            toll.begin(1 << 20)
            toll.charge(1 << 20, 0)
    assert begun[-1] - begun[0] >= 7 - 0.1


def test_small_bodies_reserve_no_more_than_they_are() -> None:
    """Else a limit would let few requests for small files be under way at once."""
    clock = Clock()
    throttle = Throttle(1 << 20, clock=clock)
    for _ in range(1000):
        with Toll((throttle,), clock) as toll:
            toll.begin(1000)
            toll.charge(1000)
    assert throttle.ahead() == 1000
    assert clock.now == pytest.approx(1000 * 1000 / (1 << 20), rel=0.1)


def test_a_refusal_costs_nothing() -> None:
    """A request that brings no body holds no other up."""
    clock = Clock()
    throttle = Throttle(1 << 20, clock=clock)
    for _ in range(10):
        with Toll((throttle,), clock):
            pass
    assert clock.now == 0


def test_two_limits() -> None:
    """The narrower one counts."""
    clock = Clock()
    with Toll((Throttle(10**6, clock=clock), Throttle(10**5, clock=clock)), clock) as toll:
        assert toll.quantum(1 << 20) == Throttle(10**5).quantum(1 << 20)
        toll.begin(10**5)
        toll.charge(10**5)
    assert 0.95 <= clock.now <= 1.1


def test_room_is_offered_to_one_thread_at_a_time() -> None:
    """Else all connections would take what one of them lacks."""
    clock = Clock()
    throttle = Throttle(1000, clock=clock)
    throttle.charge(10, clock)
    clock.now = 1.0
    assert [throttle.has_room(), throttle.has_room()] == [True, False]
    throttle.charge(950, clock)
    clock.now = 2.0
    assert not throttle.has_room(), "the limit is used"
    clock.now = 3.0
    assert throttle.has_room()
    throttle.set_rate(None)
    clock.now = 4.0
    assert not throttle.has_room()
