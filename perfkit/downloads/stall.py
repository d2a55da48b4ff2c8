"""Detects a server that is too slow: it sends nothing for a while, or too little for longer."""

from __future__ import annotations

from perfkit.config import Config
from perfkit.errors import TransferTimeoutError


class StallWatch:
    """Measures the time spent waiting for the peer, and only that: neither the throttle nor the disk is its fault."""

    def __init__(self, config: Config) -> None:
        self._least = config.stall_bytes_per_s
        self._window_s = config.stall_window_s
        self._waited_s = 0.0
        self._bytes = 0

    def check(self, url: str, count: int, waited_s: float) -> None:
        """Count bytes, and the wait for them.

        Raises:
            TransferTimeoutError: they come too slowly.
        """
        self._waited_s += waited_s
        self._bytes += count
        if self._waited_s < self._window_s:
            return
        if self._bytes < self._least * self._waited_s:
            reason = f"stalled: {self._bytes} bytes in {self._waited_s:.1f} s"
            raise TransferTimeoutError(url, reason, transient=True)
        self._waited_s, self._bytes = 0.0, 0
