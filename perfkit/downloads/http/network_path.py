"""The path to a server, as the kernel measures it on a connection (TCP_INFO, tcp(7)): distance, queues, losses."""

from __future__ import annotations

import contextlib
import fcntl
import math
import socket
import struct
import termios
from typing import Any, NamedTuple

_QUEUED, _RESOLUTION_S = 1.25, 0.004  # times the least round trip, and more than the kernel measures
_TCP_INFO = struct.Struct("=92xI52xI72xI")  # tcpi_rcv_rtt, tcpi_min_rtt and tcpi_rcv_ooopack (Linux 5.4)
BUFFER = (socket.SOL_SOCKET, socket.SO_RCVBUF)
_SO_BUF_LOCK = 72  # of <asm-generic/socket.h>; Python has no name for it
_WIDEST_BYTES = 1 << 30  # TCP has no larger windows (RFC 7323 section 2.3)
_UNKNOWN_ROUND_TRIP_S = 0.05


class NetworkPath(NamedTuple):
    """The network path to a server and back."""

    round_trip_s: float  # the current round-trip time
    least_s: float  # the shortest round-trip time; the rest is time in queues
    out_of_order: int  # packets that arrived out of order, after others had been lost
    unread: int = 0  # bytes that have arrived but were not read yet


def queued(round_trip_s: float, least_s: float) -> bool:
    """Whether packets queue on the path, and so spend part of the round trip waiting."""
    return round_trip_s > max(_QUEUED * least_s, least_s + _RESOLUTION_S)


def measured(sock: Any) -> NetworkPath | None:
    """The path that a connection's packets take; `round_trip_s` is infinite while too few have come. None if the kernel
    doesn't say.
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        now_us, least_us, late = _TCP_INFO.unpack(info)
        (unread,) = struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, b"\0" * 4))
    except (OSError, AttributeError, TypeError, ValueError, struct.error):  # closed, another system, an old one
        return None
    return NetworkPath(now_us / 1e6 or math.inf, least_us / 1e6, late, unread)


def end_after(sock: Any, count: int) -> None:
    """Limit the receive window, so that little more than `count` bytes come; 0 ends the connection."""
    with contextlib.suppress(OSError, AttributeError):
        if count:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, count)
        else:
            sock.shutdown(socket.SHUT_RDWR)


def round_trip_s(sock: Any) -> float:
    """The shortest round-trip time of a connection, or a usual one if the kernel doesn't say."""
    path = measured(sock)
    return _UNKNOWN_ROUND_TRIP_S if path is None else path.least_s


def set_window(sock: Any, buffer_bytes: int | None) -> None:
    """Limit what the kernel receives ahead of us: that comes over the network too, and a rate limit covers it.

    Args:
        buffer_bytes: None: as much as the kernel likes, as before any limit (Linux 5.14; else up to a fixed size).
    """
    count = buffer_bytes or _WIDEST_BYTES
    with contextlib.suppress(OSError, AttributeError):  # a sandbox's kernel, or another system, may not know these
        sock.setsockopt(*BUFFER, count)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, count)  # else the old window stays
        if buffer_bytes is None:
            sock.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, 0)
