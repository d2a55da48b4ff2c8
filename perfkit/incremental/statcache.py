"""What is known of files without reading them: a row for each, with its stat signature and its SHA-256.

A row says "the file that looked like this held that". It is compared with `!=`, never with `<`: a restored backup is
older than what it replaces, and changed all the same. Size, times, inode and mode all count.

A write within the same tick of the file system's clock as the last one leaves no other trace, so a row is kept only if
the file had come to rest before: its times are less than those of a probe file touched when its content was certain.
Both stamps come from the same clock with the same granularity, whatever that is (git calls the others "racily clean"
and hashes them again, as happens here to a file without a row).

The store is a log of JSON lines: a commit adds a line for what it changed, so that its cost follows the change and not
the tree. It is a cache: a line that can't be read ends the reading, and a lost or stale row only costs a hash.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Protocol

__all__ = ["Patch", "StatCache", "Status", "append", "clock_ns", "next_tick_ns", "signature"]

_LINE_ROWS = 4096  # rows in one line: what is parsed at once
_FORMAT = 1
_TICK_S = 0.025  # Linux stamps files with the time of its last tick: every 1 to 10 ms


class Status(Protocol):
    """What stat(2) says of a regular file."""

    @property
    def size(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...
    @property
    def ctime_ns(self) -> int: ...
    @property
    def inode(self) -> int: ...
    @property
    def mode(self) -> int: ...


def signature(status: Status) -> str:
    """All that changes when a file does, access time apart."""
    return f"{status.size} {status.mtime_ns} {status.ctime_ns} {status.inode} {status.mode & 0o7777:o}"


def clock_ns(probe: str) -> int:
    """The time by the file system's own clock: that of the file `probe`, touched now.

    Raises:
        OSError: the file can't be made or touched.
    """
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.utime(descriptor)
        return os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)


def next_tick_ns(probe: str) -> int:
    """The file system's time, after waiting for its clock to move on: whatever was written before is less.

    A clock that takes longer than most is not waited for; then what was written last is not less.

    Raises:
        OSError: as `clock_ns`.
    """
    began = now = clock_ns(probe)
    deadline_s = time.monotonic() + _TICK_S
    while now == began and time.monotonic() < deadline_s:
        time.sleep(_TICK_S / 50)
        now = clock_ns(probe)
    return now


class Patch:
    """Rows that come, and names whose rows go."""

    def __init__(self) -> None:
        self.rows: dict[str, str] = {}
        self.gone: set[str] = set()

    def record(self, name: str, status: Status, sha256: str, *, content_ns: int, seen_ns: int) -> None:
        """Note what a file holds, if a later change can't hide.

        Args:
            content_ns: `clock_ns` when the content was certain: before it was read, or before a file that nobody else
                could write was given its name. A write after that has this mtime or a later one.
            seen_ns: `clock_ns` no later than `status` was taken; any change after that has this ctime or a later one.
        """
        if status.mtime_ns < content_ns and status.ctime_ns < seen_ns:
            self.rows[name] = f"{signature(status)} {sha256}"
            self.gone.discard(name)
        else:
            self.forget(name)

    def forget(self, name: str) -> None:
        """The file is gone, or what it holds is not certain."""
        self.rows.pop(name, None)
        self.gone.add(name)


class StatCache:
    """The rows that one tree's log holds.

    `manifest` is the digest of the release that they are the rows of: every file of it has its row, unless what it
    holds was not certain, and no other file has one. None if that can't be told.
    """

    def __init__(self) -> None:
        self.rows: dict[str, str] = {}
        self.manifest: str | None = None
        self._lines = 0
        self._logged_rows = 0
        self._damaged = False

    @classmethod
    def load(cls, path: str) -> StatCache:
        """Read the log, as far as it goes; empty if there is none, or one of another format."""
        cache = cls()
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as lines:
            for line in lines:
                try:
                    cache._take(json.loads(line))
                except (ValueError, TypeError, KeyError):
                    cache._damaged, cache.manifest = True, None
                    break
        return cache

    def _take(self, line: Mapping[str, Any]) -> None:
        rows, gone, base, manifest = line["rows"], line["gone"], line["base"], line["manifest"]
        if line["format"] != _FORMAT or not set(map(type, rows.values())) <= {str}:
            raise ValueError("not a line of this format")
        self.rows.update(rows)
        for name in gone:
            self.rows.pop(name, None)
        self.manifest = manifest if base == self.manifest else None
        self._lines += 1
        self._logged_rows += len(rows) + len(gone)

    def sha256(self, name: str, status: Status) -> str | None:
        """The digest of a file that looks like this, in hexadecimal; None if only reading it will tell."""
        known, _, digest = self.rows.get(name, "").rpartition(" ")
        return digest if known == signature(status) else None

    def apply(self, patch: Patch, path: str, *, manifest: str) -> None:
        """Take the patch in, after which the rows are those of `manifest`, and write it.

        It goes to the end of the log, or a new log replaces one that has grown long.

        Raises:
            OSError: it can't be written; the old log, or none, is left.
        """
        base, self.manifest = self.manifest, manifest
        self.rows.update(patch.rows)
        for name in patch.gone:
            self.rows.pop(name, None)
        self._logged_rows += len(patch.rows) + len(patch.gone)
        if self._damaged or self._lines == 0 or self._logged_rows > 2 * len(self.rows) + _LINE_ROWS:
            self._rewrite(path)
        else:
            self._lines += 1
            append(patch, path, base=base, manifest=manifest)

    def _rewrite(self, path: str) -> None:
        fresh = f"{path}~"
        names = iter(self.rows)
        base: str | None = None
        with open(fresh, "w", encoding="utf-8") as log:
            while True:
                rows = {name: self.rows[name] for name in islice(names, _LINE_ROWS)}
                log.write(_line(rows, (), base, self.manifest))
                base = self.manifest
                if len(rows) < _LINE_ROWS:
                    break
        os.replace(fresh, path)
        self._lines, self._logged_rows, self._damaged = 1, len(self.rows), False


def append(patch: Patch, path: str, *, base: str | None, manifest: str | None) -> None:
    """Write a patch to the end of a log without reading it; it turns the rows of `base` into those of `manifest`.

    Raises:
        OSError: it can't be written.
    """
    with open(path, "a", encoding="utf-8") as log:
        log.write(_line(patch.rows, patch.gone, base, manifest))


def _line(rows: Mapping[str, str], gone: Iterable[str], base: str | None, manifest: str | None) -> str:
    line = {"format": _FORMAT, "base": base, "manifest": manifest, "rows": rows, "gone": sorted(gone)}
    return json.dumps(line, separators=(",", ":")) + "\n"
