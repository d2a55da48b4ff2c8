"""Computes the speed of a piece of work, the time left, and the share done. No I/O."""

from __future__ import annotations

from collections import deque

_WINDOW_S = 5.0  # of the speed shown
_FLOW_S = 15.0  # of the speed used for the time left
_SILENCE_S = 2.0  # a longer one says nothing about the speed of the rest,
_SILENCE_INTERVALS = 3  # unless bytes usually come in larger steps
_SAMPLE_EVERY_S = 0.1
_ALMOST = 0.9999  # the largest share shown before a run ends


class Pace:
    """Speed, time left and share of a piece of work, from its running totals.

    The time left is computed from the last fifteen seconds in which bytes came. A silence that is much longer than the
    usual interval between them (a stall, the wait before a retry, a busy host, a laptop that slept) counts only in
    part.
    """

    __slots__ = ("_flow", "_flow_s", "_grown_s", "_interval_s", "_recent", "_seen_s", "_share", "_total")

    def __init__(self, now: float) -> None:
        self._recent: deque[tuple[float, int]] = deque([(now, 0)])  # time, total
        self._flow: deque[tuple[float, int]] = deque([(0.0, 0)])  # the same, without the silence
        self._flow_s = self._interval_s = 0.0  # and the mean interval between two steps of it
        self._total = 0
        self._seen_s = self._grown_s = now
        self._share = 0.0

    def record(self, now: float, total: int) -> float:
        """Record a total, which never decreases, at this moment; returns the speed over the last five seconds."""
        if total > self._total:
            interval_s = now - (self._grown_s if self._total else self._seen_s)  # without the wait for the first bytes
            if self._total:
                interval_s = min(interval_s, max(_SILENCE_S, _SILENCE_INTERVALS * self._interval_s))
            self._interval_s += (interval_s - self._interval_s) / (4 if self._total else 1)
            self._flow_s += interval_s
            self._grown_s, self._total = now, total
            _sample(self._flow, self._flow_s, total, _FLOW_S)
        self._seen_s = now
        _sample(self._recent, now, total, _WINDOW_S)
        return _rate(self._recent[0], now, total)

    def eta_s(self, left: int | None) -> float | None:
        """Seconds until `left` more have come; None if unknown."""
        if not left:
            return None if left is None else 0.0
        rate = _rate(self._flow[0], self._flow_s, self._total)
        return left / rate if rate > 0 else None

    def share(self, done: float, total: float | None, *, ended: bool = False) -> float | None:
        """The share done; None if unknown. It never falls, and is 1 only when the work has ended."""
        if ended:
            self._share = 1.0
        elif total:
            self._share = max(self._share, min(_ALMOST, done / total))
        return self._share if total or ended else None


def _sample(samples: deque[tuple[float, int]], now: float, total: int, window_s: float) -> None:
    if now - samples[-1][0] >= _SAMPLE_EVERY_S or len(samples) == 1:
        samples.append((now, total))
    while len(samples) > 2 and now - samples[1][0] >= window_s:
        samples.popleft()


def _rate(since: tuple[float, int], now: float, total: int) -> float:
    return max(0, total - since[1]) / (now - since[0]) if now > since[0] else 0.0
