"""The HTTP rules, as tables: headers in, decisions out."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfkit.downloads.http.semantics import (
    Answer,
    ContentRange,
    Verdict,
    Version,
    content_disposition_names,
    judge,
    judge_part,
    may_be_filling_a_cache,
    parse_content_range,
    parse_repr_digest,
    parse_retry_after,
    version_of,
)

pytestmark = pytest.mark.once

NOW = datetime.datetime(2026, 1, 1, 12, 0, 0, tzinfo=datetime.UTC)
BEFORE_1970 = "Thu, 01 Jan 1959 00:00:00 GMT"
NOON = "Thu, 01 Jan 2026 12:00:00 GMT"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("bytes 0-99/200", ContentRange(0, 100, 200)),
        ("Bytes 5-5/6", ContentRange(5, 6, 6)),
        ("bytes 0-99/*", ContentRange(0, 100, None)),
        ("bytes */200", ContentRange(None, None, 200)),
        ("bytes */*", None),
        ("bytes 5-4/10", None),
        ("bytes 0-10/10", None),
        ("items 0-9/10", None),
        ("bytes 0-9", None),
        ("bytes 0-9/10, 20-29/30", None),
        ("bytes -1-9/10", None),
        ("bytes \u0661-9/10", None),
        ("bytes 0-99999999999999999999/*", None),
        ("", None),
        (None, None),
    ],
)
def test_content_range(text: str | None, found: ContentRange | None) -> None:
    """RFC 9110 section 14.4."""
    assert parse_content_range(text) == found


@given(st.text(max_size=60))
def test_no_header_breaks_a_parser(text: str) -> None:
    """Whatever a server sends, it is read or it is nothing."""
    parse_content_range(text)
    parse_repr_digest(text)
    parse_retry_after(text, now=NOW)
    content_disposition_names(text)
    headers = {
        "etag": text,
        "last-modified": text,
        "date": text,
        "content-length": text,
        "content-range": text,
        "content-encoding": text,
        "content-type": text,
        "transfer-encoding": text,
    }
    version_of(headers)
    for status in (200, 206, 416, 404):
        assert judge(status, headers, (0, 10), None).verdict


@pytest.mark.parametrize(
    ("headers", "proof"),
    [
        ({"etag": '"a"'}, ('"a"', None)),
        ({"etag": '""'}, ('""', None)),
        ({"etag": 'W/"a"'}, (None, None)),
        ({"etag": "a"}, (None, None)),
        ({"etag": '"'}, (None, None)),
        (
            {"last-modified": "Thu, 01 Jan 2026 11:00:00 GMT", "date": "Thu, 01 Jan 2026 12:00:00 GMT"},
            (None, "Thu, 01 Jan 2026 11:00:00 GMT"),
        ),
        ({"last-modified": NOON, "date": NOON}, (None, None)),
        (
            {"last-modified": "Thu, 01 Jan 2026 11:00:00 GMT"},  # without a Date the time of receipt counts
            (None, "Thu, 01 Jan 2026 11:00:00 GMT"),
        ),
        ({"last-modified": "Thu, 01 Jan 2099 12:00:00 GMT"}, (None, None)),
        # ETags made of the second of modification: nginx, Caddy, decimal; the last one has the nanoseconds of aiohttp.
        ({"etag": '"695661c0-1eca"', "last-modified": NOON, "date": NOON}, (None, None)),
        ({"etag": '"t86pc0e1"', "last-modified": NOON, "date": NOON}, (None, None)),
        ({"etag": '"1767268800"', "last-modified": NOON, "date": NOON}, (None, None)),
        (
            {"etag": '"695661bf-1eca"', "last-modified": "Thu, 01 Jan 2026 11:59:59 GMT"},
            ('"695661bf-1eca"', "Thu, 01 Jan 2026 11:59:59 GMT"),
        ),
        (
            {"etag": '"1886999c36a18000-1eca"', "last-modified": NOON, "date": NOON},
            ('"1886999c36a18000-1eca"', None),
        ),
        ({"last-modified": "yesterday", "date": "today"}, (None, None)),
        ({"etag": '"a"', "last-modified": BEFORE_1970, "date": BEFORE_1970}, (None, None)),  # a clock that was reset
        ({}, (None, None)),
    ],
)
def test_only_strong_validators_are_used(headers: dict[str, str], proof: tuple[str | None, str | None]) -> None:
    """Strong ones only (RFC 9110 section 8.8)."""
    assert version_of(headers).proof == proof


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("9" * 400, 2.0**31),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        (None, None),
        ("", None),
        ("Thu, 01 Jan 2026 12:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0.0),
    ],
)
def test_retry_after(text: str | None, seconds: float | None) -> None:
    assert parse_retry_after(text, now=NOW) == seconds


ASKED = (100, 200), 1000  # a range, and the size of the file
WHOLE = (0, None), None
PLAIN = None, None


@pytest.mark.parametrize(
    ("status", "headers", "asked", "verdict"),
    [
        (206, {"content-range": "bytes 100-199/1000", "content-length": "100"}, ASKED, "body"),
        (206, {"content-range": "bytes 100-149/1000"}, ASKED, "body"),
        (206, {"content-range": "bytes 100-199/*"}, ASKED, "body"),
        (206, {"content-range": "bytes 90-199/1000"}, ASKED, "body"),
        (206, {"content-range": "bytes 0-99/1000"}, ASKED, "invalid"),
        (206, {"content-range": "bytes 101-199/1000"}, ASKED, "invalid"),
        (206, {"content-range": "bytes 100-200/1000"}, ASKED, "invalid"),
        (206, {"content-range": "bytes 100-199/1001"}, ASKED, "changed"),
        (206, {"content-range": "bytes 100-199/1000", "content-length": "99"}, ASKED, "invalid"),
        (206, {"content-range": "bytes */1000"}, ASKED, "invalid"),
        (206, {}, ASKED, "invalid"),
        (206, {"content-range": "bytes 0-9/10"}, PLAIN, "invalid"),
        (206, {"content-range": "bytes 100-199/1000", "content-type": "Multipart/Byteranges; b=x"}, ASKED, "invalid"),
        (206, {"content-range": "bytes 100-199/1000", "content-encoding": "br"}, ASKED, "coded"),
        (206, {"content-range": "bytes 100-199/1000", "content-encoding": "Identity"}, ASKED, "body"),
        (200, {"content-length": "1000"}, ASKED, "body"),
        (200, {"content-length": "5, 5"}, WHOLE, "body"),
        (200, {"content-length": "5, 6"}, WHOLE, "invalid"),
        (200, {"content-length": "-5"}, WHOLE, "invalid"),
        (200, {"content-length": "x", "transfer-encoding": "Chunked"}, WHOLE, "body"),
        (412, {}, ASKED, "changed"),
        (304, {}, WHOLE, "current"),
        (416, {"content-range": "bytes */0"}, WHOLE, "empty"),
        (416, {"content-range": "bytes */999"}, ASKED, "changed"),
        (416, {"content-range": "bytes */1000"}, ASKED, "invalid"),
        (416, {}, ASKED, "invalid"),
        (416, {}, PLAIN, "status"),
        (204, {}, WHOLE, "status"),
        (404, {}, WHOLE, "status"),
        (503, {}, WHOLE, "status"),
    ],
)
def test_which_responses_continue_a_range(
    status: int, headers: dict[str, str], asked: tuple[Any, int | None], verdict: str
) -> None:
    """RFC 9110 sections 14 and 15.3.7."""
    assert judge(status, headers, *asked).verdict.value == verdict


@pytest.mark.parametrize(
    ("answer", "status", "verdict"),
    [
        (Answer(Verdict.BODY, start=500_000, end=500_100, total=600_000), 206, "body"),
        (Answer(Verdict.BODY, start=500_000, end=500_100, total=None), 206, "body"),
        (Answer(Verdict.BODY, start=499_000, end=500_100, total=600_000), 206, "body"),
        (Answer(Verdict.BODY, start=0, end=500_100, total=600_000), 206, "no range"),
        (Answer(Verdict.BODY, start=500_000, end=500_050, total=500_050), 206, "no range"),
        (Answer(Verdict.BODY, start=0, end=600_000, total=600_000), 200, "no range"),
        (Answer(Verdict.BODY, start=0, end=None, total=None), 200, "no range"),
        (Answer(Verdict.EMPTY), 416, "no range"),
        (Answer(Verdict.INVALID), 416, "no range"),
        (Answer(Verdict.CODED), 206, "no range"),
        (Answer(Verdict.CHANGED), 412, "changed"),
        (Answer(Verdict.INVALID), 206, "no range"),
        (Answer(Verdict.STATUS), 404, "status"),
    ],
)
def test_which_responses_give_a_part(answer: Answer, status: int, verdict: str) -> None:
    """Where only bytes 500,000 to 500,099 are wanted."""
    found = judge_part(answer, status, (500_000, 500_100))
    assert found.verdict.value == verdict
    if verdict == "body":
        assert found.start == answer.start - 500_000
        assert found.end == 100


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('attachment; filename="a b.txt"', ["a b.txt"]),
        ("attachment; filename=plain", ["plain"]),
        ("attachment; filename*=UTF-8''%e2%82%ac", ["\u20ac"]),
        ("attachment; filename*=iso-8859-15''%a4", ["\u20ac"]),
        ("attachment; filename*=UTF-8''na%C3%AFve; filename=naive", ["naïve", "naive"]),
        ("attachment; filename=naive; filename*=UTF-8''na%C3%AFve", ["naïve", "naive"]),
        ("attachment; filename*=UTF-8''%FF; filename=plain", ["plain"]),
        ("attachment; filename*=no-such-charset''x; filename=plain", ["plain"]),
        ('attachment; filename="中文.rar"'.encode().decode("latin-1"), ["中文.rar"]),
        ('attachment; filename="caf\xe9"', ["café"]),
        ('attachment; filename="a.txt";', ["a.txt"]),
        ("attachment", []),
        ("", []),
        (None, []),
        ("x" * 5000, []),
    ],
)
def test_content_disposition(text: str | None, names: list[str]) -> None:
    """RFC 6266; what it means for the disk is decided elsewhere."""
    assert content_disposition_names(text) == names


def test_the_strongest_digest_is_taken() -> None:
    """RFC 9530."""
    sha256, sha512 = "A" * 43 + "=", "A" * 86 + "=="
    assert parse_repr_digest(f"sha-256=:{sha256}:, sha-512=:{sha512}:") == "sha512:" + "0" * 128
    assert parse_repr_digest(f"unixsum=:AA==:, SHA-256=:{sha256}:;q=1") == "sha256:" + "0" * 64
    assert parse_repr_digest(f"sha-512=:{sha256}:") is None


@pytest.mark.parametrize(
    ("headers", "plain", "encrypted"),
    [
        ({}, False, False),
        ({"cache-control": "max-age=3600"}, True, False),
        ({"cache-control": "public, s-maxage=60"}, True, False),
        ({"cache-control": "max-age=0, must-revalidate"}, False, False),
        ({"cache-control": "no-store, max-age=60", "via": "1.1 squid"}, False, False),
        ({"cache-control": "private", "age": "0"}, False, False),
        ({"via": "1.1 vm (squid/5.7)", "x-cache": "MISS from white-host"}, True, True),
        ({"via": "1.1 vm (squid/5.7)", "x-cache": "HIT from vm"}, False, False),
        ({"via": "1.1 varnish (Varnish/7.1)", "age": "0"}, True, True),
        ({"via": "1.1 varnish (Varnish/7.1)", "age": "17"}, False, False),
        ({"via": "1.1 0f.cloudfront.net (CloudFront)", "x-cache": "RefreshHit from cloudfront"}, False, False),
        ({"x-cache": "TCP_HIT"}, False, False),
        ({"cache-status": "ExampleCache; fwd=miss; stored"}, True, True),
        ({"cache-status": "ExampleCache; hit"}, False, False),
    ],
)
def test_whether_a_cache_may_be_storing_an_answer(headers: dict[str, str], plain: bool, encrypted: bool) -> None:
    """RFC 9111 section 3, RFC 9211, and what caches add of their own."""
    assert may_be_filling_a_cache(headers, encrypted=False) == plain
    assert may_be_filling_a_cache(headers, encrypted=True) == encrypted


@pytest.mark.parametrize(
    ("etag", "found", "modified", "same"),
    [
        ('W/"1"', 'W/"1"', NOON, True),  # as Apache sends a file that is dated in the future
        ('W/"1"', 'W/"2"', NOON, False),
        ('"1"', '"1"', NOON, False),  # some servers keep an ETag for the life of their process
        ('W/"1"', 'W/"1"', "Thu, 01 Jan 2026 11:59:58 GMT", False),
        ('W/"1"', None, NOON, False),
        (None, None, NOON, False),
    ],
)
def test_a_date_that_is_that_of_the_response(etag: str | None, found: str | None, modified: str, same: bool) -> None:
    """Says nothing of the file beside equal weak ETags, and is no proof of its bytes."""
    known = Version(etag, "Thu, 01 Jan 2026 11:00:00 GMT")
    headers = {"last-modified": modified, "date": NOON, **({"etag": found} if found else {})}
    assert known.is_same_as(version_of(headers)) == same
    assert known.differs(headers) != same
    assert not known.is_proven_by(headers)
