"""Reads a response's body as it arrives: throttled, cut to the requested range, and watched for stalls."""

from __future__ import annotations

import time
from collections.abc import Iterator

from perfkit.config import Config
from perfkit.downloads.http.semantics import Answer, Verdict
from perfkit.downloads.http.transport import Response
from perfkit.downloads.retry import Network
from perfkit.downloads.segments import Runner
from perfkit.downloads.throttle import Toll
from perfkit.errors import TransferError, TransferTimeoutError

_FIRST_READ_BYTES = 256 << 10
_LEAST_BYTES = 4 << 10  # to read at once, however little memory is configured: a read of 0 bytes would seem the end
_FULL_BUFFERS = 4  # connections with a buffer of the configured size; more share the memory of these


class StallWatch:
    """Detects a peer that sends nothing for a while, or too little for longer. Only the time spent waiting for it
    counts: neither the throttle nor the disk is its fault.
    """

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


def pieces(
    url: str, response: Response, answer: Answer, runner: Runner, *, network: Network, toll: Toll
) -> Iterator[tuple[memoryview, int]]:
    """Yield data for the runner's position, piece by piece, each with the number of bytes received for it.

    The caller advances the runner before it asks for the next piece. Ends with the range, or with the response's part
    of it; if the range is still open-ended, with the body.

    Raises:
        TransferError: the connection broke, or the body ended early.
        TransferTimeoutError: the peer is too slow.
    """
    controller, stall = network.controller, StallWatch(network.config)
    share = network.config.buffer_bytes * _FULL_BUFFERS
    skip = runner.position - answer.start
    toll.begin(None if answer.end is None else answer.end - answer.start)
    while (left := runner.remaining) != 0:
        if answer.end is not None and runner.position >= answer.end:
            return
        asked_s = time.monotonic()
        most = max(_LEAST_BYTES, share // max(_FULL_BUFFERS, controller.target))
        data = response.read1(toll.quantum(most))
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


def first_bytes(url: str, response: Response, answer: Answer, most: int, config: Config) -> bytes:
    """The body, or its first `most` bytes.

    Raises:
        TransferError: it is not the one requested; the connection broke, or the body ended early.
        TransferTimeoutError: the peer is too slow.
    """
    if answer.verdict not in (Verdict.BODY, Verdict.EMPTY):
        raise TransferError(url, answer.reason or f"unexpected HTTP status {response.status}")
    length = most if answer.end is None else min(most, answer.end)
    wanted = length if answer.verdict is Verdict.BODY else 0
    first, stall = bytearray(), StallWatch(config)
    while len(first) < wanted:
        asked_s = time.monotonic()
        data = response.read1(min(_FIRST_READ_BYTES, wanted - len(first)))
        if not data:
            break
        first += data
        stall.check(url, len(data), time.monotonic() - asked_s)
    if len(first) < wanted and answer.end is not None:
        raise TransferError(url, f"the body ended {wanted - len(first)} bytes early", transient=True)
    return bytes(first)
