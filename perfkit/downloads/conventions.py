"""The only door to requests and urllib3: what their users expect of whatever fetches a URL.

Proxies from the environment, and the ways through them; netrc; cookies; the quoting of URLs. To load the two takes as
long as everything else that a command does before its first byte, so this module is for those who have such a question.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.cookies import extract_cookies_to_jar, get_cookie_header
from requests.utils import get_netrc_auth, prepend_scheme_if_needed, select_proxy
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from perfkit.config import Config
from perfkit.downloads.connection import Exchange, Killer, Origin, dial
from perfkit.errors import ConfigError

if TYPE_CHECKING:
    import ssl

__all__ = ["Conventions", "ProxyPool"]

_here = threading.local()  # .exchange: the one the current thread is busy with


class Conventions:
    """Answers such questions by asking requests. For all threads."""

    def __init__(self, config: Config) -> None:
        self._foreign = hasattr(urllib3, "AsyncPoolManager")  # urllib3-future, in the place of urllib3
        self._config = config
        self._lock = threading.Lock()  # guards the session and the adapter
        self._session = requests.Session()
        self._session.trust_env = config.trust_env
        self._session.proxies = dict(config.proxies)
        self._adapter = HTTPAdapter(pool_maxsize=max(config.workers, config.segments) + 2, max_retries=0)

    def quoted(self, url: str) -> str:
        """The URL as it is sent.

        Raises:
            ValueError: it can't be sent.
        """
        request = requests.PreparedRequest()
        with _told_plainly():
            request.prepare_url(url, None)
        return cast(str, request.url)

    def netrc_auth(self, url: str) -> tuple[str, str] | None:
        return get_netrc_auth(url)

    def cookies_for(self, url: str) -> str | None:
        """What the Cookie header has to say."""
        with self._lock:
            return cast("str | None", get_cookie_header(self._session.cookies, _asking(url)))  # type: ignore[no-untyped-call]

    def keep_cookies(self, url: str, cookies: Sequence[str]) -> None:
        """Take what an answer's Set-Cookie headers say."""
        message = http.client.HTTPMessage()  # what requests wants to read them from
        for cookie in cookies:
            message["Set-Cookie"] = cookie
        response = SimpleNamespace(_original_response=SimpleNamespace(msg=message))
        with self._lock:
            extract_cookies_to_jar(self._session.cookies, _asking(url), response)  # type: ignore[no-untyped-call]

    def proxy_pool(self, url: str, origin: Origin, tls: Callable[[], ssl.SSLContext]) -> ProxyPool | None:
        """Connections to an origin through the proxy that is set for it; None if there is none.

        Raises:
            ValueError: the proxy's URL is none, or of a kind that is not supported here.
            ConfigError: there is one, and the installed urllib3 is not urllib3.
        """
        with self._lock, _told_plainly():
            settings = self._session.merge_environment_settings(url, {}, None, None, None)
            proxy = select_proxy(url, settings["proxies"])
            if not proxy:
                return None
            if self._foreign:
                raise ConfigError(
                    "a proxy is set, and urllib3-future (which niquests installs) has replaced urllib3; reinstall with:"
                    " pip uninstall urllib3-future && pip install --force-reinstall urllib3"
                )
            proxy = prepend_scheme_if_needed(proxy, "http")  # type: ignore[no-untyped-call]
            manager = self._adapter.proxy_manager_for(proxy)
            socks = proxy.lower().startswith("socks")
            manager.pool_classes_by_scheme = _socks_pool_classes() if socks else _POOL_CLASSES
            scheme, host, port = origin
            kind: dict[str, object] = {}
            if scheme == "https":
                kind = {"ssl_context": tls(), "cert_reqs": "CERT_REQUIRED" if self._config.verify else "CERT_NONE"}
            pool = manager.connection_from_host(host, port, scheme, pool_kwargs=kind)
        return ProxyPool(pool, origin, self._config.connect_timeout_s)

    def close(self) -> None:
        self._adapter.close()


def _asking(url: str) -> Any:
    """As much of a request as matters to a cookie jar."""
    return SimpleNamespace(url=url, headers={})


@contextlib.contextmanager
def _told_plainly() -> Iterator[None]:
    """Errors of the two as the standard library's: ValueError for what no further try cures, OSError for the rest."""
    try:
        yield
    except (requests.RequestException, urllib3.exceptions.LocationValueError) as error:
        raise ValueError(str(error)) from error
    except urllib3.exceptions.NewConnectionError as error:  # which urllib3 counts among its timeouts too
        raise ConnectionError(str(error)) from error
    except urllib3.exceptions.TimeoutError as error:
        raise TimeoutError(str(error)) from error
    except (urllib3.exceptions.HTTPError, http.client.HTTPException) as error:
        raise ConnectionError(str(error)) from error


class ProxyPool:
    """The same as `connection.Pool`, through a proxy, by urllib3."""

    def __init__(self, pool: HTTPConnectionPool, origin: Origin, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._forwards = pool.proxy is not None and pool.scheme == "http"  # not through a tunnel, and not SOCKS
        self._authority = f"[{origin[1]}]:{origin[2]}" if ":" in origin[1] else f"{origin[1]}:{origin[2]}"
        self.headers: dict[str, str] = dict(pool.proxy_headers) if self._forwards else {}

    def target(self, path: str) -> str:
        return f"http://{self._authority}{path}" if self._forwards else path

    def take(self, exchange: Exchange) -> Any:
        connection: Any = self._pool._get_conn()
        _here.exchange = exchange
        try:
            with _told_plainly():
                connection.timeout = self._timeout_s
                if connection.is_closed and self._pool.proxy is not None and self._pool.scheme == "https":
                    self._pool._prepare_proxy(connection)  # a tunnel (CONNECT)
                self._pool._validate_conn(connection)
                if connection.sock is None:
                    connection.connect()
            connection.begin(exchange)
        except BaseException:
            connection.close()
            self._pool._put_conn(None)
            raise
        return connection

    def give_back(self, connection: Any, *, reusable: bool) -> None:
        if not reusable:
            connection.close()
        with contextlib.suppress(urllib3.exceptions.ClosedPoolError):
            self._pool._put_conn(connection)

    def close(self) -> None:
        self._pool.close()


class _Connection:
    """What is ours in a connection of urllib3: the current exchange can end it.

    Where another makes the socket (a SOCKS proxy), that is from its being there on.
    """

    _killer: Killer | None = None
    _uses = 0

    def __str__(self: Any) -> str:  # urllib3 begins its errors with it
        return f"{self.host} port {self.port}"

    def begin(self: Any, exchange: Exchange) -> None:
        if self._killer is None:
            self._killer = Killer(self.sock)
        exchange.attach(self._killer)
        exchange.reused = self._uses > 0
        self._uses += 1

    def close(self: Any) -> None:
        if self._killer is not None:
            self._killer.close()
            self._killer = None
        self._uses = 0
        super().close()  # type: ignore[misc]


class _DirectConnection(_Connection):
    """One that can be ended from the first SYN on."""

    def _new_conn(self: Any) -> socket.socket:
        sock, self._killer = dial(self.host.strip("[]"), self.port, self.timeout, _here.exchange)
        return sock


class _HttpConnection(_DirectConnection, HTTPConnection):
    pass


class _HttpsConnection(_DirectConnection, HTTPSConnection):
    pass


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


_POOL_CLASSES: dict[str, type[HTTPConnectionPool]] = {"http": _HttpPool, "https": _HttpsPool}


@functools.cache
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
