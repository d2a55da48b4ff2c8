"""What an origin answers to a conditional or ranged GET of one file (RFC 9110 sections 13 and 14). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime

__all__ = ["Part", "Representation", "part_for", "refusal_for"]

_RANGE = re.compile(r"bytes=(?:(\d{1,99})-(\d{0,99})|-(\d{1,99}))", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Representation:
    """What can be sent of a file, and how it is told from another."""

    size: int
    etag: str  # strong, with its quotes
    modified_s: float  # since the epoch

    @property
    def headers(self) -> dict[str, str]:
        """Those that go with every answer about it."""
        modified = formatdate(self.modified_s, usegmt=True)
        return {"ETag": self.etag, "Last-Modified": modified, "Accept-Ranges": "bytes"}


@dataclass(frozen=True)
class Part:
    """A status, and the bytes from `start` to `end` (exclusive) that go with it."""

    status: int
    start: int
    end: int
    headers: dict[str, str]


def refusal_for(asked: Mapping[str, str], file: Representation) -> int | None:
    """The status that ends the request by its conditions (section 13.2.2), 304 or 412; None if it goes on.

    Args:
        asked: the request's headers by lower-case name.
    """
    if (wanted := asked.get("if-match")) is not None:
        if not _lists(wanted, file.etag, weakly=False):
            return 412
    elif (since := _seconds(asked.get("if-unmodified-since"))) is not None and int(file.modified_s) > since:
        return 412
    if (unwanted := asked.get("if-none-match")) is not None:
        return 304 if _lists(unwanted, file.etag, weakly=True) else None
    since = _seconds(asked.get("if-modified-since"))
    return 304 if since is not None and int(file.modified_s) <= since else None


def part_for(asked: Mapping[str, str], file: Representation) -> Part:
    """What a GET is given. Anything but one valid range asks for the whole file (section 14.2).

    Args:
        asked: the request's headers by lower-case name.
    """
    size = file.size
    whole = Part(200, 0, size, {"Content-Length": str(size)})
    condition = asked.get("if-range")
    match = _RANGE.fullmatch(asked.get("range", "").replace(" ", ""))
    if match is None or (condition is not None and condition not in (file.etag, file.headers["Last-Modified"])):
        return whole
    first, last, suffix = match.groups()
    if suffix is not None:
        start, end = max(0, size - int(suffix)), size
        satisfiable = int(suffix) > 0 and size > 0
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return whole
        satisfiable = start < size
    if not satisfiable:
        return Part(416, 0, 0, {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
    return Part(206, start, end, {"Content-Range": f"bytes {start}-{end - 1}/{size}",
                                  "Content-Length": str(end - start)})  # fmt: skip


def _lists(field: str, etag: str, *, weakly: bool) -> bool:
    """Whether a list of entity tags has this strong one, by weak or strong comparison (section 8.8.3.2)."""
    tags = [tag.strip() for tag in field.split(",")]
    return field.strip() == "*" or etag in tags or (weakly and f"W/{etag}" in tags)


def _seconds(date: str | None) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp() if date else None
    except ValueError:
        return None
