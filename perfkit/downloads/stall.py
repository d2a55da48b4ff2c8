"""The body of an answer as it comes: watched for stalls, throttled, and cut to the range that was requested.

A stall is too little in a while; a server that is silent altogether meets the read time-out, which `http.session` sets.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from perfkit.config import Config
from perfkit.downloads.http.semantics import Answer
from perfkit.downloads.http.transport import Response
from perfkit.downloads.retry import Network
from perfkit.downloads.segments import Runner
from perfkit.downloads.throttle import Toll
from perfkit.errors import TransferError, TransferTimeoutError

__all__ = ["pieces"]

_FULL_BUFFERS = 4  # connections that read into a buffer of the configured size; more share the memory of so many


def pieces(
    url: str, response: Response, answer: Answer, runner: Runner, *, network: Network, toll: Toll
) -> Iterator[tuple[memoryview, int]]:
    """What belongs at the runner's position, piece by piece, with the bytes that came over the network for it.

    The caller moves the runner on before it asks for more. It ends with the range or with what the answer has of it; if
    the range has no end yet, with the body.

    Raises:
        TransferError: the connection broke, or the body ended early.
        TransferTimeoutError: the peer is too slow.
    """
    controller, stall = network.controller, _StallWatch(network.config)
    share = network.config.buffer_bytes * _FULL_BUFFERS
    skip = runner.position - answer.start
    toll.begin(None if answer.end is None else answer.end - answer.start)
    while (left := runner.remaining) != 0:
        if answer.end is not None and runner.position >= answer.end:
            return
        asked_s = time.monotonic()
        data = response.read1(toll.quantum(share // max(_FULL_BUFFERS, controller.target)))
        waited_s, count = time.monotonic() - asked_s, len(data)
        if count == 0:
            if left is None:
                return
            raise TransferError(url, f"the body ended {left} bytes early", transient=True)
        controller.waited(waited_s)
        stall.check(url, count, waited_s)
        path = response.path() if toll.limited else None
        toll.charge(count, path.unread if path is not None else None)
        view = memoryview(data)[skip:]
        skip = max(0, skip - count)
        yield view if left is None else view[:left], count


class _StallWatch:
    """Measures the time spent waiting for the peer, and only that: neither the throttle nor the disk is its fault."""

    def __init__(self, config: Config) -> None:
        self._least = config.stall_bytes_per_s
        self._window_s = config.stall_window_s
        self._waited_s = 0.0
        self._bytes = 0

    def check(self, url: str, count: int, waited_s: float) -> None:
        """Count bytes, and how long they were waited for.

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
