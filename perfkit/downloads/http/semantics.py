"""The HTTP rules of a correct downloader, as pure functions: headers and statuses in, decisions out."""

from __future__ import annotations

import contextlib
import datetime
import enum
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

Headers = Mapping[str, str]  # of a response: by name in lower case
ByteRange = tuple[int, int | None]  # first byte and end (exclusive) in the resource; None: to its end

_CONTENT_RANGE = re.compile(r"bytes\s+(?:(\d{1,19})-(\d{1,19})|\*)/(\d{1,19}|\*)\s*", re.IGNORECASE | re.ASCII)
_LIFETIME = re.compile(r"(?:max-age|s-maxage)=\"?0*[1-9]")
_REPR_DIGEST = re.compile(r"(?:^|,)[ \t]*sha-(256|512)=:([A-Za-z0-9+/=]*):", re.IGNORECASE)
_CACHE_STATUS = ("x-cache", "cache-status")
_OF_CACHES = frozenset({"via", "age", *_CACHE_STATUS})
_CACHE_HIT = re.compile(r"(?:\b|_|refresh)hit\b")  # as in TCP_HIT and RefreshHit
_DIGITS = re.compile(r"\d{1,19}", re.ASCII)
# How servers that do not support ranges, or forbid them, respond to one; then a GET without a range decides.
RANGE_REFUSALS = frozenset({204, 400, 403, 405, 406, 500, 501})
_SHOWN = 80  # characters of a field
_DATE_MOST = 64  # characters
_OVERLAP_BYTES = 64 << 10  # before a part, that a server may send unrequested; read and discarded


class ContentRange(NamedTuple):
    """RFC 9110 section 14.4. `start` and `end` (exclusive) are None in `bytes */N`; `total` is None in `a-b/*`."""

    start: int | None
    end: int | None
    total: int | None


def parse_content_range(text: str | None) -> ContentRange | None:
    """A valid single byte range, or None."""
    match = _CONTENT_RANGE.fullmatch(text or "")
    if match is None:
        return None
    first, last, size = match.groups()
    total = None if size == "*" else int(size)
    if first is None:
        return ContentRange(None, None, total) if total is not None else None
    start, end = int(first), int(last) + 1
    if start >= end or (total is not None and end > total):
        return None
    return ContentRange(start, end, total)


