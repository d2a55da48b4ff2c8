"""What is asked for, and what an answer means for the partial file. It decides; `Transfer` acts."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from perfkit.downloads.checksums import Checksum, RunningDigest, parse_checksum
from perfkit.downloads.http.semantics import (
    Answer,
    Headers,
    Validator,
    Verdict,
    Version,
    judge,
    judge_part,
    parse_repr_digest,
    validator_of,
    version_of,
)
from perfkit.downloads.http.transport import Response
from perfkit.downloads.partial_file import Origin, PartialFile
from perfkit.downloads.segments import Runner
from perfkit.errors import HTTPStatusError, TransferError

__all__ = ["ChangedError", "Step", "Wanted", "adopt", "interpret", "next_step", "request_headers", "span_of"]


Span = tuple[int, int | None]  # first byte and end (exclusive) in the resource; None: to its end


class ChangedError(Exception):
    """The file at the origin is another version than the one that the partial file was begun with."""


class Step(enum.Enum):
    """What to do with a good answer."""

    READ = enum.auto()  # its body belongs into the partial file
    READ_WHOLE = enum.auto()  # a range was asked for, and its body is the whole file
    ASK_UNRANGED = enum.auto()  # leave the body, and ask for the file again, without a range
    UNCHANGED = enum.auto()  # the local file is current
    EMPTY = enum.auto()  # the file has no bytes


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which versions of the file a transfer takes from a source.

    Args:
        known: what the caller has: the answer may be that it is current.
        only: the only one that will do, if it is not empty.
        checksum: the caller's.
    """

    known: Version
    only: Validator
    checksum: Checksum | None


def request_headers(partial: PartialFile, span: Span, wanted: Wanted) -> dict[str, str]:
    """Range and conditions of a request (RFC 9110 sections 13 and 14)."""
    headers = dict(_conditions(partial, wanted))
    if partial.ranges:
        start, end = span
        headers["Range"] = f"bytes={start}-" if end is None else f"bytes={start}-{end - 1}"
    return headers


def _conditions(partial: PartialFile, wanted: Wanted) -> Headers:
    if partial.settled:
        return partial.validator.if_same
    if wanted.only:
        return wanted.only.if_same
    if partial.resumed_bytes:
        return partial.validator.if_range
    return wanted.known.condition


def span_of(partial: PartialFile, runner: Runner) -> Span:
    """What a runner is to ask for now; its range may shrink while it waits for the answer."""
    start, end = runner.position, runner.segment.end
    if partial.part is None:
        return start, None if end == partial.map.size else end
    first = partial.part[0]  # the only place where positions of a part's file are not those of the resource
    return start + first, None if end is None else end + first


def interpret(response: Response, partial: PartialFile, span: Span) -> Answer:
    """The verdict on the answer to a request for these bytes, with positions counted in the partial file."""
    start, end = span
    status, headers = response.status, response.headers
    answer = judge(status, headers, start=start, end=end, total=partial.total, ranged=partial.ranges)
    return answer if partial.part is None else judge_part(answer, status, partial.part)


def next_step(url: str, response: Response, answer: Answer, partial: PartialFile, wanted: Wanted) -> Step:
    """Decide what a good answer is for.

    Raises:
        ChangedError: it is of another version.
        TransferError: it cannot be used.
    """
    verdict, status = answer.verdict, response.status
    if verdict is Verdict.CURRENT and wanted.known and not partial.settled:
        return Step.UNCHANGED
    if verdict in (Verdict.UNRANGED, Verdict.CODED) and partial.ranges:
        return Step.ASK_UNRANGED
    if verdict is Verdict.EMPTY and not partial.settled:
        return Step.EMPTY
    if verdict is Verdict.CHANGED:
        raise ChangedError(answer.reason)
    if wanted.only.differs(response.headers):
        raise ChangedError("its validator is another one now")
    if verdict is Verdict.NO_RANGE:
        _raise_no_range(url, response, answer, partial)
    if verdict is Verdict.CODED and wanted.checksum is None:
        raise TransferError(url, f"{answer.reason}; only a checksum could tell whether it is right")
    if verdict not in (Verdict.BODY, Verdict.CODED):
        raise TransferError(url, answer.reason or f"unexpected HTTP status {status}", transient=True)
    if partial.validator.differs(response.headers) and (partial.settled or status == 206):
        raise ChangedError("its validator is another one now")
    if status == 200 and partial.ranges:
        return Step.READ_WHOLE
    if status == 206 and answer.total is None and partial.map.size is None:
        return Step.ASK_UNRANGED  # without a total nothing tells where the file ends
    return Step.READ


def _raise_no_range(url: str, response: Response, answer: Answer, partial: PartialFile) -> None:
    if response.status == 200 and partial.resumed_bytes and not partial.settled:
        raise ChangedError("the condition of the range does not hold any more")
    if response.status == 416:
        raise HTTPStatusError(url, answer.reason, 416)
    raise TransferError(url, answer.reason)


def adopt(partial: PartialFile, url: str, headers: Headers, answer: Answer, checksum: Checksum | None) -> int | None:
    """Take version, size and digest of the file from the first good answer; returns the partial file's whole size.

    Args:
        checksum: the caller's; a `Repr-Digest` (RFC 9530) is checked as well.
    """
    version = version_of(headers)
    partial.total = answer.total if partial.total is None else partial.total
    size = partial.total if partial.part is None else partial.map.size
    partial.validator = validator_of(headers)
    checksums = [checksum] if checksum else []
    if partial.part is None:
        if version:
            partial.origin = Origin(url, version.etag, version.last_modified, size or 0, 0)
        declared = parse_repr_digest(headers.get("repr-digest"))
        if declared is not None and declared != str(checksum):
            checksums.append(parse_checksum(declared))
    partial.digest = RunningDigest(tuple(checksums)) if checksums else None
    return size
