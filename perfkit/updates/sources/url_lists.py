"""Parse lists of files: plain lines, as `perfkit get -i` reads them, and Metalink 4 (RFC 5854)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import BinaryIO, NamedTuple
from urllib.parse import urljoin
from xml.etree import ElementTree

from perfkit.downloads.checksums import Checksum, parse_checksum
from perfkit.downloads.request import Request, split_line
from perfkit.errors import ConfigError, ManifestError
from perfkit.filesystem.compact import LazySequence, Names, Texts
from perfkit.filesystem.paths import check_names, is_url, safe_basename
from perfkit.updates.sources.detect import METALINK_NAMESPACE
from perfkit.updates.sources.pieces import Pieces

LIST_BYTES = 64 << 20  # of the largest list that is read
_FILES = 100_000  # maximum in a list; the default of `Config.max_files`
_DEPTH = 32  # of XML elements
_FILE_ELEMENTS, _FILE_BYTES = 100_000, 8 << 20  # of XML about one file, which may have as many pieces
_FEED_BYTES = 64 << 10
_PIECE_BYTES = 512  # shorter pieces are taken for an attack
_NAMESPACE = f"{{{METALINK_NAMESPACE}}}"
_HASHES = ("sha-512", "sha-384", "sha-256", "sha-1", "md5")  # IANA hash function textual names, strongest first
_LAST_PRIORITY = "999999"  # RFC 5854 section 4.2.16.2: 1 is the highest; the default is the lowest


class ListedFile(NamedTuple):
    """A file of a list."""

    request: Request  # its name is safe, and unique in the list; `size` is what the list says
    pieces: Pieces | None = None  # where the list has no checksum of the whole file

    @property
    def name(self) -> str:
        return self.request.name or ""


class Listed:
    """The files of a list, in its order, in about fifty bytes each."""

    def __init__(self, files: Iterable[ListedFile]) -> None:
        self.names = Names()
        self._rows = Texts()  # the rest, as JSON
        for request, pieces in files:
            parts = pieces and (pieces.length, pieces.checksums)
            self.names.append(request.name or "")
            self._rows.append(json.dumps((request.url, request.size, request.checksum, request.mirrors, parts)))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, at: int) -> ListedFile:
        url, size, checksum, mirrors, parts = json.loads(self._rows[at])
        request = Request(url, self.names[at], size=size, checksum=checksum, mirrors=tuple(mirrors))
        pieces = parts and Pieces(parts[0], tuple(Checksum(*each) for each in parts[1]))
        return ListedFile(request, pieces)

    def __iter__(self) -> Iterator[ListedFile]:
        return map(self.__getitem__, range(len(self)))

    def size(self, at: int) -> int | None:
        """The size that the list says, in bytes."""
        size: int | None = json.loads(self._rows[at])[1]
        return size


def parse_urls(lines: Iterable[str], *, base: str | None = None, most: int = _FILES) -> Listed:
    """The files of a list with one URL per line. The default name is the last path segment of the URL.

    Args:
        base: the URL of the list, to resolve relative URLs.
        most: how many files it may have.

    Raises:
        ManifestError: a line is malformed, or its URL is not http or https; too many lines.
        UnsafePathError: a name leads outside the tree, or two names collide.
    """
    return _checked(_parse_lines(lines, base), most)


def _parse_lines(lines: Iterable[str], base: str | None) -> Iterator[ListedFile]:
    for number, line in enumerate(lines, 1):
        try:
            if (parts := split_line(line)) is None:
                continue
            url, name, checksum = parts
            if url.startswith("<"):
                raise ConfigError("it is HTML or XML, not a URL")
            request = Request(urljoin(base, url) if base else url, checksum=checksum)
            if (name := name or safe_basename(request.url_name)) is None:
                raise ConfigError(f"{url!r} ends in no file name; add one after a tab")
        except (ConfigError, ValueError) as error:
            raise ManifestError(f"line {number} of the list of URLs: {error}") from error
        yield ListedFile(replace(request, name=name))


def _checked(listed: Iterable[ListedFile], most: int) -> Listed:
    found = Listed(islice(listed, most + 1))
    if len(found) > most:
        raise ManifestError(
            f"the list has more files than max_files, which is {most:,}; raise it if you trust the list"
        )
    if not found:
        raise ManifestError("the list is empty")
    check_names(LazySequence(found.names.__getitem__, range(len(found))))
    return found


def parse_metalink(document: BinaryIO, *, most: int = _FILES) -> Listed:
    """The files of a Metalink 4 document, each with its http and https mirrors by priority, and its strongest hash,
    or else those of its pieces. Only the elements of one file are in memory at a time.

    Args:
        most: how many files it may have.

    Raises:
        ManifestError: not well-formed, not Metalink 4, or with a document type or too much of one file; a file without
            an http or https URL; an invalid size or hash; a number of pieces that does not fit the size.
        UnsafePathError: a name leads outside the tree, or two names collide.
    """
    return _checked(_parse_document(document), most)


def _parse_document(document: BinaryIO) -> Iterator[ListedFile]:
    builder = _Builder()
    parser = ElementTree.XMLParser(target=builder)
    try:
        while data := document.read(_FEED_BYTES):  # expat parses all that it was fed, even after an error
            builder.count(len(data))
            parser.feed(data)
            yield from builder.listed
            builder.listed.clear()
        parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise ManifestError(f"the Metalink document is not well-formed: {error}") from error


class _Builder(ElementTree.TreeBuilder):
    """Builds the elements of a Metalink document, one file at a time, without entities, and with limits on depth,
    number and size.
    """

    def __init__(self) -> None:
        super().__init__()
        self.listed: list[ListedFile] = []  # the files whose elements have ended
        self._depth = self._elements = self._bytes = 0

    def count(self, size: int) -> None:
        """Count bytes before they are parsed: with each feed, expat starts over on a tag that has not ended."""
        self._bytes += size
        if self._bytes > _FILE_BYTES:
            raise ManifestError(f"the Metalink document has more than {_FILE_BYTES} bytes about one file")

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ManifestError("the Metalink document has a document type, which may define entities; remove the DOCTYPE")

    def start(self, tag: str, attrs: dict[str, str]) -> ElementTree.Element:
        self._depth += 1
        self._elements += 1
        if self._depth > _DEPTH or self._elements > _FILE_ELEMENTS:
            raise ManifestError("the Metalink document has too many elements")
        element = super().start(tag, attrs)
        if self._depth == 1:
            if tag != f"{_NAMESPACE}metalink":
                raise ManifestError(f"not a Metalink 4 document (RFC 5854): its root is {tag!r:.200}")
            self._root = element
        return element

    def end(self, tag: str) -> ElementTree.Element:
        element = super().end(tag)
        self._depth -= 1
        if self._depth == 1:
            if tag == f"{_NAMESPACE}file":
                self.listed.append(_parse_file(element))
            self._root.clear()
            self._elements = self._bytes = 0
        return element


def _parse_file(element: ElementTree.Element) -> ListedFile:
    name = element.get("name", "")
    mirrors = []
    for tag in element.iterfind(f"{_NAMESPACE}url"):
        url = (tag.text or "").strip()
        if is_url(url):  # others, such as ftp, are allowed and ignored
            priority = tag.get("priority", _LAST_PRIORITY)
            mirrors.append((_integer(priority, f"priority of a URL of {name!r}"), url))
    urls = [url for _, url in sorted(mirrors, key=lambda mirror: mirror[0])]
    if not urls:
        raise ManifestError(f"the file {name!r} of the Metalink document has no http or https URL")
    text = element.findtext(f"{_NAMESPACE}size")
    size = None if text is None else _integer(text.strip(), f"size of {name!r}")
    try:
        request = Request(urls[0], name, mirrors=tuple(urls[1:]), checksum=_best_hash(element), size=size)
        pieces = None if request.checksum else _best_pieces(element, name)
    except ConfigError as error:
        raise ManifestError(f"the file {name!r} of the Metalink document: {error}") from error
    if pieces is not None and size is not None and not pieces.fit(size):
        parts = f"{len(pieces.checksums)} pieces of {pieces.length} bytes"
        raise ManifestError(f"the Metalink document has {parts} for the {size} bytes of {name!r}")
    return ListedFile(request, pieces)


def _best_pieces(element: ElementTree.Element, name: str) -> Pieces | None:
    if (found := _strongest(element, "pieces")) is None:
        return None
    type, pieces = found
    length = _integer(pieces.get("length", ""), f"length of the pieces of {name!r}")
    if length < _PIECE_BYTES:
        raise ManifestError(f"the Metalink document has pieces of {length} bytes for {name!r}")
    hashes = pieces.iterfind(f"{_NAMESPACE}hash")
    return Pieces(length, tuple(parse_checksum(f"{type}:{(each.text or '').strip()}") for each in hashes))


def _best_hash(element: ElementTree.Element) -> str | None:
    found = _strongest(element, "hash")
    return None if found is None else f"{found[0]}:{(found[1].text or '').strip()}"


def _strongest(element: ElementTree.Element, tag: str) -> tuple[str, ElementTree.Element] | None:
    """Of the elements with this tag, the one whose type of hash is the strongest, and that type."""
    found = {each.get("type", "").lower(): each for each in element.iterfind(f"{_NAMESPACE}{tag}")}
    return next(((type, found[type]) for type in _HASHES if type in found), None)


def _integer(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ManifestError(f"the {what} in the Metalink document is {text[:40]!r}, not a number")
    return int(text)
