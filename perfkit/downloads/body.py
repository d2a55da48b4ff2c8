"""Reads a response's body as it arrives: throttled, watched for stalls, and cut to the requested range."""

from __future__ import annotations

import time
from collections.abc import Iterator

from perfkit.downloads.http.semantics import Answer
from perfkit.downloads.http.transport import Response
from perfkit.downloads.retry import Network
from perfkit.downloads.segments import Runner
from perfkit.downloads.stall import StallWatch
from perfkit.downloads.throttle import Toll
from perfkit.errors import TransferError

_LEAST_BYTES = 4 << 10  # to read at once, however little memory is configured: a read of 0 bytes would seem the end
_FULL_BUFFERS = 4  # connections with a buffer of the configured size; more share the memory of these


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
