"""Read tar archives, plain or compressed, once from start to end.

Formats: ustar, GNU long names and PAX (POSIX.1-2001, pax(1)). `tarfile` only parses single header blocks: it would
read headers of any size into memory, follow links, and extract.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from perfkit.archives import limits
from perfkit.archives.decompress import Readable, decompressed
from perfkit.archives.members import HARD_LINK, SYMLINK, Member, MemberNames, Selection, Stream
from perfkit.errors import ManifestError

_BLOCK = 512
_EXTENSION_BYTES = 256 << 10  # limit of one PAX header or long name
_TRAILER_BYTES = 64 << 20  # limit of the padding after the end-of-archive blocks
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_KINDS = {
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: SYMLINK,
    tarfile.LNKTYPE: HARD_LINK,
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
}

_DUMPDIR = b"D"  # of GNU tar -g: a directory whose content is a list of its entries
_LABEL = b"V"  # of GNU tar -V: the name of the archive, in place of a member's

Content = Iterator[memoryview]


def is_header(block: bytes) -> bool:
    """Whether these are the first bytes of a tar archive: a header block with a correct checksum."""
    try:
        return bool(_parse(block[:_BLOCK]).name)
    except ManifestError:
        return False


def read_members(source: Readable, *, selection: Selection = Selection()) -> Iterator[tuple[Member, Content]]:
    """The wanted files of a tar archive, one after another, each with its content in chunks.

    Content that the caller does not read is skipped. The check of the archive, including name collisions and the
    checksum of the compression, is complete only when the iterator has ended: commit nothing before. The copies that
    links add come last; they have no content of their own.

    Raises:
        ManifestError: damaged, truncated, a decompression bomb; a wanted member is a device, sparse, a duplicate, or a
            link that is refused or points to nothing.
        UnsafePathError: a name leads outside the tree, or collides with another.
        Anything that `source` raises.
    """
    stream = Stream(partial(next, decompressed(source), b""), "the tar archive")
    names = MemberNames(selection)
    for header, extended in _headers(stream):
        name = header.name if extended.path is None else extended.path
        kind = "file" if header.type in _FILES else _KINDS.get(header.type, f"of the unknown type {header.type!r}")
        if extended.sparse:
            kind = "a sparse file"
        elif header.type == _DUMPDIR or (kind == "file" and name.endswith("/")):  # as pre-POSIX archives write it
            kind = "directory"
        wanted = names.admit(name, kind=kind)
        # POSIX gives links, directories and devices no content, whatever their size field says
        length = 0 if header.type in _KINDS else header.size if extended.size is None else extended.size
        end = stream.position + length
        if wanted is not None and kind in (SYMLINK, HARD_LINK):
            target = header.linkname if extended.link is None else extended.link
            names.add_link(name, target, hard=kind == HARD_LINK)
        elif wanted is not None:
            content = stream.chunks(end)
            yield Member(wanted, length, bool(header.mode & 0o100)), content
            content.close()  # the caller can no longer read from it
        stream.skip_to(end + -length % _BLOCK)
    for copy, original in names.close().items():
        yield Member(copy, 0, False, copy_of=original), iter(())
    end = stream.position + _TRAILER_BYTES
    for _ in stream.rest():  # up to the checksum of the compression
        if stream.position > end:
            raise ManifestError(f"the tar archive has more than {_TRAILER_BYTES} bytes after its end")


@dataclass(slots=True)
class _Extended:
    """What extension headers say about the next member."""

    path: str | None = None
    link: str | None = None
    size: int | None = None
    sparse: bool = False

    def add(self, type: bytes, payload: bytes) -> None:
        if type == tarfile.GNUTYPE_LONGNAME:
            self.path = payload.partition(b"\0")[0].decode(errors="surrogateescape")
        elif type == tarfile.GNUTYPE_LONGLINK:
            self.link = payload.partition(b"\0")[0].decode(errors="surrogateescape")
        else:
            records = _parse_pax(payload)
            self.sparse = self.sparse or any(key.startswith("GNU.sparse.") for key in records)
            if type == tarfile.XGLTYPE and not records.keys().isdisjoint(("path", "linkpath", "size")):
                raise ManifestError("the tar archive has a global header that gives all members one name or size")
            self.path = records.get("path", self.path)
            self.link = records.get("linkpath", self.link)
            self.size = _parse_size(records["size"]) if "size" in records else self.size


def _headers(stream: Stream) -> Iterator[tuple[tarfile.TarInfo, _Extended]]:
    """The header of each member, and what extension headers say about it; the caller skips its content."""
    extended, extensions = _Extended(), 0
    while (block := stream.take_exactly(_BLOCK)).strip(b"\0"):
        header = _parse(block)
        if header.type in _EXTENSIONS:
            extensions += 1
            if extensions > 2 * limits.MEMBERS:
                raise ManifestError("the tar archive has too many extension headers")
            if header.size > _EXTENSION_BYTES:
                raise ManifestError(f"the tar archive has an extension header of {header.size} bytes")
            extended.add(header.type, stream.take_exactly(header.size))
            stream.skip_to(stream.position + -header.size % _BLOCK)
            continue
        if header.type == _LABEL:
            stream.skip_to(stream.position + header.size + -header.size % _BLOCK)
            continue
        if header.type == tarfile.GNUTYPE_SPARSE:
            extended.sparse, more = True, block[482]
            while more:  # of the list of holes
                more = stream.take_exactly(_BLOCK)[504]
        yield header, extended
        extended = _Extended()
    if stream.position == _BLOCK:  # a file of zeros, as a crash leaves one, would empty the tree
        raise ManifestError("the tar archive is empty, or all zeros")


def _parse(block: bytes) -> tarfile.TarInfo:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise ManifestError(f"not a tar archive, or damaged: {error}") from error
    if header.size < 0:
        raise ManifestError(f"the tar archive has a member of {header.size} bytes")
    if block[257:263] != b"ustar\0":  # GNU tar -g writes times where ustar has the beginning of the name
        header.name = block[:100].partition(b"\0")[0].decode(errors="surrogateescape")
    return header


def _parse_pax(payload: bytes) -> dict[str, str]:
    """The records of an extended header: `length keyword=value` and a line feed each."""
    records = {}
    position = 0
    while position < len(payload):
        digits = payload[position : position + 10].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record = payload[position + len(digits) + 1 : position + length]
        key, separator, value = record[:-1].partition(b"=")
        if position + length > len(payload) or not record.endswith(b"\n") or not separator:
            raise ManifestError("the tar archive has a damaged PAX header")
        records[key.decode(errors="surrogateescape")] = value.decode(errors="surrogateescape")
        position += length
    return records


def _parse_size(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ManifestError(f"the tar archive has a member of {text!r} bytes")
    return int(text)
