"""What kind of source something is, by its first bytes. What can't be told for certain is not guessed."""

from __future__ import annotations

import re
from io import BytesIO
from urllib.parse import urlsplit

from perfkit.archives.decompress import Unpacked, compression
from perfkit.archives.members import Limits
from perfkit.archives.tar import is_header
from perfkit.downloads.request_list import split_line
from perfkit.errors import ConfigError, ManifestError
from perfkit.updates.source_types import Kind

__all__ = ["FIRST_BYTES", "METALINK_NAMESPACE", "recognise"]

METALINK_NAMESPACE = "urn:ietf:params:xml:ns:metalink"
FIRST_BYTES = 16 << 10  # how many of them should be there, if the source has them
_BLOCK = 512
_TARS = re.compile(r"\.(?:tar\.(?:gz|bz2|xz|zst)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_XML_ROOT = re.compile(rb"\s*+(?:<\?xml[^>]*\?>)?+(?:\s|<!--.*?-->)*+<(?:[\w.-]+:)?metalink\s[^>]*", re.DOTALL)
_HTML = ("text/html", "application/xhtml+xml")


def recognise(url: str, first: bytes, content_type: str | None = None) -> Kind | None:
    """The kind of the source at `url` whose first bytes are these; None if it is none of those that this page knows.

    A release is not told here: its pointer has a format of its own. The content decides. The type that the server says
    only rules out lists when it says HTML; the URL's extension only decides whether a compressed file whose beginning
    can't be unpacked yet (bzip2 needs up to 900 kB for that) is a tar.

    Raises:
        ConfigError: it is compressed, and not a tar.
    """
    if first.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return Kind.ZIP
    if first.startswith(b"zsync: "):
        return Kind.ZSYNC
    if packed := compression(first):
        return _recognise_compressed(url, first, packed)
    if is_header(first[:_BLOCK]):
        return Kind.TAR
    text = first.removeprefix(b"\xef\xbb\xbf")
    root = _XML_ROOT.match(text)
    if root and METALINK_NAMESPACE.encode() in root[0]:
        return Kind.METALINK
    html = content_type is not None and content_type.partition(";")[0].strip().lower() in _HTML
    return Kind.URLS if not html and _is_url_list(text, whole=len(first) < FIRST_BYTES) else None


def _recognise_compressed(url: str, first: bytes, packed: str) -> Kind:
    unpacked = b""
    try:
        reader = Unpacked(BytesIO(first), Limits())
        while len(unpacked) < _BLOCK and (piece := reader.piece()):
            unpacked += piece
    except ManifestError:  # the end of what is at hand, most often
        pass
    if is_header(unpacked[:_BLOCK]) or (len(unpacked) < _BLOCK and _TARS.search(urlsplit(url).path)):
        return Kind.TAR
    raise ConfigError(f"{url}: a {packed} file that is not a tar archive can't be synchronised; download it instead")


def _is_url_list(data: bytes, *, whole: bool) -> bool:
    """Whether every line is a URL, a comment or empty, and there is a URL. Relative URLs don't tell enough."""
    complete = data if whole else data[: data.rfind(b"\n") + 1]
    try:
        lines = [split_line(line) for line in complete.decode().splitlines()]
    except (UnicodeDecodeError, ConfigError):
        return False
    urls = [line[0] for line in lines if line is not None]
    return bool(urls) and all(re.match(r"https?://[^\s<>\0]+$", url) for url in urls)
