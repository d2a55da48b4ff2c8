"""Detect the type of a source by its first bytes. An ambiguous type is not guessed."""

from __future__ import annotations

import contextlib
import re
from io import BytesIO
from urllib.parse import urlsplit

from perfkit.archives.decompress import decompressed, detect_compression
from perfkit.archives.tar import is_header
from perfkit.downloads.request import split_line
from perfkit.errors import ConfigError, ManifestError
from perfkit.updates.source_types import SourceType

METALINK_NAMESPACE = "urn:ietf:params:xml:ns:metalink"
FIRST_BYTES = 16 << 10  # to give to `detect_type`, if the source has that many
_BLOCK = 512
# The last two begin an archive that was to be split, and has one part only (APPNOTE.TXT 6.3.10, section 8.5).
_ZIPS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08PK\x03\x04", b"PK00PK\x03\x04")
_TARS = re.compile(r"\.(?:tar\.(?:gz|bz2|xz|zst)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
# A comment can match in one way only, so that patterns of many don't take forever. `(...)*+` would do, too, but CPython
# 3.11.2, which is Debian 12's, matches it wrongly.
_COMMENT = rb"<!--(?:(?!-->).)*-->"
_XML_ROOT = re.compile(rb"\s*+(?:<\?xml[^>]*\?>)?(?:\s|" + _COMMENT + rb")*<(?:[\w.-]+:)?metalink\s[^>]*", re.DOTALL)
_PROGRAMS = (b"MZ", b"\x7fELF", b"#!")  # may start a self-extracting archive; the end of the file tells
_HTML = ("text/html", "application/xhtml+xml")
_PAGE = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*+(?:" + _COMMENT + rb"\s*|<\?xml[^>]*>\s*)*<(?:!doctype\s+html|html)\b", re.I | re.S
)


def is_html(content_type: str | None, first: bytes = b"") -> bool:
    """Whether a server declares HTML, and the first bytes, if there are any, are the beginning of a page."""
    declared = content_type is not None and content_type.partition(";")[0].strip().lower() in _HTML
    return declared and (not first or _PAGE.match(first) is not None)


def detect_type(url: str, first: bytes, content_type: str | None = None) -> SourceType | None:
    """The type of the source at `url` with these first bytes; None: unknown. Releases and plain files are not detected
    here.

    The content decides. A content type of HTML rules out lists, and nothing else. The extension of the URL only decides
    whether a compressed file whose beginning can't be decompressed yet (bzip2 needs up to 900 kB for that) is a tar.
    """
    if first.startswith(_ZIPS):
        return SourceType.ZIP
    if first.startswith(b"zsync: "):
        return SourceType.ZSYNC
    if detect_compression(first):
        return SourceType.TAR if _is_compressed_tar(url, first) else None
    if is_header(first[:_BLOCK]):
        return SourceType.TAR
    text = first.removeprefix(b"\xef\xbb\xbf")
    root = _XML_ROOT.match(text)
    if root and METALINK_NAMESPACE.encode() in root[0]:
        return SourceType.METALINK
    if not is_html(content_type) and _is_url_list(text, whole=len(first) < FIRST_BYTES):
        return SourceType.URLS
    return SourceType.ZIP if first.startswith(_PROGRAMS) else None


def _is_compressed_tar(url: str, first: bytes) -> bool:
    unpacked = b""
    with contextlib.suppress(ManifestError):  # mostly because more bytes are needed
        for chunk in decompressed(BytesIO(first)):
            unpacked += chunk
            if len(unpacked) >= _BLOCK:
                break
    unknown = len(unpacked) < _BLOCK
    return is_header(unpacked[:_BLOCK]) or (unknown and _TARS.search(urlsplit(url).path) is not None)


def _is_url_list(data: bytes, *, whole: bool) -> bool:
    """Whether every line is an absolute URL, a comment or empty, and there is a URL."""
    complete = data if whole else data[: data.rfind(b"\n") + 1]
    try:
        lines = [split_line(line) for line in complete.decode().splitlines()]
    except (UnicodeDecodeError, ConfigError):
        return False
    urls = [line[0] for line in lines if line is not None]
    return bool(urls) and all(re.match(r"https?://[^\s<>\0]+$", url, re.IGNORECASE) for url in urls)
