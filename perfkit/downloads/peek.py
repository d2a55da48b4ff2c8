"""A peek at a file of an origin: whether it changed, what is said of it, and its first bytes."""

from __future__ import annotations

from typing import NamedTuple

from perfkit.config import Config
from perfkit.downloads.cancel import Cancel
from perfkit.downloads.concurrency import AdaptiveController, HostGates, gate_of
from perfkit.downloads.http.semantics import Answer, Validator, Version, judge, validator_of, version_of
from perfkit.downloads.http.transport import Get, Response, Transport
from perfkit.downloads.retry import GiveUp, backoff_s, refuse
from perfkit.errors import CancelledError, TransferError

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


def peek(
    transport: Transport, config: Config, gates: HostGates, controller: AdaptiveController, url: str, *, most: int,
    known: Version | None, cancel: Cancel,
) -> Peek:  # fmt: skip
    """Ask for the first `most` bytes of a file, unless it is the version `known`.

    It passes the gate of its host and retries as a transfer does, and what it is refused counts for all of them.

    Raises:
        HTTPStatusError, TransferError, TransferTimeoutError: no answer that can be used.
        CancelledError: cancelled meanwhile.
    """
    host = gate_of(url)
    headers = {"Range": f"bytes=0-{most - 1}", **(known.condition if known else {})}
    requests = 0
    while gates.wait(host, cancel):
        requests += 1
        try:
            with transport.open(Get(url=url, headers=headers), cancel) as response:
                answer = judge(response.status, response.headers, start=0, end=most, total=None, ranged=True)
                if answer.verdict == "status":
                    refuse(url, response, answer.reason, host=host, config=config, gates=gates, controller=controller)
                return _seen(url, response, answer, most, known, requests)
        except GiveUp as end:
            raise end.error from None
        except TransferError as error:
            if not error.transient or requests > config.retries:
                raise
        finally:
            gates.leave(host)
        if cancel.wait(backoff_s(config, requests)):
            break
    raise CancelledError(url, "cancelled")


def _seen(url: str, response: Response, answer: Answer, most: int, known: Version | None, requests: int) -> Peek:
    headers = response.headers
    if answer.verdict == "current" and known:
        return Peek(url=url, at=response.url, unchanged=True, version=known, requests=requests)
    if answer.verdict not in ("body", "empty"):
        raise TransferError(url, answer.reason or f"unexpected HTTP status {response.status}")
    length = most if answer.end is None else min(most, answer.end)
    wanted = length if answer.verdict == "body" else 0
    first = bytearray()
    while len(first) < wanted and (data := response.read1(wanted - len(first))):
        first += data
    if len(first) < wanted and answer.end is not None:
        raise TransferError(url, f"the body ended {wanted - len(first)} bytes early", transient=True)
    size = len(first) if answer.total is None and len(first) < most else answer.total
    return Peek(
        url=url, at=response.url, first=bytes(first), size=size, ranges=response.status == 206,
        version=version_of(headers), validator=validator_of(headers), content_type=headers.get("content-type"),
        requests=requests,
    )  # fmt: skip
