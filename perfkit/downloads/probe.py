"""A probe of a file at its origin: whether it changed, its size and validators, and its first bytes."""

from __future__ import annotations

from typing import NamedTuple

from perfkit.downloads.body import first_bytes
from perfkit.downloads.cancel import Cancel
from perfkit.downloads.concurrency import host_of
from perfkit.downloads.http.redirects import may_have_secrets
from perfkit.downloads.http.semantics import (
    NO_VERSION,
    RANGE_REFUSALS,
    ByteRange,
    Verdict,
    Version,
    as_stored,
    judge,
    version_of,
)
from perfkit.downloads.http.transport import Get
from perfkit.downloads.retry import Network, backoff_s, may_retry, refuse
from perfkit.errors import CancelledError, TransferError

_USABLE = frozenset({Verdict.BODY, Verdict.EMPTY, Verdict.STATUS})


class Probe(NamedTuple):
    """What an origin says about a file. Sizes are in bytes."""

    url: str  # as requested
    at: str  # where redirects led
    unchanged: bool = False  # it is the version that the caller knows; the fields below are then unknown
    first: bytes = b""  # the beginning of the file, as much as was requested, or all of it
    size: int | None = None  # of the whole file; None: unknown
    ranges: bool = False  # it sent the requested range, or says that it supports ranges
    version: Version = NO_VERSION
    content_type: str | None = None
    requests: int = 1

    @property
    def whole(self) -> bool:
        """Whether `first` is all of the file."""
        return len(self.first) == self.size


class _Question(NamedTuple):
    """What a request asks; plainer where a server did not understand it."""

    known: Version  # whether it has another version than this one
    asked: ByteRange | None


def probe(
    network: Network, url: str, *, most: int, known: Version | None, home: str | None = None, cancel: Cancel
) -> Probe:
    """Request the first `most` bytes of a file, unless it is the version `known`.

    The host's limits and retries are those of a transfer, and a refusal counts for all requests to the host.

    Raises:
        HTTPStatusError, TransferError, TransferTimeoutError: no usable response.
        CancelledError: cancelled.
    """
    config, limiter, host = network.config, network.limiter, host_of(url)
    trusted = home is None or may_have_secrets(url, home)
    question, failures, requests = _Question(known or NO_VERSION, (0, most)), 0, 0
    while limiter.wait(host, cancel):
        requests += 1
        try:
            found = _ask(network, url, question, most, trusted=trusted, cancel=cancel)
            if isinstance(found, Probe):
                if known is not None and known.is_same_as(found.version):  # some ignore conditions beside a range
                    found = found._replace(unchanged=True, version=known)
                return found._replace(requests=requests)
            question = found
            continue
        except TransferError as error:
            failures += 1
            if not may_retry(error, config) or failures > config.retries:
                raise
        finally:
            limiter.leave(host)
        if cancel.wait(backoff_s(config, failures)):
            break
    raise CancelledError(url, "cancelled")


def _ask(
    network: Network, url: str, question: _Question, most: int, *, trusted: bool, cancel: Cancel
) -> Probe | _Question:
    """Send one request; returns the answer, or a question that this server may understand."""
    headers = {"Cache-Control": "max-age=0", **question.known.condition}
    if question.asked:
        headers["Range"] = f"bytes=0-{most - 1}"
    with network.transport.open(Get(url=url, headers=headers, trusted=trusted, named=trusted), cancel) as response:
        fields = as_stored(response.headers, url)
        answer = judge(response.status, fields, question.asked, None)
        if answer.verdict is Verdict.CURRENT and question.known:
            if question.known.is_meant_by(fields):
                return Probe(url=url, at=response.url, unchanged=True, version=question.known)
            return question._replace(known=NO_VERSION)
        if question.asked and (answer.verdict not in _USABLE or response.status in RANGE_REFUSALS):
            return question._replace(asked=None)
        if answer.verdict is Verdict.STATUS:
            refuse(url, response, answer.reason, host=host_of(url), network=network)
        first = first_bytes(url, response, answer, most, network.config)
        return Probe(
            url=url,
            at=response.url,
            first=first,
            size=len(first) if answer.total is None and len(first) < most else answer.total,
            ranges=response.status == 206 or response.headers.get("accept-ranges", "").strip().lower() == "bytes",
            version=version_of(response.headers),
            content_type=response.headers.get("content-type"),
        )


def read_small_file(network: Network, get: Get, *, most: int, host: str, cancel: Cancel) -> bytes:
    """Fetch a small file, or its first `most` bytes, by one request, for a caller that has a place at the host.

    Raises:
        HTTPStatusError, TransferError, TransferTimeoutError: no usable response.
        CancelledError: cancelled.
    """
    with network.transport.open(get, cancel) as response:
        fields = as_stored(response.headers, get.url)
        answer = judge(response.status, fields, None, None)
        if answer.verdict is Verdict.STATUS:
            refuse(get.url, response, answer.reason, host=host, network=network)
        return first_bytes(get.url, response, answer, most, network.config)
