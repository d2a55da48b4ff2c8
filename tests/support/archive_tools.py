"""Makers of archives, well-formed and otherwise, for the tests of archives."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping

from perfkit.archives.members import Selection
from perfkit.archives.zip import plan_ranges, read_directory, read_members

FILES = {
    "pkg/__init__.py": b"version = 1\n",
    "pkg/data.bin": bytes(range(256)) * 2000,
    "pkg/empty": b"",
    "pkg/run.sh": b"#!/bin/sh\n",
    "README": b"hello " * 5000,
}


class Ranges:
    """A server of ranges that records its requests."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[tuple[int, int]] = []

    def __call__(self, start: int, end: int) -> bytes:
        assert 0 <= start < end <= len(self.data)
        self.asked.append((start, end))
        return self.data[start:end]

    @property
    def bytes(self) -> int:
        return sum(end - start for start, end in self.asked)


def make_zip(
    files: Mapping[str, bytes] = FILES,
    *,
    method: int = zipfile.ZIP_DEFLATED,
    comment: bytes = b"",
    stream: bool = False,
) -> bytes:
    """A zip archive; with `stream` as one that was written to a pipe, with data descriptors."""
    out = _Pipe() if stream else io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            info.create_system = 3
            info.external_attr = (0o100755 if name.endswith(".sh") else 0o100644) << 16
            archive.writestr(info, data)
        archive.comment = comment
    return out.getvalue()


class _Pipe(io.BytesIO):
    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        raise OSError("a pipe")

    def seek(self, *_: object) -> int:
        raise OSError("a pipe")


def raw_zip(
    entries: Iterable[dict[str, object]], *, prefix: bytes = b"", comment: bytes = b"", zip64: bool = False
) -> bytes:
    """A zip archive made by hand, of entries with any of: name, data, packed, method, flags, crc, size, csize, mode,
    local_extra, local_name, offset, zip64."""
    body = bytearray(prefix)
    central = bytearray()
    count = 0
    for entry in entries:
        count += 1
        name = entry.get("name", "a")
        raw = name if isinstance(name, bytes) else str(name).encode()
        data = entry.get("data", b"data")
        assert isinstance(data, bytes)
        method = int(entry.get("method", 0))  # type: ignore[call-overload]
        packed = entry.get("packed", data if method == 0 else zlib.compress(data, wbits=-15))
        assert isinstance(packed, bytes)
        crc = entry.get("crc", zlib.crc32(data))
        size, csize = entry.get("size", len(data)), entry.get("csize", len(packed))
        flags = entry.get("flags", 1 << 11)
        offset = entry.get("offset", len(body) - len(prefix))
        local_name = entry.get("local_name", raw)
        local_extra = entry.get("local_extra", b"")
        assert isinstance(local_name, bytes)
        assert isinstance(local_extra, bytes)
        wide = bool(entry.get("zip64"))
        extra = struct.pack("<2H3Q", 1, 24, size, csize, offset) if wide else b""
        all_ones = 0xFFFFFFFF
        body += (
            struct.pack(
                "<4s5H3L2H",
                b"PK\x03\x04",
                45,
                flags,
                method,
                0,
                33,
                crc,
                csize,
                size,
                len(local_name),
                len(local_extra),
            )
            + local_name
            + local_extra
            + packed
        )
        central += (
            struct.pack(
                "<4s6H3L5H2L",
                b"PK\x01\x02",
                3 << 8 | 45,
                45,
                flags,
                method,
                0,
                33,
                crc,
                all_ones if wide else csize,
                all_ones if wide else size,
                len(raw),
                len(extra),
                0,
                0,
                0,
                int(entry.get("mode", 0o100644)) << 16,  # type: ignore[call-overload]
                all_ones if wide else offset,
            )
            + raw
            + extra
        )
    start = len(body) - len(prefix)
    body += central
    if zip64:
        at = len(body) - len(prefix)
        body += struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(central), start)
        body += struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
        return (
            bytes(body)
            + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, len(comment))
            + comment
        )
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(central), start, len(comment))
    return bytes(body) + end + comment


def make_tar(
    files: Mapping[str, bytes] = FILES, *, mode: str = "w", format: int = tarfile.PAX_FORMAT, directories: bool = True
) -> bytes:
    """A tar archive, compressed as `mode` says, and fast."""
    fast = {"w:gz": {"compresslevel": 1}, "w:bz2": {"compresslevel": 1}, "w:xz": {"preset": 0}}.get(mode, {})
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=format, **fast) as archive:  # type: ignore[call-overload]
        if directories:
            for name in sorted({name.rpartition("/")[0] for name in files} - {""}):
                add(archive, name, type=tarfile.DIRTYPE, mode=0o755)
        for name, data in files.items():
            add(archive, name, data, mode=0o755 if name.endswith(".sh") else 0o644)
    return out.getvalue()


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(data))


class Drip:
    """A stream that gives few bytes at a time, and can't seek."""

    def __init__(self, data: bytes, most: int = 1000) -> None:
        self._data = memoryview(data)
        self._most = most

    def read(self, size: int, /) -> bytes:
        count = min(size, self._most)
        piece, self._data = bytes(self._data[:count]), self._data[count:]
        return piece


def unpack_zip(data: bytes, selection: Selection = Selection()) -> dict[str, bytes]:
    """All wanted members of a zip archive, by way of directory, ranges and streams."""
    members = read_directory(Ranges(data), len(data), selection=selection)
    found: dict[int, bytes] = {}
    for fetched in plan_ranges([*{member.start: member for member in members}.values()], gap=1000):
        for member, content in read_members(fetched, Drip(data[fetched.start : fetched.end])):
            found[member.start] = b"".join(content)
    return {member.name: found[member.start] for member in members}
