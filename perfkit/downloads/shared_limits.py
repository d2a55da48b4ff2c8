"""Limits that several Toolkits share: each leases its share from a store, a few times a second."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from perfkit.config import checks_arguments
from perfkit.downloads.concurrency import HostLimiter
from perfkit.downloads.throttle import Throttle
from perfkit.errors import ConfigError

_log = logging.getLogger(__name__)
_RENEW_S = 0.25
_LEAST_RENEW_S = 0.2  # five a second at most
_RENEWALS_PER_S = 500  # of all holders of a store together
_PERIODS = 4  # that a lease lasts: a holder silent for this long has lost it
_JOIN_S = 0.5
_NEARLY_ALL = 0.9  # of a lease: a holder that uses this much wants more
_IDLE = 0.02  # of the rate, leased to all idle holders together, so that they can begin
_CATCH_UP_S = 2.0  # in which bytes that were not used, or used beyond the rate, are made up for
_MOST_FASTER, _MOST_SLOWER = 0.03, 0.1  # of the rate, while bytes are made up for
_MOST_MISSED_S, _MOST_AHEAD_S = 0.25, 1.0  # no more than these seconds of the rate are made up for
_lock = threading.Lock()  # of all `SharedLimits` of the process: a fork waits for it, or the child never could take it

os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


@checks_arguments
@dataclass(frozen=True, slots=True)
class Use:
    """What a Toolkit has used since its last lease, and what it wants.

    Attributes:
        bytes: received over the network.
        connections: how many it wants to each host (`name:port`).
        paused_s: how many seconds a host has asked to wait (`Retry-After`, RFC 9110 section 10.2.3).
    """

    bytes: int = 0
    connections: Mapping[str, int] = field(default_factory=dict)
    paused_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lease:
    """A Toolkit's share of the limits.

    Attributes:
        rate: bytes per second; None: no limit.
        seconds: how long it is valid; after that, the Toolkit receives nothing and makes no connections.
        renew_s: how soon to ask again, in seconds.
        connections: the most to each host; none to a host that is missing.
        paused_s: for how many seconds to make no requests to a host.
    """

    rate: int | None
    seconds: float
    renew_s: float
    connections: Mapping[str, int] = field(default_factory=dict)
    paused_s: Mapping[str, float] = field(default_factory=dict)


class LimitStore(Protocol):
    """Keeps limits for several Toolkits, in one process or many: `Toolkit(limits=...)`.

    Each Toolkit calls it from a thread of its own, at most five times a second. An exception is logged, and the Toolkit
    asks again; once its lease has ended, it waits.
    """

    def lease(self, holder: str, use: Use) -> Lease:
        """Return a Toolkit's share, which replaces the one before."""

    def release(self, holder: str) -> None:
        """Drop the share of a Toolkit that was closed."""


@dataclass(slots=True)
class _Holder:
    at_s: float  # when it asked last
    until_s: float = 0.0
    rate: float = 0.0
    demand: float = math.inf  # bytes per second
    connections: Mapping[str, int] = field(default_factory=dict)
    wanted: Mapping[str, int] = field(default_factory=dict)


