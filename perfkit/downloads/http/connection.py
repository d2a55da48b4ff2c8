"""urllib3 connections and pools that any thread can abort in every phase, and responses held to RFC 9112.

The additions use extension points of urllib3 and http.client: `pool_classes_by_scheme`, `ConnectionCls`, `connect`,
`request`, `close`, `response_class`, a pool's `urlopen` and `pool`, and one private name, `_new_conn`, with which a
pool makes a connection, and a connection its socket.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import http.client
import importlib
import mmap
import queue
import re
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError, ProxyError

from perfkit.downloads.http.dial import dial
from perfkit.downloads.http.network_path import Path, end_after, measured
from perfkit.downloads.http.uninterruptible import HelperThread, call_abortable
from perfkit.downloads.http.urls import is_loopback
from perfkit.downloads.throttle import Throttle, receive_buffer

_UNKNOWN_ROUND_TRIP_S = 0.05
_SHARERS = 8  # connections assumed to share a limit, until their windows turn out to be too narrow for it
_BUFFER = (socket.SOL_SOCKET, socket.SO_RCVBUF)
_LINE_BYTES = 64 << 10
_HEAD_BYTES = 256 << 10
_TRAILER_FIELDS = 100
_COOKIE_BYTES = 8 << 10
_SIZE_LINE_BYTES = 20  # of a chunk, without extensions
_EXCESS_BYTES = 16 << 10
_RECEIVE_BYTES = 16 << 10
_HEAD_END = re.compile(rb"\n\r?\n")
_LONE_CR = re.compile(rb"\r(?!\n)")
_STATUS_LINE = re.compile(r"HTTP/1\.(\d) +(\d{3})(?: ([^\n]*))?\r?\n", re.ASCII)
_FOLD = re.compile(r"\r?\n[ \t]+")  # RFC 9112 section 5.2: a value that continues on the next line
_FIELD = re.compile(r"^([^:\s]+)[ \t]*:([^\n]*)$", re.MULTILINE)
_LENGTH = re.compile(r"\d{1,19}", re.ASCII)
_CHUNK_SIZE = re.compile(rb"[0-9a-fA-F]{1,16}[ \t]*(;.*)?\r?\n", re.DOTALL)

_here = threading.local()  # .exchange: the one that the current thread is sending


class AbortHandle:
    """A second descriptor of a connection's socket, by which any thread can end it.

    It works even while the connection's own socket is unusable, as in a TLS handshake. Only the exchange that the
    connection serves can use it: aborting an exchange after its connection went back to the pool has no effect.
    """

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
    and responses, as when an auth handler reacts to a 401. A context manager while the current thread sends it.

    Attributes:
        deadline_s: when its response is overdue (time.monotonic).
        limit: limits the rate at which its response is read; None: no limit.
        expired: whether it was aborted for being overdue.
        reused: whether its last connection had carried another request before.
        target: the request target, spelt as in the URL; None: as urllib3 spells it.
        incoming: what its last response is read from, if one of our connections was used.
        helper: the thread that sends it and reads its response, if its connection is not ours and cannot be aborted.
    """

    def __init__(self, deadline_s: float, limit: Throttle | None = None) -> None:
        self.deadline_s = deadline_s
        self.limit = limit
        self.expired = False
        self.reused = False
        self.aborted = False
        self.target: str | None = None
        self.incoming: _Incoming | None = None
        self.helper: HelperThread | None = None
        self._handles: list[AbortHandle] = []

    def __enter__(self) -> Exchange:
        _here.exchange = self
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        _here.exchange = None

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
        for handle in self._handles:
            handle.detach(self)


def exchange_here() -> Exchange | None:
    """The exchange that the current thread is sending."""
    return getattr(_here, "exchange", None)


