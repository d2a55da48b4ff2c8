"""Notices that the network is back after an outage, before TCP does."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perfkit.downloads.http.exchange import Incoming

_SILENT_S = 1.0  # all connections wait this long before a new one is tried, then one each second
_REST_S = 5.0  # before the next try after one that was answered: the server is just slow


class OutageWatch:
    """Ends the connections that an outage has silenced as soon as the network is back, so that the missing bytes are
    requested again. TCP itself would wait up to as long again: each of its retransmissions comes after twice the time
    of the one before (RFC 6298 section 5.5).

    While all are silent, a new connection to the same address is tried each second. There was an outage if one is
    answered after others were not, or comes from another local address than the silent ones, which then can't recover.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._probe: socket.socket | None = None
        self._probe_from_s = 0.0
        self._next_s = 0.0
        self._unanswered = False

    def look(self, connections: Sequence[Incoming]) -> None:
        """Check the connections; to be called a few times a second."""
        now_s, probe = self._clock(), self._probe  # which `close` may take away at any time
        since_s = [now_s if (waits_s := each.waits_since_s) is None else waits_s for each in connections]
        if now_s - max(since_s, default=now_s) < _SILENT_S:
            self._unanswered = False
            self.close()
        elif probe is not None and (local := _answered(probe)) is not None:
            for each in connections:
                if self._unanswered or _local(each.sock) != local:
                    each.interrupt()
            self._unanswered, self._next_s = False, now_s + _REST_S
            self.close()
        elif probe is not None and now_s - self._probe_from_s >= _SILENT_S:
            self._unanswered = True
            self.close()
            self._try(connections[0].sock, now_s)
        elif probe is None and now_s >= self._next_s:
            self._try(connections[0].sock, now_s)

    def _try(self, like: Any, now_s: float) -> None:
        with contextlib.suppress(OSError):
            peer = like.getpeername()
            probe = socket.socket(like.family, socket.SOCK_STREAM)
            self._probe, self._probe_from_s = probe, now_s
            probe.setblocking(False)
            with contextlib.suppress(OSError):  # in progress, or no route now, which counts as unanswered
                probe.connect(peer)

    def close(self) -> None:
        probe, self._probe = self._probe, None
        if probe is not None:
            probe.close()


def _answered(probe: socket.socket) -> object:
    """The local address of the probe; None if it is not connected."""
    poll = select.poll()
    with contextlib.suppress(OSError, ValueError):  # ValueError: it was closed
        poll.register(probe, select.POLLOUT)
        if poll.poll(0):
            probe.getpeername()  # fails if the connection did
            return _local(probe)
    return None


def _local(sock: Any) -> object:
    with contextlib.suppress(OSError):
        return sock.getsockname()[0]
    return None
