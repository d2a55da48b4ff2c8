"""The resume journal, beside a partial file as `NAME.perfkit-part.json`: which bytes it has, and of which version.

The journal is written after the data it describes. A process that dies leaves the data in the kernel's cache, so
within one boot the whole journal holds. After a power cut, only synced data counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import stat
from typing import NamedTuple

from perfkit.downloads.http.semantics import Version
from perfkit.downloads.segments import Range
from perfkit.libc import boot_id

_FORMAT = 4
_MOST_BYTES = 1 << 20


class Resumable(NamedTuple):
    """What a journal says."""

    source: str  # `digest_of` the URL whose origin named the version
    version: Version
    size: int
    part: Range | None  # of the resource; None: all of it
    checksum: str | None  # the caller's
    done: list[Range]  # on disk
    durable: list[Range]  # of these, what a power cut leaves

    @staticmethod
    def parse(text: bytes) -> Resumable:
        """Read a journal; after a power cut, or if there may have been one, `done` is what was durable.

        Raises:
            ValueError, TypeError, KeyError, RecursionError: it is damaged, or in another format.
        """
        record = json.loads(text)
        if record["format"] != _FORMAT:
            raise ValueError(f"journal format {record['format']!r}")
        durable = _ranges(record["durable"])
        same_boot = record["boot"] == boot_id() != ""
        return Resumable(
            source=record["source"],
            version=Version(*record["version"]),
            size=int(record["size"]),
            part=None if record["part"] is None else _ranges([record["part"]])[0],
            checksum=record["checksum"],
            done=_ranges(record["done"]) if same_boot else durable,
            durable=durable,
        )


class ResumeJournal:
    """The journal of one partial file, which may not exist."""

    def __init__(self, part: str) -> None:
        self._path = f"{part}.json"
        self._may_exist = True

    def read(self) -> bytes | None:
        """Its text; None if there is none. Empty if it is not this user's own."""
        if not os.access(self._path, os.F_OK):  # an open that fails takes five times as long
            self._may_exist = False
            return None
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except PermissionError:
            return b""
        with open(descriptor, "rb") as file:
            return file.read(_MOST_BYTES) if is_own(os.fstat(descriptor)) else b""

    def write(self, found: Resumable) -> None:
        """Replace it."""
        version = dataclasses.astuple(found.version)
        record = {"format": _FORMAT, "boot": boot_id(), **found._asdict(), "version": version}
        fresh = f"{self._path}~"
        self._may_exist = True  # or a part of one, on a full disk
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        with open(fresh, "x", encoding="utf-8", opener=_open_private) as file:
            json.dump(record, file)
        os.replace(fresh, self._path)

    def remove(self, *, certainly: bool = False) -> None:
        """Remove it, if there may be one, or `certainly`."""
        if self._may_exist or certainly:
            for path in (self._path, f"{self._path}~"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            self._may_exist = False


def is_own(status: os.stat_result) -> bool:
    """Whether it is a regular file of this user's, without another name."""
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid == os.geteuid()


def _ranges(pairs: list[list[int]]) -> list[Range]:
    return [(int(start), int(end)) for start, end in pairs]


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
