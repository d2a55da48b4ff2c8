"""The body of an answer as it comes: throttled, watched for stalls, and cut to the range that was requested."""

from __future__ import annotations

from collections.abc import Iterator

from perfkit.downloads.http.semantics import Answer
from perfkit.downloads.http.transport import Response
from perfkit.downloads.retry import Network
from perfkit.downloads.segments import Runner
from perfkit.downloads.stall import StallWatch
from perfkit.downloads.throttle import Toll
from perfkit.errors import TransferError

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
    controller, stall = network.controller, StallWatch(network.config)
    share = network.config.buffer_bytes * _FULL_BUFFERS
    skip = runner.position - answer.start
    toll.begin(None if answer.end is None else answer.end - answer.start)
    while (left := runner.remaining) != 0:
        if answer.end is not None and runner.position >= answer.end:
            return
        with stall:
            data = response.read1(toll.quantum(share // max(_FULL_BUFFERS, controller.target)))
        count = len(data)
        if count == 0:
            if left is None:
                return
            raise TransferError(url, f"the body ended {left} bytes early", transient=True)
        controller.waited(stall.last_s)
        stall.check(url, count)
        path = response.path() if toll.limited else None
        toll.charge(count, path.unread if path is not None else None)
        view = memoryview(data)[skip:]
        skip = max(0, skip - count)
        yield view if left is None else view[:left], count
