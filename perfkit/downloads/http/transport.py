"""Sends a GET and returns the response with its body still on the wire; redirects, credentials, errors.

`HttpTransport` sends every request through a `requests.Session`. It follows redirects itself, since downloads have
their own rules for them: where the response came from is remembered, and no secret goes to another origin.
"""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from perfkit._version import __version__
from perfkit.config import Auth, Config, check_type
from perfkit.downloads.cancel import Cancel
from perfkit.downloads.http.dial import connect_early
from perfkit.downloads.http.network_path import NetworkPath
from perfkit.downloads.http.outage import OutageWatch
from perfkit.downloads.http.redirects import REDIRECTS, Hop, may_have_secrets, target_of, without_secrets
from perfkit.downloads.http.urls import as_sent
from perfkit.downloads.throttle import Throttle
from perfkit.errors import CancelledError, ConfigError, PerfkitError, TransferError
from perfkit.redact import redacted

if TYPE_CHECKING:
    import requests

    from perfkit.downloads.http.callers_session import CallersSessions
    from perfkit.downloads.http.exchange import Exchange
    from perfkit.downloads.http.session import OwnSessions

_DRAIN_BYTES = 64 << 10  # a body up to this size is read to its end, to keep the connection
_DRAIN_S = 2.0  # if it comes within this time
_FOREIGN_READ_BYTES = 16 << 10
_PATIENCE_S = 2.0  # when a response takes longer, idle connections to its host are closed; far ones need 1.5 s with TLS

_MOST_KEPT = 1024  # connections for each origin: urllib3 makes room for all of them at once
SessionSource = Any  # a requests.Session, or a callable that makes one (requests is loaded when it is used)


@dataclass(frozen=True, slots=True, kw_only=True)
class Get:
    """A GET request.

    Args:
        at: where an earlier redirect of `url` led; the request goes there directly.
        headers: may go wherever a redirect leads.
        private_headers, auth: go to the origin of `url` only.
        trusted: whether secrets in the settings and in the caller's session may go to the origin of `url`. A mirror or
            list entry at another origin than the one the caller named is not trusted.
        named: whether the caller named `url`, so that netrc is searched for its host.
        limit: limits the rate at which the response is read; None: no limit.
        meanwhile: what the thread has to do while it waits for the response: to be called once the request is sent, and
            before, if sending it may take long. May be called several times; raises nothing. For a transport without
            a true `calls_meanwhile` there is nothing to do.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    private_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    auth: Auth | None = field(default=None, repr=False)
    at: str | None = None
    trusted: bool = True
    named: bool = True
    limit: Throttle | None = None
    meanwhile: Callable[[], None] | None = field(default=None, repr=False, compare=False)


class Response(Protocol):
    """A response with its body still on the wire. A context manager: leaving it returns the connection or ends it."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]:
        """By name in lower case; repeated ones are joined with commas (RFC 9110 section 5.3)."""

    @property
    def url(self) -> str:
        """Where the response came from, after redirects."""

    def read1(self, most: int) -> bytes | memoryview:
        """What has arrived, up to `most` bytes, waiting for at least one; nothing at the end of the body. A memoryview
        is valid until the next call.

        Raises:
            TransferError: the connection broke, or the body ended early. What came before has been returned.
            TransferTimeoutError: the peer was silent for too long.
            CancelledError: the transfer was cancelled.
        """

    def path(self) -> NetworkPath | None:
        """The network path that it takes; None if unknown."""

    def end_after(self, count: int) -> None:
        """Announce that at most `count` more bytes will be read, so the server need not send more."""

    def __enter__(self) -> Response: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None
    ) -> None: ...


class Transport(Protocol):
    """Opens URLs. The default is `HttpTransport`; another can be given to `Toolkit`."""

    def open(self, request: Get, cancel: Cancel) -> Response:
        """Send a GET and return when the headers are there. Redirects are followed; other statuses are returned.

        Args:
            cancel: ends the request, and any read of its body, at once.

        Raises:
            TransferError, TransferTimeoutError: no response; `transient` says whether another try may help.
            ConfigError: the URL is not an unambiguous http or https URL.
            CancelledError: cancelled.
        """

    def expire(self) -> None:
        """End requests whose response is overdue. Called a few times a second while work is under way."""

    def path(self) -> NetworkPath | None:
        """The shortest path of the responses being read; None if unknown."""

    def close(self) -> None: ...


