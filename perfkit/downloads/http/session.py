"""perfkit's own sessions, one for each thread, and what they have in common with a caller's."""

from __future__ import annotations

import ipaddress
import os
import re
import threading
from collections.abc import Iterable, Iterator
from http.cookiejar import Cookie, DefaultCookiePolicy
from typing import Any

import requests
import urllib3
from requests.cookies import RequestsCookieJar
from requests.structures import CaseInsensitiveDict
from requests.utils import get_environ_proxies, get_netrc_auth, select_proxy

from perfkit.config import Config
from perfkit.downloads.http.adapter import Adapter
from perfkit.downloads.http.connection import are_replaced
from perfkit.downloads.http.redirects import Hop
from perfkit.downloads.http.trust import find_trust
from perfkit.downloads.http.urls import Origin, credentials_in, origin_of

_COOKIES = 500  # kept in total; RFC 6265 section 6.1 wants 50 per domain
_ORIGINS = 256  # whose proxies and netrc entries are remembered


class OwnSessions:
    """perfkit's own sessions. What requests would look up for each request is looked up once per origin, and requests
    are prepared without normalizing the URL.
    """

    def __init__(self, config: Config, adapter: Adapter) -> None:
        self._config = config
        self._adapter = adapter
        self._local = threading.local()
        self._cookies = Cookies()  # shared by all threads; it has a lock
        connect_s, read_s = config.timeouts_s
        self._timeout: Any = _Timeout(connect=connect_s, read=read_s)  # requests would make one each time
        self._ways: dict[Origin, tuple[dict[str, str], Any]] = {}
        self._verify, setting = find_trust(config, True, environment=config.trust_env)
        adapter.settings.update({self._verify: setting, config.client_cert: "Config.client_cert"})

    def send(self, hop: Hop) -> requests.Response:
        """Send a GET request and return its response, the body unread. Redirects are not followed.

        Raises:
            requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError: no response.
            ConfigError: a proxy or a certificate cannot be used.
        """
        url = hop.url
        proxies, netrc = self._way_to(url)
        auth = hop.auth or credentials_in(url) or (netrc if hop.netrc else None)
        cookies = self._cookies if self._cookies.used or hop.auth is not None else None
        return self._session().send(
            prepare(url, hop.headers.items(), cookies, auth),
            stream=True,
            allow_redirects=False,
            timeout=self._timeout,
            proxies=proxies,
            verify=self._verify,
            cert=self._config.client_cert,
        )

    def warm(self, url: str, timeout_s: float) -> None:
        """Open a connection to the origin of a URL for a later request, unless a proxy is used. Raises as `send`."""
        proxies, _ = self._way_to(url)
        if are_replaced() or select_proxy(url, proxies):
            return
        request = requests.PreparedRequest()
        request.url = url
        pool = self._adapter.get_connection_with_tls_context(request, self._verify, proxies, self._config.client_cert)
        pool.warm(timeout_s)

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = requests.Session()
            session.trust_env = False
            session.cookies = self._cookies
            session.resolve_redirects = no_redirects  # type: ignore[method-assign]
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
            netrc = get_netrc_auth(url) if config.trust_env else None
            if len(self._ways) >= _ORIGINS:
                self._ways.clear()
            way = self._ways[origin] = proxies, netrc
        return way

    def close(self) -> None:
        self._adapter.close()


class _Timeout(urllib3.Timeout):
    """A time-out without a total. urllib3 copies one twice for each request, since a total needs a clock of its own."""

    def clone(self) -> _Timeout:
        return self

    def start_connect(self) -> float:
        return 0.0


def prepare(url: str, headers: Iterable[tuple[str, str]], cookies: Any, auth: Any) -> requests.PreparedRequest:
    """A request with the URL spelt as it is, which requests would normalize.

    Args:
        headers: pairs, since a mapping is slower.
        cookies: a jar, which an auth object needs; None: no cookies.
        auth: for a request without credentials in its headers.
    """
    request = requests.PreparedRequest()
    request.method, request.url = "GET", url
    request.headers = CaseInsensitiveDict(headers)
    request.prepare_hooks(None)
    if cookies is not None:
        request.prepare_cookies(cookies)
    if auth and "Authorization" not in request.headers:
        request.prepare_auth(encodable(auth), url)
    return request


class Cookies(RequestsCookieJar):
    """The cookies of perfkit's own sessions: a limited number, and none for suffixes such as `.co.uk`. Other domains
    that strangers share are known only from the Public Suffix List, which perfkit does not have.

    Attributes:
        used: whether a response has had cookies.
    """

    def __init__(self) -> None:
        super().__init__(DefaultCookiePolicy(strict_domain=True))
        self.used = False
        self._kept: set[tuple[str, str, str]] = set()

    def extract_cookies(self, response: Any, request: Any) -> None:
        """As the base class, but only from a response with cookies: finding that out takes it 20 calls."""
        if "Set-Cookie" in response.info():
            self.used = True
            super().extract_cookies(response, request)

    def set_cookie(self, cookie: Cookie, *args: Any, **options: Any) -> None:
        key = (cookie.domain, cookie.path, cookie.name)
        if key in self._kept or len(self._kept) < _COOKIES:
            self._kept.add(key)
            super().set_cookie(cookie, *args, **options)


def no_redirects(*_: Any, **options: Any) -> Iterator[Any]:
    """The transport handles redirects: requests would read their bodies, however long, even if it does not follow."""
    return iter(())


def encodable(auth: Any) -> Any:
    """requests sends a user and password as Latin-1 (RFC 7617 leaves it open); others are encoded as UTF-8 here."""
    if isinstance(auth, tuple):
        try:
            for each in auth:
                each.encode("latin-1")
        except UnicodeEncodeError:
            return tuple(each.encode(errors="surrogateescape") for each in auth)
    return auth


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
