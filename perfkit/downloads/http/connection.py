"""urllib3 connections and pools that any thread can abort in every phase.

The additions use extension points of urllib3 and http.client: `pool_classes_by_scheme`, `ConnectionCls`, `connect`,
`request`, `close`, `response_class`, a pool's `urlopen` and `pool`, and one private name, `_new_conn`, with which a
pool makes a connection, and a connection its socket.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import queue
import socket
import ssl
import sys
from typing import Any

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError, ProxyError

from perfkit.downloads.http.dial import dial
from perfkit.downloads.http.exchange import AbortHandle, exchange_here
from perfkit.downloads.http.framing import StrictResponse
from perfkit.downloads.http.network_path import BUFFER, round_trip_s, set_window
from perfkit.downloads.http.uninterruptible import HelperThread
from perfkit.downloads.http.urls import is_loopback
from perfkit.downloads.throttle import receive_buffer

_SHARERS = 8  # connections assumed to share a limit, until their windows turn out to be too narrow for it


class _Abortable:
    """What perfkit adds to a connection."""

    _handle: AbortHandle | None = None
    _requests = 0
    _established = False  # including a proxy's tunnel and TLS
    _ahead = False  # opened before there is a request for it

    def __str__(self: Any) -> str:  # urllib3 begins its errors with it
        return f"{self.host} port {self.port}"

    def response_class(self, sock: Any, *args: Any, **options: Any) -> StrictResponse:
        """What http.client reads a response with; the end of the response to a CONNECT ends no exchange."""
        return StrictResponse(sock, *args, handle=self._handle if self._established else None, **options)

    def _new_conn(self: Any) -> socket.socket:
        """Make the socket. The one private name of urllib3's that is overridden, as its own SOCKS connection does.

        Raises:
            NameResolutionError, ConnectTimeoutError, NewConnectionError: as urllib3's.
        """
        exchange = exchange_here()
        if exchange is not None:
            exchange.meanwhile()
        sys.audit("http.client.connect", self, self.host, self.port)
        aborted = (lambda: exchange.aborted) if exchange else (lambda: False)
        rate = exchange.limit.rate if exchange is not None and exchange.limit is not None else None
        if rate is None:
            sock = self._open(aborted)
        elif is_loopback(self.host):
            # Set later, it would be less than the half of the first window that the sender waits for (RFC 9293 section
            # 3.8.6.2.1): on loopback, segments are as large as windows.
            sock = self._open(aborted, (*BUFFER, receive_buffer(rate)))
        else:
            sock = self._open(aborted)  # set before, it would bound the window for good (RFC 7323 section 2.2)
            set_window(sock, receive_buffer(rate, round_trip_s(sock) / _SHARERS))
        if exchange is not None:
            try:
                self._handle = AbortHandle(sock)
                self._handle.narrow = rate is not None
            except OSError:  # no descriptors are left
                sock.close()
                raise
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
                ahead=self._ahead,
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
        self.timeout, self._ahead = timeout_s, True
        self.connect()
        self._requests, self._ahead = 1, False

    def request(self: Any, method: str, url: str, *args: Any, **options: Any) -> None:
        exchange = exchange_here()
        if exchange is not None:
            if self._handle is not None:
                self._handle.attach(exchange)
            exchange.reused = self._requests > 0
            url = exchange.target or url
        self._requests += 1
        super().request(method, url, *args, **options)  # type: ignore[misc]
        if exchange is not None:
            exchange.meanwhile()

    def close(self: Any) -> None:
        super().close()  # type: ignore[misc]
        handle, self._handle, self._requests, self._established = self._handle, None, 0, False
        if handle is not None:
            handle.close()


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
        if (exchange := exchange_here()) is not None:
            exchange.pool = self
        return super().urlopen(method, url, body, headers, *args, **options)  # type: ignore[misc]

    def close_idle(self: Any) -> None:
        """Close the idle connections. A caller's thread does this, and a Ctrl-C while a method of the queue enters a
        Condition could leave that locked.
        """
        if (idle := self.pool) is not None:
            with getattr(idle, "mutex", contextlib.nullcontext()):  # gevent's queues have none
                for connection in filter(None, idle.queue):
                    connection.close()

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
    # What the proxy says of the server, and a name that is resolved here (socks5://): PySocks wraps both.
    of_the_server = (pysocks.SOCKS4Error, pysocks.SOCKS5Error, socket.gaierror)

    class _Socks(_Abortable):
        def _open(self: Any, aborted: Any, *options: Any) -> Any:
            """Make PySocks's uninterruptible connect abortable, and tell failures of the proxy from the server's."""
            make = super(_Abortable, self)._new_conn  # type: ignore[misc]
            try:
                return HelperThread().call(make, aborted, discard=lambda sock: sock.close())
            except (NewConnectionError, ConnectTimeoutError) as error:
                reason: Any = error.__context__
                if isinstance(reason, of_the_proxy) and not isinstance(reason.socket_err, of_the_server):
                    raise ProxyError("Unable to connect to proxy", reason) from reason
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
