"""The map of ranges: every byte is done, under way or missing, exactly once, whatever workers do."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from perfkit.downloads.segments import Runner, SegmentMap


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
        runner = self.map.hedge(2.0)
        if runner:
            assert len(runner.segment.runners) == 2
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
        missing = [byte for each in self.map._gaps for byte in range(each.start, each.end or 0)]
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
TestRanges.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


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
    ranges.end_here(runner)
    assert (ranges.size, ranges.complete, ranges.done()) == (10, True, [(0, 10)])


def test_the_loser_of_a_hedge_is_cancelled() -> None:
    now = 0.0
    ranges = SegmentMap(100, clock=lambda: now)
    slow = ranges.claim()
    assert slow is not None
    ranges.advance(slow, 1)
    now = 10.0
    fast = ranges.hedge(2.0)
    assert fast is not None
    assert ranges.advance(fast, 99) == 99
    assert slow.cancel.cancelled
    assert not fast.cancel.cancelled
    assert ranges.advance(slow, 50) == 0
    assert ranges.complete
