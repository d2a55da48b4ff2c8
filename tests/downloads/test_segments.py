"""The map of ranges: every byte is done, under way or missing, exactly once, whatever workers do."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from perfkit.downloads.segments import Runner, SegmentMap

pytestmark = pytest.mark.once


class Ranges(RuleBasedStateMachine):
    """Random workers over one map; `written` is what they have put on the disk."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.runners: list[Runner] = []

    @initialize(size=st.integers(1, 300), done=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), max_size=4))
    def begin(self, size: int, done: list[tuple[int, int]]) -> None:
        self.size = size
        held = [(start, min(size, start + count)) for start, count in done if start < size]
        self.written = {byte for start, end in held for byte in range(start, end)}
        self.map = SegmentMap(size, held, clock=lambda: self.now)

    @rule(wait=st.sampled_from([0.0, 1.0, 5.0]))
    def claim(self, wait: float) -> None:
        self.now += wait
        due = self.map.next_claim_s()
        runner = self.map.claim()
        assert (runner is None) == (due is None or due > self.now)
        if runner:
            assert runner.position not in self.written
            self.runners.append(runner)

    @rule(minimum=st.integers(1, 30))
    def split(self, minimum: int) -> None:
        runner = self.map.split(minimum)
        if runner:
            assert (runner.remaining or 0) >= minimum
            self.runners.append(runner)

    @rule()
    def hedge(self) -> None:
        self.now += 3.0
        runner = self.map.hedge()
        if runner:
            assert len(runner.segment.runners) >= 2  # a third, where two are silent
            self.runners.append(runner)

    @precondition(lambda self: self.runners)
    @rule(data=st.data(), count=st.integers(1, 60))
    def advance(self, data: st.DataObject, count: int) -> None:
        """As a worker does it: never past the end that the segment has at the moment, except by a race."""
        runner = data.draw(st.sampled_from(self.runners))
        count = min(count, runner.remaining or 0)
        fresh = set(range(runner.position, runner.position + count)) - self.written
        self.written |= fresh
        assert self.map.advance(runner, count) == len(fresh)

    @precondition(lambda self: self.runners)
    @rule(data=st.data(), wait=st.sampled_from([0.0, 10.0]))
    def release(self, data: st.DataObject, wait: float) -> None:
        runner = data.draw(st.sampled_from(self.runners))
        self.runners.remove(runner)
        self.map.release(runner, not_before_s=self.now + wait)

    @precondition(lambda self: self.runners)
    @rule(data=st.data())
    def merge_back(self, data: st.DataObject) -> None:
        runner = data.draw(st.sampled_from(self.runners))
        if self.map.merge_back(runner):
            self.runners.remove(runner)
            self.map.release(runner)

    @invariant()
    def what_is_done_is_what_was_written(self) -> None:
        if not hasattr(self, "map"):
            return
        done = self.map.done()
        assert [byte for start, end in done for byte in range(start, end)] == sorted(self.written)
        first_missing = next((byte for byte in range(self.size) if byte not in self.written), self.size)
        assert self.map.frontier == first_missing

    @invariant()
    def what_is_missing_can_be_had_once(self) -> None:
        """Segments under way and gaps are disjoint, and they are all that is not written."""
        if not hasattr(self, "map"):
            return
        under_way = [byte for each in self.map._active for byte in range(each.position, each.end or 0)]
        missing = [byte for each in self.map._gaps for byte in range(each.position, each.end or 0)]
        assert sorted(under_way + missing) == [byte for byte in range(self.size) if byte not in self.written]
        assert all(each.runners for each in self.map._active)

    def teardown(self) -> None:
        """Released and claimed to the end, the map is complete."""
        if not hasattr(self, "map"):
            return
        for runner in self.runners:
            self.map.release(runner)
        self.now += 100.0
        while runner := self.map.claim():
            assert self.map.advance(runner, runner.remaining or 0) > 0
            self.map.release(runner)
        assert self.map.complete
        assert self.map.done() == [(0, self.size)]


TestRanges = Ranges.TestCase
TestRanges.settings = settings(stateful_step_count=40)


def test_a_size_that_becomes_known_late() -> None:
    """A stream without length: open ended, until it ends or a header gives the length."""
    ranges = SegmentMap()
    runner = ranges.claim()
    assert runner is not None
    assert ranges.claim() is None
    assert ranges.split(1) is None
    assert ranges.advance(runner, 10) == 10
    assert ranges.done() == [(0, 10)]
    assert not ranges.complete
    ranges.set_size(runner.position)
    assert (ranges.size, ranges.complete, ranges.done()) == (10, True, [(0, 10)])


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def claimed(ranges: SegmentMap) -> Runner:
    runner = ranges.claim()
    assert runner is not None
    return runner


