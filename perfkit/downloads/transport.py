"""The only door to requests and urllib3: one shared pool of connections, a session per thread, errors mapped.

requests decides what its users expect it to decide (proxies, netrc, CA bundles, client certificates, cookies, URL
quoting); urllib3's pools carry the bytes. `Session.send` is left out on purpose: it costs more processor time than a
small file, follows redirects with secrets of its own choosing, and can't be interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from queue import Empty, SimpleQueue
from types import SimpleNamespace, TracebackType
from typing import Any, Protocol, cast
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.auth import HTTPBasicAuth
from requests.cookies import extract_cookies_to_jar
from requests.utils import DEFAULT_CA_BUNDLE_PATH, default_user_agent, get_auth_from_url, get_netrc_auth, select_proxy
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util.ssl_ import create_urllib3_context

from perfkit.config import Config
from perfkit.downloads import wire
from perfkit.downloads.cancel import Cancel
from perfkit.errors import CancelledError, ConfigError, TransferError, TransferTimeoutError
from perfkit.masking import masked

__all__ = ["HttpTransport", "Response", "Transport", "origin_of"]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Sent to whatever origin a redirect leads to; every other header of the caller stays with its own origin.
_HARMLESS = frozenset({"Accept", "Accept-Language", "User-Agent", "Cache-Control", "Pragma"})
# A URL that requests would leave as it is; working that out is a tenth of the cost of a small file.
_PLAIN_URL = re.compile(r"https?://[a-z0-9.-]+(:[0-9]+)?(?!.*/\.)/[A-Za-z0-9._~/-]*")
_POOLS = 256  # hosts whose connections are kept
_DRAIN_BYTES = 64 << 10  # a body up to this size is read to its end to keep the connection
_RESOLVE_CHECK_S = 0.05
_SMALL_RCVBUF_BELOW = 16 << 20  # bytes per second; below, the kernel's buffer would hide bursts


class Response(Protocol):
    """An answer whose body is still on the wire. A context manager: leaving it gives the connection back or ends it."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]:
        """By name in lower case; repeated ones are joined with commas (RFC 9110 section 5.3)."""
        ...

    @property
    def url(self) -> str:
        """Where the answer came from, after redirects."""
        ...

    def read_into(self, view: memoryview) -> int:
        """Fill the view with what has arrived, waiting for at least one byte; 0 at the end of the body.

        Raises:
            TransferError: the connection broke, or the body ended before its Content-Length.
            TransferTimeoutError: the peer was silent for too long.
            CancelledError: the transfer was cancelled.
        """
        ...

    def __enter__(self) -> Response: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None
    ) -> None: ...


class Transport(Protocol):
    """Opens URLs. The default is `HttpTransport`; another can be given to `Toolkit`."""

    def open(
        self,
        url: str,
        *,
        at: str | None = None,
        headers: Mapping[str, str],
        private_headers: Mapping[str, str],
        auth: tuple[str, str] | None,
        cancel: Cancel,
    ) -> Response:
        """Send a GET and return when the headers are there. Redirects are followed; other statuses are returned.

        Args:
            at: where a redirect of `url` led before, to go there at once.
            headers: may go wherever a redirect leads.
            private_headers, auth: go to the origin of `url` only.
            cancel: ends the request, and any read of its body, at once.

        Raises:
            TransferError, TransferTimeoutError: no answer; `transient` says whether another try may help.
            CancelledError: cancelled.
        """
        ...

    def expire(self) -> None:
        """End requests whose answer is overdue. Called a few times a second while work is under way."""
        ...

    def limit_changed(self, bytes_per_second: int | None) -> None:
        """The shared rate limit is now this; connections may be made to suit it."""
        ...

    def close(self) -> None: ...


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port (RFC 6454)."""
    return _origin_of(url[: url.find("/", 8) + 1] or url)  # what follows the authority would fill the cache


@functools.lru_cache(maxsize=1024)
def _origin_of(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme.lower(), (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)


class _Killer:
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


class _Exchange:
    """One request on its way to an answer: what `kill` must wake, and by when the answer must be here."""

    def __init__(self, deadline_s: float, rcvbuf: int | None) -> None:
        self.deadline_s = deadline_s
        self.rcvbuf = rcvbuf
        self.expired = False
        self.reused = False  # the connection had carried a request before
        self.killed = False
        self._killers: list[_Killer] = []

    def attach(self, killer: _Killer) -> None:
        self._killers.append(killer)
        if self.killed:
            killer.kill()

    def kill(self) -> None:
        self.killed = True
        for killer in tuple(self._killers):
            killer.kill()


_here = threading.local()  # .exchange: the one the current thread is busy with


def _resolve(host: str, port: int, exchange: _Exchange) -> list[Any]:
    """`getaddrinfo`, which nothing can interrupt: it is left alone in a thread that nobody waits for at the end.

    Raises:
        OSError: `socket.gaierror`, or the exchange was ended meanwhile.
        UnicodeError: the host is no name.
    """
    with contextlib.suppress(socket.gaierror):
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
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


class _Answer(wire.Answer):
    """One that gives its connection back to the pool."""

    def __init__(self, connection: HTTPConnection, pool: HTTPConnectionPool) -> None:
        super().__init__(connection.sock)
        self._connection: HTTPConnection | None = connection
        self._pool = pool

    def release(self) -> None:
        """Return the connection to its pool; closed, if it can't carry another request."""
        connection, self._connection = self._connection, None
        if connection is not None:
            if not self.reusable:
                connection.close()
            self._pool._put_conn(connection)