@dataclass(frozen=True, slots=True)
class Version:
    """An origin's names for one version of a file, as sent: enough to ask whether it changed.

    Args:
        etag: may be weak, or not even quoted.
        etag_lasts, date_lasts: whether no later version can have the same. A file that changes again within the same
            second may keep its date (RFC 9110 section 8.8.2.2), and its ETag where that is made of the date.
    """

    etag: str | None = None
    last_modified: str | None = None
    etag_lasts: bool = field(default=True, compare=False)
    date_lasts: bool = field(default=True, compare=False)

    def __bool__(self) -> bool:
        return bool(self.etag or self.last_modified)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Version:
        """The version that `record` describes."""
        return cls(record.get("etag"), record.get("last_modified"))

    @property
    def record(self) -> dict[str, object]:
        """Both names as JSON, to be kept; first reduce a version of an origin to what is `lasting`."""
        return {"etag": self.etag, "last_modified": self.last_modified}

    @property
    def lasting(self) -> Version:
        """The part that may be remembered."""
        if self.etag_lasts and self.date_lasts:
            return self
        etag = self.etag if self.etag_lasts else None
        date = self.last_modified if etag or self.date_lasts else None
        return Version(etag, date, self.etag_lasts, self.date_lasts)

    @property
    def proof(self) -> tuple[str | None, str | None]:
        """The ETag and the date as far as they identify the version byte for byte: a weak ETag proves nothing, but a
        different one still shows a change.
        """
        etag = self.etag or ""
        strong = self.etag_lasts and len(etag) >= 2 and etag[0] == etag[-1] == '"'
        return etag if strong else None, self.last_modified if self.date_lasts else None

    @property
    def proves(self) -> bool:
        """Whether it has such a proof."""
        return bool(self) and any(self.proof)

    @property
    def condition(self) -> Mapping[str, str]:
        """RFC 9110 sections 13.1.2 and 13.1.3: 304 if unchanged. Caches on the way must ask the origin, too."""
        if self.etag:
            return {"If-None-Match": self.etag, "Cache-Control": "max-age=0"}
        if self.last_modified:
            return {"If-Modified-Since": self.last_modified, "Cache-Control": "max-age=0"}
        return {}

    @property
    def if_range(self) -> Mapping[str, str]:
        """RFC 9110 section 13.1.5: the range if unchanged, else the whole new file."""
        etag, date = self.proof
        return {"If-Range": value} if (value := etag or date) else {}

    @property
    def if_same(self) -> Mapping[str, str]:
        """RFC 9110 sections 13.1.1 and 13.1.4: 412 if the file changed."""
        etag, date = self.proof
        if etag:
            return {"If-Match": etag}
        return {"If-Unmodified-Since": date} if date else {}

    def differs(self, headers: Headers) -> bool:
        """Whether these headers name another version. A difference in either field counts, whatever the other says:
        some servers keep an ETag for the life of their process. An absent field shows nothing.
        """
        etag, date = self.etag, self.last_modified
        if etag is not None and headers.get("etag", etag) != etag:
            return True
        differs = date is not None and headers.get("last-modified", date) != date
        return differs and not self._is_redated_as(version_of(headers))

    def is_same_as(self, found: Version) -> bool:
        """Whether a later response is of this version, as far as both tell."""
        return self == found or self._is_redated_as(found)

    def _is_redated_as(self, found: Version) -> bool:
        """Whether the other version's date only says when the response was made, as a server has to do with a file that
        is dated in the future (RFC 9110 section 8.8.2.1). Apache marks the ETag of such a file as weak.
        """
        etag = self.etag or ""
        return etag.startswith("W/") and etag == found.etag and found.last_modified is not None and not found.date_lasts

    def is_meant_by(self, headers: Headers) -> bool:
        """Whether a 304 with these headers means this version. One that names none, in response to a date, may mean a
        file that was reset to an older date (RFC 9110 section 13.1.3: any date not later).
        """
        return not self.differs(headers) and bool(self.etag or "last-modified" in headers)

    def is_proven_by(self, headers: Headers) -> bool:
        """Whether these headers prove this version. Many servers ignore If-Range and If-Match, and some send fewer
        fields with a range than with the whole file.
        """
        etag, date = self.proof
        same_etag = etag is not None and headers.get("etag") == etag
        same_date = date is not None and headers.get("last-modified") == date
        return (same_etag or same_date) and not self.differs(headers)


NO_VERSION = Version()


def version_of(headers: Headers) -> Version:
    """The version that a response is of. One without a Date came just now (RFC 9110 section 6.6.1)."""
    etag, date = headers.get("etag"), headers.get("last-modified")
    modified, sent = parse_date(date), parse_date(headers.get("date")) or datetime.datetime.now(datetime.UTC)
    dated = modified is not None and sent - modified >= datetime.timedelta(seconds=1)
    etag_lasts = dated or not (etag and modified and _spells(etag, int(modified.timestamp())))
    return Version(etag, date, etag_lasts, dated)


def may_be_filling_a_cache(headers: Headers, *, encrypted: bool) -> bool:
    """Whether a shared cache may be storing a full response while it comes (RFC 9111 section 3).

    Caches that leave no trace in their responses store what has a lifetime. With TLS, only caches on the server's side
    can, and most of them show themselves.
    """
    control, shown = headers.get("cache-control", "").lower(), not _OF_CACHES.isdisjoint(headers)
    if "no-store" in control or "private" in control:
        return False
    if not shown:
        return not encrypted and _LIFETIME.search(control) is not None
    said = (headers.get(name, "").lower() for name in _CACHE_STATUS)
    return not (headers.get("age", "0").strip("0") or any(map(_CACHE_HIT.search, said)))  # else it is stored already


def _spells(etag: str, second: int) -> bool:
    """Whether an ETag is made of this second."""
    digits = etag.strip('W/"').lower()
    forms = (f"{second:x}", str(second), _base36(second))
    return digits.startswith(forms) or digits.endswith(forms)


def _base36(number: int) -> str:
    text = ""
    while number > 0:  # a date before 1970 is negative
        number, digit = divmod(number, 36)
        text = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + text
    return text


@functools.lru_cache(maxsize=256)  # a batch repeats the same ones
def parse_date(text: str | None) -> datetime.datetime | None:
    """A date as RFC 9110 section 5.6.7 writes it; None if absent or unreadable."""
    if not text or len(text) > _DATE_MOST:
        return None
    from email.utils import parsedate_to_datetime  # rarely needed, and slow: a tenth of a short command's time

    try:
        date = parsedate_to_datetime(text)
    except (ValueError, IndexError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=datetime.UTC)


