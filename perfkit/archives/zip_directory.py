"""Read the central directory of a zip archive, by ranges from its end.

Format: APPNOTE.TXT 6.3.10 (PKWARE), to which section numbers below refer. The central directory decides which members
there are; local headers must agree with it.
"""

from __future__ import annotations

import stat
import struct
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from perfkit.archives import limits
from perfkit.archives.members import SYMLINK, MemberNames
from perfkit.errors import ManifestError
from perfkit.filesystem.compact import LazySequence, Names, sort_numbers

_END = struct.Struct("<4s4H2LH")  # 4.3.16
_END_SIGNATURE = b"PK\x05\x06"
_LOCATOR = struct.Struct("<4sLQL")  # 4.3.15
_END64 = struct.Struct("<4sQ2H2L4Q")  # 4.3.14
_CENTRAL = struct.Struct("<4sH2x2H4x3L4H2x2L")  # 4.3.12, without version, times and internal attributes
LOCAL_HEADER = struct.Struct("<4s5H3L2H")  # 4.3.7

_COMMENT_BYTES = 0xFFFF  # maximum of an archive comment, and of an extra field
_DIRECTORY_BYTES = 64 << 20  # enough for as many members as are allowed, with names of some 270 bytes
_DESCRIPTOR_BYTES = 24  # maximum of a data descriptor, 4.3.9

STORED, DEFLATED, _ZSTD = 0, 8, 93  # 4.4.5
ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13  # 4.4.4
_UTF8 = 1 << 11
_UNIX_SYSTEMS = (3, 19)  # 4.4.2: systems where the upper half of the external attributes is a mode
_WINDOWS_SYSTEMS = (0, 10, 11, 14)  # FAT, NTFS, that of Info-ZIP, VFAT

ReadRange = Callable[[int, int], bytes]  # the bytes of an archive from start (inclusive) to end (exclusive)


class ZipMember(NamedTuple):
    """A regular file in a zip archive, all of which is between `start` and `end`."""

    name: str  # in the tree: safe, with forward slashes
    size: int  # unpacked bytes
    executable: bool
    crc32: int
    method: int
    packed: int  # compressed bytes
    start: int  # of the local header
    raw_name: bytes  # as the local header must have it
    end: int
    link: str | None = None  # path in the archive of a symbolic link, whose content is its target


@dataclass(frozen=True, slots=True)
class _Directory:
    """Where the central directory is."""

    start: int
    end: int
    count: int
    shift: int  # to add to all offsets, in archives with a prefix, such as self-extracting ones


class ZipMembers(LazySequence[ZipMember]):
    """Files in a zip archive, in the order of their offsets. Each is made from the central directory on access, since
    objects would take six hundred bytes a file.

    Attributes:
        names: of the files, in the tree.
        sizes: of the files, unpacked, in bytes.
    """

    def __init__(self, data: bytes, shift: int) -> None:
        self.names = Names()
        self.sizes = array("Q")
        self._headers = array("I")  # where each is in the central directory; those of copies are equal
        self._ends = array("Q")
        self._data = data
        self._shift = shift
        super().__init__(self._member, range(0))

    def add(self, name: str, size: int, header: int, end: int) -> None:
        """Add the member with this header, which is at or after the last one."""
        self.names.append(name)
        self.sizes.append(size)
        self._headers.append(header)
        self._ends.append(end)
        self._places = range(len(self._headers))

    def is_copy(self, at: int) -> bool:
        """Whether this file is the same member as the one before, under another name."""
        return at > 0 and self._headers[at - 1] == self._headers[at]

    def _member(self, at: int) -> ZipMember:
        entry, _, _, _ = _parse_entry(self._data, self._headers[at], self._shift)
        return entry._replace(name=self.names[at], end=self._ends[at])

    def with_copies(self, copies: Mapping[str, str]) -> ZipMembers:
        """The same files and copies of some of them: their names, each with that of the file it is a copy of."""
        more: dict[str, list[str]] = {}
        for name, original in copies.items():
            more.setdefault(original, []).append(name)
        every = ZipMembers(self._data, self._shift)
        for at, header in enumerate(self._headers):
            own = self.names[at]
            for name in (own, *more.get(own, ())):
                every.add(name, self.sizes[at], header, self._ends[at])
        return every