def shared(ranges: SegmentMap, minimum: int = 100) -> Runner:
    runner = ranges.split(minimum)
    assert runner is not None
    return runner


def test_ranges_are_as_long_as_two_seconds_take() -> None:
    """They are taken from the end, so that the first request, which has no range, is not cut short; and measured by the
    speed of the connection that is free.
    """
    clock = Clock()
    ranges = SegmentMap(1_000_000, clock=clock)
    first = claimed(ranges)
    second = shared(ranges)
    assert second.remaining == 1_000_000 // 32  # nothing is known of the speed yet
    clock.now = 1.0
    ranges.advance(first, 100_000)
    ranges.advance(second, 1_000_000 // 32)
    ranges.release(second)
    assert shared(ranges).remaining == 2 * (1_000_000 // 32)
    pace = (100_000 + 1_000_000 // 32) / 2.0  # of a connection: that of a new one is not known
    assert shared(ranges).remaining == int(2 * pace)


def test_over_a_distance_a_range_takes_few_round_trips() -> None:
    """So that a connection that losses have slowed is soon replaced, and each request costs a small part of a range."""
    clock = Clock()
    ranges = SegmentMap(2_000_000, clock=clock)
    first = claimed(ranges)
    clock.now = 1.0
    ranges.advance(first, 100_000)
    second = shared(ranges)
    clock.now = 1.5
    brought = second.remaining or 0
    ranges.advance(second, brought)
    ranges.release(second)
    third = ranges.split(1_000, 0.02)
    assert third is not None
    assert third.remaining == brought  # in half a second, which is 25 round trips


@pytest.mark.parametrize("slowest", [1.0, 0.25, 0.1])
def test_all_connections_end_together(slowest: float) -> None:
    """Sixteen of them, one slower than the others: within half a second of what all would take together, with few
    requests, and with few ranges cut short.
    """
    clock, step_s = Clock(), 0.02
    ranges = SegmentMap(16_000_000, clock=clock)
    speeds = [1e5 * slowest, *[1e5] * 15]  # bytes per second
    at_work: list[Runner | None] = [claimed(ranges), *[None] * 15]
    ends: dict[Runner, int | None] = {}
    requests = cut = 0
    while not ranges.complete:
        clock.now += step_s
        for number, runner in enumerate(at_work):
            if runner is None:
                runner = ranges.split(10_000, 0.075) or ranges.hedge()
                if runner is not None:
                    ends[runner], requests = runner.segment.end, requests + 1
            else:
                ranges.advance(runner, min(int(speeds[number] * step_s), runner.remaining or 0))
                if not runner.remaining or runner.cancel.cancelled:
                    ranges.release(runner)
                    cut += runner in ends and runner.segment.end != ends[runner]
                    runner = None
            at_work[number] = runner
    assert clock.now < 16_000_000 / sum(speeds) + 0.5
    assert requests < 90
    assert cut < 12


def test_a_connection_is_compared_with_the_mean() -> None:
    clock = Clock()
    ranges = SegmentMap(1_000_000, clock=clock)
    first, second = claimed(ranges), shared(ranges)
    clock.now = 1.0
    ranges.advance(first, 10_000)
    ranges.advance(second, 5_000)
    assert not ranges.was_slow(first)
    assert ranges.was_slow(second)


def test_a_connection_that_was_closed_is_not_free() -> None:
    """Its successor has to open another, and gets a range by the mean speed, not by that of the one before."""
    for closed in (False, True):
        clock = Clock()
        ranges = SegmentMap(1_000_000, clock=clock)
        first, second = claimed(ranges), shared(ranges)
        clock.now = 1.0
        ranges.advance(first, 300_000)
        ranges.advance(second, second.remaining or 0)
        second.replaced = closed
        ranges.release(second)
        third = shared(ranges)
        assert third.fresh is closed
        assert (third.remaining or 0) > 125_000 if closed else third.remaining == 62_500


def test_at_the_end_both_parts_end_together() -> None:
    """What is left is shared by speed, and not at all where a request would take as long as the rest."""
    clock = Clock()
    ranges = SegmentMap(10_000, clock=clock)
    slow = claimed(ranges)
    clock.now = 1.0
    fast = shared(ranges, 5_000)
    assert (fast.start, fast.remaining) == (5_000, 5_000)
    ranges.advance(fast, 5_000)
    clock.now = 2.0
    ranges.release(fast)
    ranges.advance(slow, 1_000)  # 4,000 are left, at 500 bytes per second: 8 s; the mean is 2,000 bytes per second
    assert ranges.split(100, 4.0) is None
    assert shared(ranges).remaining == 3_636  # which the free connection, ten times as fast, takes as long for


def test_a_new_connection_has_to_be_worth_it() -> None:
    """It gets no more than it will have brought when the other one ends: it takes two round trips to be opened and
    asked, and starts with ten packets. One that is open takes more, and a shorter rest, too.
    """
    clock = Clock()
    ranges = SegmentMap(1_000_000, clock=clock)
    claimed(ranges)  # which takes six round trips, if it doubles its speed in each
    taken = ranges.split(100_000, 0.1)
    assert taken is not None
    assert 14_600 <= (taken.remaining or 0) <= 14_600 * 2**4
    short = SegmentMap(200_000, clock=clock)
    claimed(short)  # four
    assert short.split(10_000, 0.1) is None


def test_a_connection_in_slow_start_is_left_alone() -> None:
    """At its mean speed it would take 16 round trips; it doubles its speed in each, and needs two."""
    clock = Clock()
    ranges = SegmentMap(1_900_000, clock=clock)
    first, second = claimed(ranges), shared(ranges, 1_000)
    ranges.advance(second, second.remaining or 0)
    ranges.release(second)  # its connection is open, and could be asked at once
    for trips in range(5):
        clock.now += 0.1
        ranges.advance(first, 14_600 << trips)
    assert (first.remaining or 0) > 3 * first.position
    assert ranges.split(10_000, 0.1) is None
    clock.now += 0.25  # it has lost packets: in a full queue, whose recovery brings what came after them at once,
    assert ranges.split(10_000, 0.1) is None
    assert ranges.split(10_000, 0.1, congested=False) is not None  # or by chance
    clock.now += 0.15  # the server limits it
    assert ranges.split(10_000, 0.1) is not None


def test_a_short_silence_is_no_reason_to_split() -> None:
    """TCP makes up for a lost packet; what came after it is there then, and would be fetched twice."""
    clock = Clock()
    ranges = SegmentMap(2_000_000, clock=clock)
    first, second = claimed(ranges), shared(ranges, 1_000)
    ranges.advance(second, second.remaining or 0)
    ranges.release(second)
    clock.now = 2.0
    ranges.advance(first, 1_800_000)
    for clock.now in (2.1, 2.4):
        assert ranges.split(10_000, 0.05) is None
    clock.now = 2.6
    assert ranges.split(10_000, 0.05) is not None


@pytest.mark.parametrize("left", [40_000, 15_000])
def test_a_connection_without_an_answer_is_not_waited_for(left: int) -> None:
    """Over a distance: nothing of its range is in the kernel, and TCP tries again only after a second (RFC 6298)."""
    clock = Clock()
    ranges = SegmentMap(1_100_000 + left, [(1_000_000, 1_100_000)], clock=clock)
    first, silent = claimed(ranges), claimed(ranges)
    ranges.advance(first, 1_000_000)
    ranges.release(first)  # its connection is free

    def relief() -> Runner | None:
        return ranges.split(10_000, 0.05) or ranges.hedge()

    clock.now = 0.15
    assert relief() is None
    clock.now = 0.25
    while (runner := relief()) is not None:
        ranges.advance(runner, runner.remaining or 0)
        ranges.release(runner)
    assert ranges.complete
    assert silent.cancel.cancelled


def test_a_slow_connection_is_relieved_of_all_it_has() -> None:
    """By ranges shorter than the minimum, and at the end by a second runner: the first at the end wins."""
    clock = Clock()
    ranges = SegmentMap(1_100_000, clock=clock)
    slow = claimed(ranges)
    fast = shared(ranges, 500_000)
    clock.now = 3.0
    ranges.advance(fast, 500_000)
    ranges.advance(slow, 1)
    ranges.release(fast)
    while (fast := ranges.split(500_000)) is not None:  # type: ignore[assignment]
        ranges.advance(fast, fast.remaining or 0)
        ranges.release(fast)
    assert (slow.remaining or 0) < 64 << 10
    hedge = ranges.hedge()
    assert hedge is not None
    assert ranges.hedge() is None
    ranges.advance(hedge, hedge.remaining or 0)
    assert slow.cancel.cancelled
    assert not hedge.cancel.cancelled
    assert ranges.advance(slow, 50) == 0
    assert ranges.complete


def test_a_connection_is_as_fast_as_lately() -> None:
    """One that was fast and is slow now, as after losses, does not hold up the end for all that it has left."""
    clock = Clock()
    ranges = SegmentMap(2_000_000, clock=clock)
    first = claimed(ranges)
    for _ in range(10):
        clock.now += 0.5
        ranges.advance(first, 150_000)  # 300,000 bytes per second, for five seconds
    for _ in range(4):
        clock.now += 0.5
        ranges.advance(first, 5_000)  # and then 10,000: the rest would take 48 s
    assert first.seconds_left(clock.now, pace=1e6, round_trip_s=0.1) == pytest.approx(48, abs=1)


def test_a_silent_connection_holds_up_the_end_for_seconds_only() -> None:
    """However fast it was, and however little it has left: a second runner after two seconds, a third after four more
    of the second's silence.
    """
    clock = Clock()
    ranges = SegmentMap(1_001_000, clock=clock)
    silent = claimed(ranges)
    for clock.now in (0.5, 1.0):
        ranges.advance(silent, 500_000)
    clock.now = 2.9
    assert ranges.hedge() is None
    clock.now = 3.1
    second = ranges.hedge()
    assert second is not None
    clock.now = 7.0
    assert ranges.hedge() is None
    clock.now = 7.2
    third = ranges.hedge()
    assert third is not None
    ranges.advance(third, 1_000)
    assert ranges.complete
    assert silent.cancel.cancelled
    assert second.cancel.cancelled


def test_a_silent_connection_is_relieved_again_after_its_relief_failed() -> None:
    """But not at once, however often that happens."""
    clock = Clock()
    ranges = SegmentMap(1_001_000, clock=clock)
    silent = claimed(ranges)
    ranges.advance(silent, 1_000_000)
    found = []
    while clock.now < 20.0:
        clock.now += 0.1
        if (runner := ranges.hedge()) is not None:
            found.append(clock.now)
            ranges.release(runner)
    assert len(found) >= 9
    assert all(after - before > 1.8 for before, after in zip([0.0, *found], found))  # noqa: B905


def test_a_short_range_is_not_shared_before_its_speed_is_known() -> None:
    """A small file would be asked for in scraps, all of which come at once."""
    clock = Clock()
    ranges = SegmentMap(200_000, clock=clock)
    first = claimed(ranges)
    assert ranges.split(150_000) is None
    clock.now = 2.0
    ranges.advance(first, 10_000)
    assert ranges.split(150_000) is not None


def test_connections_that_are_all_slow_are_left_alone() -> None:
    """Under a rate limit a second runner would only take from the first."""
    clock = Clock()
    ranges = SegmentMap(200_000, clock=clock)
    first, second = claimed(ranges), shared(ranges, 100_000)
    clock.now = 100.0
    ranges.advance(first, 50_000)
    ranges.advance(second, 50_000)
    assert ranges.split(50_000) is None
    assert ranges.hedge() is None


def test_only_an_answer_that_was_cut_is_ended() -> None:
    """A second runner has asked for no more than what was left to fetch: its connection is of use afterwards."""
    clock = Clock()
    ranges = SegmentMap(200_000, clock=clock)
    first, taken = claimed(ranges), shared(ranges, 1000)
    ranges.advance(taken, taken.remaining or 0)
    cut = first.segment.end or 0
    ranges.advance(first, cut - 2_000)
    clock.now = 3.0
    second = ranges.hedge()
    assert second is not None
    assert ranges.keeps_cut(first, 200_000, within=5_000)
    assert not ranges.keeps_cut(second, cut, within=5_000)


@pytest.mark.parametrize("told", [False, True])
def test_what_was_taken_is_given_back_until_a_server_was_told(told: bool) -> None:
    """Its window has been closed at the cut then, and what came back would never be sent."""
    ranges = SegmentMap(1000)
    first = ranges.claim()
    assert first is not None
    taken = ranges.split(100)
    assert taken is not None
    assert not ranges.keeps_cut(first, 1000, within=10)
    if told:
        assert ranges.keeps_cut(first, 1000, within=1000)
    assert ranges.merge_back(taken) is not told
