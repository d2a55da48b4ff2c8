"""Lists of URLs, Metalink documents, and how the type of a source is detected."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfkit.errors import ManifestError, PerfkitError, UnsafePathError
from perfkit.updates.source_types import SourceType
from perfkit.updates.sources.detect import FIRST_BYTES, detect_type
from perfkit.updates.sources.url_lists import parse_metalink, parse_urls
from tests.support.archive_tools import make_tar, make_zip, unpack_zip
from tests.support.hostile import bounded

pytestmark = pytest.mark.once

SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
METALINK = f"""<?xml version="1.0" encoding="UTF-8"?>
<!-- made by hand -->
<metalink xmlns="urn:ietf:params:xml:ns:metalink">
  <published>2009-05-15T12:23:23Z</published>
  <file name="dir/example.ext">
    <size>4</size>
    <hash type="md5">098f6bcd4621d373cade4e832627b4f6</hash>
    <hash type="sha-256">{SHA256}</hash>
    <url location="de" priority="2">http://two.example/example.ext</url>
    <url>http://last.example/example.ext</url>
    <url location="fr" priority="1">https://one.example/example.ext</url>
    <url priority="1">ftp://ftp.example/example.ext</url>
    <metaurl mediatype="torrent">http://example/example.ext.torrent</metaurl>
  </file>
  <file name="other"><url>http://example/other</url></file>
</metalink>
"""


def test_a_list_of_urls_is_read() -> None:
    """A line each: URL, name, checksum; comments and empty lines; relative to the list's own URL if it has one."""
    text = f"# files\n\nhttps://h/a%20b.txt\nhttps://h/x\tdir/y\tsha256:{SHA256}\n"
    first, second = parse_urls(text.split("\n"))
    assert (first.name, first.request.url, first.request.size) == ("a b.txt", "https://h/a%20b.txt", None)
    assert (second.name, second.request.name, second.request.checksum) == ("dir/y", "dir/y", f"sha256:{SHA256}")
    [third] = parse_urls(["sub/f.bin\n"], base="https://h/lists/urls.txt")
    assert third.request.url == "https://h/lists/sub/f.bin"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", ManifestError),
        ("# nothing\n", ManifestError),
        ("file:///etc/passwd", ManifestError),
        ("relative/name", ManifestError),
        ("https://h/", ManifestError),
        ("<!doctype html><title>Please log in</title>", ManifestError),
        ("https://h/a\tb\tsha256:00", ManifestError),
        ("https://h/a\tb\t\tmore", ManifestError),
        ("https://h/a\t../b", UnsafePathError),
        ("https://h/a\t/b", UnsafePathError),
        ("https://h/a\thttps://i/a\n", UnsafePathError),
        ("https://h/a\nhttps://i/a\n", UnsafePathError),
        ("https://h/a\nhttps://i/A\n", UnsafePathError),
    ],
)
def test_lists_that_can_not_be_are_refused(text: str, error: type[Exception]) -> None:
    """Nothing in it, no URL, names that lead outside or collide."""
    with pytest.raises(error):
        parse_urls(text.split("\n"))


def test_metalink_is_read() -> None:
    """Mirrors by priority, the best hash, the size; URLs that are not http are left out."""
    first, second = parse_metalink(io.BytesIO(METALINK.encode()))
    assert (first.name, first.request.size) == ("dir/example.ext", 4)
    assert first.request.url == "https://one.example/example.ext"
    assert first.request.mirrors == ("http://two.example/example.ext", "http://last.example/example.ext")
    assert first.request.checksum == f"sha-256:{SHA256}"
    assert (second.name, second.request.size, second.request.checksum) == ("other", None, None)
    assert first.pieces is second.pieces is None


PIECES = METALINK.replace('<hash type="sha-256">', '<hash type="none">').replace(
    '<hash type="md5">098f6bcd4621d373cade4e832627b4f6</hash>',
    f'<pieces length="1024" type="md5"><hash>{"0" * 32}</hash></pieces>'
    f'<pieces length="1024" type="sha-256"><hash>{SHA256}</hash></pieces>',
)


