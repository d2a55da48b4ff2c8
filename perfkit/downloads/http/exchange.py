"""One request and what its response is read from; any thread can abort it, in every phase."""

from __future__ import annotations

import contextlib
import errno
import http.client
import mmap
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from perfkit.downloads.cancel import Cancel
from perfkit.downloads.http.network_path import BUFFER, NetworkPath, end_after, measured, round_trip_s, set_window
from perfkit.downloads.http.uninterruptible import HelperThread
from perfkit.downloads.throttle import Throttle, receive_buffer

_LINE_BYTES = 64 << 10
_HEAD_BYTES = 256 << 10
_RECEIVE_BYTES = 16 << 10
_HEAD_END = re.compile(rb"\n\r?\n")
_LONE_CR = re.compile(rb"\r(?!\n)")

_here = threading.local()  # .exchange: the one that the current thread is sending


class AbortHandle:
    """A second descriptor of a connection's socket, by which any thread can end it.

    It works even while the connection's own socket is unusable, as in a TLS handshake. Only the exchange that the
    connection serves can use it: aborting an exchange after its connection went back to the pool has no effect.

    Attributes:
        narrow: whether the connection's window was limited (`set_window`).
    """

    narrow = False

    def __init__(self, sock: socket.socket) -> None:
        self._lock = threading.Lock()
        self._sock: socket.socket | None = sock.dup()
        self._owner: Exchange | None = None
        self._closing = False

    def attach(self, exchange: Exchange) -> None:
        with self._lock:
            self._owner = exchange
        exchange.add(self)

    def abort(self, exchange: Exchange | None) -> None:
        """End the connection if it serves this exchange; None: if it serves none."""
        with self._lock:
            if self._owner is exchange and self._sock is not None:
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)

    def detach(self, exchange: Exchange | None = None) -> None:
        """Stop serving this exchange; None: any exchange."""
        with self._lock:
            if exchange is None or self._owner is exchange:
                self._owner = None
                if self._closing:
                    self._close()

    def close(self) -> None:
        """Close the handle with its connection, as soon as the last response has been read."""
        with self._lock:
            self._closing = True
            if self._owner is None:
                self._close()

    def _close(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()


class Exchange:
    """One request of perfkit's, from its first packet to the last byte of its response. It may take several connections
    and responses, as when an auth handler reacts to a 401. A context manager while the current thread sends it; if that
    fails, it is finished.

    Args:
        under_way: has it until it is finished.
        cancel: ends it.
        meanwhile: as in `Get`.
    """

    def __init__(
        self,
        under_way: set[Exchange],
        cancel: Cancel,
        deadline_s: float,
        limit: Throttle | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        self._under_way = under_way
        self.meanwhile = meanwhile or _nothing
        self.cancel = cancel
        self.waiting = False  # whether its response has not come
        self.deadline_s = deadline_s  # when its response is overdue (time.monotonic)
        self.limit = limit  # limits the rate at which its response is read; None: no limit
        self.expired = False  # whether it was aborted for being overdue
        self.reused = False  # whether its last connection had carried another request before
        self.aborted = False
        self.target: str | None = None  # the request target, spelt as in the URL; None: as urllib3 spells it
        self.incoming: Incoming | None = None  # what its last response is read from, if one of our connections was used
        self.began_s = time.monotonic()
        self.pool: Any = None  # where its connection came from, if that is one of ours
        # the thread that sends it and reads its response, if its connection is not ours and cannot be aborted
        self.helper: HelperThread | None = None
        self._handles: list[AbortHandle] = []

    def __enter__(self) -> Exchange:
        _here.exchange = self
        self.waiting = True
        self._under_way.add(self)
        self.cancel.add(self.abort)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        _here.exchange = None
        self.waiting = False
        if kind is not None:
            self.finish()

    def add(self, handle: AbortHandle) -> None:
        self._handles.append(handle)
        if self.aborted:
            handle.abort(self)

    def abort(self) -> None:
        """End the exchange, whatever it waits for. May be called from any thread, at any time."""
        self.aborted = True
        for handle in tuple(self._handles):
            handle.abort(self)

    def finish(self) -> None:
        """Release the connections, once the response has been read or given up."""
        self._under_way.discard(self)
        self.cancel.discard(self.abort)
        for handle in self._handles:
            handle.detach(self)


def _nothing() -> None: ...


def exchange_here() -> Exchange | None:
    """The exchange that the current thread is sending."""
    return getattr(_here, "exchange", None)


class Incoming:
    """Reads from a socket: the head of a response as a whole, and as much of the body at once as has arrived.

    Bytes that arrive after the response make the connection unusable for another request.
    """

    def __init__(self, sock: Any, handle: AbortHandle | None) -> None:
        self.sock = sock
        self.fields: dict[str, str] = {}  # of the head: by name in lower case, repeated ones joined
        self.waits_since_s: float | None = None  # since when a read has been waiting (time.monotonic); None: no read is
        self._raw = sock.makefile("rb", 0)  # keeps the socket open if the connection is closed before its last response
        self._handle = handle
        self._rest = b""
        self._error: OSError | None = None  # for the next read
        self._room = memoryview(b"")
        self._gathers = isinstance(sock, ssl.SSLSocket)
        self.limit: Throttle | None = None
        self.reuses_memory = False  # whether what read1 returns may be overwritten by the next call

    def makefile(self, mode: str) -> Incoming:
        return self

    def path(self) -> NetworkPath | None:
        return measured(self.sock)

    def end_after(self, count: int) -> None:
        if not self._raw.closed:
            end_after(self.sock, count)
        elif not count and self._handle is not None:
            self._handle.abort(None)  # the connection is back in its pool, or serves another request by now

    def interrupt(self) -> None:
        """Fail a read that waits for data that will not come."""
        self._error = ConnectionResetError(errno.ECONNRESET, "no more data arrived, although the network is back")
        end_after(self.sock, 0)

    def head(self) -> bytes:
        """Read up to and including the first empty line; empty if the connection ended before.

        Raises:
            http.client.HTTPException: it is cut off, which http.client would accept, or too long.
        """
        data, searched = bytearray(self._rest), 0  # appending to it copies nothing
        while (end := _HEAD_END.search(data, searched)) is None:
            if len(data) > _HEAD_BYTES:
                raise http.client.LineTooLong("head")
            searched = max(0, len(data) - 3)
            more = self._receive(self.sock.recv, _RECEIVE_BYTES)
            if not more and data:
                raise http.client.IncompleteRead(b"")
            if not more:
                return b""
            data += more
        head, self._rest = bytes(data[: end.end()]), bytes(data[end.end() :])
        # A lone CR counts as a space (RFC 9112 section 2.2); the email parser would begin another field.
        return _LONE_CR.sub(b" ", head) if head.count(b"\r") != head.count(b"\r\n") else head

    def deadline_s(self) -> float:
        """When the next read is overdue (time.monotonic), even if single bytes of it have come."""
        timeout_s = self.sock.gettimeout()
        return float("inf") if timeout_s is None else time.monotonic() + timeout_s

    def readline(self, limit: int = -1) -> bytes:
        """The next line of the response to a CONNECT, which http.client reads itself."""
        return self.line(None)

    def line(self, deadline_s: float | None) -> bytes:
        """Read up to and including a line feed; less at the end of the stream, or if the line is too long.

        Raises:
            TimeoutError: it is not complete by the deadline, which is by default the socket's time-out from now.
        """
        deadline_s = self.deadline_s() if deadline_s is None else deadline_s
        data = self._rest
        while (end := data.find(b"\n") + 1) == 0 and len(data) < _LINE_BYTES:
            if time.monotonic() > deadline_s:
                raise TimeoutError("timed out")
            more = self.sock.recv(_RECEIVE_BYTES)
            if not more:
                break
            data += more
        end = min(end or len(data), _LINE_BYTES)
        self._rest = data[end:]
        return data[:end]

    def read1(self, most: int = -1) -> bytes | memoryview:
        """Read up to `most` bytes, waiting for at least one; none at the end."""
        most = _RECEIVE_BYTES if most < 0 else most
        if self._rest:
            data, self._rest = self._rest[:most], self._rest[most:]
            return data
        if self._error is not None:
            raise self._error
        if not self.reuses_memory:
            return self._receive(self.sock.recv, min(most, _RECEIVE_BYTES))  # type: ignore[no-any-return]
        if len(self._room) < most:
            self._room = memoryview(mmap.mmap(-1, most))  # only what is used of it takes memory
        count = self._receive(self.sock.recv_into, self._room[:most])
        if self.limit is not None:
            if self.limit.rate is not None:
                if self.limit.has_room():
                    self._widen_window(self.limit.rate)
            elif self._handle is not None and self._handle.narrow:  # the limit was lifted
                self._handle.narrow = False
                set_window(self.sock, None)
        if self._gathers and 0 < count < most:
            count += self._more(self._room[count:most])
        return self._room[:count]

    def _widen_window(self, rate: int) -> None:
        twice = self.sock.getsockopt(*BUFFER)  # what was set
        set_window(self.sock, min(twice, receive_buffer(rate, round_trip_s(self.sock))))

    def _receive(self, how: Callable[[Any], Any], what: Any) -> Any:
        self.waits_since_s = time.monotonic()
        received = how(what)
        self.waits_since_s = None
        if not received and self._error is not None:
            raise self._error
        return received

    def _more(self, view: memoryview) -> int:
        """Read what else has arrived: TLS returns one record at a time, 16 KiB (RFC 8446 section 5.1)."""
        timeout_s, total = self.sock.gettimeout(), 0
        self.sock.settimeout(0.0)
        try:
            # With a count, which SSLSocket takes a microsecond to find out: a tenth of each call's processor time.
            while total < len(view) and (count := self.sock.recv_into(view[total:], len(view) - total)):
                total += count
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except OSError as error:
            self._error = error  # what came before it counts
        finally:
            self.sock.settimeout(timeout_s)
        return total

    def read(self, count: int = -1) -> bytes:
        """Read `count` bytes; fewer only at the end."""
        pieces = []
        while count and (data := self.read1(min(count, 1 << 20) if count > 0 else 1 << 20)):
            pieces.append(data)
            count -= len(data) if count > 0 else 0
        return b"".join(pieces)

    def flush(self) -> None: ...

    def close(self) -> None:
        """End the response, or give it up. Called before the connection goes back to its pool."""
        if self._handle is not None:
            self._handle.detach()
        if self._rest:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
        self._raw.close()
