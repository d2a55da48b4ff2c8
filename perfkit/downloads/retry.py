"""When another attempt may help, how long to wait before it, and what a host's refusal means for all requests to it."""

from __future__ import annotations

import datetime
import errno
import logging
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from perfkit.config import Config
from perfkit.downloads.concurrency import AdaptiveController, HostLimiter, host_of
from perfkit.downloads.http.semantics import parse_retry_after
from perfkit.downloads.http.transport import Response, Transport
from perfkit.errors import HTTPStatusError, TransferError, causes_of
from perfkit.redact import redacted

_log = logging.getLogger(__name__)

_RETRY_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_BUSY_STATUSES = frozenset({429, 503})


def backoff_s(config: Config, failures: int) -> float:
    """Full jitter: uniform between 0 and a bound that doubles with each failure."""
    return _uniform(0.0, min(config.backoff_cap_s, config.backoff_base_s * 2.0 ** max(0, failures - 1)))


class Network(NamedTuple):
    """What all requests of a manager share."""

    config: Config
    transport: Transport
    limiter: HostLimiter
    controller: AdaptiveController


def refuse(url: str, response: Response, reason: str, *, host: str, network: Network) -> NoReturn:
    """Raise the error for a status. If the host is busy, first limit it for all requests, and pause it if it refused
    the only one.

    Args:
        host: the host whose limit the request counts against.

    Raises:
        HTTPStatusError: always.
    """
    status, wait_s = response.status, None
    if status in _BUSY_STATUSES:
        hosts = {host, host_of(response.url)}  # the host that asked us to wait, and the one whose redirect leads there
        others = [network.limiter.refused(each) for each in hosts]
        wait_s = parse_retry_after(response.headers.get("retry-after"), now=datetime.datetime.now(datetime.UTC))
        cap_s = network.config.retry_after_cap_s
        if wait_s is not None and wait_s > cap_s:
            reason = f"{reason}, and asks to wait {wait_s:.0f} s, more than retry_after_cap_s={cap_s:.0f}"
        elif wait_s and not all(others):
            for each in hosts:
                network.limiter.pause(each, wait_s + _uniform(0, min(1.0, wait_s / 10)))
    error = HTTPStatusError(url, reason, status, transient=status in _RETRY_STATUSES)
    error.retry_after_s = wait_s
    raise error


def is_refusal(error: Exception) -> bool:
    """Whether no more requests to the host are possible now."""
    return is_shortage(error) or (isinstance(error, HTTPStatusError) and error.status in _BUSY_STATUSES)


def is_shortage(error: Exception) -> bool:
    """Whether there were no file descriptors left (`ulimit -n`). Fewer requests at once need fewer."""
    return any(getattr(each, "errno", None) in (errno.EMFILE, errno.ENFILE) for each in causes_of(error))


def may_retry(error: Exception, config: Config) -> bool:
    """Whether another attempt in this run may help: not if the host asks for a longer wait than
    `Config.retry_after_cap_s` (RFC 9110 section 10.2.3).
    """
    transient = isinstance(error, TransferError) and error.transient
    return (transient or is_shortage(error)) and _asked_s(error) <= config.retry_after_cap_s


def _asked_s(error: Exception) -> float:
    return (error.retry_after_s or 0.0) if isinstance(error, HTTPStatusError) else 0.0


def _uniform(least: float, most: float) -> float:
    import random  # takes 4 ms to load, and only failures need it

    return random.uniform(least, most)


@dataclass(slots=True)
class Attempts:
    """The sources of a file, the current one, and its failures. Guarded by its transfer's lock."""

    config: Config
    sources: tuple[str, ...]  # the file's URL, then its mirrors
    most: int  # retries in a row, of each source
    source: int = 0  # the current one
    at: str | None = None  # where redirects of it led
    not_before_s: float = 0.0  # when the whole file may be requested; a missing range has a time of its own
    restarts: int = 0  # times that everything fetched was discarded
    requests: int = 0
    retries: int = 0
    received: int = 0  # bytes that came over the network
    _failures: int = 0  # in a row, without real progress
    _failed_at_s: float = 0.0
    _gained: int = 0  # bytes put in place by this run
    _gained_at_failure: int = 0

    @property
    def url(self) -> str:
        """The current source."""
        return self.sources[self.source]

    @property
    def host(self) -> str:
        """The host whose limit the next request counts against."""
        return host_of(self.at or self.url)

    def arrived(self, count: int, gained: int) -> None:
        """Count bytes that arrived, `gained` of them new."""
        self.received += count
        self._gained += gained

    def start_over(self) -> None:
        """Forget the bytes gained, which were discarded."""
        self._gained = self._gained_at_failure = 0

    def retry_at_s(self, error: Exception, began_s: float | None, now: float, *, kept: bool) -> float | None:
        """When to try again after a failure, at this source or the next mirror; None: never.

        Args:
            began_s: when the failed range was begun, if it was one. Ranges that fail together count as one failure.
            kept: whether the next attempt continues what this one has fetched.
        """
        if may_retry(error, self.config):
            if kept and self._progressed(now):
                self._failures = 0
            if began_s is None or began_s >= self._failed_at_s:
                self._failures += 1
                self._failed_at_s = now
            self._gained_at_failure = self._gained
            if self._failures <= self.most:
                self.retries += 1
                wait_s = max(backoff_s(self.config, self._failures), _asked_s(error))
                _log.debug("again in %.2f s, after failure %d in a row: %s", wait_s, self._failures, error)
                return now + wait_s
        return now if self.next_mirror(error) else None

    def _progressed(self, now: float) -> bool:
        """Whether bytes have come since the last failure, and faster than in a stall. Then earlier failures are
        forgiven: a path that breaks every connection after half a megabyte still gets a file through.
        """
        gained = self._gained - self._gained_at_failure
        return gained > 0 and gained >= self.config.stall_bytes_per_s * (now - self._failed_at_s)

    def next_mirror(self, error: Exception) -> bool:
        """Continue with the next source; False if this was the last one."""
        if self.source + 1 == len(self.sources):
            return False
        _log.info("%s: trying the next mirror: %s", redacted(self.url), error)
        self.source, self.at, self._failures = self.source + 1, None, 0
        return True