class HttpTransport:
    """`Transport` by requests sessions over one PoolManager.

    Args:
        session: the caller's: a `requests.Session`, or a callable that makes one for each thread; None: our own.
    """

    def __init__(self, config: Config, session: SessionSource | None = None) -> None:
        check_type("config", config, "Config", secret=True)
        self._config = config
        self._given = session
        self._lock = threading.Lock()  # guards the making of the sessions
        self._sessions: OwnSessions | CallersSessions | None = None
        self._exchanges: set[Exchange] = set()  # not under the lock: a Ctrl-C in `expire` could leave it held
        self._outage = OutageWatch()
        self._timeout = config.timeouts_s
        self.calls_meanwhile = session is None  # a caller's session may take long before it sends, or not send at all
        self._common = {"Accept": "*/*", "User-Agent": f"perfkit/{__version__}"} if session is None else {}
        self._configured = _canonical(config.headers)
        if config.rate_limit is not None:
            with contextlib.suppress(ConfigError):  # which the first request will raise
                self._started()  # else the first requests would wait for this, then all begin at once

    def expire(self) -> None:
        now_s = time.monotonic()
        exchanges = tuple(self._exchanges)
        for exchange in exchanges:
            if not exchange.waiting:
                continue
            if exchange.deadline_s < now_s:
                exchange.expired = True
                exchange.abort()
            elif exchange.pool is not None and exchange.began_s < now_s - _PATIENCE_S:
                # A server that serves only so many connections at once may serve idle ones until their keep-alive ends,
                # and only then that of this request (findings/haproxy-keeps-idle-connections-while-others-wait.sh).
                exchange.pool.close_idle()
        self._outage.look([each.incoming for each in exchanges if each.incoming])

    def path(self) -> NetworkPath | None:
        read = (each.incoming for each in tuple(self._exchanges) if not each.waiting)
        known = [path for incoming in read if incoming and (path := incoming.path())]
        if not known:
            return None
        least_s, late = min(each.least_s for each in known), sum(each.out_of_order for each in known)
        return NetworkPath(min(each.round_trip_s for each in known), least_s, late)

    def expect(self, urls: Sequence[str]) -> None:
        """Connect for the first of these requests while the sessions are being loaded."""
        if self._sessions is None and self._given is None:
            connect_early(urls, self._config)

    def close(self) -> None:
        with self._lock:
            sessions, self._sessions = self._sessions, None
        if sessions is not None:
            sessions.close()
        self._outage.close()

    def open(self, request: Get, cancel: Cancel) -> Response:
        private = self._configured
        if request.private_headers:
            private = {**private, **_canonical(request.private_headers)}
        asked, most = as_sent(request.url), self._config.max_redirects
        at = as_sent(request.at) if request.at else asked
        for _ in range(most + 1):
            at_home = may_have_secrets(at, home=asked)
            trusted = request.trusted and at_home
            chosen = private if trusted else without_secrets(private)
            # Ranges of an encoded body are not those of the file: identity, whatever the caller's headers say.
            headers = {**self._common, **chosen, "Accept-Encoding": "identity", **request.headers}
            auth = (request.auth or self._config.auth) if trusted else None
            netrc = request.named and at_home
            hop = Hop(at, headers, auth, trusted, at != asked, netrc)
            response = self._send(request, hop, cancel)
            response.url = request.url if at == asked else at
            location = response.headers.get("location") if response.status in REDIRECTS else None
            if location is None:
                return response
            with response:
                self._drain(response)
            at = target_of(request.url, at, location, allow_downgrade=self._config.allow_downgrade)
        raise TransferError(request.url, f"more than {most} redirects, the last to {redacted(at[:99])}")

    def warm(self, url: str, cancel: Cancel) -> None:
        """Open a connection for a later request to this origin; if that fails, the later request will say why."""
        sessions, _ = self._started()
        connect_s = self._timeout[0]
        exchange = self._make_exchange(self._exchanges, cancel, time.monotonic() + connect_s)
        with contextlib.suppress(Exception), exchange:
            sessions.warm(as_sent(url), connect_s)
        exchange.finish()

    def _send(self, request: Get, hop: Hop, cancel: Cancel) -> _HttpResponse:
        """Send one request. If a kept connection turns out to be dead, try again, which costs nothing."""
        self.expect([hop.url])
        sessions, failures = self._started()
        while True:
            deadline_s = time.monotonic() + sum(self._timeout)
            exchange = self._make_exchange(self._exchanges, cancel, deadline_s, request.limit, request.meanwhile)
            try:
                with exchange:
                    response = sessions.send(hop)
                    if exchange.expired:
                        response.close()
                        raise TimeoutError
                    return _HttpResponse(request.url, hop.url, response, exchange)
            except PerfkitError:
                raise
            except Exception as error:
                if not (exchange.reused and failures.is_stale(error)) or exchange.expired or cancel.cancelled:
                    raise failures.translated(request.url, error, exchange) from error

    def _drain(self, response: _HttpResponse) -> None:
        """Read a short body to its end, if it comes soon, so that the connection can be used again."""
        length = response.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > _DRAIN_BYTES:
            return
        response.exchange.deadline_s = time.monotonic() + _DRAIN_S
        response.exchange.waiting = True
        with contextlib.suppress(TransferError):
            while response.read1(_DRAIN_BYTES):
                pass

    def _started(self) -> tuple[OwnSessions | CallersSessions, Any]:
        """The sessions, and the module that knows their errors."""
        with self._lock:
            if self._sessions is None:
                # Here, since importing requests takes longer than most commands that need no network.
                from perfkit.downloads.http import failures
                from perfkit.downloads.http.adapter import Adapter
                from perfkit.downloads.http.callers_session import CallersSessions
                from perfkit.downloads.http.exchange import Exchange
                from perfkit.downloads.http.session import OwnSessions

                config = self._config
                self._failures, self._make_exchange = failures, Exchange
                keep = min(_MOST_KEPT, max(config.most_streams, config.segments) + 2)
                adapter = Adapter(keep=keep, lean=self._given is None)
                if self._given is None:
                    self._sessions = OwnSessions(config, adapter)
                else:
                    self._sessions = CallersSessions(config, adapter, self._given)
            return self._sessions, self._failures


