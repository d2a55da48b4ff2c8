"""A probe of a file at its origin: whether it changed, its size and validators, and its first bytes."""

from __future__ import annotations

import time
from typing import NamedTuple

from perfkit.config import Config
from perfkit.downloads.cancel import Cancel
from perfkit.downloads.concurrency import host_of
from perfkit.downloads.http.redirects import may_have_secrets
from perfkit.downloads.http.semantics import (
    NO_VERSION,
    RANGE_REFUSALS,
    Answer,
    Verdict,
    Version,
    as_stored,
    judge,
    version_of,
)
from perfkit.downloads.http.transport import Get, Response
from perfkit.downloads.retry import Network, backoff_s, may_retry, refuse
from perfkit.downloads.stall import StallWatch
from perfkit.errors import CancelledError, TransferError

_READ_BYTES = 256 << 10
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


def probe(
    network: Network, url: str, *, most: int, known: Version | None, home: str | None = None, cancel: Cancel
) -> Probe:
    """Request the first `most` bytes of a file, unless it is the version `known`.

    The host's limits and retries are those of a transfer, and a refusal counts for all requests to the host.

    Raises:
        HTTPStatusError, TransferError, TransferTimeoutError: no usable response.
        CancelledError: cancelled.
    """
    config, limiter = network.config, network.limiter
    host, ranged, conditional, failures, requests = host_of(url), True, True, 0, 0
    trusted = home is None or may_have_secrets(url, home)
    while limiter.wait(host, cancel):
        requests += 1
        headers = {"Cache-Control": "max-age=0", **(known.condition if known and conditional else {})}
        if ranged:
            headers["Range"] = f"bytes=0-{most - 1}"
        try:
            get = Get(url=url, headers=headers, trusted=trusted, named=trusted)
            with network.transport.open(get, cancel) as response:
                fields = as_stored(response.headers, url)
                answer = judge(response.status, fields, (0, most) if ranged else None, None)
                if answer.verdict is Verdict.CURRENT and known and conditional:
                    if known.is_meant_by(fields):
                        return Probe(url=url, at=response.url, unchanged=True, version=known, requests=requests)
                    conditional = False
                    continue
                if ranged and (answer.verdict not in _USABLE or response.status in RANGE_REFUSALS):
                    ranged = False
                    continue
                if answer.verdict is Verdict.STATUS:
                    refuse(url, response, answer.reason, host=host, network=network)
                first = _first_bytes(url, response, answer, most, config)
                found = _described(url, response, answer, first, most=most)
                same = known is not None and found.version == known  # some servers ignore conditions beside a range
                return found._replace(unchanged=same, requests=requests)
        except TransferError as error:
            failures += 1
            if not may_retry(error, config) or failures > config.retries:
                raise
        finally:
            limiter.leave(host)
        if cancel.wait(backoff_s(config, failures)):
            break
    raise CancelledError(url, "cancelled")


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
        return _first_bytes(get.url, response, answer, most, network.config)


def _first_bytes(url: str, response: Response, answer: Answer, most: int, config: Config) -> bytes:
    if answer.verdict not in (Verdict.BODY, Verdict.EMPTY):
        raise TransferError(url, answer.reason or f"unexpected HTTP status {response.status}")
    length = most if answer.end is None else min(most, answer.end)
    wanted = length if answer.verdict is Verdict.BODY else 0
    first, stall = bytearray(), StallWatch(config)
    while len(first) < wanted:
        asked_s = time.monotonic()
        data = response.read1(min(_READ_BYTES, wanted - len(first)))
        if not data:
            break
        first += data
        stall.check(url, len(data), time.monotonic() - asked_s)
    if len(first) < wanted and answer.end is not None:
        raise TransferError(url, f"the body ended {wanted - len(first)} bytes early", transient=True)
    return bytes(first)


def _described(url: str, response: Response, answer: Answer, first: bytes, *, most: int) -> Probe:
    headers = response.headers
    return Probe(
        url=url,
        at=response.url,
        first=first,
        size=len(first) if answer.total is None and len(first) < most else answer.total,
        ranges=response.status == 206 or headers.get("accept-ranges", "").strip().lower() == "bytes",
        version=version_of(headers),
        content_type=headers.get("content-type"),
    )
