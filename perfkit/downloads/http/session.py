"""The sessions that send every request: perfkit's own or the caller's, over one adapter with one PoolManager."""

from __future__ import annotations

import ipaddress
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from http.cookiejar import Cookie, DefaultCookiePolicy
from typing import Any, Protocol
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import DEFAULT_POOLSIZE, HTTPAdapter
from requests.auth import AuthBase
from requests.cookies import RequestsCookieJar
from requests.structures import CaseInsensitiveDict
from requests.utils import get_environ_proxies, get_netrc_auth, prepend_scheme_if_needed, select_proxy
from urllib3.exceptions import HTTPError

from perfkit.config import Auth, Config
from perfkit.downloads.http.connection import POOL_CLASSES, are_replaced, exchange_here, socks_pool_classes
from perfkit.downloads.http.redirects import Hop, without_secrets
from perfkit.downloads.http.trust import ClientCert, environment_bundle, make_context
from perfkit.downloads.http.uninterruptible import AbortedError, HelperThread
from perfkit.downloads.http.urls import Origin, as_sent, credentials_in, origin_of, split_url
from perfkit.downloads.stall import timeouts
from perfkit.errors import ConfigError
from perfkit.redact import masked, redacted

_COOKIES = 500  # kept in total; RFC 6265 section 6.1 wants 50 per domain
_POOLS = 256  # origins whose connections are kept
_OF_REQUESTS = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