def test_pieces_are_read() -> None:
    """Those of the strongest hash, and only where the whole file has none: that says more."""
    pieces = parse_metalink(io.BytesIO(PIECES.encode()))[0].pieces
    assert pieces is not None
    assert (pieces.length, [str(each) for each in pieces.checksums]) == (1024, [f"sha256:{SHA256}"])
    both = PIECES.replace('<hash type="none">', '<hash type="sha-256">')
    assert parse_metalink(io.BytesIO(both.encode()))[0].pieces is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('length="1024" type="sha-256"', 'type="sha-256"'),
        ('length="1024" type="sha-256"', 'length="0" type="sha-256"'),
        ('length="1024" type="sha-256"', 'length="1" type="sha-256"'),
        ('length="1024" type="sha-256"', 'length="x" type="sha-256"'),
        ("<size>4</size>", "<size>1025</size>"),
        (f"<hash>{SHA256}</hash>", ""),
        (f"<hash>{SHA256}</hash>", "<hash>00</hash>"),
    ],
)
def test_pieces_that_can_not_be_are_refused(old: str, new: str) -> None:
    """Lengths that are none, more or fewer pieces than the size has, hashes that are none."""
    assert old in PIECES
    with pytest.raises(ManifestError):
        parse_metalink(io.BytesIO(PIECES.replace(old, new).encode()))


ROOT = '<metalink xmlns="urn:ietf:params:xml:ns:metalink">'


class Endless(io.RawIOBase):
    """A document that begins with a text, and repeats another one."""

    def __init__(self, first: str, then: str) -> None:
        self._rest, self._then = first.encode(), then.encode() * 10_000
        self.given = 0

    def read(self, size: int = -1) -> bytes:
        if not self._rest:
            self._rest = self._then
        data, self._rest = self._rest[:size], self._rest[size:]
        self.given += len(data)
        return data


@pytest.mark.parametrize(
    ("first", "then", "reason"),
    [
        (ROOT, "<a>", "too many elements"),
        (f"{ROOT}<file>", "<a/>", "too many elements"),
        (f"{ROOT}<file>", "text", "more than 8388608 bytes about one file"),
        (f'{ROOT}<file name="', "text", "more than 8388608 bytes about one file"),
        (f"{ROOT}<!--", "text", "more than 8388608 bytes about one file"),
        (ROOT, '<a/><file name="a"><url>http://a/</url></file>', "more files than max_files, which is 2,000"),
        ("", "<a>", "not a Metalink 4 document"),
    ],
)
def test_endless_metalinks(first: str, then: str, reason: str) -> None:
    """Only the elements of one file are in memory, and what is allowed of them."""
    document = Endless(first, then)
    with bounded(40), pytest.raises(ManifestError, match=reason):
        parse_metalink(document, most=2000)  # type: ignore[arg-type]


def test_names_that_do_not_collide_take_little_memory() -> None:
    with bounded(4):
        parse_urls(f"https://h/{number:05}\td{number // 100}/{number:05}.txt" for number in range(20_000))


def test_endless_lists() -> None:
    """No more lines are read than files are allowed, and of a line no more than a URL may have."""
    with bounded(8), pytest.raises(ManifestError, match="longer than 65536 characters"):
        parse_urls(["http://a/" + "x" * 1_000_000])
    lines = itertools.count()
    with bounded(8), pytest.raises(ManifestError, match="more files than max_files, which is 2,000"):
        parse_urls((f"http://a/{number}" for number in lines), most=2000)
    assert next(lines) == 2001


BOMB = (
    '<!DOCTYPE m [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
    + "]>"
)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("<!-- made by hand -->", BOMB, ManifestError),
        ("<!-- made by hand -->", '<!DOCTYPE m SYSTEM "file:///etc/passwd">', ManifestError),
        ("dir/example.ext", "../example.ext", UnsafePathError),
        ("dir/example.ext", "/example.ext", UnsafePathError),
        ('name="other"', 'name="DIR/example.ext"', UnsafePathError),
        ('name="other"', "", UnsafePathError),
        ("<size>4", "<size>-4", ManifestError),
        ("<size>4", "<size>4e9", ManifestError),
        (SHA256, "abcd", ManifestError),
        ('priority="2"', 'priority="x"', ManifestError),
        ("http://example/other", "ftp://example/other", ManifestError),
        ("ns:metalink", "ns:metalink3", ManifestError),
        ("</metalink>", "", ManifestError),
        ("<published>", "<a>" * 40 + "<published>", ManifestError),
        ('encoding="UTF-8"', 'encoding="none-such"', ManifestError),
    ],
)
def test_metalinks_that_attack_are_refused(old: str, new: str, error: type[Exception]) -> None:
    """Entities, names that lead outside or collide, numbers and hashes that can't be, other documents."""
    assert old in METALINK
    with pytest.raises(error):
        parse_metalink(io.BytesIO(METALINK.replace(old, new, 1).encode()))


