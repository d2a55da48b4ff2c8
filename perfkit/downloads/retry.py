"""When another try may help, how long to wait before it, and what a host's refusal means for all requests to it."""

from __future__ import annotations

import datetime
from typing import NoReturn

from perfkit.config import Config
from perfkit.downloads.concurrency import AdaptiveController, HostGates, gate_of
from perfkit.downloads.http.semantics import parse_retry_after
from perfkit.downloads.http.transport import Response
from perfkit.errors import HTTPStatusError, TransferError

__all__ = ["GiveUp", "backoff_s", "refuse"]

_RETRY_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_BUSY_STATUSES = frozenset({429, 503})


class GiveUp(Exception):
    """A failure that a retry may cure, but not one in this run."""

    def __init__(self, error: TransferError) -> None:
        super().__init__(error)
        self.error = error


def backoff_s(config: Config, failures: int) -> float:
    """Full jitter: uniform between 0 and a bound that doubles with each failure."""
    return _uniform(0.0, min(config.backoff_cap_s, config.backoff_base_s * 2.0 ** max(0, failures - 1)))


def refuse(
    url: str, response: Response, reason: str, *, host: str, config: Config, gates: HostGates,
    controller: AdaptiveController,
) -> NoReturn:  # fmt: skip
    """Raise what an error status is; one that says the host is busy eases and closes its gate before, for everybody.

    Args:
        host: the gate that the request passed.

    Raises:
        HTTPStatusError: always, unless
        GiveUp: the host asks for a longer wait than `Config.retry_after_cap_s` (RFC 9110 section 10.2.3).
    """
    status = response.status
    error = HTTPStatusError(url, reason, status, transient=status in _RETRY_STATUSES)
    if status in _BUSY_STATUSES:
        hosts = {host, gate_of(response.url)}  # who asked us to wait, and whoever would send us there again
        for each in hosts:
            gates.ease(each)
        controller.trouble()
        wait_s = parse_retry_after(response.headers.get("retry-after"), now=datetime.datetime.now(datetime.UTC))
        cap_s = config.retry_after_cap_s
        if wait_s is not None and wait_s > cap_s:
            asks = f"{reason}, and asks to wait {wait_s:.0f} s, more than retry_after_cap_s={cap_s:.0f}"
            raise GiveUp(HTTPStatusError(url, asks, status, transient=True))
        if wait_s:
            for each in hosts:
                gates.close_for(each, wait_s + _uniform(0, min(1.0, wait_s / 10)))
    raise error


def _uniform(least: float, most: float) -> float:
    import random  # which takes 4 ms to load, and only failures need

    return random.uniform(least, most)
