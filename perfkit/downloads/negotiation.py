"""Decides what to request, and what a response means for the partial file; `Transfer` acts on it."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from perfkit.downloads.checksums import Checksum, RunningDigest, parse_checksum
from perfkit.downloads.http.redirects import may_have_secrets
from perfkit.downloads.http.semantics import (
    RANGE_REFUSALS,
    Answer,
    ByteRange,
    Headers,
    Verdict,
    Version,
    as_stored,
    judge,
    judge_part,
    parse_repr_digest,
    version_of,
)
from perfkit.downloads.http.transport import Get, Response
from perfkit.downloads.partial_file import ChangedError, PartialFile
from perfkit.downloads.request import Request
from perfkit.downloads.segments import Runner
from perfkit.downloads.throttle import Throttle
from perfkit.errors import HTTPStatusError, TransferError


class Step(enum.Enum):
    """What to do with a response."""

    READ = enum.auto()  # write its body into the partial file
    READ_WHOLE = enum.auto()  # a range was requested, but the body is the whole file
    NO_RANGES = enum.auto()  # the range is refused or unreliable: skip the body, and request no more ranges
    UNCONDITIONALLY = enum.auto()  # skip the body, and request again without a condition
    UNCHANGED = enum.auto()  # the local file is current
    EMPTY = enum.auto()  # the file has no bytes
    REFUSED = enum.auto()  # an error status


class Wanted(NamedTuple):
    """Which versions of the file a transfer takes from a source.

    Args:
        known: the version that the caller has; the server may respond that it is current.
        only: the only version accepted, unless nothing proves it.
        checksum: the caller's.
        conditional: whether the server is asked to compare versions; if not, its response is compared here.
    """

    known: Version
    only: Version
    checksum: Checksum | None
    conditional: bool = True


def asked_range(partial: PartialFile, runner: Runner) -> ByteRange | None:
    """The bytes that a runner has to request, as positions in the resource; None: the whole file, without a Range.

    The first request for a whole file has no Range: then shared caches store the response, servers evaluate conditions
    correctly, and those that refuse ranges serve it. The runner's range may shrink while it waits for the response.
    """
    start, end = runner.position, runner.segment.end
    if partial.part is not None:
        first = partial.part[0]  # the only place where positions of a part's file are not those of the resource
        return start + first, None if end is None else end + first
    if not partial.ranges or partial.descriptor < 0:
        return None
    return start, None if end == partial.map.size else end


def make_get(
    request: Request,
    url: str,
    headers: Mapping[str, str],
    throttles: tuple[Throttle, ...],
    *,
    at: str | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> Get:
    """A request for a URL, with the caller's secrets if they may go there.

    Args:
        at: where an earlier redirect of the URL led.
        meanwhile: as in `Get`.
    """
    home = request.home or request.url
    own = may_have_secrets(url, home)
    return Get(
        url=url,
        at=at,
        headers=headers,
        private_headers=request.headers if own else {},
        auth=request.auth if own else None,
        trusted=own,
        named=own or request.home is None,
        limit=min(throttles, key=lambda each: each.rate or math.inf),
        meanwhile=meanwhile,
    )


def request_headers(partial: PartialFile, asked: ByteRange | None, wanted: Wanted) -> dict[str, str]:
    """Range and conditions of a request (RFC 9110 sections 13 and 14)."""
    headers = dict(_conditions(partial, wanted))
    if asked is not None:
        start, end = asked
        headers["Range"] = f"bytes={start}-" if end is None else f"bytes={start}-{end - 1}"
    return headers


def _conditions(partial: PartialFile, wanted: Wanted) -> Headers:
    if partial.resumed_bytes and not partial.settled and not wanted.only.proves:
        return partial.version.if_range
    if not wanted.conditional:
        return {} if partial.settled else {"Cache-Control": "max-age=0"}
    if partial.settled:
        return partial.version.if_same
    return wanted.only.if_same or wanted.known.condition


def interpret(response: Response, url: str, partial: PartialFile, asked: ByteRange | None) -> Answer:
    """The verdict on a response, with positions in the partial file."""
    answer = judge(response.status, as_stored(response.headers, url), asked, partial.total)
    return answer if partial.part is None else judge_part(answer, response.status, partial.part)


def next_step(
    url: str, response: Response, answer: Answer, partial: PartialFile, asked: ByteRange | None, wanted: Wanted
) -> Step:
    """Decide what to do with a response.

    Raises:
        ChangedError: it is of another version.
        TransferError: it cannot be used.
    """
    verdict, status, headers = answer.verdict, response.status, response.headers
    ranged = asked is not None and partial.part is None
    if verdict is Verdict.CURRENT and wanted.known and wanted.conditional and not partial.settled:
        return Step.UNCHANGED if wanted.known.is_meant_by(headers) else Step.UNCONDITIONALLY
    if verdict is Verdict.EMPTY and not partial.settled:
        return Step.EMPTY
    if verdict is Verdict.CHANGED or wanted.only.differs(headers):
        raise ChangedError(answer.reason or "its validator has changed")
    if verdict is Verdict.NO_RANGE:
        _raise_no_range(url, response, answer, partial)
    refusal = status in RANGE_REFUSALS and not (status == 403 and partial.expires)
    if ranged and (refusal if verdict is Verdict.STATUS else verdict is not Verdict.BODY):
        return Step.NO_RANGES  # whatever is wrong with the range: one plain GET decides
    if verdict is Verdict.STATUS:
        return Step.REFUSED
    if verdict is Verdict.CODED and wanted.checksum is None:
        raise TransferError(url, f"{answer.reason}; only a checksum could tell whether it is right")
    if verdict not in (Verdict.BODY, Verdict.CODED):
        raise TransferError(url, answer.reason or f"unexpected HTTP status {status}", transient=True)
    if status == 206:
        return _step_of_range(answer, headers, partial, wanted)
    if wanted.only.proves and wanted.checksum is None and not wanted.only.is_proven_by(headers):
        raise ChangedError("nothing in the response proves that it is the requested version")
    if not ranged:
        same = wanted.known and wanted.known.is_same_as(version_of(headers)) and not partial.settled
        return Step.UNCHANGED if same and not wanted.only.proves else Step.READ
    differs = partial.version.differs(headers)
    if partial.settled and differs:
        raise ChangedError("its validator has changed")
    if partial.version.is_proven_by(headers) and answer.total not in (None, partial.total):
        return Step.NO_RANGES  # a slice with status 200: a file of one version has one size
    return Step.READ_WHOLE


def _step_of_range(answer: Answer, headers: Headers, partial: PartialFile, wanted: Wanted) -> Step:
    if partial.version.differs(headers):
        raise ChangedError("its validator has changed")
    if answer.total is None and partial.map.size is None:
        return Step.NO_RANGES  # without a total, the end of the file is unknown
    known = partial.version if partial.version.proves else wanted.only
    if known.proves and not known.is_proven_by(headers) and wanted.checksum is None:
        if partial.part is None:
            return Step.NO_RANGES
        raise ChangedError("nothing in the response proves that it is still the same version")
    return Step.READ


def _raise_no_range(url: str, response: Response, answer: Answer, partial: PartialFile) -> None:
    if response.status == 200 and partial.resumed_bytes and not partial.settled:
        raise ChangedError("the file no longer meets the condition of the range request")
    if response.status == 416:
        raise HTTPStatusError(url, answer.reason, 416)
    raise TransferError(url, answer.reason)


def adopt(partial: PartialFile, headers: Headers, answer: Answer, checksum: Checksum | None) -> int | None:
    """Take version, size and digest of the file from the first good response; returns the partial file's whole size.

    Args:
        checksum: the caller's; a `Repr-Digest` (RFC 9530) is checked as well.
    """
    partial.total = answer.total if partial.total is None else partial.total
    size = partial.total if partial.part is None else partial.map.size
    partial.version = version_of(headers)
    partial.ranges = partial.ranges and headers.get("accept-ranges", "").strip().lower() != "none"
    checksums = [checksum] if checksum else []
    if partial.part is None:
        declared = parse_repr_digest(headers.get("repr-digest"))
        if declared is not None and declared != str(checksum):
            checksums.append(parse_checksum(declared))
    partial.digest = RunningDigest(tuple(checksums)) if checksums else None
    return size
