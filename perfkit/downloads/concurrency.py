"""How many requests run at once: a limit for each host, and a controller that finds the best number of streams."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, inf

from perfkit.downloads.cancel import Cancel
from perfkit.downloads.http.network_path import NetworkPath, queued
from perfkit.downloads.http.urls import origin_of

_CHECK_S = 0.01  # how often a full host is checked for a free place
_RECOVERY_S = 10.0  # time after which a host that has refused requests is tried with one more; doubles each time


def host_of(url: str) -> str:
    """The name that the limiter knows the URL's host by."""
    _, host, port = origin_of(url)
    return f"{host}:{port}"


@dataclass(slots=True)
class _Host:
    """The state of one host."""

    limit: int
    active: int = 0
    paused_until_s: float = 0.0
    limited_at_s: float = 0.0  # when the limit was last changed
    recovery_s: float = _RECOVERY_S
    leased: int = 0  # the limit, where several limiters share one
    peak: int = 0  # of `active`, since the last `use`
    short: bool = False  # whether a place was wanted but not leased


class HostLimiter:
    """Limits the connections to each host; makes none while the host has asked us to wait (RFC 9110 section 10.2.3).

    If several limiters share a limit, `use` reports what this one would use, and `lease` sets what it may use.
    """

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._hosts: defaultdict[str, _Host] = defaultdict(lambda: _Host(limit))
        self._leased_until_s = inf
        self._wanted: Callable[[], None] | None = None  # set: the limit is shared
        self._asked: dict[str, float] = {}  # seconds that hosts have asked us to wait, since the last `use`

    def use(self) -> tuple[dict[str, int], dict[str, float]]:
        """The places wanted at each host, and the seconds hosts have asked us to wait, both since the last call."""
        with self._lock:
            wanted = {host: self._limit if state.short else state.peak for host, state in self._hosts.items()}
            for state in self._hosts.values():
                state.peak, state.short = state.active, False
            asked, self._asked = self._asked, {}
            return {host: count for host, count in wanted.items() if count}, asked

    def lease(
        self, places: Mapping[str, int], paused_s: Mapping[str, float], *, until_s: float, wanted: Callable[[], None]
    ) -> None:
        """Until `until_s` by the clock, take at most `places` at each host; none at a host that is missing.

        Args:
            paused_s: hosts that asked others to wait, and for how many seconds.
            wanted: called when a place is wanted at a host that has none.
        """
        now = self._clock()
        with self._lock:
            self._leased_until_s, self._wanted = until_s, wanted
            for host, state in self._hosts.items():
                state.leased = places.get(host, 0)
            for host, seconds in paused_s.items():
                state = self._hosts[host]
                state.paused_until_s = max(state.paused_until_s, now + seconds)

    def _lacks_lease(self, state: _Host, now: float) -> bool:
        if self._wanted is None or (state.active < state.leased and now < self._leased_until_s):
            return False
        state.short = True
        if not state.leased:
            self._wanted()
        return True

    def enter(self, host: str) -> bool:
        """Take a place at the host; False if it is full or paused."""
        now = self._clock()
        with self._lock:
            state = self._hosts[host]
            if state.limit < self._limit and now - state.limited_at_s >= state.recovery_s:
                state.limit, state.limited_at_s = state.limit + 1, now
            if state.active >= state.limit or now < state.paused_until_s or self._lacks_lease(state, now):
                return False
            state.active += 1
            state.peak = max(state.peak, state.active)
            return True

    def wait(self, host: str, cancel: Cancel) -> bool:
        """Take a place as soon as one is free; False if cancelled before."""
        while not self.enter(host):
            if cancel.wait(max(_CHECK_S, self.resumes_s(host) - self._clock())):
                return False
        return True

    def leave(self, host: str) -> None:
        with self._lock:
            self._hosts[host].active -= 1

    def resumes_s(self, host: str) -> float:
        """The clock's time from which requests may go to a paused host; in the past if it is not paused."""
        with self._lock:
            state = self._hosts.get(host)
            return state.paused_until_s if state else 0.0

    def pause(self, host: str, seconds: float) -> None:
        """Make no new requests to the host for that long."""
        with self._lock:
            state = self._hosts[host]
            state.paused_until_s = max(state.paused_until_s, self._clock() + seconds)
            self._asked[host] = max(self._asked.get(host, 0.0), seconds)

    def refused(self, host: str) -> bool:
        """The host has refused one of the requests under way: limit it to the number of the others. False if there are
        no others.
        """
        now = self._clock()
        with self._lock:
            state = self._hosts[host]
            if state.active:  # else another host's redirect led here, and that host is limited
                if state.limited_at_s and now - state.limited_at_s >= _RECOVERY_S:
                    state.recovery_s *= 2
                state.limit, state.limited_at_s = min(state.limit, state.active) - 1, now
                if state.limit:
                    return True
                state.limit = 1
            return False