class _Incoming:
    """Reads from a socket: the head of a response as a whole, and as much of the body at once as has arrived.

    Bytes that arrive after the response make the connection unusable for another request.

    Attributes:
        waits_since_s: since when a read has been waiting (time.monotonic); None: no read is.
    """

    def __init__(self, sock: Any, handle: AbortHandle | None) -> None:
        self.sock = sock
        self.waits_since_s: float | None = None
        self._raw = sock.makefile("rb", 0)  # keeps the socket open if the connection is closed before its last response
        self._handle = handle
        self._rest = b""
        self._error: OSError | None = None  # for the next read
        self._room = memoryview(b"")
        self._gathers = isinstance(sock, ssl.SSLSocket)
        self.limit: Throttle | None = None
        self.reuses_memory = False  # whether what read1 returns may be overwritten by the next call

    def makefile(self, mode: str) -> _Incoming:
        return self

    def path(self) -> Path | None:
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

    def readline(self, limit: int = -1, deadline_s: float | None = None) -> bytes:
        """Read up to and including a line feed; less at the end of the stream, or after `limit` bytes.

        Raises:
            TimeoutError: it is not complete by the deadline, which is by default the socket's time-out from now.
        """
        most = _LINE_BYTES if limit < 0 else limit
        deadline_s = self.deadline_s() if deadline_s is None else deadline_s
        data = self._rest
        while (end := data.find(b"\n") + 1) == 0 and len(data) < most:
            if time.monotonic() > deadline_s:
                raise TimeoutError("timed out")
            more = self.sock.recv(_RECEIVE_BYTES)
            if not more:
                break
            data += more
        end = min(end or len(data), most)
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
        if self.limit is not None and self.limit.rate is not None and self.limit.has_room():
            self._widen_window(self.limit.rate)
        if self._gathers and 0 < count < most:
            count += self._more(self._room[count:most])
        return self._room[:count]

    def _widen_window(self, rate: int) -> None:
        twice = self.sock.getsockopt(*_BUFFER)  # what was set
        _set_window(self.sock, min(twice, receive_buffer(rate, _round_trip_s(self.sock))))

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
            while total < len(view) and (count := self.sock.recv_into(view[total:])):
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

    def fileno(self) -> int:
        return self._raw.fileno()  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the response, or give it up. Called before the connection goes back to its pool."""
        if self._handle is not None:
            self._handle.detach()
        if self._rest:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
        self._raw.close()


class _Chunks:
    """A chunked body as http.client and urllib3 read it, held to RFC 9112 section 7.1: both accept invalid sizes, skip
    anything where a chunk should end, and miss a truncated trailer. Whatever is not body must arrive within the
    time-out, and be smaller than the body.
    """

    def __init__(self, incoming: _Incoming) -> None:
        self._incoming = incoming
        self._left = 0  # of the chunk
        self._trailer_fields: int | None = None
        self._trailer_deadline_s: float | None = None
        self._excess_bytes = 0  # of chunk extensions, over twice the body

    def readline(self, limit: int = -1) -> bytes:
        """The line with a chunk's size, or one of the trailer."""
        line = self._incoming.readline(_LINE_BYTES, self._trailer_deadline_s)
        if not line.endswith(b"\n"):
            raise http.client.IncompleteRead(b"")
        if self._trailer_fields is not None:
            self._trailer_fields += 1
            if self._trailer_fields > _TRAILER_FIELDS:
                raise http.client.LineTooLong("trailer")
        elif not _CHUNK_SIZE.fullmatch(line):
            raise http.client.HTTPException("a chunk of the body has no size")
        elif (size := int(line.partition(b";")[0], 16)) == 0:
            self._trailer_fields, self._trailer_deadline_s = 0, self._incoming.deadline_s()
        else:
            self._left = size
            self._excess_bytes = max(0, self._excess_bytes + len(line) - _SIZE_LINE_BYTES - 2 * size)
            if self._excess_bytes > _EXCESS_BYTES:
                raise http.client.HTTPException("the chunks of the body have more extensions than body")
        return line

    def read1(self, most: int = -1) -> bytes | memoryview:
        data = self._incoming.read1(min(most, self._left) if most >= 0 else self._left)
        self._left -= len(data)
        return data

    def read(self, count: int = -1) -> bytes:
        if self._left == 0:
            if (end := self._incoming.read(2)) != b"\r\n":
                raise http.client.HTTPException(
                    "a chunk of the body is longer than its size"
                    if len(end) == 2
                    else "the connection ended within the body"
                )
            return end
        data = self._incoming.read(min(count, self._left))
        self._left -= len(data)
        return data

    def flush(self) -> None: ...

    def fileno(self) -> int:
        return self._incoming.fileno()

    def close(self) -> None:
        self._incoming.close()