@checks_arguments
class SharedLimits:
    """A `LimitStore` in memory. The leases together never exceed the limits.

    Args:
        rate: bytes per second for all holders together; None: no limit.
        connections: to each host, of all holders together. If there are more holders than that, some wait for others.

    Raises:
        ConfigError: one of them is not a whole number of at least 1.
    """

    def __init__(self, rate: int | None, connections: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        if connections < 1 or (rate is not None and rate < 1):
            raise ConfigError(f"rate and connections must be at least 1; got {rate} and {connections}")
        self._rate = rate
        self._most = connections
        self._clock = clock
        self._holders: dict[str, _Holder] = {}
        self._paused: dict[str, float] = {}
        self._unused = 0.0  # bytes that the rate allowed and nobody received; negative: received beyond it
        self._settled_s = clock()

    def lease(self, holder: str, use: Use) -> Lease:
        with _lock:
            now = self._clock()
            self._holders = {name: each for name, each in self._holders.items() if each.until_s > now}
            own = self._holders.pop(holder, None) or _Holder(now)
            others = self._holders.values()
            renew_s = max(_RENEW_S, (len(others) + 1) / _RENEWALS_PER_S)
            if self._rate is not None:
                own.demand = _demand(own, use.bytes, now, self._rate * _IDLE / (len(others) + 1))
                own.rate = self._share(self._rate, own.demand, use.bytes, now)
            own.wanted = use.connections
            own.connections = {host: self._places(holder, host, count) for host, count in use.connections.items()}
            own.at_s, own.until_s = now, now + _PERIODS * renew_s
            self._holders[holder] = own
            for host, wait_s in use.paused_s.items():
                self._paused[host] = max(self._paused.get(host, 0.0), now + wait_s)
            self._paused = {host: until_s for host, until_s in self._paused.items() if until_s > now}
            paused = {host: until_s - now for host, until_s in self._paused.items()}
            rate = None if self._rate is None else max(1, int(own.rate))
            return Lease(rate, _PERIODS * renew_s, renew_s, own.connections, paused)

    def release(self, holder: str) -> None:
        with _lock:
            self._holders.pop(holder, None)

    def _share(self, rate: int, demand: float, used: int, now: float) -> float:
        """Bytes per second for a holder, given what the others have."""
        self._unused += rate * (now - self._settled_s) - used
        self._unused = min(max(self._unused, -rate * _MOST_AHEAD_S), rate * _MOST_MISSED_S)
        self._settled_s = now
        allowed = rate + min(max(self._unused / _CATCH_UP_S, -rate * _MOST_SLOWER), rate * _MOST_FASTER)
        level = _level(allowed, [demand, *(each.demand for each in self._holders.values())])
        return max(0.0, min(demand, level, allowed - sum(each.rate for each in self._holders.values())))

    def _places(self, holder: str, host: str, wanted: int) -> int:
        """Connections to a host for a holder, given what the others have."""
        wants = {name: each.wanted.get(host, 0) for name, each in self._holders.items()} | {holder: wanted}
        level = _level(self._most, wants.values())
        if wanted > level:
            spare = self._most - sum(min(each, int(level)) for each in wants.values())
            wanted = int(level) + (holder in sorted(name for name, each in wants.items() if each > level)[:spare])
        taken = sum(each.connections.get(host, 0) for each in self._holders.values())
        return max(0, min(wanted, self._most - taken))


def _demand(own: _Holder, used: int, now: float, least: float) -> float:
    """How many bytes per second a holder would use."""
    elapsed_s = now - own.at_s
    if not own.until_s or used >= _NEARLY_ALL * own.rate * elapsed_s:
        return math.inf
    return max(2 * used / elapsed_s, least)


def _level(most: float, demands: Iterable[float]) -> float:
    """The most that each gets by max-min fairness: what one doesn't want of `most` is left for the others."""
    left = sorted(demands)
    for index, demand in enumerate(left):
        fair = most / (len(left) - index)
        if demand >= fair:
            return fair
        most -= demand
    return math.inf


class LeaseKeeper:
    """Renews a Toolkit's lease in a thread of its own, and applies it.

    Args:
        renewed: called after each renewal.
    """

    def __init__(
        self, store: LimitStore, throttle: Throttle, limiter: HostLimiter, renewed: Callable[[], None]
    ) -> None:
        self._store = store
        self._throttle = throttle
        self._limiter = limiter
        self._renewed = renewed
        self._holder = os.urandom(16).hex()
        self._closed = threading.Event()
        self._wanted = threading.Event()  # set when a connection is wanted to a host without a lease
        limiter.lease({}, {}, until_s=0.0, wanted=self._wanted.set)
        self._thread = threading.Thread(target=self._run, name="perfkit-leases", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread and give back the lease."""
        self._closed.set()
        self._wanted.set()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_S)  # the store may be unreachable

    def _run(self) -> None:
        reported = 0
        renew_s = _RENEW_S
        while not self._closed.is_set():
            asked_s, spent = time.monotonic(), self._throttle.spent
            connections, paused_s = self._limiter.use()
            try:
                lease = self._store.lease(self._holder, Use(spent - reported, connections, paused_s))
            except Exception:
                _log.warning("the store of shared limits did not answer; asking again", exc_info=True)
            else:
                reported, renew_s = spent, lease.renew_s
                until_s = asked_s + lease.seconds
                self._throttle.set_rate(lease.rate, until_s=until_s)
                self._limiter.lease(lease.connections, lease.paused_s, until_s=until_s, wanted=self._wanted.set)
                self._renewed()
            if not self._closed.wait(_LEAST_RENEW_S):
                self._wanted.wait(max(0.0, renew_s - _LEAST_RENEW_S))
                self._wanted.clear()
        try:
            self._store.release(self._holder)
        except Exception:
            _log.debug("the lease was not given back, and will end", exc_info=True)
