"""Read members of a zip archive by ranges, and verify them.

Format: APPNOTE.TXT 6.3.10 (PKWARE).
"""

from __future__ import annotations

import zlib
from array import array
from bisect import bisect_left
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from io import BytesIO
from typing import BinaryIO, NamedTuple, NoReturn

from perfkit.archives.coalesce import coalesce
from perfkit.archives.decompress import CHUNK_BYTES, Decoder, InflateDecoder, Readable, decode_frame, zstd_decoder
from perfkit.archives.limits import check_ratio
from perfkit.archives.members import MemberNames, Selection, Stream
from perfkit.archives.zip_directory import (
    DEFLATED,
    ENCRYPTED,
    LOCAL_HEADER,
    STORED,
    ReadRange,
    ZipMember,
    ZipMembers,
    apply_zip64,
    extra_fields,
    list_members,
)
from perfkit.errors import ManifestError

_DESCRIPTOR_FOLLOWS = 1 << 3  # 4.4.4
_TARGET_BYTES = 4096  # of a link: PATH_MAX
_LINK_GAP_BYTES = 16 << 10


class FetchRange(NamedTuple):
    """Adjacent members, to fetch at once."""

    start: int
    end: int
    members: Sequence[ZipMember]


def read_directory(read_range: ReadRange, size: int, *, selection: Selection = Selection()) -> ZipMembers:
    """The wanted files of an archive of `size` bytes, in the order of their offsets.

    Up to three ranges are read, plus those of links to be followed. The file that a link points to is listed under both
    names: members at the same offset have the same content.

    Raises:
        ManifestError: not a zip archive, damaged, split, or a decompression bomb; members overlap; a wanted member is
            encrypted, a duplicate, compressed by another method than deflate or zstd, or a link that is refused or
            points to nothing.
        UnsafePathError: a name leads outside the tree, or collides with another.
        Anything that `read_range` raises.
    """
    names = MemberNames(selection)
    members, links = list_members(read_range, size, names)
    for each in plan_ranges(links, gap=_LINK_GAP_BYTES):
        for member, content in read_members(each, BytesIO(read_range(each.start, each.end))):
            if member.size > _TARGET_BYTES:
                _refuse(member, f"it is a link with a target of {member.size} bytes")
            names.add_link(member.link or "", b"".join(content).decode(errors="surrogateescape"))
    if copies := names.close():
        members = members.with_copies(copies)
    check_ratio(sum(members.sizes), size)
    return members


def matches_file(member: ZipMember, file: BinaryIO) -> bool:
    """Whether an open, seekable file has the size and the CRC-32 of a member.

    A CRC detects another version of a file, but not a forgery.
    """
    if file.seek(0, 2) != member.size:
        return False
    file.seek(0)
    crc = 0
    while chunk := file.read(CHUNK_BYTES):
        crc = zlib.crc32(chunk, crc)
    return crc == member.crc32


def plan_ranges(members: Sequence[ZipMember], *, gap: int) -> list[FetchRange]:
    """The ranges to fetch for these members, which are in the order of their offsets; `gap` as for `coalesce`."""
    starts, ends = array("Q"), array("Q")
    for member in members:
        starts.append(member.start)
        ends.append(member.end)
    ranges = []
    position = 0
    for start, end in coalesce(zip(starts, ends, strict=True), gap=gap):
        begin, position = position, bisect_left(starts, end, position)
        ranges.append(FetchRange(start, end, members[begin:position]))
    return ranges


def read_members(fetched: FetchRange, source: Readable) -> Iterator[tuple[ZipMember, Iterator[bytes]]]:
    """The members in a range, one after another, each with its content in chunks, from a stream of that range.

    Size and CRC-32 have been checked only when the iterator of a content has ended. Content that the caller does not
    read is skipped, unchecked.

    Raises, while contents are read:
        ManifestError: local header and central directory disagree; damaged, truncated, or of another size.
        Anything that `source` raises.
    """
    read = partial(source.read, min(CHUNK_BYTES, fetched.end - fetched.start))
    stream = Stream(read, "the zip archive", fetched.start)
    for member in fetched.members:
        stream.skip_to(member.start)
        content = _read_content(member, stream)
        yield member, content
        content.close()


def _read_content(member: ZipMember, stream: Stream) -> Generator[bytes, None, None]:
    _check_local_header(member, stream)
    crc = 0
    for chunk in _decoded(member, stream):
        crc = zlib.crc32(chunk, crc)
        yield chunk
    if crc != member.crc32:
        _refuse(member, f"its CRC-32 is {crc:08x} instead of {member.crc32:08x}")


def _check_local_header(member: ZipMember, stream: Stream) -> None:
    header = stream.take_exactly(LOCAL_HEADER.size)
    signature, _, flags, method, _, _, crc, packed, size, name_length, extra_length = LOCAL_HEADER.unpack(header)
    if signature != b"PK\x03\x04":
        _refuse(member, "there is no local header where the central directory points")
    name = stream.take_exactly(name_length)
    extra = stream.take_exactly(extra_length)
    size, packed, _, _ = apply_zip64((size, packed, 0, 0), extra_fields(extra).get(0x0001, b""))
    agree = name == member.raw_name and method == member.method and not flags & ENCRYPTED
    for value, known, unset in (
        (crc, member.crc32, 0),
        (packed, member.packed, 0xFFFFFFFF),
        (size, member.size, 0xFFFFFFFF),
    ):
        # a header written before the data may lack these values; a data descriptor then follows
        agree = agree and (value == known or bool(flags & _DESCRIPTOR_FOLLOWS and value in (0, unset)))
    if not agree:
        _refuse(member, "its local header and the central directory disagree")


def _decoded(member: ZipMember, stream: Stream) -> Iterator[bytes]:
    packed = map(bytes, stream.chunks(stream.position + member.packed))
    if member.method == STORED:
        return packed
    decoder: Decoder = InflateDecoder(-15) if member.method == DEFLATED else zstd_decoder()
    return decode_frame(
        decoder, packed, member.size, f"the compressed data of member {member.name!r} of the zip archive"
    )


def _refuse(member: ZipMember, reason: str) -> NoReturn:
    raise ManifestError(f"member {member.name!r} of the zip archive: {reason}")