class _Answer(http.client.HTTPResponse):
    """http.client's response, with its own parser for the head: http.client accepts truncated heads, contradictory
    framing and invalid lengths, and builds an email message from the head, which takes longer than a small file.
    """

    fp: Any

    def __init__(
        self,
        sock: Any,
        debuglevel: int = 0,
        method: str | None = None,
        url: str | None = None,
        *,
        handle: AbortHandle | None = None,
    ) -> None:
        incoming = _Incoming(sock, handle)
        if (exchange := exchange_here()) is not None:
            exchange.incoming, incoming.limit = incoming, exchange.limit
        super().__init__(incoming, debuglevel, method, url)  # type: ignore[arg-type]

    def begin(self) -> None:
        """Read the head of the final response (RFC 9112 sections 4 to 6).

        Raises:
            http.client.HTTPException: it is cut off, too long, or not a head; the framing of the body is unknown.
        """
        if self.headers is not None:
            return
        incoming: _Incoming = self.fp
        while True:  # interim responses may come for as long as the final one may take
            text = incoming.head().decode("latin-1")
            match = _STATUS_LINE.match(text)
            if not text:
                raise http.client.RemoteDisconnected("the connection ended without an answer")
            if match is None:
                raise http.client.BadStatusLine(text.partition("\n")[0][:80])
            self.status = self.code = int(match[2])
            if self.status >= 200 or self.status == 101:
                break
        self.version, self.reason = 10 + int(match[1]), (match[3] or "").strip()
        self.headers = self.msg = message = _Fields()
        first: dict[str, str] = {}  # value of each name; the message would search all fields each time
        for name, value in _FIELD.findall(_FOLD.sub(" ", text[match.end() :])):  # skips what is not a field
            kind, value = name.lower(), value.strip()
            if not (kind.startswith("set-cookie") and _is_unusable_cookie(kind, value)):
                message.set_raw(name, value)
                first.setdefault(kind, value)
        self._frame(incoming, first.get)

    def _frame(self, incoming: _Incoming, get: Callable[[str], str | None]) -> None:
        """Determine where the body ends (section 6.3)."""
        coding, declared = get("transfer-encoding"), get("content-length")
        options = (get("connection") or "").lower()
        self.will_close = "close" in options if self.version > 10 else "keep-alive" not in options
        self.length, self.chunked, self.chunk_left = None, False, None
        if self.status in (101, 204, 304) or self._method == "HEAD":  # type: ignore[attr-defined]
            self.length = 0
        elif coding and coding.strip().lower() == "chunked":
            self.chunked = True
            self.fp = _Chunks(incoming)
            self.will_close |= declared is not None  # either of the two may be right
        elif coding and coding.strip().lower() != "identity":
            raise http.client.HTTPException(f"the transfer coding {coding[:40]!r} was not asked for")
        elif declared is not None and _LENGTH.fullmatch(declared):
            self.length = int(declared)
        else:
            self.will_close = True


class _Fields(http.client.HTTPMessage):
    """The fields of a head as received, without the email parser's check for what Latin-1 text can't have."""

    def items(self) -> list[tuple[str, str]]:
        return list(self.raw_items())


def _is_unusable_cookie(kind: str, value: str) -> bool:
    """Whether a field sets a cookie in the obsolete form that http.cookiejar takes quadratic time to read, or one
    larger than browsers accept (RFC 6265 sections 6.1 and 9.4).
    """
    return kind == "set-cookie2" or (kind == "set-cookie" and len(value) > _COOKIE_BYTES)


