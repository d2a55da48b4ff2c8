"""Where a redirect leads, and what may go there: no secret leaves the origin that it was given for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urljoin

from perfkit.config import Auth
from perfkit.downloads.http.semantics import origin_of
from perfkit.errors import TransferError
from perfkit.redact import redacted

__all__ = ["REDIRECTS", "Hop", "target_of", "without_secrets"]

REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Sent to any origin. Every other header may hold a secret.
_HARMLESS = frozenset({"accept", "accept-language", "cache-control", "connection", "pragma", "user-agent"})


class Hop(NamedTuple):
    """One GET request of those that a download's URL may take, if it is redirected.

    Args:
        home: whether the URL is of the origin that secrets were given for.
        redirected: whether a redirect led to the URL.
        timeout: seconds to wait for a connection, and for each further byte.
    """

    url: str
    headers: Mapping[str, str]
    auth: Auth | None
    home: bool
    redirected: bool
    timeout: tuple[float, float]


def without_secrets(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that may go to any origin."""
    return {name: value for name, value in headers.items() if name.lower() in _HARMLESS}


def target_of(url: str, at: str, location: str, *, allow_downgrade: bool) -> str:
    """Where `location` leads, in an answer from `at` to a request for `url` (RFC 9110 section 10.2.2).

    Raises:
        TransferError: it is no URL of HTTP, or leads from https to http, which is not allowed.
    """
    try:
        # http.client decodes headers as Latin-1; browsers and servers mean UTF-8.
        location = location.encode("latin-1").decode("utf-8")
    except UnicodeError:
        pass
    try:
        target = _joined(at, location)
        scheme = origin_of(target)[0]
    except ValueError as error:
        raise TransferError(url, f"invalid redirect URL {redacted(location)[:200]!r}") from error
    if scheme not in ("http", "https"):
        raise TransferError(url, f"redirected to {redacted(location)[:99]!r}, which is neither http nor https")
    if scheme == "http" and origin_of(at)[0] == "https" and not allow_downgrade:
        shown = redacted(target)[:99]
        raise TransferError(url, f"redirected from https to {shown}; Config(allow_downgrade=True) follows it")
    return target


def _joined(base: str, location: str) -> str:
    """The target of a redirect, spelt as the server did: urljoin would drop an empty query."""
    if "://" in location.partition("?")[0]:
        return location
    if location.startswith("/") and not location.startswith("//"):
        scheme, _, rest = base.partition("://")
        return f"{scheme}://{rest.partition('/')[0].partition('?')[0]}{location}"
    return urljoin(base, location)
