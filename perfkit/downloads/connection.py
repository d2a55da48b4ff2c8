"""Connections to origins: dialled, over TLS if asked for, kept between requests, and ended by any thread at any time.

requests and urllib3 would do this too. They are left to where they know more (`conventions`): to load them takes longer
than all else that a command does before its first byte.
"""

from __future__ import annotations

import contextlib
import functools
import select
import socket
import struct
import sys
import threading
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl

    from perfkit.downloads.tls import TlsSocket

__all__ = ["Connection", "Exchange", "Killer", "Origin", "Pool", "dial", "origin_of"]

Origin = tuple[str, str, int]  # scheme, host, port

_RESOLVE_CHECK_S = 0.05
_LEAST_WINDOW = 32 << 10
_AHEAD_S = 1 / 128  # of the limit, for each connection
_UNKNOWN_ROUND_TRIP_S = 0.05


def origin_of(url: str) -> Origin:
    """Scheme, host and port (RFC 6454)."""
    return _origin_of(url[: url.find("/", 8) + 1] or url)  # what follows the authority would fill the cache


@functools.lru_cache(maxsize=1024)
def _origin_of(url: str) -> Origin:
    parts = urlsplit(url)
    return parts.scheme.lower(), (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)


class Killer:
    """A second handle on a connection's socket, through which any thread can end it, whatever phase it is in.

    The handle outlives `detach()` during the TLS handshake, when the connection itself has no usable socket.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._lock = threading.Lock()
        self._handle: socket.socket | None = sock.dup()

    def kill(self) -> None:
        with self._lock:
            if self._handle is not None:
                with contextlib.suppress(OSError):
                    self._handle.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._lock:
            if self._handle is not None:
                self._handle.close()
                self._handle = None


class Exchange:
    """One request on its way to an answer: what `kill` must wake, and by when the answer must be here."""

    def __init__(self, deadline_s: float, rate_limit: int | None = None) -> None:
        self.deadline_s = deadline_s
        self.rate_limit = rate_limit  # bytes per second; None: as much as comes
        self.expired = False
        self.reused = False  # the connection had carried a request before
        self.killed = False
        self._killers: list[Killer] = []

    def attach(self, killer: Killer) -> None:
        self._killers.append(killer)
        if self.killed:
            killer.kill()

    def kill(self) -> None:
        self.killed = True
        for killer in tuple(self._killers):
            killer.kill()


def dial(host: str, port: int, timeout_s: float, exchange: Exchange) -> tuple[socket.socket, Killer]:
    """A TCP connection to the first address of the host that takes one.

    Raises:
        OSError: there is none; `TimeoutError` if the last of the addresses did not answer in time.
    """
    try:
        addresses = _resolve(host, port, exchange)
    except (socket.gaierror, UnicodeError) as error:
        raise ConnectionError(f"{host} port {port}: the name does not resolve: {error}") from error
    failure: OSError = OSError("no address")
    for family, kind, protocol, _, address in addresses:
        sock = socket.socket(family, kind, protocol)
        killer = Killer(sock)
        exchange.attach(killer)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(timeout_s)
            sock.connect(address)
            if exchange.rate_limit is not None:
                _narrow(sock, exchange.rate_limit)
            return sock, killer
        except OSError as error:
            failure = error
            killer.close()
            sock.close()
    if isinstance(failure, TimeoutError):
        raise TimeoutError(f"{host} port {port}: no connection in time") from failure
    raise ConnectionError(f"{host} port {port}: {failure.strerror or failure}") from failure


def _narrow(sock: socket.socket, rate_limit: int) -> None:
    """Have the kernel take no more ahead of us than the way to the server needs: what it took came over the network
    too, and each new answer would begin with a burst. Linux makes the window twice as large as asked for.
    """
    round_trip_s = _UNKNOWN_ROUND_TRIP_S
    if sys.platform == "linux":
        (round_trip_us,) = struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 72), 68)
        round_trip_s = round_trip_us / 1e6
    size = max(_LEAST_WINDOW, int(rate_limit * (_AHEAD_S + round_trip_s)))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def _resolve(host: str, port: int, exchange: Exchange) -> list[Any]:
    """`getaddrinfo`, which nothing can interrupt: it is left alone in a thread that nobody waits for at the end.

    Raises:
        OSError: `socket.gaierror`, or the exchange was ended meanwhile.
        UnicodeError: the host is no name.
    """
    with contextlib.suppress(socket.gaierror):
        if host.isascii():  # as bytes: text would load the codec of international names
            return socket.getaddrinfo(host.encode(), port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    answers: SimpleQueue[list[Any] | Exception] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, name=f"perfkit-resolve-{host}", daemon=True).start()
    while not exchange.killed:
        with contextlib.suppress(Empty):
            answer = answers.get(timeout=_RESOLVE_CHECK_S)
            if isinstance(answer, Exception):
                raise answer
            return answer
    raise OSError("ended while the name was being resolved")


class Connection:
    """One to an origin, open until it is closed."""

    def __init__(self, origin: Origin, tls: ssl.SSLContext | None, timeout_s: float, exchange: Exchange) -> None:
        _, host, port = origin
        self.sock: socket.socket | TlsSocket
        self.sock, self._killer = dial(host, port, timeout_s, exchange)
        self._uses = 0
        if tls is not None:
            from perfkit.downloads.tls import TlsSocket

            try:
                self.sock = TlsSocket(self.sock, tls, host.rstrip("."))
            except BaseException:
                self.close()
                raise

    def begin(self, exchange: Exchange) -> None:
        """From here on the exchange can end it."""
        exchange.attach(self._killer)
        exchange.reused = self._uses > 0
        self._uses += 1

    @property
    def quiet(self) -> bool:
        """Nothing has come since the last answer: neither the end, nor what nobody asked for."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        self._killer.close()
        self.sock.close()


class Pool:
    """The connections to one origin. Between requests they are kept here, and the last one used is the next."""

    def __init__(self, origin: Origin, tls: ssl.SSLContext | None, *, timeout_s: float, keep: int) -> None:
        self.headers: dict[str, str] = {}  # that every request through here carries
        self._origin = origin
        self._tls = tls
        self._timeout_s = timeout_s
        self._keep = keep
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._closed = False

    def target(self, path: str) -> str:
        """What the request line has for a path with its query."""
        return path

    def take(self, exchange: Exchange) -> Connection:
        """A connection to send a request on.

        Raises:
            OSError: none can be had.
        """
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                connection = Connection(self._origin, self._tls, self._timeout_s, exchange)
            elif not connection.quiet:
                connection.close()
                continue
            connection.begin(exchange)
            return connection

    def give_back(self, connection: Connection, *, reusable: bool) -> None:
        """The request is over. A connection that can't carry another is closed."""
        with self._lock:
            if reusable and not self._closed and len(self._idle) < self._keep:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close those that are idle now, and the others when they come back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