class _Abortable:
    """What perfkit adds to a connection."""

    _handle: AbortHandle | None = None
    _requests = 0
    _established = False  # including a proxy's tunnel and TLS

    def __str__(self: Any) -> str:  # urllib3 begins its errors with it
        return f"{self.host} port {self.port}"

    def response_class(self, sock: Any, *args: Any, **options: Any) -> _Answer:
        """What http.client reads a response with; the end of the response to a CONNECT ends no exchange."""
        return _Answer(sock, *args, handle=self._handle if self._established else None, **options)

    def _new_conn(self: Any) -> socket.socket:
        """Make the socket. The one private name of urllib3's that is overridden, as its own SOCKS connection does.

        Raises:
            NameResolutionError, ConnectTimeoutError, NewConnectionError: as urllib3's.
        """
        exchange = exchange_here()
        sys.audit("http.client.connect", self, self.host, self.port)
        aborted = (lambda: exchange.aborted) if exchange else (lambda: False)
        rate = exchange.limit.rate if exchange is not None and exchange.limit is not None else None
        if rate is None:
            sock = self._open(aborted)
        elif is_loopback(self.host):
            # Set later, it would be less than the half of the first window that the sender waits for (RFC 9293 section
            # 3.8.6.2.1): on loopback, segments are as large as windows.
            sock = self._open(aborted, (*_BUFFER, receive_buffer(rate)))
        else:
            sock = self._open(aborted)  # set before, it would bound the window for good (RFC 7323 section 2.2)
            _set_window(sock, receive_buffer(rate, _round_trip_s(sock) / _SHARERS))
        if exchange is not None:
            self._handle = AbortHandle(sock)
            self._handle.attach(exchange)
        return sock  # type: ignore[no-any-return]

    def _open(self: Any, aborted: Any, *options: tuple[int, int, int]) -> socket.socket:
        try:
            return dial(
                self.host.strip("[]"),
                self.port,
                timeout_s=self.timeout,
                aborted=aborted,
                options=(*(self.socket_options or ()), *options),
                source=self.source_address,
            )
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(self, f"{self}: no connection in time") from error
        except (OSError, UnicodeError) as error:
            raise NewConnectionError(self, f"{getattr(error, 'strerror', None) or error}") from error

    def connect(self: Any) -> None:
        super().connect()  # type: ignore[misc]
        if hasattr(self.sock, "suppress_ragged_eofs"):
            self.sock.suppress_ragged_eofs = False  # RFC 9112 section 9.8: only close_notify ends a body over TLS
        self._established = True

    def warm(self: Any, timeout_s: float) -> None:
        """Connect for a later request, which treats this as a kept connection, which may have died since."""
        self.timeout = timeout_s
        self.connect()
        self._requests = 1

    def request(self: Any, method: str, url: str, *args: Any, **options: Any) -> None:
        exchange = exchange_here()
        if exchange is not None:
            if self._handle is not None:
                self._handle.attach(exchange)
            exchange.reused = self._requests > 0
            url = exchange.target or url
        self._requests += 1
        super().request(method, url, *args, **options)  # type: ignore[misc]

    def close(self: Any) -> None:
        super().close()  # type: ignore[misc]
        handle, self._handle, self._requests, self._established = self._handle, None, 0, False
        if handle is not None:
            handle.close()


def _round_trip_s(sock: Any) -> float:
    path = measured(sock)
    return _UNKNOWN_ROUND_TRIP_S if path is None else path.least_s


def _set_window(sock: Any, buffer_bytes: int) -> None:
    """Limit what the kernel receives ahead of us: that comes over the network too, and a rate limit covers it."""
    with contextlib.suppress(OSError):  # a sandbox's kernel may not know these
        sock.setsockopt(*_BUFFER, buffer_bytes)
        if sys.platform == "linux":
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, buffer_bytes)  # else the old one stays


class _HttpConnection(_Abortable, HTTPConnection):  # type: ignore[misc]
    pass


