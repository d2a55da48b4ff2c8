"""When a server is too slow: it sends nothing for a while, or too little over a longer one."""

from __future__ import annotations

import time

from perfkit.config import Config
from perfkit.errors import TransferTimeoutError

__all__ = ["StallWatch", "timeouts"]


def timeouts(config: Config) -> tuple[float, float]:
    """The `timeout` of each request: seconds to wait for a connection, and for more of the answer, head or body."""
    return config.connect_timeout_s, config.read_timeout_s


class StallWatch:
    """Measures the time spent waiting for the peer, and only that: neither the throttle nor the disk is its fault."""

    def __init__(self, config: Config) -> None:
        self._least = config.stall_bytes_per_s
        self._window_s = config.stall_window_s
        self._waited_s = 0.0
        self._bytes = 0
        self._since_s = 0.0
        self.last_s = 0.0  # what the last read waited

    def __enter__(self) -> None:
        self._since_s = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.last_s = time.monotonic() - self._since_s
        self._waited_s += self.last_s

    def check(self, url: str, count: int) -> None:
        self._bytes += count
        if self._waited_s < self._window_s:
            return
        if self._bytes < self._least * self._waited_s:
            reason = f"stalled: {self._bytes} bytes in {self._waited_s:.1f} s"
            raise TransferTimeoutError(url, reason, transient=True)
        self._waited_s, self._bytes = 0.0, 0