def list_members(read_range: ReadRange, size: int, names: MemberNames) -> tuple[ZipMembers, list[ZipMember]]:
    """The wanted files of an archive of `size` bytes, and links to be followed, in the order of their offsets.

    One or two ranges are read; three, where a long comment leaves no room for the Zip64 records in the first one. The
    caller has to close `names`. See `zip.read_directory`.
    """
    tail = _Tail(read_range, size)
    directory = _find_directory(tail)
    if directory.count > limits.MEMBERS:
        raise ManifestError(f"the archive has more than {limits.MEMBERS} members")
    data = tail.read(directory.start, directory.end)
    return _parse_directory(data, directory, names)


class _Tail:
    """The end of an archive, as far as it has been read. Nothing is read twice."""

    def __init__(self, read_range: ReadRange, size: int) -> None:
        self._read_range = read_range
        self.size = size
        self._data = b""

    def read(self, start: int, end: int) -> bytes:
        begins = self.size - len(self._data)
        if start < begins:
            more = self._read_range(start, begins)
            if len(more) != begins - start:
                raise ManifestError(f"the zip archive has {len(more)} of {begins - start} bytes at {start}")
            self._data = more + self._data
            begins = start
        return self._data[start - begins : end - begins]


def _find_directory(tail: _Tail) -> _Directory:
    """Find the central directory, by the end records."""
    begins = max(0, tail.size - _END.size - _COMMENT_BYTES)  # most central directories are in this, too
    data = tail.read(begins, tail.size)
    unpadded = len(data.rstrip(b"\0"))  # bsdtar fills the last block of a pipe with zeros
    at = data.rfind(_END_SIGNATURE)
    while at >= 0:
        if len(data) - at >= _END.size:
            fields = _END.unpack_from(data, at)
            if unpadded <= at + _END.size + fields[-1] <= len(data):  # else the signature is part of other data
                return _locate_directory(tail, begins + at, fields)
        at = data.rfind(_END_SIGNATURE, 0, at)
    raise ManifestError(
        "not a zip archive, or truncated: it has no end of central directory record (a plain file? --type file)"
    )


def _locate_directory(tail: _Tail, position: int, fields: tuple[int, ...]) -> _Directory:
    disk, directory_disk, here, count, length, offset = fields[1:7]
    at = position - _LOCATOR.size  # of what streaming writers add to small archives, too
    if at >= 0 and (locator := tail.read(at, position)).startswith(b"PK\x06\x07"):
        position, fields = _read_end64(tail, at, _LOCATOR.unpack(locator)[2])
        disk, directory_disk, here, count, length, offset = fields[4:10]
    if disk or directory_disk or here != count:
        raise ManifestError("the zip archive is split over several files")
    start = position - length
    shift = start - offset
    if length > _DIRECTORY_BYTES:
        raise ManifestError(f"the central directory of the zip archive has more than {_DIRECTORY_BYTES} bytes")
    if start < 0 or shift < 0 or count * _CENTRAL.size > length:
        raise ManifestError(f"the zip archive has an impossible central directory: {count} members in {length} bytes")
    return _Directory(start, position, count, shift)


def _read_end64(tail: _Tail, locator: int, offset: int) -> tuple[int, tuple[int, ...]]:
    """The position and the fields of the Zip64 end record: right before its locator, or where the locator points."""
    for at in (locator - _END64.size, offset):
        if 0 <= at <= locator - _END64.size and locator - at <= _COMMENT_BYTES:
            fields = _END64.unpack(tail.read(at, at + _END64.size))
            if fields[0] == b"PK\x06\x06" and at + 12 + fields[1] == locator:
                return at, fields
    raise ManifestError("the zip archive has no Zip64 end record where its locator points")


def _parse_directory(data: bytes, directory: _Directory, names: MemberNames) -> tuple[ZipMembers, list[ZipMember]]:
    members, links = ZipMembers(data, directory.shift), []
    places, starts = _parse_entries(data, directory)
    order = array("I", sort_numbers(range(len(places)), starts.__getitem__))
    for at, row in enumerate(order, 1):
        entry, kind, flags, _ = _parse_entry(data, places[row], directory.shift)
        end = starts[order[at]] if at < len(order) else directory.start
        least = entry.start + LOCAL_HEADER.size + len(entry.raw_name) + entry.packed
        if least > end:
            raise ManifestError(f"member {entry.name!r} of the zip archive overlaps with the next one")
        if (name := names.admit(entry.name, kind=kind)) is None:
            continue
        if flags & ENCRYPTED:
            raise ManifestError(f"member {entry.name!r} of the zip archive is encrypted")
        if entry.method not in (STORED, DEFLATED, _ZSTD):
            raise ManifestError(f"member {entry.name!r} is compressed by method {entry.method}, not deflate or zstd")
        if entry.method == STORED and entry.packed != entry.size:
            raise ManifestError(f"member {entry.name!r} is stored, but has two sizes: {entry.packed} and {entry.size}")
        # The local header may have a longer extra field than this one, and a data descriptor may follow.
        end = min(end, least + _COMMENT_BYTES + _DESCRIPTOR_BYTES)
        if kind == SYMLINK:
            links.append(entry._replace(name=name, end=end, link=entry.name))
        else:
            members.add(name, entry.size, places[row], end)
    return members, links


