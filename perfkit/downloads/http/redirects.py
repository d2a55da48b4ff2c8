"""Where a redirect leads, and which secrets may be sent there: only those that were given for that origin."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urljoin

from perfkit.config import Auth
from perfkit.downloads.http.semantics import as_utf8
from perfkit.downloads.http.urls import as_sent, origin_of, split_url
from perfkit.errors import ConfigError, TransferError
from perfkit.redact import masked, redacted

REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,20}:", re.IGNORECASE | re.ASCII)
_SHOWN = 200  # characters of a URL that a server gives
# Sent to any origin. Every other header may hold a secret.
_HARMLESS = frozenset({"accept", "accept-language", "cache-control", "connection", "pragma", "user-agent"})


class Hop(NamedTuple):
    """One of the GET requests that a download takes if its URL is redirected.

    Args:
        trusted: whether the URL's origin may have the caller's secrets.
        redirected: whether a redirect led to the URL.
        netrc: whether netrc is searched for the URL's host: only for the origin that the caller named.
    """

    url: str  # as it is sent
    headers: Mapping[str, str]
    auth: Auth | None
    trusted: bool
    redirected: bool
    netrc: bool


def may_have_secrets(url: str, home: str) -> bool:
    """Whether secrets for the origin of `home` may be sent to `url`: the same origin, or its upgrade to https."""
    if url == home:
        return True
    there, here = origin_of(url), origin_of(home)
    return there == here or (there[1] == here[1] and here[::2] == ("http", 80) and there[::2] == ("https", 443))


def without_secrets(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that may go to any origin."""
    return {name: value for name, value in headers.items() if name.lower() in _HARMLESS}


def target_of(url: str, at: str, location: str, *, allow_downgrade: bool) -> str:
    """Where `location` leads in a response from `at` to a request for `url` (RFC 9110 section 10.2.2), as sent.

    Args:
        url, at: the former as the caller has it, the latter as it was sent.

    Raises:
        TransferError: it is not an http or https URL, or leads from https to http, which is not allowed.
    """
    location = as_utf8(location)
    shown = redacted(location[:_SHOWN])
    target = _joined(at, location)
    if (scheme := _SCHEME.match(target)) and scheme[0].lower() not in ("http:", "https:"):
        raise TransferError(url, f"redirected to {shown!r}, which is neither http nor https")
    try:
        target = as_sent(target)
    except ConfigError as error:
        raise TransferError(url, f"invalid redirect URL {masked(location)!r}") from error
    if origin_of(target)[0] == "http" and origin_of(at)[0] == "https" and not allow_downgrade:
        raise TransferError(url, f"redirected from https to {shown}; Config(allow_downgrade=True) follows it")
    return target


def _joined(base: str, location: str) -> str:
    """The target of a redirect, spelt as the server did: urljoin would drop an empty query."""
    if _SCHEME.match(location) and "://" in location.partition("?")[0]:
        return location
    if location.startswith("/") and not location.startswith("//"):
        scheme, authority, _ = split_url(base)
        return f"{scheme}://{authority}{location}"
    try:
        return urljoin(base, location)
    except ValueError:
        return location