def parse_retry_after(text: str | None, *, now: datetime.datetime) -> float | None:
    """Seconds to wait, from either form of RFC 9110 section 10.2.3; None if absent or unreadable."""
    if text is None:
        return None
    if (text := text.strip()).isascii() and text.isdigit():
        return min(float(text), 2.0**31)  # RFC 9111 section 1.2.2 limits such numbers so
    date = parse_date(text)
    return max(0.0, (date - now).total_seconds()) if date else None


def parse_repr_digest(text: str | None) -> str | None:
    """The strongest digest of a `Repr-Digest` (RFC 9530) that can be checked, as `algorithm:hex`, or None."""
    if not text:
        return None
    import base64
    import binascii

    for bits, coded in sorted(_REPR_DIGEST.findall(text), reverse=True):
        with contextlib.suppress(binascii.Error):
            digest = base64.b64decode(coded, validate=True)
            if 8 * len(digest) == int(bits):
                return f"sha{bits}:{digest.hex()}"
    return None


def content_disposition_names(text: str | None) -> list[str]:
    """The file names in a Content-Disposition (RFC 6266), the better first, as sent and not yet safe: `filename*` (RFC
    8187) if it can be decoded, then `filename`, decoded as UTF-8 where that is valid.
    """
    if not text or len(text) > 4096:
        return []
    from email.message import Message

    message = Message()
    message["Content-Disposition"] = text
    extended: list[str] = []
    plain: list[str] = []
    for name, value in message.get_params([], "Content-Disposition"):
        if name == "filename" and isinstance(value, tuple):
            with contextlib.suppress(UnicodeError, LookupError):
                extended.append(value[2].encode("raw-unicode-escape").decode(value[0] or "utf-8"))
        elif name == "filename":
            plain.append(as_utf8(value))
    return [name for name in extended + plain if name]


def as_utf8(text: str) -> str:
    """A field of a response as it was meant: http.client decodes Latin-1, and servers and browsers mean UTF-8."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


_STORED_CODINGS = {
    "gzip": (".gz", ".tgz", ".svgz"),
    "x-gzip": (".gz", ".tgz", ".svgz"),
    "br": (".br",),
    "zstd": (".zst", ".tzst"),
    "compress": (".z", ".taz"),
    "x-compress": (".z", ".taz"),
}


def as_stored(headers: Headers, url: str) -> Headers:
    """The headers without a Content-Encoding that only names the file's own format: many servers label a `.tar.gz` so,
    while its ranges count stored bytes.
    """
    suffixes = _STORED_CODINGS.get(headers.get("content-encoding", "").strip().lower())
    if suffixes and urlsplit(url).path.lower().endswith(suffixes):
        return {name: value for name, value in headers.items() if name != "content-encoding"}
    return headers


class Verdict(enum.Enum):
    """What a response to a GET means."""

    BODY = "body"  # the bytes from `start` follow, up to `end` (exclusive; None: to the end of the stream)
    CURRENT = "current"  # 304: the local file is current
    EMPTY = "empty"  # the file has no bytes
    CHANGED = "changed"  # this is not the requested version
    CODED = "coded"  # a content coding that was not requested: request again without a range
    NO_RANGE = "no range"  # the server cannot send the requested part of the file
    INVALID = "invalid"  # it breaks the protocol, or does not fit the range: request again without one
    STATUS = "status"  # an HTTP error status


class Answer(NamedTuple):
    """What a response means: the verdict, which bytes of the file it has, the file's size, and why, in words."""

    verdict: Verdict
    start: int = 0
    end: int | None = None
    total: int | None = None
    reason: str = ""


def judge(status: int, headers: Headers, asked: ByteRange | None, total: int | None) -> Answer:
    """Decide what a response means (RFC 9110 sections 14 and 15.3.7).

    Args:
        asked: the requested range; None: the request had no Range.
        total: the file's size where known.
    """
    if status == 304:
        return Answer(Verdict.CURRENT)
    if status == 412:
        return Answer(Verdict.CHANGED, reason="the origin says the file changed")
    if status == 416:
        return _judge_416(headers, asked, total)
    if status == 204 and asked is None:
        return Answer(Verdict.EMPTY, total=0)
    if status not in (200, 206):
        return Answer(Verdict.STATUS, reason=f"HTTP status {status}")
    length = _content_length(headers)
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        reason = f"Content-Encoding {_shown(headers['content-encoding'])} was not requested"
        return Answer(Verdict.CODED, end=length, total=length, reason=reason)
    if length is not None and length < 0:
        return Answer(Verdict.INVALID, reason=f"Content-Length {_shown(headers['content-length'])} is not a length")
    if status == 200:
        sent = parse_content_range(headers.get("content-range"))
        if sent and sent.start is not None and sent.end is not None and length == sent.end - sent.start != sent.total:
            return Answer(Verdict.INVALID, reason=f"status 200 with Content-Range {_shown(headers['content-range'])}")
        return Answer(Verdict.BODY, start=0, end=length, total=length)
    return _judge_206(headers, length, asked, total)


