"""Which bytes of one file are done, under way, or missing. No I/O; every change of state happens under one lock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import log2

from perfkit.downloads.cancel import Cancel

Range = tuple[int, int]  # start, end (exclusive)

_RANGE_S, _RANGE_ROUND_TRIPS = 2.0, 25  # a range is about what a connection fetches in the shorter of these times,
_RANGES = 32  # but at least what is missing divided by this: each costs a round trip
_ROUND_TRIPS = 2  # a range that takes no longer than this many is not split, nor than two more to open a connection
_FAR_S = 0.02
_FIRST_BYTES, _MOST_DOUBLINGS = 14_600, 40  # a connection starts with ten packets (RFC 6928), and doubles that
_BEHIND = 3  # round trips by which losses in a full queue delay a connection's slow start
_SLOW_S = 2.0
_LONG_S = 0.5  # a short range that takes longer is split anyway, if that is worth the round trips
_SILENT_ROUND_TRIPS = 4  # a lost packet or the request of a new connection takes fewer
_YOUNG_S = 1.0
_RECENT_S = 0.5  # a runner's speed is that of the last one or two periods of this length
_LEAST_BYTES = 32 << 10  # less than this is not split, however slow it is


@dataclass(slots=True, eq=False)
class Segment:
    """A missing range. Bytes before `position` are on disk; `end` shrinks when another worker takes the rest."""

    position: int
    end: int | None  # None while the size of the file is unknown
    not_before_s: float = 0.0  # when the first runner may begin
    runners: list[Runner] = field(default_factory=list)
    tries: int = 0  # runners that it has had
    keeps_cut: bool = False  # its end no longer grows back


@dataclass(slots=True, eq=False)
class Runner:
    """One worker on a segment. A hedged segment has several, and the first at the end wins."""

    segment: Segment
    position: int
    cancel: Cancel
    started_s: float
    start: int
    came_s: float  # when bytes last arrived
    asked_end: int | None  # the segment's end when the runner began
    fresh: bool  # whether it has to open a connection
    replaced: bool = False  # whether its connection was closed at the end
    first_s: float = 0.0  # when the first bytes arrived
    marks: list[tuple[float, int]] = field(default_factory=list)  # two earlier times and positions

    def pass_mark(self, now: float) -> None:
        """Record time and position, if the last record is old enough."""
        self.came_s = now
        if not self.marks:
            self.first_s = now
            self.marks = [(self.started_s, self.start)] * 2
        if now - self.marks[1][0] >= _RECENT_S:
            self.marks = [self.marks[1], (now, self.position)]

    def speed(self, now: float) -> float:
        """Recent bytes per second."""
        since_s, position = self.marks[0] if self.marks else (self.started_s, self.start)
        return (self.position - position) / max(1e-3, now - since_s)

    def seconds_left(self, now: float, pace: float, round_trip_s: float, behind: int = _BEHIND) -> float:
        """Estimated time to the end. A connection in slow start doubles its speed each round trip (RFC 5681); another
        that has just begun counts as at least as fast as the others; a silent one, as staying silent for as long again.
        """
        left = self.remaining or 0
        if self._in_slow_start(now, round_trip_s, behind):
            seconds = round_trip_s * log2(1 + left / (self.position - self.start + _FIRST_BYTES))
        else:
            begins = now - self.started_s < _YOUNG_S or self.position == self.start
            seconds = left / max(1.0, pace if begins else 0.0, self.speed(now))
        silent_s = now - self.came_s
        answered = self.position > self.start  # then, what came after a lost packet may be in the kernel
        return max(seconds, silent_s) if silent_s > _patience_s(_LONG_S, 0.0 if answered else round_trip_s) else seconds

    def _in_slow_start(self, now: float, round_trip_s: float, behind: int) -> bool:
        """Whether it is no more than so many round trips behind one that meets no loss, limit or full link."""
        if not (self.fresh and round_trip_s):
            return False
        round_trips = (now - self.first_s) / round_trip_s
        return not self.marks or self.position - self.start >= _slow_start_bytes(round_trips - behind)

    @property
    def remaining(self) -> int | None:
        """Bytes this runner still has to fetch; None while that is unknown."""
        end = self.segment.end
        return None if end is None else max(0, end - self.position)


class SegmentMap:
    """The ranges of one version of one file."""

    def __init__(
        self, size: int | None = None, done: Iterable[Range] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._size = size
        missing: Iterable[tuple[int, int | None]] = [(0, None)] if size is None else _complement(done, size)
        self._gaps = [Segment(*each) for each in missing]  # without runners
        self._active: list[Segment] = []  # with one or more
        self._runners: set[Runner] = set()  # claimed and not released, those of finished ranges included
        self._ended_bytes = 0  # what runners that left have fetched, and how long they took
        self._ended_s = 0.0
        self._idle: list[float] = []  # speeds of connections that have read their responses, the latest last
        self._behind = _BEHIND
        self._far_s = 0.0  # the round trip to the server; 0 if slow start is over at once, or it is unknown

    @property
    def size(self) -> int | None:
        return self._size

    @property
    def has_gaps(self) -> bool:
        """Whether missing ranges have no runner. A hint: it takes no lock."""
        return bool(self._gaps)

    @property
    def complete(self) -> bool:
        with self._lock:
            return self._size is not None and not self._gaps and not self._active

    @property
    def frontier(self) -> int:
        """Every byte before this one is on disk."""
        with self._lock:
            return min((each.position for each in self._segments()), default=self._size or 0)

    def done(self) -> list[Range]:
        """The ranges on disk, sorted; while the size is unknown, up to the last byte written."""
        with self._lock:
            if self._size is None:
                return [(0, segment.position) for segment in self._active if segment.position]
            return _complement(((each.position, each.end or self._size) for each in self._segments()), self._size)

    def set_size(self, size: int) -> None:
        """Set the size once it is known, at the latest where a stream ended; open-ended ranges end there."""
        with self._lock:
            self._size = size
            for each in self._segments():
                each.end = size if each.end is None else each.end
            self._gaps = [each for each in self._gaps if _left(each) > 0]
            self._active = [each for each in self._active if _left(each) > 0]

    def claim(self, cancel: Cancel | None = None) -> Runner | None:
        """Claim a missing range that is due, for a runner that `cancel` ends, or a `Cancel` of its own."""
        now = self._clock()
        with self._lock:
            segment = next((each for each in self._gaps if each.not_before_s <= now), None)
            if segment is None:
                return None
            self._gaps.remove(segment)
            self._active.append(segment)
            return self._run(segment, segment.position, cancel)

    def next_claim_s(self) -> float | None:
        """The clock's time at which a missing range may be claimed; None if none is missing."""
        with self._lock:
            return min((each.not_before_s for each in self._gaps), default=None)

    @property
    def missing_bytes(self) -> int:
        """Bytes that are not on disk; 0 while the size is unknown."""
        with self._lock:
            return self._missing()

    def _missing(self) -> int:
        return sum(map(_left, self._segments()))

    def _segments(self) -> list[Segment]:
        return self._gaps + self._active

    def split(self, minimum: int, round_trip_s: float = 0.0, *, congested: bool = True) -> Runner | None:
        """Split off the end of the range that would take longest, so that both parts end together. The part is no more
        than is fetched in a short time, so that its runner is rarely cut short, and comes from a long range while there
        is one. None if no range would take longer than a few round trips.

        Args:
            minimum: neither part gets fewer bytes, unless the server is distant or the range has a slow connection.
            round_trip_s: to the server and back; 0 if unknown.
            congested: whether packets queue on the path, or may. Then a connection that has lost some may soon have all
                that came later.
        """
        with self._lock:
            self._behind = _BEHIND if congested else 1
            worth_s = (_ROUND_TRIPS if self._idle else _ROUND_TRIPS + 2) * round_trip_s
            self._far_s = round_trip_s if round_trip_s >= _FAR_S else 0.0
            now = self._clock()
            pace, missing = max(1.0, self._pace(now)), self._missing()
            own = max(1.0, self._idle[-1]) if self._idle else pace
            runners = sum(len(each.runners) for each in self._active) or 1
            range_s = min(_RANGE_S, _RANGE_ROUND_TRIPS * self._far_s or _RANGE_S)
            usual_s = min(range_s, max(worth_s, missing / (pace * runners) / 2))  # shorter and shorter towards the end
            usual = max(int(own * usual_s), missing // _RANGES)
            segment, seconds = self._slowest(now, pace, worth_s, 2 * usual)
            if segment is None:
                segment, seconds = self._slowest(now, pace, worth_s)
            if segment is None or segment.end is None:
                return None
            left = _left(segment)
            together = left * (seconds - self._far_s) * own / (left + seconds * own)
            if not self._far_s:
                slow = seconds > _LONG_S and now - segment.runners[0].started_s >= _YOUNG_S
                least = _LEAST_BYTES if left < 2 * minimum and slow else minimum
            elif self._idle:
                least = min(minimum, max(_FIRST_BYTES, int(own * self._far_s)))  # what comes in a round trip
            else:
                least, together = _LEAST_BYTES, _slow_start_bytes(seconds / self._far_s - 2)  # two to connect and ask
            if left < 2 * least or (self._far_s and together < least):
                return None
            taken = max(least, min(int(together), usual, left - least))
            rest = Segment(segment.end - taken, segment.end)
            segment.end -= taken
            self._active.append(rest)
            return self._run(rest, rest.position)

    def hedge(self) -> Runner | None:
        """Another runner for a range that a slow or silent connection holds up, and that is too short to be split."""
        with self._lock:
            now = self._clock()
            pace = self._pace(now)
            segment, seconds = self._slowest(now, pace, _patience_s(_SLOW_S, self._far_s))
            if segment is None or _left(segment) >= seconds * pace / 2:  # all are slow, as under a rate limit
                return None
            return self._run(segment, segment.position)

    def was_slow(self, runner: Runner) -> bool:
        """Whether the runner was slower than the mean of the connections to this file."""
        with self._lock:
            now = self._clock()
            return runner.position - runner.start < self._pace(now) * (now - runner.started_s)

    def _pace(self, now: float) -> float:
        """The mean speed of a connection to this file."""
        runners = [runner for segment in self._active for runner in segment.runners]
        count = self._ended_bytes + sum(each.position - each.start for each in runners)
        return count / max(1e-3, self._ended_s + sum(now - each.started_s for each in runners))

    def _slowest(self, now: float, pace: float, least_s: float, least: int = 0) -> tuple[Segment | None, float]:
        """Of the ranges with `least` bytes left, the one that would take longest, and how many seconds; None if that is
        no more than `least_s`. Each runner that a range has had makes another worth less.
        """
        slowest, most_s = None, least_s
        for segment in self._active:
            if _left(segment) >= least:
                each_s = (runner.seconds_left(now, pace, self._far_s, self._behind) for runner in segment.runners)
                seconds = min(each_s) / segment.tries
                if seconds > most_s:
                    slowest, most_s = segment, seconds
        return slowest, most_s

    def _run(self, segment: Segment, position: int, cancel: Cancel | None = None) -> Runner:
        now = self._clock()
        runner = Runner(segment, position, cancel or Cancel(), now, position, now, segment.end, not self._idle)
        if self._idle:
            self._idle.pop()
        segment.runners.append(runner)
        self._runners.add(runner)
        segment.tries += 1
        return runner

    def advance(self, runner: Runner, count: int) -> int:
        """Record `count` bytes on disk at the runner's position; returns how many are new to the segment."""
        segment = runner.segment
        losers: list[Runner] = []
        with self._lock:
            runner.position += count
            runner.pass_mark(self._clock())
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
                if before is not segment and before.end == segment.position and not before.keeps_cut:
                    before.end = segment.end
                    self._active.remove(segment)
                    return True
        return False

    def keeps_cut(self, runner: Runner, end: int, within: int) -> bool:
        """Whether others have taken the end of the range that the runner requested up to `end`, and fewer than `within`
        bytes of the rest are left. From then on, they can't merge it back.
        """
        with self._lock:
            segment = runner.segment
            if segment.end is None or segment.end >= end:
                return False
            segment.keeps_cut = segment.keeps_cut or segment.end - runner.position < within
            return segment.keeps_cut

    def release(self, runner: Runner, *, not_before_s: float = 0.0) -> None:
        """Remove a runner. What it did not fetch is missing again, unless a second runner is on it."""
        with self._lock:
            segment = runner.segment
            segment.runners.remove(runner)
            self._runners.remove(runner)
            self._ended_bytes += runner.position - runner.start
            self._ended_s += self._clock() - runner.started_s
            if runner.position == runner.asked_end and not runner.replaced:
                self._idle.append(runner.speed(self._clock()))
            if segment in self._active and not segment.runners:
                self._active.remove(segment)
                self._gaps.append(Segment(segment.position, segment.end, not_before_s))

    def cancel_others(self, but: Runner | None) -> None:
        """Cancel all other runners."""
        for runner in self.runners():
            if runner is not but:
                runner.cancel.cancel()

    def runners(self) -> list[Runner]:
        """Those that may still write, also beyond what is missing: the slower ones of a range that another finished."""
        with self._lock:
            return list(self._runners)


def _patience_s(near_s: float, round_trip_s: float) -> float:
    """How long to wait for a connection: `near_s`, or less where a few round trips over a distance are less."""
    return min(near_s, _SILENT_ROUND_TRIPS * round_trip_s or near_s)


def _slow_start_bytes(round_trips: float) -> float:
    """What a new connection has brought that many after its request was answered, if nothing slows it."""
    doubled: float = 2.0 ** min(_MOST_DOUBLINGS, round_trips)
    return _FIRST_BYTES * doubled if round_trips >= 0 else 0.0


def _left(segment: Segment) -> int:
    return 0 if segment.end is None else segment.end - segment.position


def _complement(ranges: Iterable[Range], size: int) -> list[Range]:
    """The gaps that the ranges leave in 0..size."""
    gaps: list[Range] = []
    position = 0
    for start, end in sorted(ranges):
        if start > position:
            gaps.append((position, start))
        position = max(position, end)
    if position < size:
        gaps.append((position, size))
    return gaps