class AdaptiveController:
    """How many streams to run at once.

    It starts with one stream, or eight where responses take long, and doubles while that pays: another stream helps
    where delay or losses limit each, and only lengthens the queues where the link is full. While the CPU limits, it
    tries fewer: threads that compete for the interpreter are slower than one. A step that did not pay is undone, and
    tried again later. Nothing changes while the throttle limits or there is too little to do. Goodput is bytes, plus an
    allowance per finished file, since many small files move few bytes.

    A server that limits each connection sends in bursts, often a large one first, so a short window shows mostly
    chance. A step that pays is kept as soon as that shows; one that does not gets a long window first. A nearby server
    that pauses in the middle of a body leaves the link idle, so streams are added whatever they gain.

    Args:
        ceiling: the most streams ever.
        adaptive: False runs `ceiling` streams, always.
        rate: returns the rate limit in bytes per second.
    """

    ramp_window_s = 0.1
    steady_window_s = 1.0
    answers_per_window = 4  # a shorter one would judge streams without a response yet, or in slow start (RFC 5681)
    far_s = 0.02  # a response that takes this long comes over a network,
    network_s = 0.002  # and so do packets that take this long
    congested_s, congested_round_trips = 2.0, 25  # how long a path counts as congested after packets queued
    far_streams = 8
    limited_bytes = 64 << 10  # of what a limit lets through during a response: worth a stream, with its first window
    doubling_pays = 1.15  # the gain in goodput for which a doubling is kept
    halving_costs = 0.95
    patience_windows = 10  # after a step that did not pay; fewer after the first that added streams
    cpu_bound = 0.85  # of one core
    file_allowance_bytes = 32 << 10

    def __init__(
        self,
        ceiling: int,
        *,
        adaptive: bool = True,
        rate: Callable[[], int | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ceiling = ceiling
        self._adaptive = adaptive
        self._rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self.target = 1 if adaptive else ceiling
        self.answer_s = 0.0  # how long a response takes, on average
        self._queued_at_s = clock()  # when packets last queued, or when that was unknown
        self._least = 1  # streams, however busy the CPU is
        self._ramping = True
        self._trial: tuple[int, float] | None = None  # streams and goodput before the step that is being tried
        self._grow_after = 0  # windows until growing, or shrinking, is tried again
        self._shrink_after = 0
        self._patience = 1  # windows to wait when growing fails next
        self._paused = False  # whether a body has paused since the last step
        self._from_s: float | None = None
        self._work_before = 0.0
        self._cpu_before_s = 0.0
        self._least_trip_s = inf
        self._trip_s = inf  # the shortest since the last step

    def restart(self) -> None:
        """Begin new totals; keep what was learned about the number of streams."""
        with self._lock:
            self._from_s = None
            self._least = 1

    def decrypts(self) -> None:
        """Run two streams at least: decrypting a large body keeps a core busy, but without the interpreter's lock."""
        with self._lock:
            self._least = min(2, self._ceiling)
            self._raise(self._least)

    def answered(self, seconds: float) -> None:
        """Record how long a response took."""
        with self._lock:
            first = not self.answer_s
            self.answer_s += (seconds - self.answer_s) / (1 if first else 8)
            if first and seconds >= self.far_s:
                self._raise(int(min(self.far_streams, self._ceiling, self._enough())))

    def _enough(self) -> float:
        """Streams that are enough for the rate limit, unless each of them is limited, too. The first windows of more
        would exceed it.
        """
        rate = self._rate()
        return inf if rate is None else ceil(rate * self.answer_s / self.limited_bytes)

    def waited(self, seconds: float) -> None:
        """Record how long nothing came in the middle of a body."""
        if seconds > max(self.far_s, 2 * self.answer_s):
            self._paused = True

    def _raise(self, least: int) -> None:
        if self.target < least:
            self.target, self._trial, self._from_s = least, None, None

    def observe(
        self,
        *,
        received_bytes: int,
        files_done: int,
        busy: int,
        cpu_s: float,
        throttled: bool,
        path: NetworkPath | None = None,
    ) -> bool:
        """Evaluate the running totals; may be called at any rate. Returns whether `target` changed.

        Args:
            path: as the transport measures it.
        """
        if not self._adaptive:
            return False
        with self._lock:
            now = self._clock()
            if path is not None:
                self._trip_s = min(self._trip_s, path.round_trip_s)
                self._least_trip_s = min(self._least_trip_s, path.round_trip_s, path.least_s)
            work = received_bytes + files_done * self.file_allowance_bytes
            answers_s = self._least_trip_s if self._path_known else self.answers_per_window * self.answer_s
            if self._from_s is None or now < self._from_s:
                self._from_s, self._work_before, self._cpu_before_s = self._from_s or now, work, cpu_s
                return False
            window_s = now - self._from_s
            ramping = self._ramping and self.target < self._enough()
            if window_s < max(self.ramp_window_s if ramping else self.steady_window_s, answers_s):
                return False
            goodput = (work - self._work_before) / window_s
            if goodput <= 0 and window_s < self.steady_window_s:
                return False  # nothing yet; if that lasts, another stream may help
            cpu_bound = (cpu_s - self._cpu_before_s) / window_s > self.cpu_bound
            if window_s < self.steady_window_s and not cpu_bound and self._looks_useless(goodput):
                return False
            before, self.target = self.target, self._decide(goodput, cpu_bound, throttled or busy < self.target)
            judged = self.target > before and not self._path_known
            self._from_s = now + (answers_s / 2 if judged else 0.0)  # until then, new streams have not begun
            self._trip_s, self._paused = inf, False
            self._work_before, self._cpu_before_s = work, cpu_s
            return self.target != before

    @property
    def _path_known(self) -> bool:
        """Whether a path is known on which queues can be told from distance."""
        return self.network_s <= self._least_trip_s and self._trip_s < inf

    @property
    def round_trip_s(self) -> float:
        """How long a request takes at least, on an open connection."""
        return self._least_trip_s if self.network_s <= self._least_trip_s < inf else self.answer_s

    @property
    def congested(self) -> bool:
        """Whether packets have queued lately, so that losses may come from a full queue."""
        lasting_s = self.congested_s
        if self._least_trip_s >= self.far_s:
            lasting_s = min(lasting_s, self.congested_round_trips * self._least_trip_s)
        return self._clock() - self._queued_at_s < lasting_s

    def _looks_useless(self, goodput: float) -> bool:
        """Whether streams added on trial have not paid so far."""
        trial = self._trial
        return trial is not None and trial[0] < self.target and not self._paused and not self._pays(trial, goodput)

    def _pays(self, trial: tuple[int, float], goodput: float) -> bool:
        return goodput >= trial[1] * (self.halving_costs if self.target < trial[0] else self.doubling_pays)

    def _decide(self, goodput: float, cpu_bound: bool, idle: bool) -> int:
        trial, self._trial = self._trial, None
        queues = self._path_known and queued(self._trip_s, self._least_trip_s)
        if queues:
            self._queued_at_s = self._clock()
        if idle:
            return self.target
        if self._path_known or (self._paused and not cpu_bound):
            return self.target if queues or cpu_bound else min(self._ceiling, self.target * 2)
        if trial is not None and not self._pays(trial, goodput):
            self._ramping = False
            if trial[0] < self.target:
                self._grow_after, self._patience = self._patience, min(2 * self._patience, self.patience_windows)
            else:
                self._shrink_after = self.patience_windows
            return trial[0]
        self._grow_after, self._shrink_after = max(0, self._grow_after - 1), max(0, self._shrink_after - 1)
        wanted = self.target
        if cpu_bound and self._shrink_after == 0:
            wanted = max(self._least, self.target // 2)
        elif not cpu_bound and self._grow_after == 0:
            wanted = min(self._ceiling, self.target * 2)
        if wanted != self.target:
            self._trial = (self.target, goodput)
        return wanted