def _parse_entries(data: bytes, directory: _Directory) -> tuple[array[int], array[int]]:
    """Where the header of each member is in the central directory, and its offset in the archive."""
    places, starts, position = array("I"), array("Q"), 0
    for _ in range(directory.count):
        if len(data) - position < _CENTRAL.size:
            raise ManifestError("the central directory of the zip archive is truncated")
        places.append(position)
        entry, _, _, position = _parse_entry(data, position, directory.shift)
        starts.append(min(entry.start, directory.end))  # one beyond that is refused, and might not fit
    if position != len(data) and not data.startswith(b"PK\x05\x05", position):  # 4.3.13, a digital signature
        raise ManifestError("the central directory of the zip archive is followed by other data")
    return places, starts


def _parse_entry(data: bytes, position: int, shift: int) -> tuple[ZipMember, str, int, int]:
    """A member, under its name in the archive and without its end; its kind; its flags; where the next header is."""
    record = _CENTRAL.unpack_from(data, position)
    signature, made_by, flags, method, crc, packed, size, *lengths, disk, attributes, start = record
    name_length, extra_length, comment_length = lengths
    position += _CENTRAL.size
    raw_name = data[position : position + name_length]
    extra = data[position + name_length : position + name_length + extra_length]
    position += name_length + extra_length + comment_length
    if signature != b"PK\x01\x02" or position > len(data):
        raise ManifestError("the central directory of the zip archive is damaged")
    fields = extra_fields(extra)
    if 0x0001 in fields:
        size, packed, start, disk = apply_zip64((size, packed, start, disk), fields[0x0001])
    if disk:
        raise ManifestError("the zip archive is split over several files")
    name = _decode_name(raw_name, flags, fields.get(0x7075, b""))
    if made_by >> 8 in _WINDOWS_SYSTEMS and "/" not in name:
        name = name.replace("\\", "/")  # as unzip reads what .NET wrote before version 4.6.1
    mode = attributes >> 16 if made_by >> 8 in _UNIX_SYSTEMS else 0
    member = ZipMember(name, size, bool(mode & 0o100), crc, method, packed, start + shift, raw_name, end=0)
    return member, _kind(name, mode), flags, position


def extra_fields(extra: bytes) -> dict[int, bytes]:
    """The extra fields by header ID. Some writers add padding, which is ignored."""
    fields: dict[int, bytes] = {}
    position = 0
    while position + 4 <= len(extra):
        identifier, length = struct.unpack_from("<2H", extra, position)
        fields.setdefault(identifier, extra[position + 4 : position + 4 + length])
        position += 4 + length
    return fields


def apply_zip64(values: tuple[int, int, int, int], extra: bytes) -> Iterator[int]:
    """Size, packed size, offset and disk, where all ones are replaced from the Zip64 field (4.5.3)."""
    for value, unset, width in zip(values, (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFF), (8, 8, 8, 4), strict=True):
        if value == unset and extra:
            if len(extra) < width:
                raise ManifestError("the zip archive has a Zip64 field that is too short")
            value, extra = int.from_bytes(extra[:width], "little"), extra[width:]
        yield value


def _decode_name(raw: bytes, flags: int, unicode_path: bytes) -> str:
    """Decode as UTF-8 by the flag or the Unicode Path field (4.6.9), else as code page 437 (appendix D). Valid UTF-8
    needs no flag: macOS and older Java don't set it, and a name in a code page is hardly ever valid UTF-8.
    """
    try:
        if flags & _UTF8:
            return raw.decode()
        if len(unicode_path) > 5 and unicode_path[:5] == b"\x01" + zlib.crc32(raw).to_bytes(4, "little"):
            return unicode_path[5:].decode()
    except UnicodeDecodeError as error:
        raise ManifestError(f"the zip archive has a name that is not UTF-8: {raw!r}") from error
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("cp437")


def _kind(name: str, mode: int) -> str:
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return SYMLINK if stat.S_ISLNK(mode) else "a device or another special file"
    return "directory" if name.endswith("/") or stat.S_ISDIR(mode) else "file"