def _ask(pool: HTTPConnectionPool, target: str, headers: Mapping[str, str], timeout: urllib3.Timeout) -> _Answer:
    """What `pool.urlopen` does of use to a downloader, without the retries and redirects that it does of its own."""
    connection: Any = pool._get_conn()
    try:
        connection.timeout = timeout.connect_timeout
        if connection.is_closed and pool.proxy is not None and pool.scheme == "https":
            pool._prepare_proxy(connection)  # a tunnel (CONNECT)
        pool._validate_conn(connection)
        if pool.proxy is not None and pool.scheme == "http":
            headers = {**headers, **pool.proxy_headers}
        with contextlib.suppress(BrokenPipeError):  # the peer may have answered before it closed
            connection.send_head("GET", target, headers)
        if connection.sock.gettimeout() != timeout.read_timeout:  # setting it is a system call
            connection.sock.settimeout(timeout.read_timeout)
        return _Answer(connection, pool)
    except BaseException:
        connection.close()
        pool._put_conn(None)
        raise


class _Connection:
    """What is ours in a connection of urllib3: it sends and reads by itself, and the current exchange can end it.

    Where another makes the socket (a SOCKS proxy), that is from its being there on.
    """

    _killer: _Killer | None = None
    _uses = 0

    def __str__(self: Any) -> str:  # urllib3 begins its errors with it
        return f"{self.host} port {self.port}"

    def send_head(self: Any, method: str, url: str, headers: Mapping[str, str]) -> None:
        exchange: _Exchange = _here.exchange
        if self.sock is None:
            self.connect()
        if self._killer is None:
            self._killer = _Killer(self.sock)
        exchange.attach(self._killer)
        exchange.reused = self._uses > 0
        self._uses += 1
        head = "".join([f"{method} {url} HTTP/1.1\r\n", *(f"{name}: {headers[name]}\r\n" for name in headers), "\r\n"])
        if head.count("\n") != len(headers) + 2 or head.count("\r") != len(headers) + 2:
            raise ValueError("a header or the URL has a line break in it")
        self.sock.sendall(head.encode("latin-1"))

    def close(self: Any) -> None:
        if self._killer is not None:
            self._killer.close()
            self._killer = None
        self._uses = 0
        super().close()  # type: ignore[misc]