class _HttpsConnection(_Abortable, HTTPSConnection):  # type: ignore[misc]
    @property
    def is_connected(self) -> bool:
        """Whether nothing has arrived except session tickets, which a server sends after the handshake (RFC 8446
        section 4.6.1), and which urllib3 takes for the end of a connection that has carried no request.
        """
        if super().is_connected or self.sock is None:
            return self.sock is not None
        timeout_s = self.sock.gettimeout()
        try:
            self.sock.settimeout(0.0)
            self.sock.recv(1)
        except ssl.SSLWantReadError:
            return True
        except (OSError, ValueError):
            return False
        finally:
            self.sock.settimeout(timeout_s)
        return False


_USUAL = (HTTPConnectionPool.ConnectionCls, HTTPSConnectionPool.ConnectionCls)


def are_replaced() -> bool:
    """Whether something, such as vcrpy, has replaced urllib3's connection classes; if so, those are used."""
    return (HTTPConnectionPool.ConnectionCls, HTTPSConnectionPool.ConnectionCls) != _USUAL


class _Pool:
    """What perfkit adds to a pool."""

    def urlopen(self, method: str, url: str, body: Any = None, headers: Any = None, *args: Any, **options: Any) -> Any:
        """As urllib3's, but with headers as a `dict`, since urllib3 iterates over them several times."""
        headers = None if headers is None else dict(headers.items())
        return super().urlopen(method, url, body, headers, *args, **options)  # type: ignore[misc]

    def warm(self: Any, timeout_s: float) -> None:
        """Open a connection for a later request, if none is idle.

        Raises:
            HTTPError, OSError: it can't be opened.
        """
        idle = self.pool
        try:
            connection = idle.get(block=False) or self._new_conn()
        except (AttributeError, queue.Empty):  # the pool is closed, or as many are in use as it keeps
            return
        try:
            if not connection.is_connected:
                connection.close()
                connection.warm(timeout_s)
            idle.put(connection, block=False)
        except queue.Full:
            connection.close()
        except BaseException:
            connection.close()
            raise


class _HttpPool(_Pool, HTTPConnectionPool):
    @property
    def ConnectionCls(self) -> Any:  # type: ignore[override]
        return HTTPConnectionPool.ConnectionCls if are_replaced() else _HttpConnection


class _HttpsPool(_Pool, HTTPSConnectionPool):
    @property
    def ConnectionCls(self) -> Any:  # type: ignore[override]
        return HTTPSConnectionPool.ConnectionCls if are_replaced() else _HttpsConnection


POOL_CLASSES: dict[str, type[HTTPConnectionPool]] = {"http": _HttpPool, "https": _HttpsPool}


@functools.cache
def socks_pool_classes() -> dict[str, type[HTTPConnectionPool]]:
    """The pool classes for SOCKS.

    Raises:
        ImportError: PySocks is not installed.
    """
    pysocks: Any = importlib.import_module("socks")  # has no types
    from urllib3.contrib import socks

    of_the_proxy = (pysocks.ProxyConnectionError, pysocks.SOCKS5AuthError, pysocks.GeneralProxyError)

    class _Socks(_Abortable):
        def _open(self: Any, aborted: Any, *options: Any) -> Any:
            """Make PySocks's uninterruptible connect abortable, and tell failures of the proxy from the server's."""
            make = super(_Abortable, self)._new_conn  # type: ignore[misc]
            try:
                return call_abortable(make, aborted, discard=lambda sock: sock.close())
            except (NewConnectionError, ConnectTimeoutError) as error:
                if isinstance(error.__context__, of_the_proxy):
                    raise ProxyError("Unable to connect to proxy", error.__context__) from error.__context__
                raise

    class _SocksHttp(_Socks, socks.SOCKSConnection):  # type: ignore[misc]
        pass

    class _SocksHttps(_Socks, socks.SOCKSHTTPSConnection):  # type: ignore[misc]
        pass

    class _SocksHttpPool(socks.SOCKSHTTPConnectionPool):
        ConnectionCls = _SocksHttp

    class _SocksHttpsPool(socks.SOCKSHTTPSConnectionPool):
        ConnectionCls = _SocksHttps

    return {"http": _SocksHttpPool, "https": _SocksHttpsPool}