class Adapter(HTTPAdapter):
    """Passes every request to the one PoolManager. For any number of threads and sessions.

    Args:
        keep: connections to keep for each origin.
        lean: leave out of responses what perfkit's own sessions do not use.
    """

    def __init__(self, *, keep: int, lean: bool) -> None:
        self._lean = lean
        self._blank = vars(requests.Response())  # making a cookie jar for each takes longer than the rest of a response
        self._lock = threading.RLock()  # guards the state below
        self._contexts: dict[object, Any] = {}
        self._pools: dict[object, Any] = {}
        super().__init__(pool_connections=_POOLS, pool_maxsize=keep, max_retries=0)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = POOL_CLASSES

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        if not proxy.lower().startswith("socks"):
            manager = super().proxy_manager_for(proxy, **options)
            manager.pool_classes_by_scheme = POOL_CLASSES
            return manager
        try:
            classes = socks_pool_classes()
        except ImportError:
            raise ConfigError("a SOCKS proxy needs PySocks: pip install 'perfkit[socks]'") from None
        manager = super().proxy_manager_for(proxy)
        manager.pool_classes_by_scheme = classes
        return manager

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
            kind = {"ssl_context": self.context(verify, cert), "cert_reqs": "CERT_REQUIRED" if verify else "CERT_NONE"}
        manager: Any = self.poolmanager
        if proxy:
            manager = self._proxy_manager(proxy, verify)
        return manager.connection_from_host(host, port, scheme, pool_kwargs=kind)

    def _proxy_manager(self, proxy: str, verify: Any) -> Any:
        options: dict[str, Any] = {}
        if proxy.lower().startswith("https:"):
            options["proxy_ssl_context"] = self.context(verify, None)
        try:
            url = str(prepend_scheme_if_needed(proxy, "http"))  # type: ignore[no-untyped-call]
            if not urlsplit(url).hostname:
                raise ValueError("no host")
            return self.proxy_manager_for(url, **options)
        except (HTTPError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            # Without the error's own text, which quotes passwords.
            raise ConfigError(
                f"the proxy {masked(proxy)!r} cannot be used: it must be a URL such as http://host:3128"
            ) from error

    def context(
        self, verify: bool | str, cert: ClientCert | None, setting: str = "verify", cert_setting: str = "cert"
    ) -> Any:
        """The TLS context for these settings, created now if there is none.

        Raises:
            ConfigError: one of their files cannot be used.
        """
        with self._lock:
            if (verify, cert) not in self._contexts:
                self._contexts[verify, cert] = make_context(verify, cert, setting, cert_setting)
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
        vars(response).update(self._blank, history=[])
        response.status_code, response.reason, response.headers = resp.status, resp.reason, resp.headers
        response.raw, response.url, response.request = resp, req.url, req
        response.connection = self
        return response

    def close(self) -> None:
        with self._lock:
            self._pools.clear()
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            for key in manager.pools.keys():  # noqa: SIM118 - it is no mapping
                manager.pools[key].close()  # urllib3 closes it only once freed, which an error's traceback delays
        super().close()


class Sessions(Protocol):
    """Sends GET requests, each through a session of the current thread."""

    def send(self, hop: Hop) -> requests.Response:
        """Send one request and return its response, the body unread. Redirects are not followed.

        Raises:
            requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError: no response.
            ConfigError: a proxy or a certificate cannot be used.
        """
        ...

    def warm(self, url: str, timeout_s: float) -> None:
        """Open a connection to the origin of a URL for a later request, unless a proxy is used.

        Raises:
            as `send`.
        """
        ...

    def close(self) -> None: ...


class OwnSessions:
    """perfkit's own sessions. What requests would look up for each request is looked up once per origin, and requests
    are prepared without normalizing the URL.
    """

    def __init__(self, config: Config, adapter: Adapter) -> None:
        self._config = config
        self._adapter = adapter
        self._local = threading.local()
        self._cookies = _Cookies(CookiePolicy())  # shared by all threads; it has a lock
        connect_s, read_s = timeouts(config)
        self._timeout: Any = _Timeout(connect=connect_s, read=read_s)
        self._lock = threading.Lock()  # held to change the state below
        self._ways: dict[Origin, tuple[dict[str, str], Any]] = {}
        self._trust: tuple[bool | str, str] | None = None

    def send(self, hop: Hop) -> requests.Response:
        url = hop.url
        proxies, netrc = self._way_to(url)
        verify = self._find_trust(needed=bool(proxies) or url.startswith("https:"))
        request = requests.PreparedRequest()
        request.method, request.url = "GET", url
        request.headers = CaseInsensitiveDict(hop.headers.items())  # pairs, since a mapping is slower
        request.prepare_hooks(None)
        if hop.auth is not None or self._cookies.used:
            request.prepare_cookies(self._cookies)
        auth = hop.auth or credentials_in(url) or (netrc if hop.netrc else None)
        if auth and "Authorization" not in request.headers:
            request.prepare_auth(_encodable(auth), url)
        return self._session().send(
            request,
            stream=True,
            allow_redirects=False,
            timeout=self._timeout,
            proxies=proxies,
            verify=verify,
            cert=self._config.client_cert,
        )

    def warm(self, url: str, timeout_s: float) -> None:
        proxies, _ = self._way_to(url)
        if are_replaced() or select_proxy(url, proxies):
            return
        request = requests.PreparedRequest()
        request.url = url
        verify = self._find_trust(needed=url.startswith("https:"))
        pool = self._adapter.get_connection_with_tls_context(request, verify, proxies, self._config.client_cert)
        pool.warm(timeout_s)

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = requests.Session()
            session.trust_env = False
            session.cookies = self._cookies
            session.resolve_redirects = _no_redirects  # type: ignore[method-assign]
            session.mount("https://", self._adapter)
            session.mount("http://", self._adapter)
            self._local.session = session
        return session

    def _way_to(self, url: str) -> tuple[dict[str, str], Any]:
        """The proxies for an origin, and its netrc entry."""
        origin = origin_of(url)
        way = self._ways.get(origin)
        if way is None:
            config = self._config
            proxies = dict(config.proxies)
            if config.trust_env and not bypasses_proxy(url):
                for scheme, proxy in get_environ_proxies(url).items():
                    proxies.setdefault(scheme, proxy)
            netrc = get_netrc_auth(url) if config.trust_env and _has_netrc() else None
            with self._lock:
                if len(self._ways) >= _POOLS:
                    self._ways.clear()
                way = self._ways[origin] = proxies, netrc
        return way

    def _find_trust(self, *, needed: bool) -> bool | str:
        """`verify` for a request; its file is read only if TLS is needed, since that takes longer than a small file."""
        config = self._config
        if self._trust is None:
            environ = os.environ if config.trust_env else {}
            self._trust = _configured_trust(config) or environment_bundle(environ) or (True, "Config.verify")
        verify, setting = self._trust
        if needed and (verify is not True or config.client_cert is not None):
            self._adapter.context(verify, config.client_cert, setting, "Config.client_cert")
        return verify

    def close(self) -> None:
        self._adapter.close()


class _Timeout(urllib3.Timeout):
    """A timeout without a clock, which only a total limit needs, so that one serves all requests."""

    def clone(self) -> urllib3.Timeout:
        return self

    def start_connect(self) -> float:
        return 0.0


class _Cookies(RequestsCookieJar):
    """Looks for cookies only where there are any: most responses have none, and finding that out takes 20 calls.

    Attributes:
        used: whether a response has had cookies.
    """

    used = False

    def extract_cookies(self, response: Any, request: Any) -> None:
        if "Set-Cookie" in response.info():
            self.used = True
            super().extract_cookies(response, request)


class CookiePolicy(DefaultCookiePolicy):
    """Which cookies perfkit's own sessions keep: a limited number, and none for suffixes such as `.co.uk`. Other
    domains that strangers share are known only from the Public Suffix List, which perfkit does not have.
    """

    def __init__(self) -> None:
        super().__init__(strict_domain=True)
        self._kept: set[tuple[str, str, str]] = set()

    def set_ok(self, cookie: Cookie, request: Any) -> bool:
        key = (cookie.domain, cookie.path, cookie.name)
        if not super().set_ok(cookie, request) or (key not in self._kept and len(self._kept) >= _COOKIES):
            return False
        self._kept.add(key)
        return True


class CallersSessions:
    """A caller's session, or a factory's, one per thread. Requests go through `Session.request` itself."""

    def __init__(self, config: Config, adapter: Adapter, given: requests.Session | Callable[[], Any]) -> None:
        self._config = config
        self._adapter = adapter
        self._given = given
        if not isinstance(given, requests.Session) and not callable(given):
            raise ConfigError(
                f"session must be a requests.Session, or a callable that makes one; got a {type(given).__name__}"
            )
        self._shared = self._borrow(given) if isinstance(given, requests.Session) else None
        self._local = threading.local()
        self._made: list[requests.Session] = []  # by the factory
        self._helpers: weakref.WeakSet[HelperThread] = weakref.WeakSet()  # guarded by the lock
        self._lock = threading.Lock()

    def send(self, hop: Hop) -> requests.Response:
        session, url = self._session(), hop.url
        proxies = dict(self._config.proxies)
        if session.trust_env and bypasses_proxy(url):
            proxies.setdefault("no_proxy", "*")
        ours = self._is_ours(session, url)
        verify, cert = self._find_trust(session, url, ours)
        options: dict[str, Any] = {"allow_redirects": False, "timeout": timeouts(self._config)}
        if not hop.trusted:
            request = _prepare_abroad(session, hop)
            options.update(session.merge_environment_settings(url, proxies, True, verify, cert))
            return self._by(ours, lambda: session.send(request, **options))
        options.update(proxies=proxies, verify=verify, cert=cert, stream=True, auth=hop.auth, headers=dict(hop.headers))
        if hop.redirected and session.params:  # these belong to the requested URL; None removes one
            options["params"] = dict.fromkeys(session.params)
        return self._by(ours, lambda: session.request("GET", url, **options))

    def warm(self, url: str, timeout_s: float) -> None:
        """Do nothing: it is unknown how the caller's session connects."""

    def _is_ours(self, session: Any, url: str) -> bool:
        try:
            return session.get_adapter(url) is self._adapter
        except requests.exceptions.InvalidSchema:
            return True  # no adapter: sending the request will fail with that reason

    def _by(self, ours: bool, send: Callable[[], requests.Response]) -> requests.Response:
        """Send through our adapter, or through one that the caller mounted. The latter's connections cannot be aborted,
        so a helper thread, which can be abandoned, waits for them.
        """
        exchange = exchange_here()
        if ours or exchange is None:
            return send()
        helper: HelperThread | None = getattr(self._local, "helper", None)
        if helper is None or helper.ended:
            helper = self._local.helper = HelperThread()
            with self._lock:
                self._helpers.add(helper)
        exchange.helper = helper
        try:
            return helper.call(send, lambda: exchange.aborted, lambda answer: answer.close())
        except AbortedError:
            self._local.session = None  # a factory's: the abandoned thread still uses it
            raise

    def _find_trust(self, session: Any, url: str, ours: bool) -> tuple[Any, Any]:
        """`verify` and `cert` for a request. Their files are read now, while it is known which setting named them."""
        config = self._config
        verify, setting = _configured_trust(config) or (session.verify, "session.verify")
        if setting == "session.verify" and session.trust_env and (found := environment_bundle(os.environ)):
            # In requests, its own two variables take precedence over the session.
            verify, setting = found if verify is True or found[1] in _OF_REQUESTS else (verify, setting)
        cert = config.client_cert or session.cert
        cert = tuple(cert) if isinstance(cert, list) else cert
        if (verify is not True or cert) and ours and url.startswith("https:"):
            cert_setting = "Config.client_cert" if config.client_cert else "session.cert"
            self._adapter.context(verify, cert, setting, cert_setting)
        return verify, cert

    def _session(self) -> Any:
        if self._shared is not None:
            return self._shared
        session = getattr(self._local, "session", None)
        if session is None:
            made: Any = self._given()  # type: ignore[operator]
            if not isinstance(made, requests.Session):
                raise ConfigError(f"session must make a requests.Session when called; it made a {type(made).__name__}")
            self._made.append(made)
            session = self._local.session = self._borrow(made)
        return session

    def _borrow(self, given: requests.Session) -> Any:
        """The caller's session with the overrides of `_Borrowed`. The two share all attributes: one that is set later
        on one of them, such as a token that the caller's class has just got, appears on the other, too.
        """
        kind = type(
            type(given).__name__,
            (_Borrowed, type(given)),
            {"_given": given, "_ours": self._adapter, "_config": self._config, "__module__": type(given).__module__},
        )
        session: Any = object.__new__(kind)
        session.__dict__ = given.__dict__
        return session

    def close(self) -> None:
        with self._lock:
            helpers = list(self._helpers)
        for helper in helpers:
            helper.end()
        for session in self._made:
            session.close()
        self._adapter.close()


class _Borrowed:
    """What a caller's session does differently when it sends perfkit's requests."""

    _given: Any
    _ours: Adapter
    _config: Config

    @property
    def adapters(self) -> dict[str, Any]:
        """Ours replaces the two default adapters of every session; one that the caller mounted stays."""
        return {
            prefix: self._ours if prefix in ("https://", "http://") and _is_plain(adapter) else adapter
            for prefix, adapter in self._given.adapters.items()
        }

    def mount(self, prefix: str, adapter: Any) -> None:
        self._given.mount(prefix, adapter)

    @property
    def trust_env(self) -> bool:
        return bool(self._given.trust_env) and self._config.trust_env

    def resolve_redirects(self, *_: Any, **options: Any) -> Iterator[Any]:
        return _no_redirects()

    def prepare_request(self, request: Any) -> Any:
        request.auth = _UrlAsSpelt(request.url, request.auth or self._given.auth, self.trust_env)
        return super().prepare_request(request)  # type: ignore[misc]


class _UrlAsSpelt(AuthBase):
    """Restores the spelling of a URL that requests normalizes, for the request and an auth object that may sign it.

    Args:
        auth: None: user and password of the URL, or else those in netrc, unless the request has credentials already.
        netrc: whether netrc is searched.
    """

    def __init__(self, url: str, auth: Auth | None, netrc: bool) -> None:
        self._url = url
        self._auth = auth
        self._netrc = netrc

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        asked, url = as_sent(self._url), str(request.url).partition("#")[0]
        normalized = _normalized(asked)
        if url.startswith(normalized):
            params = url[len(normalized) :]
            request.url = asked + (params[1:] if asked.endswith("?") else params)
        auth: Any = self._auth
        if not auth and "Authorization" not in request.headers:
            auth = credentials_in(asked) or (get_netrc_auth(asked) if self._netrc else None)
        if auth:
            request.prepare_auth(_encodable(auth), str(request.url))
        return request


def _prepare_abroad(session: Any, hop: Hop) -> requests.PreparedRequest:
    """A request to another origin: without auth, params, headers or cookies of the session not made for it."""
    request = requests.PreparedRequest()
    request.method, request.url = "GET", hop.url
    request.headers = CaseInsensitiveDict(without_secrets(session.headers))
    request.headers.update(hop.headers)
    jar = RequestsCookieJar()
    for cookie in session.cookies:
        if cookie.domain:
            jar.set_cookie(cookie)
    request.prepare_hooks(None)
    request.prepare_cookies(jar)
    request.prepare_auth(_UrlAsSpelt(hop.url, hop.auth, hop.netrc and session.trust_env))
    request.prepare_hooks(session.hooks)
    return request


def _configured_trust(config: Config) -> tuple[bool | str, str] | None:
    """`verify` and the name of its setting; None if the settings leave it at the default."""
    if config.ca_bundle:
        return config.ca_bundle, "Config.ca_bundle"
    return None if config.verify is True else (config.verify, "Config.verify")


def _no_redirects(*_: Any, **options: Any) -> Iterator[Any]:
    """The transport handles redirects: requests would read their bodies, however long, even if it does not follow."""
    return iter(())


def _is_plain(adapter: Any) -> bool:
    """Whether an adapter is a session's default one."""
    if type(adapter) is not HTTPAdapter:
        return False
    retries, kind = adapter.max_retries, adapter.poolmanager.connection_pool_kw
    return retries.total == 0 and retries.read is False and kind == {"maxsize": DEFAULT_POOLSIZE, "block": False}


def _normalized(url: str) -> str:
    request = requests.PreparedRequest()
    request.prepare_url(url, None)
    return str(request.url)


def _encodable(auth: Any) -> Any:
    """requests sends a user and password as Latin-1 (RFC 7617 leaves it open); others are encoded as UTF-8 here."""
    if isinstance(auth, tuple):
        try:
            for each in auth:
                each.encode("latin-1")
        except UnicodeEncodeError:
            return tuple(each.encode() for each in auth)
    return auth


def _has_netrc() -> bool:
    places = (os.environ["NETRC"],) if "NETRC" in os.environ else ("~/.netrc", "~/_netrc")
    return any(os.path.exists(os.path.expanduser(place)) for place in places)


def bypasses_proxy(url: str) -> bool:
    """Whether NO_PROXY names the URL's host in a form that requests does not recognize: an address with a port, in
    brackets, or in an IPv6 network.
    """
    entries = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    if not entries:
        return False
    _, host, port = origin_of(url)
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    for entry in entries.replace(" ", "").split(","):
        match = re.fullmatch(r"\[([^]]*)\](?::(\d+))?|([^:]*)(?::(\d+))?|(.*)", entry)
        assert match is not None
        name, wanted = match[1] or match[3] or match[5], match[2] or match[4]
        try:
            if address in ipaddress.ip_network(name or "", strict=False) and wanted in (None, str(port)):
                return True
        except ValueError:
            continue
    return False
