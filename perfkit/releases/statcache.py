"""The stat cache: which files are unchanged, by stat(2) alone, without reading them.

A row says: a file with this size, inode, mode, mtime and ctime has the content that the manifest has. Rows are compared
with `!=`, never with `<`: a restored backup is older than what it replaces, but has changed all the same.

Two writes within one tick of the file system's clock leave the same times, so a row is only stored if the file's times
are before that of a clock file touched when its content was known. Both times come from the same clock with the same
granularity, whatever that is. (git calls the other files "racily clean", and hashes them again; here, a file without a
row is hashed again.)

One change leaves no trace in stat: a store through a shared mapping (mmap(2)) to a page that is dirty already. The
kernel sets the times when a page becomes dirty, so a program that keeps a file mapped can change it after its row was
stored. `verify` and `Config.check_contents` read every file instead.

Rows are stored as columns, in the order of a manifest. The time of a rollback must not grow with the tree: it leaves
the rows of the manifest before it, and appends a line for each file that it changed. The next reader takes over the
rows that both manifests have in common. What can't be read is ignored: a lost row costs a hash.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import IO

from perfkit.filesystem.own_files import open_own, replace_own
from perfkit.filesystem.scan import ScanEntry
from perfkit.releases.format.manifest import Manifest, pair_entries
from perfkit.transactions import layout
from perfkit.transactions.records import Change, signature

_FORMAT = 2
# What reading raises if the file is damaged.
_DAMAGED = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)
_TICK_S = 0.025  # Linux sets file times to that of its last tick: every 1 to 10 ms


def clock_ns(clock: str) -> int:
    """The file system's time: the mtime of the file `clock`, touched now.

    Raises:
        OSError: the file can't be created or touched.
    """
    descriptor = open_own(clock, os.O_WRONLY | os.O_CREAT)
    try:
        os.utime(descriptor)
        return os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)


def next_tick_ns(clock: str) -> int:
    """The file system's time, after waiting for its next tick: it is later than the times of all earlier writes.

    It waits 25 ms at most; with a coarser clock, the times of what was written last may be equal.

    Raises:
        OSError: as `clock_ns`.
    """
    began = now = clock_ns(clock)
    deadline_s = time.monotonic() + _TICK_S
    while now == began and time.monotonic() < deadline_s:
        time.sleep(_TICK_S / 50)
        now = clock_ns(clock)
    return now


def clamped_ns(time_ns: int) -> int:
    """A file's time as a row holds it, in 64 bits: file systems hold times before 1677 and after 2262."""
    return max(-(1 << 63), min(time_ns, (1 << 63) - 1))


def _is_stable(status: ScanEntry, content_ns: int, seen_ns: int) -> bool:
    return status.mtime_ns < content_ns and status.ctime_ns < seen_ns


@contextlib.contextmanager
def appended_rows(path: str) -> Iterator[AppendedRows]:
    """Append rows to the stored cache, whichever manifest it belongs to, without reading it.

    Raises:
        OSError: it can't be written, or there is no stored cache.
    """
    with open(open_own(path, os.O_RDWR), "r+b") as log:
        log.seek(0, os.SEEK_END)
        yield AppendedRows(log)


class AppendedRows:
    """Rows by file name, at the end of a stored cache."""

    def __init__(self, log: IO[bytes]) -> None:
        self._log = log

    def record(self, name: str, status: ScanEntry, sha256: str, *, content_ns: int, seen_ns: int) -> None:
        """As `StatCache.record`."""
        if _is_stable(status, content_ns, seen_ns):
            row = (sha256, status.mtime_ns, status.ctime_ns, status.inode, stat.S_IMODE(status.mode))
            self._log.write(json.dumps({"rows": {name: row}}, separators=(",", ":")).encode() + b"\n")

    def forget(self, name: str) -> None:
        """As `StatCache.forget`: a file has no row yet."""