class _HttpResponse:
    """`Response` of a requests response."""

    def __init__(self, asked: str, at: str, response: requests.Response, exchange: Exchange) -> None:
        self.url = at
        self.status = response.status_code
        fields: dict[str, str] | None = getattr(response, "fields", None)  # as our adapter has read them
        if fields is None:
            merged = getattr(response.headers, "itermerged", response.headers.items)()  # items() keeps repeated apart
            fields = {name.lower(): value for name, value in merged}
        self.headers = fields
        self._asked = asked
        self._response = response
        self.exchange = exchange
        raw = response.raw
        # Through read1, another adapter or a wrapper of its responses might not see all of the body.
        self._read: Callable[[int], bytes | memoryview | None] = self._read_foreign
        if getattr(response, "_content_consumed", False):  # by a hook, such as one that logs bodies
            self._read = io.BytesIO(response.content or b"").read1
        elif exchange.target is not None and hasattr(raw, "read1"):
            self._read = raw.read1
            if exchange.incoming is not None:
                exchange.incoming.reuses_memory = True

    def read1(self, most: int) -> bytes | memoryview:
        try:
            data = self._read(most) or b""
        except Exception as error:
            from perfkit.downloads.http.failures import translated

            raise translated(self._asked, error, self.exchange) from error
        if not data and self.exchange.aborted:  # looks like the end of a body that the connection's end delimits
            raise CancelledError(self._asked, "cancelled")
        return data

    def path(self) -> NetworkPath | None:
        return self.exchange.incoming.path() if self.exchange.incoming is not None else None

    def end_after(self, count: int) -> None:
        if self.exchange.incoming is not None:
            self.exchange.incoming.end_after(count)

    def _read_foreign(self, most: int) -> bytes | None:
        raw, exchange, count = self._response.raw, self.exchange, min(most, _FOREIGN_READ_BYTES)
        if exchange.helper is None:
            return raw.read(count)
        return exchange.helper.call(lambda: raw.read(count), lambda: exchange.aborted, lambda _: self._response.close())

    def __enter__(self) -> _HttpResponse:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        helper = self.exchange.helper
        with contextlib.suppress(Exception):
            if helper is None or not helper.ended:  # else the abandoned helper still reads the response, and closes it
                self._response.close()  # also ends the connection if part of the body is still to come
        self.exchange.finish()


def _canonical(headers: Mapping[str, str]) -> dict[str, str]:
    """Spell names one way, so that none is sent twice."""
    return {name.title(): value for name, value in headers.items()}
