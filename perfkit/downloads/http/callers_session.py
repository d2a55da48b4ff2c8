"""Sends requests through a session of the caller's, with its auth, hooks and adapters."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import requests
from requests.adapters import DEFAULT_POOLSIZE, HTTPAdapter
from requests.auth import AuthBase
from requests.cookies import RequestsCookieJar
from requests.structures import CaseInsensitiveDict
from requests.utils import get_netrc_auth

from perfkit.config import Auth, Config
from perfkit.downloads.http.adapter import Adapter
from perfkit.downloads.http.exchange import exchange_here
from perfkit.downloads.http.redirects import Hop, without_secrets
from perfkit.downloads.http.session import bypasses_proxy, encodable, no_redirects, prepare
from perfkit.downloads.http.trust import find_trust
from perfkit.downloads.http.uninterruptible import AbortedError, HelperThread
from perfkit.downloads.http.urls import as_sent, credentials_in
from perfkit.errors import ConfigError


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

    def send(self, hop: Hop) -> requests.Response:
        """As `OwnSessions.send`."""
        try:
            return self._send(hop)
        except requests.HTTPError as error:
            if error.response is None:
                raise
            return error.response  # that a hook refused, as `raise_for_status` does; perfkit judges it

    def _send(self, hop: Hop) -> requests.Response:
        session, url = self._session(), hop.url
        proxies = dict(self._config.proxies)
        if session.trust_env and bypasses_proxy(url):
            proxies.setdefault("no_proxy", "*")
        verify, cert = self._find_trust(session)
        options: dict[str, Any] = {"allow_redirects": False, "timeout": self._config.timeouts_s}
        if not hop.trusted:
            request = _prepare_for_other_origin(session, hop)
            options.update(session.merge_environment_settings(url, proxies, True, verify, cert))
            return self._through(session, url, lambda: session.send(request, **options))
        options.update(proxies=proxies, verify=verify, cert=cert, stream=True, auth=hop.auth, headers=dict(hop.headers))
        if hop.redirected and session.params:  # these belong to the requested URL; None removes one
            options["params"] = dict.fromkeys(session.params)
        return self._through(session, url, lambda: session.request("GET", url, **options))

    def warm(self, url: str, timeout_s: float) -> None:
        """Do nothing: it is unknown how the caller's session connects."""

    def _through(self, session: Any, url: str, send: Callable[[], requests.Response]) -> requests.Response:
        """Send through our adapter, or through one that the caller mounted. The latter's connections cannot be aborted,
        so a helper thread, which can be abandoned, waits for them.
        """
        exchange = exchange_here()
        try:
            foreign = session.get_adapter(url) is not self._adapter
        except requests.exceptions.InvalidSchema:
            foreign = False  # no adapter: sending the request will fail with that reason
        if not foreign or exchange is None:
            return send()
        helper: HelperThread | None = getattr(self._local, "helper", None)
        if helper is None or helper.ended:
            helper = self._local.helper = HelperThread()  # ends with the current thread
        exchange.helper = helper
        try:
            return helper.call(send, lambda: exchange.aborted, lambda answer: answer.close())
        except AbortedError:
            self._local.session = None  # a factory's: the abandoned thread still uses it
            raise

    def _find_trust(self, session: Any) -> tuple[Any, Any]:
        """`verify` and `cert` for a request."""
        config = self._config
        verify, setting = find_trust(config, session.verify, environment=session.trust_env)
        cert = config.client_cert or session.cert
        cert = tuple(cert) if isinstance(cert, list) else cert
        self._adapter.settings.update(
            {verify: setting, cert: "Config.client_cert" if config.client_cert else "session.cert"}
        )
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

    resolve_redirects = no_redirects

    def prepare_request(self, request: Any) -> Any:
        request.auth = _UrlAsGiven(request.url, request.auth or self._given.auth, self.trust_env)
        return super().prepare_request(request)  # type: ignore[misc]


class _UrlAsGiven(AuthBase):
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
            request.prepare_auth(encodable(auth), str(request.url))
        return request


def _prepare_for_other_origin(session: Any, hop: Hop) -> requests.PreparedRequest:
    """A request to another origin: without auth, params, headers or cookies of the session not made for it."""
    headers = CaseInsensitiveDict(without_secrets(session.headers))
    headers.update(hop.headers)
    jar = RequestsCookieJar()
    for cookie in session.cookies:
        if cookie.domain:
            jar.set_cookie(cookie)
    netrc = get_netrc_auth(hop.url) if hop.netrc and session.trust_env else None
    request = prepare(hop.url, headers.items(), jar, credentials_in(hop.url) or netrc)
    request.prepare_hooks(session.hooks)
    return request


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