def _judge_416(headers: Headers, asked: ByteRange | None, total: int | None) -> Answer:
    stated = parse_content_range(headers.get("content-range"))
    size = stated.total if stated else None
    if asked is None:
        return Answer(Verdict.STATUS, reason="HTTP status 416 to a request without a range")
    if size == 0 and asked[0] == 0 and not total:
        return Answer(Verdict.EMPTY, total=0)
    if total is not None and size is not None and size != total:
        return Answer(Verdict.CHANGED, reason=f"the file has {size} bytes now, and had {total}")
    return Answer(Verdict.INVALID, reason="HTTP status 416 to a range inside the file")


def _judge_206(headers: Headers, length: int | None, asked: ByteRange | None, total: int | None) -> Answer:
    if asked is None:
        return Answer(Verdict.INVALID, reason="206 to a request without a range")
    if headers.get("content-type", "").lower().startswith("multipart/byteranges"):
        return Answer(Verdict.INVALID, reason="multipart/byteranges to a single range")
    sent = parse_content_range(headers.get("content-range"))
    if sent is None or sent.start is None or sent.end is None:
        return Answer(Verdict.INVALID, reason=f"206 with Content-Range {_shown(headers.get('content-range'))}")
    if length is not None and length != sent.end - sent.start:
        reason = f"Content-Length {length} contradicts Content-Range {_shown(headers['content-range'])}"
        return Answer(Verdict.INVALID, reason=reason)
    if total is not None and sent.total is not None and sent.total != total:
        return Answer(Verdict.CHANGED, reason=f"the file has {sent.total} bytes now, and had {total}")
    start, end = asked
    if sent.start > start or sent.end <= start:
        return Answer(Verdict.INVALID, reason=f"asked for bytes from {start}, got {_shown(headers['content-range'])}")
    if end is not None and sent.end > end:
        return Answer(Verdict.INVALID, reason=f"asked for bytes up to {end}, got {_shown(headers['content-range'])}")
    return Answer(Verdict.BODY, start=sent.start, end=sent.end, total=sent.total)


def judge_part(answer: Answer, status: int, part: tuple[int, int]) -> Answer:
    """What a response means where only bytes `part` (start, end exclusive) of the file are wanted.

    Positions in the result are relative to the part. The verdict is never a body much larger than the part.
    """
    first, end = part
    wanted = f"bytes {first} to {end - 1} were requested"
    if status == 416 and answer.verdict in (Verdict.EMPTY, Verdict.INVALID):
        return Answer(Verdict.NO_RANGE, reason=f"HTTP status 416: the file has no such range; {wanted}")
    if answer.verdict in (Verdict.CODED, Verdict.INVALID):
        return Answer(Verdict.NO_RANGE, reason=f"{answer.reason}; {wanted}")
    if answer.verdict is not Verdict.BODY:
        return answer
    if status == 200 and (first, answer.total) != (0, end):
        return Answer(Verdict.NO_RANGE, reason=f"the server ignores ranges and sends the whole file; {wanted}")
    if answer.total is not None and answer.total < end:
        return Answer(Verdict.NO_RANGE, reason=f"the file has {answer.total} bytes; {wanted}")
    if answer.start < first - _OVERLAP_BYTES:
        return Answer(Verdict.NO_RANGE, reason=f"the server sends bytes from {answer.start}; {wanted}")
    return answer._replace(start=answer.start - first, end=None if answer.end is None else answer.end - first)


def _shown(value: str | None) -> str:
    """What a server sent, shortened for a message: it may be a quarter of a megabyte."""
    return repr(value and value[:_SHOWN])


def _content_length(headers: Headers) -> int | None:
    """None if absent or overridden by chunked coding (RFC 9112 section 6.3); -1 if it is not one number."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return None
    text = headers.get("content-length")
    if text is None:
        return None
    values = {value.strip() for value in text.split(",")}
    value = values.pop()
    return int(value) if not values and _DIGITS.fullmatch(value) else -1