class StatCache:
    """The rows of a manifest's entries; an entry without a row has to be hashed."""

    def __init__(self, manifest: Manifest, *, modes: bool = True) -> None:
        self.manifest = manifest
        self.modes = modes  # whether executable bits are compared with the manifest
        self.dirty = True  # whether it differs from the stored one
        count = len(manifest)
        self._mtimes, self._ctimes = array("q", bytes(8 * count)), array("q", bytes(8 * count))
        self._inodes, self._modes = array("Q", bytes(8 * count)), array("H", bytes(2 * count))

    @classmethod
    def load(
        cls, path: str, manifest: Manifest, earlier: Callable[[str], Manifest | None], *, modes: bool = True
    ) -> StatCache:
        """The rows for the files of this manifest.

        Args:
            earlier: returns the manifest with this digest (hexadecimal), if it is still in the history.
            modes: whether executable bits are compared with the manifest.
        """
        with contextlib.suppress(OSError, *_DAMAGED), open(open_own(path), "rb") as file:
            head = json.loads(file.readline())
            if head["format"] != _FORMAT:
                return cls(manifest, modes=modes)
            same = head["manifest"] == manifest.sha256.hex()
            base = manifest if same else earlier(head["manifest"])
            cache = cls(base if base is not None else manifest, modes=modes)
            if base is None:
                file.seek(head["bytes"], os.SEEK_CUR)
            else:
                cache._read(file)
            cache = cache.for_manifest(manifest)
            cache.dirty = not same
            cache._patch(file)
            return cache
        return cls(manifest, modes=modes)

    def _read(self, file: IO[bytes]) -> None:
        for column in self.columns():
            size = len(column) * column.itemsize
            data = file.read(size)
            if len(data) != size:
                raise ValueError("cut short")
            del column[:]
            column.frombytes(data)

    def _patch(self, file: IO[bytes]) -> None:
        """Apply the lines that rollbacks appended, as far as they are complete and match the manifest."""
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, OverflowError):
            for line in file:
                for name, (sha256, mtime_ns, ctime_ns, inode, mode) in json.loads(line)["rows"].items():
                    at = self._found(name, sha256, mode)
                    if at is not None:
                        self._set(at, mtime_ns, ctime_ns, inode, mode)

    def _found(self, name: str, sha256: str, mode: int) -> int | None:
        """The entry with this name, if it has this content and mode."""
        at = self.manifest.find(name)
        if at is None or self.manifest.digest(at).hex() != sha256:
            return None
        return at if not self.modes or self.manifest.executable(at) == bool(mode & 0o100) else None

    def _set(self, at: int, mtime_ns: int, ctime_ns: int, inode: int, mode: int) -> None:
        self._mtimes[at], self._ctimes[at] = clamped_ns(mtime_ns), clamped_ns(ctime_ns)
        self._inodes[at], self._modes[at] = inode, mode
        self.dirty = True

    def for_manifest(self, manifest: Manifest) -> StatCache:
        """The rows of the files that another manifest has unchanged."""
        if manifest.sha256 == self.manifest.sha256:
            return self
        fresh = StatCache(manifest, modes=self.modes)
        for _, here, there in pair_entries(self.manifest, manifest):
            if here is not None and there is not None and self.manifest.same(here, manifest, there):
                for old, new in zip(self.columns(), fresh.columns(), strict=True):
                    new[there] = old[here]
        return fresh

    def matches(self, at: int, status: ScanEntry) -> bool:
        """Whether a file with this stat is known to be as the manifest has the entry."""
        return (
            status.ctime_ns == self._ctimes[at] != 0
            and status.mtime_ns == self._mtimes[at]
            and status.size == self.manifest.size(at)
            and status.inode == self._inodes[at]
            and status.mode & 0o7777 == self._modes[at]
        )

    def columns(self) -> tuple[array[int], ...]:
        """The mtime, ctime, inode and mode bits of each entry's row: zeros if it has none."""
        return self._mtimes, self._ctimes, self._inodes, self._modes

    def record_columns(self, columns: Sequence[array[int]], *, content_ns: int) -> None:
        """As `record_at`, for all entries, of files that were looked at from `content_ns` on; takes over `columns`."""
        self._mtimes, self._ctimes, self._inodes, self._modes = columns
        for at, times in enumerate(map(max, self._mtimes, self._ctimes)):
            if times >= content_ns:
                self.forget_at(at)
        self.dirty = True

    def identity_at(self, at: int) -> tuple[int, int]:
        """The inode and the mtime in nanoseconds that the row has."""
        return self._inodes[at], self._mtimes[at]

    def record_at(self, at: int, status: ScanEntry, *, content_ns: int, seen_ns: int) -> None:
        """As `record`, for a file that is as the manifest has this entry."""
        if _is_stable(status, content_ns, seen_ns):
            self._set(at, status.mtime_ns, status.ctime_ns, status.inode, stat.S_IMODE(status.mode))
        else:
            self.forget_at(at)

    def forget_at(self, at: int) -> None:
        """As `forget`."""
        if self._ctimes[at]:
            self._set(at, 0, 0, 0, 0)

    def record(self, name: str, status: ScanEntry, sha256: str, *, content_ns: int, seen_ns: int) -> None:
        """Store the row of a file, if it is as the manifest has it, and any later change will show in its times.

        Args:
            content_ns: `clock_ns` when the content was known: before it was read, or, for a file that nobody else could
                write to, before it was renamed into place. Later writes have this mtime or a later one.
            seen_ns: `clock_ns` before `status` was taken. Later changes have this ctime or a later one.
        """
        at = self._found(name, sha256, status.mode)
        if at is not None:
            self.record_at(at, status, content_ns=content_ns, seen_ns=seen_ns)
        else:
            self.forget(name)

    def forget(self, name: str) -> None:
        """Remove the row of a file that is gone, or whose content is not known."""
        at = self.manifest.find(name)
        if at is not None:
            self.forget_at(at)

    def save(self, path: str) -> None:
        """Write the cache, atomically.

        Raises:
            OSError: it can't be written; the stored cache is unchanged.
        """
        size = sum(len(column) * column.itemsize for column in self.columns())
        head = {"format": _FORMAT, "manifest": self.manifest.sha256.hex(), "bytes": size}
        with replace_own(path) as file:
            file.write(json.dumps(head).encode() + b"\n")
            for column in self.columns():
                file.write(column)
        self.dirty = False