@given(st.lists(st.tuples(st.integers(0, len(METALINK) - 1), st.binary(min_size=1, max_size=8)), max_size=6))
def test_fuzzed_metalinks_give_typed_errors(edits: list[tuple[int, bytes]]) -> None:
    """Whatever a document says, nothing but our own errors comes out."""
    data = bytearray(METALINK.encode())
    for position, piece in edits:
        data[position : position + len(piece)] = piece
    try:
        parse_metalink(io.BytesIO(bytes(data)))
    except PerfkitError:
        pass


@given(st.text())
def test_fuzzed_lists_give_typed_errors(text: str) -> None:
    """Whatever a list says, also behind a base, nothing but our own errors comes out."""
    for base in (None, "https://h/x"):
        for prefix in ("", "https://", "https://h/"):
            try:
                parse_urls(io.StringIO(prefix + text), base=base)
            except PerfkitError:
                pass


def test_the_type_is_detected_from_content() -> None:
    """By magic and structure; the URL's extension says nothing."""
    tar = make_tar()
    for data in (tar, gzip.compress(tar), lzma.compress(tar), bz2.compress(tar)):
        assert detect_type("https://h/x.zip", data[:FIRST_BYTES]) is SourceType.TAR
    assert detect_type("https://h/x.tar", make_zip()[:FIRST_BYTES]) is SourceType.ZIP
    assert detect_type("https://h/x", make_zip({})) is SourceType.ZIP
    for marker in (b"PK\x07\x08", b"PK00"):  # as `zip -s` writes, also if a single part is enough
        assert detect_type("https://h/x", marker + make_zip()) is SourceType.ZIP
        assert unpack_zip(marker + make_zip({"a": b"a"})) == {"a": b"a"}
    assert detect_type("https://h/x", b"zsync: 0.6.2\nFilename: x\n") is SourceType.ZSYNC
    assert detect_type("https://h/x", METALINK.encode()) is SourceType.METALINK
    assert detect_type("https://h/x", b"# mine\nhttps://h/a\nHTTPS://h/b\tname\n") is SourceType.URLS


def test_a_long_list_is_known_by_its_complete_lines() -> None:
    """The line that the first bytes cut through is left out."""
    text = "".join(f"https://host/file-{number}\n" for number in range(2000)).encode()
    assert detect_type("https://h/x", text[:FIRST_BYTES]) is SourceType.URLS


@pytest.mark.parametrize(
    ("first", "content_type"),
    [
        (b"", None),
        (b"<!DOCTYPE html><html>https://h/a</html>", None),
        (b"https://h/a\n", "text/html; charset=utf-8"),
        (b"https://h/a\nplease log in\n", "text/plain"),
        (b"relative\n", "text/plain"),
        (b"# only a comment\n", "text/plain"),
        (b"\x00\x01\x02", None),
        (b'{"version": 1}', "application/json"),
        (b"<metalink version='3.0' xmlns='http://www.metalinker.org/'>", None),
        (b"<note>urn:ietf:params:xml:ns:metalink</note>", None),
    ],
)
def test_what_is_not_certain_is_not_guessed(first: bytes, content_type: str | None) -> None:
    """Error pages, text, other XML and JSON are none of ours, whatever the URL promises."""
    assert detect_type("https://h/x.tar.gz", first, content_type) is None


def test_compressed_files_that_are_not_tars() -> None:
    """They are plain files. Only where nothing can be unpacked yet does the name decide."""
    assert detect_type("https://h/x.tar.gz", gzip.compress(b"text" * 1000)) is None
    noise = bz2.compress(random.Random(1).randbytes(100_000))[:300]
    assert detect_type("https://h/x.tar.bz2", noise) is SourceType.TAR
    assert detect_type("https://h/x.bz2", noise) is None
