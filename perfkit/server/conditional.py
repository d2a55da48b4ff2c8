"""Conditional and range requests for one file (RFC 9110 sections 13 and 14), without any I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import formatdate, parsedate_to_datetime
from typing import NamedTuple

_RANGE = re.compile(r"bytes=(?:(\d{1,99})-(\d{0,99})|-(\d{1,99}))", re.ASCII | re.IGNORECASE)
_DATES_S = (-62_135_596_800, 253_402_300_799)  # what has a date: the years 1 to 9999


class Representation(NamedTuple):
    """The size and the validators of a file."""

    size: int
    etag: str  # strong, including the quotes
    modified_s: float  # seconds since the epoch

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every response about it."""
        first, last = _DATES_S
        modified = formatdate(min(max(self.modified_s, first), last), usegmt=True)
        return {"ETag": self.etag, "Last-Modified": modified, "Accept-Ranges": "bytes"}


class Part(NamedTuple):
    """A response: its status, its headers, and the bytes of the body, from `start` to `end` (exclusive)."""

    status: int
    start: int
    end: int
    headers: dict[str, str]


def failed_condition(headers: Mapping[str, str], file: Representation) -> int | None:
    """The status, 304 or 412, if a condition of the request fails (section 13.2.2); None if none fails.

    Args:
        headers: of the request, by lower-case name.
    """
    if (wanted := headers.get("if-match")) is not None:
        if not _lists(wanted, file.etag, weakly=False):
            return 412
    elif (since := _seconds(headers.get("if-unmodified-since"))) is not None and int(file.modified_s) > since:
        return 412
    if (unwanted := headers.get("if-none-match")) is not None:
        return 304 if _lists(unwanted, file.etag, weakly=True) else None
    since = _seconds(headers.get("if-modified-since"))
    return 304 if since is not None and int(file.modified_s) <= since else None


def select_part(headers: Mapping[str, str], file: Representation) -> Part:
    """The response to a GET. Anything but a single valid range selects the whole file (section 14.2).

    Args:
        headers: of the request, by lower-case name.
    """
    size = file.size
    whole = Part(200, 0, size, {"Content-Length": str(size)})
    condition = headers.get("if-range")
    match = _RANGE.fullmatch(headers.get("range", "").replace(" ", ""))
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
    content_range = f"bytes {start}-{end - 1}/{size}"
    return Part(206, start, end, {"Content-Range": content_range, "Content-Length": str(end - start)})


def _lists(field: str, etag: str, *, weakly: bool) -> bool:
    """Whether a list of entity tags contains this strong one, by weak or strong comparison (section 8.8.3.2)."""
    tags = [tag.strip() for tag in field.split(",")]
    return field.strip() == "*" or etag in tags or (weakly and f"W/{etag}" in tags)


def _seconds(date: str | None) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp() if date else None
    except (ValueError, IndexError, OverflowError):
        return None