def record_changes(
    rows: StatCache | AppendedRows,
    root: str,
    changes: Collection[Change],
    *,
    skip: Collection[str],
    certain_ns: Callable[[str], int],
    clock: str,
) -> None:
    """Store rows for the files that a commit changed.

    Args:
        skip: names of files that do not belong to the release.
        certain_ns: returns the `content_ns` of `StatCache.record` for a name: for files that we wrote, a time between
            the write and the commit; for files that were hashed, a time before that.
        clock: the file for `clock_ns`.
    """
    if next(_files(changes), None) is None:
        return
    seen_ns = 0
    with contextlib.suppress(OSError):  # without a clock no row is stored, and the files are hashed again
        seen_ns = next_tick_ns(clock)  # later than our own renames
    prefix = os.path.join(root, "")
    for change in _files(changes):
        try:
            found = os.lstat(prefix + change.name)
        except OSError:
            found = None
        if change.after is None or found is None or signature(found) != change.signature or change.name in skip:
            rows.forget(change.name)
        else:
            times = found.st_mtime_ns, found.st_ctime_ns
            status = ScanEntry(change.name, found.st_size, *times, found.st_ino, found.st_dev, found.st_mode)
            rows.record(change.name, status, change.after.sha256, content_ns=certain_ns(change.name), seen_ns=seen_ns)


def _files(changes: Iterable[Change]) -> Iterator[Change]:
    """The changes of the tree's files, without those of perfkit's own."""
    return (change for change in changes if not layout.is_private(change.name))