class _DirectConnection(_Connection):
    """One that can be ended from the first SYN on."""

    def _new_conn(self: Any) -> socket.socket:
        exchange: _Exchange = _here.exchange
        try:
            addresses = _resolve(self.host.strip("[]"), self.port, exchange)
        except (socket.gaierror, UnicodeError) as error:
            raise urllib3.exceptions.NewConnectionError(self, f"the name does not resolve: {error}") from error
        failure: OSError = OSError("no address")
        for family, kind, protocol, _, address in addresses:
            sock = socket.socket(family, kind, protocol)
            self._killer = _Killer(sock)
            exchange.attach(self._killer)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if exchange.rcvbuf is not None:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, exchange.rcvbuf)
                sock.settimeout(self.timeout)
                sock.connect(address)
                return sock
            except OSError as error:
                failure = error
                self._killer.close()
                self._killer = None
                sock.close()
        if isinstance(failure, TimeoutError):
            raise urllib3.exceptions.ConnectTimeoutError(f"{self}: no connection in time") from failure
        raise urllib3.exceptions.NewConnectionError(self, failure.strerror or str(failure)) from failure


class _HttpConnection(_DirectConnection, HTTPConnection):
    pass


class _HttpsConnection(_DirectConnection, HTTPSConnection):
    pass


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


_POOL_CLASSES: dict[str, type[HTTPConnectionPool]] = {"http": _HttpPool, "https": _HttpsPool}


def _socks_pool_classes() -> dict[str, type[HTTPConnectionPool]]:
    """The same over SOCKS, of urllib3's own (its extra is installed, or there would be no such proxy)."""
    from urllib3.contrib import socks

    class Http(_Connection, socks.SOCKSConnection):
        pass

    class Https(_Connection, socks.SOCKSHTTPSConnection):
        pass

    class HttpPool(socks.SOCKSHTTPConnectionPool):
        ConnectionCls = Http

    class HttpsPool(socks.SOCKSHTTPSConnectionPool):
        ConnectionCls = Https

    return {"http": HttpPool, "https": HttpsPool}


