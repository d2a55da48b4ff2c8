"""Translates errors from below a request into perfkit's own. No other module does."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Sequence
from socket import EAI_NONAME, gaierror

import requests
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    MaxRetryError,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
)

from perfkit.downloads.http.exchange import Exchange
from perfkit.errors import CancelledError, PerfkitError, TransferError, TransferTimeoutError, causes_of

_MOST = 500  # characters of another package's message, which may quote a server
_LASTING = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidHeader,
    requests.HTTPError,
)
_UNKNOWN_AUTHORITY = range(18, 22)  # of X509_V_ERR_*, x509_vfy.h: self-signed, or without a known issuer


def translated(url: str, error: Exception, exchange: Exchange) -> PerfkitError:
    """The error to raise for one from requests, urllib3, http.client, a socket, or a hook of the caller's session."""
    if isinstance(error, PerfkitError):
        return error
    if exchange.cancel.cancelled:
        return CancelledError(url, "cancelled")
    if exchange.expired:
        return TransferTimeoutError(url, "the response headers did not arrive in time", transient=True)
    causes = causes_of(error)
    root = _root_cause(causes)
    by_proxy = next((each for each in causes if isinstance(each, ProxyError)), None)
    reason = f"the proxy cannot be used: {_text(root)}" if by_proxy is not None else _text(root)
    if refused := [each for each in causes if isinstance(each, ssl.SSLCertVerificationError)]:
        whose = "proxy" if by_proxy is not None else "server"
        unknown = getattr(refused[0], "verify_code", None) in _UNKNOWN_AUTHORITY  # others than OpenSSL have none
        hint = "; if you trust its authority, set ca_bundle" if unknown else ""
        return TransferError(url, f"the {whose}'s certificate is not trusted: {_text(root)}{hint}")
    timeouts = TimeoutError | ConnectTimeoutError | requests.Timeout
    if any(isinstance(each, timeouts) and not isinstance(each, NewConnectionError) for each in causes):
        if reason == "timed out":  # a socket's whole message
            reason = "the server sent nothing for longer than read_timeout_s"
        return TransferTimeoutError(url, reason if "timed out" in reason else f"timed out: {reason}", transient=True)
    if any(isinstance(each, http.client.IncompleteRead) for each in causes):
        return TransferError(url, "the connection closed before the response was complete", transient=True)
    return TransferError(url, reason, transient=_is_transient(error, causes))


def _is_transient(error: Exception, causes: Sequence[BaseException]) -> bool:
    """Whether another try may help."""
    if any(isinstance(each, http.client.LineTooLong) for each in causes):
        return False
    if any(isinstance(each, gaierror) and each.errno == EAI_NONAME for each in causes):
        return False
    # Certificate files of an adapter that the caller mounted: requests finds none, or OpenSSL finds none inside.
    if type(error) is OSError and error.errno is None:
        return False
    if any(isinstance(each, ssl.SSLError) and each.library in ("X509", "PEM") for each in causes):
        return False
    if isinstance(error, _LASTING):
        return False
    return isinstance(error, OSError | HTTPError | http.client.HTTPException)


def is_stale(error: Exception) -> bool:
    """Whether the peer closed a kept connection before it sent anything."""
    return any(isinstance(each, BrokenPipeError | ConnectionResetError) for each in causes_of(error))


def _root_cause(causes: Sequence[BaseException]) -> BaseException:
    """The error to quote. Those of requests and urllib3 around it quote memory addresses, and secrets in the URL."""
    for each in causes:
        if isinstance(each, requests.exceptions.InvalidHeader):
            return each
        if isinstance(each, requests.RequestException | MaxRetryError | ProxyError | ReadTimeoutError):
            continue
        if isinstance(each, HTTPError) and any(isinstance(other, BaseException) for other in each.args):
            continue  # "Connection aborted.", and the cause
        return each
    return causes[0]


def _text(error: BaseException) -> str:
    # requests quotes the value; older versions let some through to http.client, which does, too.
    if isinstance(error, requests.exceptions.InvalidHeader) or str(error).startswith("Invalid header"):
        return "a header of the session has a value that cannot be sent"
    if isinstance(error, NewConnectionError | ConnectTimeoutError):
        return str(error)[:_MOST]
    if isinstance(error, OSError) and error.strerror and not isinstance(error, gaierror | ssl.SSLError):
        return error.strerror
    return str(error)[:_MOST] or type(error).__name__
