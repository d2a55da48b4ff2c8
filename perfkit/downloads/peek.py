"""A peek at a file of an origin: whether it changed, what is said of it, and its first bytes."""

from __future__ import annotations

import datetime
from typing import NamedTuple

from perfkit.config import Config
from perfkit.downloads.cancel import Cancel
from perfkit.downloads.protocol import Answer, Validator, Version, judge, parse_retry_after, validator_of, version_of
from perfkit.downloads.retry import RETRY_STATUSES, backoff_s
from perfkit.downloads.transport import Response, Transport
from perfkit.errors import CancelledError, HTTPStatusError, TransferError

__all__ = ["Peek", "peek"]

_NO_VERSION, _NO_VALIDATOR = Version(), Validator()


class Peek(NamedTuple):
    """What an origin says of a file. Sizes are bytes."""

    url: str  # as asked
    at: str  # where redirects led
    unchanged: bool = False  # it is the version that the caller knows; the rest is then not told
    first: bytes = b""  # the beginning of the file, as much as was asked for, or all of it
    size: int | None = None  # of the whole file; None: not told
    ranges: bool = False  # it answers with the range that was asked for
    version: Version = _NO_VERSION
    validator: Validator = _NO_VALIDATOR  # empty if nothing tells for certain that two ranges are of one version
    content_type: str | None = None
    requests: int = 1

    @property
    def whole(self) -> bool:
        """Whether `first` is all of the file."""
        return len(self.first) == self.size


def peek(transport: Transport, config: Config, url: str, *, most: int, known: Version | None, cancel: Cancel) -> Peek:
    """Ask for the first `most` bytes of a file, unless it is the version `known`. Retries as a download does.

    Raises:
        HTTPStatusError, TransferError, TransferTimeoutError: no answer that can be used.
        CancelledError: cancelled meanwhile.
    """
    requests = 0
    while True:
        requests += 1
        wait_s: float | None = None
        headers = {"Range": f"bytes=0-{most - 1}", **(known.condition if known else {})}
        try:
            with transport.open(url, headers=headers, private_headers={}, auth=None, cancel=cancel) as response:
                answer = judge(response.status, response.headers, start=0, end=most, total=None, ranged=True)
                if answer.verdict != "status":
                    return _seen(url, response, answer, most, known, requests)
                transient = response.status in RETRY_STATUSES
                failure: TransferError = HTTPStatusError(url, answer.reason, response.status, transient=transient)
                now = datetime.datetime.now(datetime.UTC)
                wait_s = parse_retry_after(response.headers.get("retry-after"), now=now)
        except TransferError as error:
            failure = error
        if not failure.transient or requests > config.retries or (wait_s or 0) > config.retry_after_cap_s:
            raise failure
        if wait_s is None:
            wait_s = backoff_s(config, requests)
        if cancel.wait(wait_s):
            raise CancelledError(url, "cancelled")


def _seen(url: str, response: Response, answer: Answer, most: int, known: Version | None, requests: int) -> Peek:
    headers = response.headers
    if answer.verdict == "current" and known:
        return Peek(url=url, at=response.url, unchanged=True, version=known, requests=requests)
    if answer.verdict not in ("body", "empty"):
        raise TransferError(url, answer.reason or f"unexpected HTTP status {response.status}")
    length = most if answer.end is None else min(most, answer.end)
    first = bytearray(length if answer.verdict == "body" else 0)
    filled = 0
    while filled < len(first) and (count := response.read_into(memoryview(first)[filled:])):
        filled += count
    if filled < len(first) and answer.end is not None:
        raise TransferError(url, f"the body ended {len(first) - filled} bytes early", transient=True)
    size = filled if answer.total is None and filled < most else answer.total
    return Peek(
        url=url, at=response.url, first=bytes(first[:filled]), size=size, ranges=response.status == 206,
        version=version_of(headers), validator=validator_of(headers), content_type=headers.get("content-type"),
        requests=requests,
    )  # fmt: skip