class _SharedAdapter(HTTPAdapter):
    """One adapter, mounted on every thread's session, so that all share its pools.

    A session's `close` must not clear the pools under the other threads; `shut` does it once, at the end.
    """

    def __init__(self, connections: int) -> None:
        self._proxy_lock = threading.Lock()
        self._context_lock = threading.Lock()
        self._contexts: dict[str | None, ssl.SSLContext] = {}
        super().__init__(pool_connections=_POOLS, pool_maxsize=connections, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOL_CLASSES

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        with self._proxy_lock:
            manager = super().proxy_manager_for(proxy, **kwargs)
            socks = proxy.lower().startswith("socks")
            manager.pool_classes_by_scheme = _socks_pool_classes() if socks else _POOL_CLASSES
            return manager

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> tuple[Any, Any]:
        host, tls = super().build_connection_pool_key_attributes(request, verify, cert)
        if verify and cert is None and host["scheme"] == "https":
            bundle = verify if isinstance(verify, str) else None
            tls = {"ssl_context": self._verified_context(bundle), "cert_reqs": "CERT_REQUIRED"}
        return host, tls

    def _verified_context(self, bundle: str | None) -> ssl.SSLContext:
        """Verified TLS: the CA bundle (default: certifi's) is parsed once, not per connection (about 15 ms each)."""
        with self._context_lock:
            if bundle not in self._contexts:
                context = create_urllib3_context()
                where = "capath" if bundle is not None and os.path.isdir(bundle) else "cafile"
                context.load_verify_locations(**{where: bundle or DEFAULT_CA_BUNDLE_PATH})
                self._contexts[bundle] = context
            return self._contexts[bundle]

    def close(self) -> None:
        pass

    def shut(self) -> None:
        super().close()


class HttpTransport:
    """`Transport` over requests and urllib3.

    Raises:
        ConfigError: the installed urllib3 is not urllib3.
    """

    def __init__(self, config: Config) -> None:
        if not hasattr(urllib3.connection.HTTPConnection, "_new_conn"):
            raise ConfigError(
                "the installed urllib3 has other insides (urllib3-future replaces it when niquests is installed);"
                " reinstall with: pip uninstall urllib3-future && pip install --force-reinstall urllib3"
            )
        self._config = config
        self._adapter = _SharedAdapter(max(config.workers, config.segments) + 2)
        self._threads = threading.local()
        self._lock = threading.Lock()
        self._settings: dict[tuple[str, str, int], dict[str, Any]] = {}
        self._netrc: dict[tuple[str, str, int], tuple[str, str] | None] = {}
        self._pools: dict[tuple[str, str, int], HTTPConnectionPool] = {}  # a short way to those of the PoolManager
        self._waiting: set[_Exchange] = set()
        self._rcvbuf: int | None = None
        self._timeout = urllib3.Timeout(connect=config.connect_timeout_s, read=config.read_timeout_s)
        self._common = {"User-Agent": f"perfkit {default_user_agent()}", "Accept": "*/*", "Connection": "keep-alive"}
        self._configured = _canonical(config.headers)

    def limit_changed(self, bytes_per_second: int | None) -> None:
        slow = bytes_per_second is not None and bytes_per_second < _SMALL_RCVBUF_BELOW
        self._rcvbuf = max(32 << 10, (bytes_per_second or 0) // 8) if slow else None

    def expire(self) -> None:
        now = time.monotonic()
        with self._lock:
            late = [exchange for exchange in self._waiting if exchange.deadline_s < now]
        for exchange in late:
            exchange.expired = True
            exchange.kill()

    def close(self) -> None:
        self._adapter.shut()

    def open(
        self,
        url: str,
        *,
        at: str | None = None,
        headers: Mapping[str, str],
        private_headers: Mapping[str, str],
        auth: tuple[str, str] | None,
        cancel: Cancel,
    ) -> Response:
        home = origin_of(url)
        private = {**self._configured, **_canonical(private_headers)}
        at, hops = at or url, 0
        while True:
            trusted = _may_share(home, origin_of(at))
            chosen = private if trusted else {k: v for k, v in private.items() if k in _HARMLESS}
            # A coded body has no byte ranges of the file: identity, whatever the caller's headers say.
            sent = {**self._common, **chosen, "Accept-Encoding": "identity", **headers}
            response = self._send(url, at, sent, (auth or self._config.auth) if trusted else None, cancel)
            location = response.headers.get("location") if response.status in _REDIRECTS else None
            if location is None:
                return response
            with response:
                response.drain()
            hops += 1
            if hops > (most := self._config.max_redirects):
                raise TransferError(url, f"more than {most} redirects, the last to {masked(location)[:99]}")
            at = self._redirect(url, response.url, location)

    def _redirect(self, url: str, at: str, location: str) -> str:
        try:
            # http.client hands over header bytes as Latin-1; browsers and servers mean UTF-8.
            location = location.encode("latin-1").decode("utf-8")
        except UnicodeError:
            pass
        try:
            target = urljoin(at, location)
            scheme = origin_of(target)[0]
        except ValueError as error:
            raise TransferError(url, f"redirected to {masked(location)[:200]!r}, which is no URL") from error
        if scheme not in ("http", "https"):
            raise TransferError(url, f"redirected to {masked(location)[:99]!r}, which is neither http nor https")
        if scheme == "http" and origin_of(at)[0] == "https" and not self._config.allow_downgrade:
            shown = masked(target)[:99]
            raise TransferError(url, f"redirected from https to {shown}; Config(allow_downgrade=True) follows it")
        return target

    def _send(
        self, url: str, at: str, headers: dict[str, str], auth: tuple[str, str] | None, cancel: Cancel
    ) -> _PooledResponse:
        """One hop. A kept connection that turns out dead is worth one more try, which costs nothing."""
        with _mapped(url, cancel):
            request = self._prepare(at, headers, auth)
        while True:
            deadline_s = time.monotonic() + self._config.connect_timeout_s + self._config.read_timeout_s
            exchange = _Exchange(deadline_s, self._rcvbuf)
            with self._lock:
                self._waiting.add(exchange)
            cancel.add(exchange.kill)
            try:
                with _mapped(url, cancel, exchange):
                    raw = self._urlopen(at, request, exchange)
                    if exchange.expired:
                        raise TimeoutError("too late")
                return _PooledResponse(url, at, raw, exchange, cancel)
            except TransferError as error:
                cancel.discard(exchange.kill)
                if not (exchange.reused and _is_stale(error)) or exchange.expired:
                    raise
            finally:
                with self._lock:
                    self._waiting.discard(exchange)

    def _prepare(self, at: str, headers: dict[str, str], auth: tuple[str, str] | None) -> requests.PreparedRequest:
        session = self._session()
        request = requests.PreparedRequest()
        request.method = "GET"
        if _PLAIN_URL.fullmatch(at):
            request.url = at
        else:
            request.prepare_url(at, None)
        assert request.url is not None
        headers.setdefault("Host", _host_of(request.url))
        request.headers = headers  # type: ignore[assignment]  # they are checked when they are sent
        if len(session.cookies):
            request.prepare_cookies(session.cookies)
        if "Authorization" not in request.headers:
            in_url = get_auth_from_url(at) if "@" in at else ("", "")
            chosen = auth or (in_url if any(in_url) else self._netrc_auth(at))
            if chosen:
                HTTPBasicAuth(*chosen)(request)
        return request

    def _urlopen(self, at: str, request: requests.PreparedRequest, exchange: _Exchange) -> _Answer:
        key = origin_of(at)
        settings = self._environment(at, key)
        pool = self._pools.get(key)
        if pool is None:
            found = self._adapter.get_connection_with_tls_context(
                request, settings["verify"], proxies=settings["proxies"], cert=settings["cert"]
            )
            pool = cast(HTTPConnectionPool, found)
            if len(self._pools) >= _POOLS // 2:
                self._pools.clear()  # so that none is kept here that the PoolManager has closed
            self._pools[key] = pool
        target = self._adapter.request_url(request, settings["proxies"]) if settings["proxied"] else request.path_url
        _here.exchange = exchange
        answer = _ask(pool, target, cast(Mapping[str, str], request.headers), self._timeout)
        if answer.cookies:
            _keep_cookies(self._session(), request, answer)
        return answer

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._threads, "session", None)
        if session is None:
            session = requests.Session()
            session.trust_env = self._config.trust_env
            session.proxies = dict(self._config.proxies)
            session.verify = self._config.verify if self._config.ca_bundle is None else self._config.ca_bundle
            session.cert = self._config.client_cert
            session.mount("http://", self._adapter)
            session.mount("https://", self._adapter)
            self._threads.session = session
        return session

    def _environment(self, at: str, key: tuple[str, str, int]) -> dict[str, Any]:
        """Proxies, CA bundle and client certificate for an origin, as requests finds them; read once."""
        settings = self._settings.get(key)
        if settings is None:
            settings = dict(self._session().merge_environment_settings(at, {}, True, None, None))
            settings["proxied"] = bool(select_proxy(at, settings["proxies"]))
            certificate = settings["cert"]
            pair = (certificate,) if isinstance(certificate, str) else certificate or ()
            for path in (settings["verify"], *pair):
                if isinstance(path, str) and not os.path.exists(path):
                    raise ConfigError(f"the certificate file {path} does not exist")
            self._settings[key] = settings
        return settings

    def _netrc_auth(self, at: str) -> tuple[str, str] | None:
        if not self._config.trust_env:
            return None
        key = origin_of(at)
        if key not in self._netrc:
            self._netrc[key] = get_netrc_auth(at)
        return self._netrc[key]


class _PooledResponse:
    """`Response` from a connection of a pool."""

    def __init__(self, url: str, at: str, answer: _Answer, exchange: _Exchange, cancel: Cancel) -> None:
        self.url = at
        self.status = answer.status
        self.headers = answer.headers
        self._asked = url
        self._answer = answer
        self._exchange = exchange
        self._cancel = cancel

    def read_into(self, view: memoryview) -> int:
        with _mapped(self._asked, self._cancel, self._exchange):
            count = self._answer.read_into(view)
        if self._answer.ended:
            self._answer.release()  # now, so that another thread can use the connection
        return count

    def drain(self) -> None:
        """Read a short body to its end, so that the connection can be used again."""
        length = self._answer.length
        if length is not None and length <= _DRAIN_BYTES:
            view = memoryview(bytearray(length))
            with contextlib.suppress(TransferError):
                while self.read_into(view):
                    pass

    def __enter__(self) -> _PooledResponse:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._cancel.discard(self._exchange.kill)
        with contextlib.suppress(OSError, urllib3.exceptions.HTTPError):
            self._answer.release()  # and end it, if the rest of the body is still on its way


def _keep_cookies(session: requests.Session, request: requests.PreparedRequest, answer: _Answer) -> None:
    """By requests' rules, which want http.client's kind of message to read them from."""
    message = http.client.HTTPMessage()
    for cookie in answer.cookies:
        message["Set-Cookie"] = cookie
    response = SimpleNamespace(_original_response=SimpleNamespace(msg=message))
    extract_cookies_to_jar(session.cookies, request, response)  # type: ignore[no-untyped-call]


def _host_of(url: str) -> str:
    """What the Host header says (RFC 9110 section 7.2)."""
    scheme, host, port = origin_of(url)
    name = f"[{host}]" if ":" in host else host
    return name if port == (443 if scheme == "https" else 80) else f"{name}:{port}"


def _canonical(headers: Mapping[str, str]) -> dict[str, str]:
    """Names in one spelling, so that none is sent twice."""
    return {name.title(): value for name, value in headers.items()}


def _may_share(home: tuple[str, str, int], there: tuple[str, str, int]) -> bool:
    """Whether secrets for one origin may go to another: the same, or its upgrade from http to https."""
    return home == there or (home[1] == there[1] and home[::2] == ("http", 80) and there[::2] == ("https", 443))


def _is_stale(error: TransferError) -> bool:
    """Whether a kept connection was closed by the peer before it answered anything."""
    cause: BaseException | None = error.__cause__
    while cause is not None:
        if isinstance(cause, http.client.RemoteDisconnected | BrokenPipeError | ConnectionResetError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


class _mapped:  # a context manager of a few instructions: there are several for each small file
    """Foreign errors become ours here and nowhere else."""

    __slots__ = ("_cancel", "_exchange", "_url")

    def __init__(self, url: str, cancel: Cancel, exchange: _Exchange | None = None) -> None:
        self._url, self._cancel, self._exchange = url, cancel, exchange

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None or not isinstance(error, _FOREIGN) or isinstance(error, ConfigError | TransferError):
            return
        if self._cancel.cancelled:
            raise CancelledError(self._url, "cancelled") from error
        if self._exchange is not None and self._exchange.expired:
            reason = "the answer's headers did not arrive in time"
            raise TransferTimeoutError(self._url, reason, transient=True) from error
        raise _translate(self._url, error) from error


_FOREIGN = (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError, UnicodeError, ValueError)


def _translate(url: str, error: Exception) -> TransferError:
    roots = _chain(error)
    if any(isinstance(each, ssl.SSLCertVerificationError) for each in roots):
        return TransferError(url, f"the server's certificate is not trusted: {roots[-1]}")
    # A connection that was refused is of urllib3's timeouts too.
    refused = any(isinstance(each, urllib3.exceptions.NewConnectionError) for each in roots)
    if not refused and any(isinstance(each, urllib3.exceptions.TimeoutError | TimeoutError) for each in roots):
        return TransferTimeoutError(url, f"timed out: {error}", transient=True)
    if any(isinstance(each, http.client.IncompleteRead | urllib3.exceptions.IncompleteRead) for each in roots):
        return TransferError(url, "the body ended before its Content-Length", transient=True)
    name_error = any(isinstance(each, socket.gaierror) and each.errno == socket.EAI_NONAME for each in roots)
    too_many = any(isinstance(each, http.client.HTTPException) and "more than" in str(each) for each in roots)
    hopeless = name_error or too_many or any(isinstance(each, _PERMANENT) for each in roots)
    return TransferError(url, f"{error}" or type(error).__name__, transient=not hopeless)


_PERMANENT = (
    UnicodeError,
    http.client.LineTooLong,
    requests.RequestException,  # what requests raises here is about the URL or the settings, not the network
    urllib3.exceptions.InvalidHeader,
    urllib3.exceptions.LocationValueError,
)


def _chain(error: BaseException) -> list[BaseException]:
    """The error, what caused it, and what urllib3 keeps in `reason`, outermost first."""
    chain: list[BaseException] = []
    queue: list[object] = [error]
    while queue and len(chain) < 12:
        each = queue.pop(0)
        if isinstance(each, BaseException) and each not in chain:
            chain.append(each)
            queue += [each.__cause__, each.__context__, getattr(each, "reason", None), *each.args]
    return chain
