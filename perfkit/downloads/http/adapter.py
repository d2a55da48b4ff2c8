"""The adapter that passes every request to the one PoolManager."""

from __future__ import annotations

import threading
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.utils import prepend_scheme_if_needed, select_proxy
from urllib3.exceptions import HTTPError

from perfkit.downloads.http.connection import POOL_CLASSES, are_replaced, socks_pool_classes
from perfkit.downloads.http.exchange import exchange_here
from perfkit.downloads.http.trust import ClientCert, make_context
from perfkit.downloads.http.urls import Origin, origin_of, split_url
from perfkit.errors import ConfigError
from perfkit.redact import masked, redacted

_POOLS = 256  # origins whose connections are kept


class Adapter(HTTPAdapter):
    """Passes every request to the one PoolManager. For any number of threads and sessions.

    Args:
        keep: connections to keep for each origin.
        lean: leave out of responses what perfkit's own sessions do not use.

    Attributes:
        settings: by the value of `verify` or `cert`, the setting that it comes from, for errors.
    """

    def __init__(self, *, keep: int, lean: bool) -> None:
        self.settings: dict[object, str] = {}
        self._lean = lean
        self._blank = vars(requests.Response())  # making a cookie jar for each takes longer than the rest of a response
        self._lock = threading.RLock()  # guards the state below
        self._contexts: dict[object, Any] = {}
        self._pools: dict[object, Any] = {}
        super().__init__(pool_connections=_POOLS, pool_maxsize=keep, max_retries=0)
        self.poolmanager.pool_classes_by_scheme = POOL_CLASSES

    def get_connection_with_tls_context(self, request: Any, verify: Any, proxies: Any = None, cert: Any = None) -> Any:
        """The pool of an origin; looked up in the PoolManager only once, since that takes longer than a small file."""
        origin = origin_of(request.url)
        proxy = select_proxy(request.url, proxies) if proxies else None
        key = (origin, verify, cert, proxy)
        pool = self._pools.get(key)
        if pool is None:
            with self._lock:
                pool = self._find_pool(origin, proxy, verify, cert)
                if len(self._pools) >= _POOLS // 2:  # so that none is one that the PoolManager has dropped
                    self._pools.clear()
                self._pools[key] = pool
        return pool

    def _find_pool(self, origin: Origin, proxy: str | None, verify: Any, cert: Any) -> Any:
        scheme, host, port = origin
        kind: dict[str, Any] = {}
        if scheme == "https":
            kind = {"ssl_context": self._context(verify, cert), "cert_reqs": "CERT_REQUIRED" if verify else "CERT_NONE"}
        manager: Any = self._proxy_manager(proxy, verify) if proxy else self.poolmanager
        return manager.connection_from_host(host, port, scheme, pool_kwargs=kind)

    def _proxy_manager(self, proxy: str, verify: Any) -> Any:
        kind = proxy.lower()
        options = {"proxy_ssl_context": self._context(verify, None)} if kind.startswith("https:") else {}
        try:
            classes = socks_pool_classes() if kind.startswith("socks") else POOL_CLASSES
            url = str(prepend_scheme_if_needed(proxy, "http"))  # type: ignore[no-untyped-call]
            if not urlsplit(url).hostname:
                raise ValueError("no host")
            manager = self.proxy_manager_for(url, **options)
        except ImportError:
            raise ConfigError("a SOCKS proxy needs PySocks: pip install 'perfkit[socks]'") from None
        except (HTTPError, ValueError) as error:
            # Without the error's own text, which quotes passwords.
            raise ConfigError(
                f"the proxy {masked(proxy)!r} cannot be used: it must be a URL such as http://host:3128"
            ) from error
        manager.pool_classes_by_scheme = classes
        return manager

    def _context(self, verify: bool | str, cert: ClientCert | None) -> Any:
        """The TLS context for these settings, created now if there is none.

        Raises:
            ConfigError: one of their files cannot be used.
        """
        with self._lock:
            if (verify, cert) not in self._contexts:
                names = self.settings.get(verify, "verify"), self.settings.get(cert, "cert")
                self._contexts[verify, cert] = make_context(verify, cert, *names)
            return self._contexts[verify, cert]

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Do nothing: the pool has its context."""

    def request_url(self, request: Any, proxies: Any) -> str:
        """The request target. urllib3 would normalize it and log its secrets, so our connections take it from the
        exchange, and urllib3 gets a redacted one.
        """
        url = request.url
        exchange = exchange_here()
        proxy = select_proxy(url, proxies) if proxies else None
        scheme, authority, target = split_url(url)
        if proxy and not proxy.lower().startswith("socks") and scheme != "https":
            target = f"{scheme}://{authority.rpartition('@')[2]}{target}"
        if exchange is None or are_replaced():
            return target
        exchange.target = target
        return redacted(target)

    def build_response(self, req: Any, resp: Any) -> requests.Response:
        if not self._lean:
            return super().build_response(req, resp)
        response = requests.Response.__new__(requests.Response)
        exchange = exchange_here()
        incoming = None if exchange is None else exchange.incoming
        vars(response).update(self._blank, history=[], fields=None if incoming is None else incoming.fields)
        response.status_code, response.reason, response.headers = resp.status, resp.reason, resp.headers
        response.raw, response.url, response.request = resp, req.url, req
        response.connection = self
        return response

    def close(self) -> None:
        with self._lock:
            self._pools.clear()
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            for key in manager.pools.keys():  # noqa: SIM118 - it is not a mapping
                manager.pools[key].close()  # urllib3 closes it only once freed, which an error's traceback delays
        super().close()
