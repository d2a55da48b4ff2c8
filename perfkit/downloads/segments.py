"""Which bytes of one file are done, under way, or missing. No I/O; every change of state happens under one lock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from perfkit.downloads.cancel import Cancel

__all__ = ["Range", "Runner", "Segment", "SegmentMap"]

Range = tuple[int, int]  # start, end (exclusive)


@dataclass(slots=True, eq=False)
class Segment:
    """A range under way. Bytes before `position` are on disk; `end` shrinks when another worker takes the rest."""

    position: int
    end: int | None  # None while the size of the file is unknown
    runners: list[Runner] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Runner:
    """One worker on a segment. A hedged segment has two, and the first at the end wins."""

    segment: Segment
    position: int
    cancel: Cancel
    started_s: float
    start: int = 0

    @property
    def remaining(self) -> int | None:
        """Bytes this runner still has to fetch; None while that is unknown."""
        end = self.segment.end
        return None if end is None else max(0, end - self.position)


@dataclass(slots=True)
class _Gap:
    """A range that nobody is on, and when it may be tried."""

    start: int
    end: int | None
    not_before_s: float


class SegmentMap:
    """The ranges of one version of one file."""

    def __init__(
        self, size: int | None = None, done: Iterable[Range] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._size = size
        self._active: list[Segment] = []
        self._gaps = [_Gap(0, None, 0.0)] if size is None else [_Gap(*gap, 0.0) for gap in _complement(done, size)]

    @property
    def size(self) -> int | None:
        return self._size

    @property
    def complete(self) -> bool:
        with self._lock:
            return self._size is not None and not self._gaps and not self._active

    @property
    def frontier(self) -> int:
        """Every byte before this one is on disk."""
        with self._lock:
            starts = [gap.start for gap in self._gaps] + [segment.position for segment in self._active]
            return min(starts) if starts else self._size or 0

    def done(self) -> list[Range]:
        """The ranges on disk, sorted; unknown sizes end at the last byte written."""
        with self._lock:
            if self._size is None:
                return [(0, segment.position) for segment in self._active if segment.position]
            missing = [(gap.start, gap.end or self._size) for gap in self._gaps]
            missing += [(segment.position, segment.end or self._size) for segment in self._active]
            return _complement(missing, self._size)

    def set_size(self, size: int) -> None:
        """The size has become known: open ends close there."""
        with self._lock:
            self._size = size
            for gap in self._gaps:
                gap.end = size if gap.end is None else gap.end
            for segment in self._active:
                segment.end = size if segment.end is None else segment.end
            self._gaps = [gap for gap in self._gaps if gap.start < (gap.end or 0)]
            self._active = [segment for segment in self._active if segment.position < (segment.end or 0)]

    def claim(self, cancel: Cancel | None = None) -> Runner | None:
        """A missing range whose time has come, for a runner that ends with `cancel`, or with one of its own."""
        now = self._clock()
        with self._lock:
            for index, gap in enumerate(self._gaps):
                if gap.not_before_s <= now:
                    del self._gaps[index]
                    segment = Segment(gap.start, gap.end)
                    self._active.append(segment)
                    return self._run(segment, gap.start, cancel)
        return None

    def next_claim_s(self) -> float | None:
        """The clock's time at which a missing range may be claimed; None if none is missing."""
        with self._lock:
            return min((gap.not_before_s for gap in self._gaps), default=None)

    def largest_split(self, minimum: int) -> int:
        """Bytes left in the largest segment that can be split into two of at least `minimum`; 0 if none can."""
        with self._lock:
            return max((_left(segment) for segment in self._active if _left(segment) >= 2 * minimum), default=0)

    def split(self, minimum: int) -> Runner | None:
        """Take the second half of the largest segment from its runner."""
        with self._lock:
            segment = max(self._active, key=_left, default=None)
            if segment is None or segment.end is None or len(segment.runners) > 1 or _left(segment) < 2 * minimum:
                return None
            middle = segment.end - _left(segment) // 2
            taken = Segment(middle, segment.end)
            segment.end = middle
            self._active.append(taken)
            return self._run(taken, middle)

    def hedge(self, slower_than_s: float) -> Runner | None:
        """A second runner for the segment that would take longest to end, if that is longer than `slower_than_s`."""
        now = self._clock()

        def seconds_left(segment: Segment) -> float:
            runner = segment.runners[0]
            elapsed = now - runner.started_s
            if len(segment.runners) > 1 or elapsed < slower_than_s:
                return 0.0
            return _left(segment) * elapsed / max(1, runner.position - runner.start)

        with self._lock:
            running = [segment for segment in self._active if segment.runners and segment.end is not None]
            segment = max(running, key=seconds_left, default=None)
            if segment is None or seconds_left(segment) <= slower_than_s:
                return None
            return self._run(segment, segment.position)

    def _run(self, segment: Segment, position: int, cancel: Cancel | None = None) -> Runner:
        runner = Runner(segment, position, cancel or Cancel(), self._clock(), position)
        segment.runners.append(runner)
        return runner

    def advance(self, runner: Runner, count: int) -> int:
        """`count` bytes at the runner's position are on disk; says how many of them are new to the segment."""
        segment = runner.segment
        losers: list[Runner] = []
        with self._lock:
            runner.position += count
            reached = runner.position if segment.end is None else min(runner.position, segment.end)
            gained = max(0, reached - segment.position)
            segment.position += gained
            if segment.end is not None and segment.position >= segment.end and segment in self._active:
                self._active.remove(segment)
                losers = [other for other in segment.runners if other is not runner]
        for loser in losers:
            loser.cancel.cancel()
        return gained

    def merge_back(self, runner: Runner) -> bool:
        """Return an untouched range to the segment it was split from, if that is still under way."""
        segment = runner.segment
        with self._lock:
            if segment.position != runner.start or len(segment.runners) > 1:
                return False
            for before in self._active:
                if before is not segment and before.end == segment.position and before.runners:
                    before.end = segment.end
                    self._active.remove(segment)
                    return True
        return False

    def end_here(self, runner: Runner) -> None:
        """A stream of unknown length ended at the runner's position: that is the size."""
        self.set_size(runner.position)

    def release(self, runner: Runner, *, not_before_s: float = 0.0) -> None:
        """The runner has left. What it did not fetch is missing again, unless a second runner is on it."""
        with self._lock:
            segment = runner.segment
            segment.runners.remove(runner)
            if segment in self._active and not segment.runners:
                self._active.remove(segment)
                self._gaps.append(_Gap(segment.position, segment.end, not_before_s))

    def runners(self) -> list[Runner]:
        with self._lock:
            return [runner for segment in self._active for runner in segment.runners]


def _left(segment: Segment) -> int:
    return 0 if segment.end is None else segment.end - segment.position


def _complement(ranges: Iterable[Range], size: int) -> list[Range]:
    """What of 0..size the ranges leave out."""
    gaps: list[Range] = []
    position = 0
    for start, end in sorted(ranges):
        if start > position:
            gaps.append((position, start))
        position = max(position, end)
    if position < size:
        gaps.append((position, size))
    return gaps
