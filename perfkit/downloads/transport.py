"""The way to a server: a request out, an answer whose body is on the wire back, redirects followed, errors mapped.

Connections are ours (`connection`); what requests' users expect beyond those is asked of requests, where there is
anything to ask (`conventions`). Its `Session.send` is left out on purpose: it costs more processor time than a small
file, follows redirects with secrets of its own choosing, and can't be interrupted.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urljoin, urlsplit

from perfkit._version import __version__
from perfkit.config import Config
from perfkit.downloads import wire
from perfkit.downloads.cancel import Cancel
from perfkit.downloads.connection import Exchange, Origin, Pool, origin_of
from perfkit.errors import CancelledError, ConfigError, TransferError, TransferTimeoutError
from perfkit.redact import redacted

if TYPE_CHECKING:
    import ssl

    from perfkit.downloads.conventions import Conventions, ProxyPool

__all__ = ["HttpTransport", "Response", "Transport", "origin_of"]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Sent to whatever origin a redirect leads to; every other header of the caller stays with its own origin.
_HARMLESS = frozenset({"Accept", "Accept-Language", "User-Agent", "Cache-Control", "Pragma"})
# A URL that is sent as it is. Others are quoted and checked by requests.
_PLAIN_URL = re.compile(r"https?://[a-z0-9.-]+(:[0-9]+)?(?![^?]*/\.)/[A-Za-z0-9._~/-]*(\?[A-Za-z0-9._~/=&+:,-]*)?")
_POOLS = 256  # origins whose connections are kept
_DRAIN_BYTES = 64 << 10  # a body up to this size is read to its end to keep the connection


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


class HttpTransport:
    """`Transport` over our own connections, and through requests and urllib3 where a proxy is set."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()  # guards what follows
        self._pools: dict[Origin, Pool | ProxyPool] = {}
        self._netrc: dict[Origin, tuple[str, str] | None] = {}
        self._waiting: set[Exchange] = set()
        self._tls: ssl.SSLContext | None = None
        self._asked: Conventions | None = None
        self._has_cookies = False
        self._rate_limit: int | None = None
        self._common = {"User-Agent": f"perfkit/{__version__}", "Accept": "*/*", "Connection": "keep-alive"}
        self._configured = _canonical(config.headers)

    def limit_changed(self, bytes_per_second: int | None) -> None:
        self._rate_limit = bytes_per_second

    def expire(self) -> None:
        now = time.monotonic()
        with self._lock:
            late = [exchange for exchange in self._waiting if exchange.deadline_s < now]
        for exchange in late:
            exchange.expired = True
            exchange.kill()

    def close(self) -> None:
        with self._lock:
            pools = list(self._pools.values())
            self._pools.clear()
        for pool in pools:
            pool.close()
        if self._asked is not None:
            self._asked.close()

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
                raise TransferError(url, f"more than {most} redirects, the last to {redacted(location)[:99]}")
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
            raise TransferError(url, f"redirected to {redacted(location)[:200]!r}, which is no URL") from error
        if scheme not in ("http", "https"):
            raise TransferError(url, f"redirected to {redacted(location)[:99]!r}, which is neither http nor https")
        if scheme == "http" and origin_of(at)[0] == "https" and not self._config.allow_downgrade:
            shown = redacted(target)[:99]
            raise TransferError(url, f"redirected from https to {shown}; Config(allow_downgrade=True) follows it")
        return target

    def _send(
        self, url: str, at: str, headers: dict[str, str], auth: tuple[str, str] | None, cancel: Cancel
    ) -> _PooledResponse:
        """One hop. A kept connection that turns out dead is worth one more try, which costs nothing."""
        with _mapped(url, cancel):
            sent = at if _PLAIN_URL.fullmatch(at) else self._conventions().quoted(at)
            pool = self._pool(sent)
            head = self._head(at, sent, pool, headers, auth)
        while True:
            deadline_s = time.monotonic() + self._config.connect_timeout_s + self._config.read_timeout_s
            exchange = Exchange(deadline_s, self._rate_limit)
            with self._lock:
                self._waiting.add(exchange)
            cancel.add(exchange.kill)
            try:
                with _mapped(url, cancel, exchange):
                    answer = _ask(pool, head, exchange, self._config.read_timeout_s)
                    if answer.cookies:
                        self._conventions().keep_cookies(sent, answer.cookies)
                        self._has_cookies = True
                    if exchange.expired:
                        raise TimeoutError("too late")
                return _PooledResponse(url, at, answer, exchange, cancel)
            except TransferError as error:
                cancel.discard(exchange.kill)
                if not (exchange.reused and _is_stale(error)) or exchange.expired:
                    raise
            finally:
                with self._lock:
                    self._waiting.discard(exchange)

    def _head(
        self, at: str, sent: str, pool: Pool | ProxyPool, headers: dict[str, str], auth: tuple[str, str] | None
    ) -> bytes:
        """The request as it goes out (RFC 9112 section 3)."""
        parts = urlsplit(sent)
        headers.setdefault("Host", _host_of(sent))
        if self._has_cookies and (cookies := self._conventions().cookies_for(sent)):
            headers["Cookie"] = f"{headers['Cookie']}; {cookies}" if "Cookie" in headers else cookies
        if "Authorization" not in headers and (pair := auth or _auth_in(at) or self._netrc_auth(sent)):
            headers["Authorization"] = _basic(*pair)
        headers.update(pool.headers)
        target = pool.target(f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/")
        lines = [f"GET {target} HTTP/1.1\r\n", *(f"{name}: {headers[name]}\r\n" for name in headers), "\r\n"]
        head = "".join(lines)
        if head.count("\n") != len(lines) or head.count("\r") != len(lines):
            raise ValueError("a header or the URL has a line break in it")
        return head.encode("latin-1")

    def _pool(self, sent: str) -> Pool | ProxyPool:
        """The connections to the URL's origin; found out once."""
        origin = origin_of(sent)
        with self._lock:
            pool = self._pools.get(origin)
        if pool is not None:
            return pool
        made: Pool | ProxyPool | None = self._proxy_pool(sent, origin)
        if made is None:
            config = self._config
            tls = self._tls_context() if origin[0] == "https" else None
            keep = max(config.workers, config.segments) + 2
            made = Pool(origin, tls, timeout_s=config.connect_timeout_s, keep=keep)
        with self._lock:
            pool = self._pools.setdefault(origin, made)
            dropped = [self._pools.pop(next(iter(self._pools)))] if len(self._pools) > _POOLS else []
        for each in dropped:
            each.close()
        return pool

    def _proxy_pool(self, sent: str, origin: Origin) -> ProxyPool | None:
        environment = self._config.trust_env and (
            sys.platform in ("darwin", "win32")  # where the system has settings of its own
            or any(name.lower().endswith("_proxy") and name.lower() != "no_proxy" for name in os.environ)
        )
        if not environment and not self._config.proxies:
            return None
        return self._conventions().proxy_pool(sent, origin, self._tls_context)

    def _tls_context(self) -> ssl.SSLContext:
        """One for all connections; the CA bundle is where requests would look for it.

        Raises:
            ConfigError: a certificate file is not there.
        """
        from perfkit.downloads.tls import make_context

        config = self._config
        with self._lock:
            if self._tls is None:
                bundle = config.ca_bundle
                if bundle is None and config.verify and config.trust_env:
                    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or None
                pair = (config.client_cert,) if isinstance(config.client_cert, str) else config.client_cert or ()
                for path in (bundle, *pair):
                    if path is not None and not os.path.exists(path):
                        raise ConfigError(f"the certificate file {path} does not exist")
                if not config.verify:
                    warnings.warn("Config.verify is False: whoever answers is believed", RuntimeWarning, stacklevel=2)
                self._tls = make_context(verify=config.verify, ca_bundle=bundle, client_cert=config.client_cert)
            return self._tls

    def _conventions(self) -> Conventions:
        with self._lock:
            if self._asked is None:
                from perfkit.downloads.conventions import Conventions

                self._asked = Conventions(self._config)
            return self._asked

    def _netrc_auth(self, sent: str) -> tuple[str, str] | None:
        origin = origin_of(sent)
        if origin not in self._netrc:
            self._netrc[origin] = self._conventions().netrc_auth(sent) if self._has_netrc() else None
        return self._netrc[origin]

    def _has_netrc(self) -> bool:
        places = (os.environ["NETRC"],) if "NETRC" in os.environ else ("~/.netrc", "~/_netrc")
        return self._config.trust_env and any(os.path.exists(os.path.expanduser(place)) for place in places)


class _Answer(wire.Answer):
    """One that gives its connection back to the pool."""

    def __init__(self, connection: Any, pool: Pool | ProxyPool) -> None:
        super().__init__(connection.sock)
        self._connection: Any = connection
        self._pool = pool

    def release(self) -> None:
        """Return the connection to its pool; closed, if it can't carry another request."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.give_back(connection, reusable=self.reusable)


def _ask(pool: Pool | ProxyPool, head: bytes, exchange: Exchange, patience_s: float) -> _Answer:
    """Send a request, and wait for the head of its answer."""
    connection = pool.take(exchange)
    try:
        with contextlib.suppress(BrokenPipeError):  # the peer may have answered before it closed
            connection.sock.sendall(head)
        if connection.sock.gettimeout() != patience_s:  # setting it is a system call
            connection.sock.settimeout(patience_s)
        return _Answer(connection, pool)
    except BaseException:
        pool.give_back(connection, reusable=False)
        raise


class _PooledResponse:
    """`Response` from a connection of a pool."""

    def __init__(self, url: str, at: str, answer: _Answer, exchange: Exchange, cancel: Cancel) -> None:
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
        with contextlib.suppress(OSError):
            self._answer.release()  # and end it, if the rest of the body is still on its way


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


def _auth_in(url: str) -> tuple[str, str] | None:
    """User and password of `https://user:password@host/`."""
    if "@" not in url:
        return None
    parts = urlsplit(url)
    if parts.username is None and parts.password is None:
        return None
    return unquote(parts.username or ""), unquote(parts.password or "")


def _basic(user: str, password: str) -> str:
    """RFC 7617; Latin-1 where it can be, as requests sends it."""
    import base64

    pair = f"{user}:{password}"
    try:
        return "Basic " + base64.b64encode(pair.encode("latin-1")).decode()
    except UnicodeEncodeError:
        return "Basic " + base64.b64encode(pair.encode()).decode()


def _is_stale(error: TransferError) -> bool:
    """Whether a kept connection was closed by the peer before it answered anything."""
    return any(isinstance(each, BrokenPipeError | ConnectionResetError) for each in _chain(error))


class _mapped:  # a context manager of a few instructions: there are several for each small file
    """Foreign errors become ours here and nowhere else."""

    __slots__ = ("_cancel", "_exchange", "_url")

    def __init__(self, url: str, cancel: Cancel, exchange: Exchange | None = None) -> None:
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


_FOREIGN = (OSError, ValueError, wire.ProtocolError)


def _translate(url: str, error: Exception) -> TransferError:
    import ssl  # which only those need who speak TLS, or fail
    from socket import EAI_NONAME, gaierror

    roots = _chain(error)
    if any(isinstance(each, ssl.SSLCertVerificationError) for each in roots):
        return TransferError(url, f"the server's certificate is not trusted: {roots[-1]}")
    if any(isinstance(each, TimeoutError) for each in roots):
        return TransferTimeoutError(url, f"timed out: {error}", transient=True)
    if isinstance(error, wire.IncompleteBody):
        return TransferError(url, "the body ended before its Content-Length", transient=True)
    no_name = any(isinstance(each, gaierror) and each.errno == EAI_NONAME for each in roots)
    hopeless = no_name or any(isinstance(each, ValueError | wire.TooLong) for each in roots)
    return TransferError(url, f"{error}" or type(error).__name__, transient=not hopeless)


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
