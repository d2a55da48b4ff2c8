"""What is known of files without reading them: a row for each, with its stat signature and its SHA-256.

A row says "the file that looked like this held that". It is compared with `!=`, never with `<`: a restored backup is
older than what it replaces, and changed all the same. Size, times, inode and mode all count.

A write within the same tick of the file system's clock as the last one leaves no other trace, so a row is kept only if
the file had come to rest before: its times are less than those of a probe file touched when its content was certain.
Both stamps come from the same clock with the same granularity, whatever that is (git calls the others "racily clean"
and hashes them again, as happens here to a file without a row).

The rows are columns beside those of a manifest: a row says of an entry "the file that looked like this is as the
manifest has it". After a rollback, which must not cost more the larger the tree is, they are still those of the
manifest before, with a line for what is new; the next reader takes over what both manifests have in common. It is a
cache: what can't be read is left out, and a lost or stale row only costs a hash.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import IO, NamedTuple, Protocol

from perfkit.releases.format.manifest import Manifest, side_by_side
from perfkit.transactions.layout import is_private
from perfkit.transactions.records import Change, signature

__all__ = ["Patch", "Rows", "StatCache", "Status", "append", "clock_ns", "next_tick_ns", "stamp"]

_FORMAT = 2
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


class Rows(Protocol):
    """Takes rows by the names of files."""

    def record(self, name: str, status: Status, sha256: str, *, content_ns: int, seen_ns: int) -> None:
        """Note what a file holds, if a later change can't hide.

        Args:
            content_ns: `clock_ns` when the content was certain: before it was read, or before a file that nobody else
                could write was given its name. A write after that has this mtime or a later one.
            seen_ns: `clock_ns` no later than `status` was taken; any change after that has this ctime or a later one.
        """
        ...

    def forget(self, name: str) -> None:
        """The file is gone, or what it holds is not certain."""
        ...


def _at_rest(status: Status, content_ns: int, seen_ns: int) -> bool:
    return status.mtime_ns < content_ns and status.ctime_ns < seen_ns


class Patch:
    """`Rows` to be appended to a cache that isn't read."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[str, int, int, int, int]] = {}

    def record(self, name: str, status: Status, sha256: str, *, content_ns: int, seen_ns: int) -> None:
        if _at_rest(status, content_ns, seen_ns):
            mode = stat.S_IMODE(status.mode)
            self.rows[name] = (sha256, status.mtime_ns, status.ctime_ns, status.inode, mode)

    def forget(self, name: str) -> None:
        self.rows.pop(name, None)


class StatCache:
    """A row for each entry of a manifest, or none where only reading the file will tell.

    Attributes:
        dirty: whether it is another than the one that was read.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.dirty = True
        count = len(manifest)
        self._mtimes, self._ctimes = array("q", bytes(8 * count)), array("q", bytes(8 * count))
        self._inodes, self._modes = array("Q", bytes(8 * count)), array("H", bytes(2 * count))

    @classmethod
    def load(cls, path: str, manifest: Manifest, earlier: Callable[[str], Manifest | None]) -> StatCache:
        """The rows for the files of this manifest.

        Args:
            earlier: gives the manifest of this digest, in hexadecimal, if it is still there.
        """
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError), open(path, "rb") as file:
            head = json.loads(file.readline())
            if head["format"] != _FORMAT:
                return cls(manifest)
            same = head["manifest"] == manifest.sha256.hex()
            base = manifest if same else earlier(head["manifest"])
            cache = cls(base if base is not None else manifest)
            if base is None:
                file.seek(head["bytes"], os.SEEK_CUR)
            else:
                cache._read(file)
            cache = cache.for_manifest(manifest)
            cache.dirty = not same
            cache._patch(file)
            return cache
        return cls(manifest)

    @property
    def _columns(self) -> tuple[array[int], ...]:
        return self._mtimes, self._ctimes, self._inodes, self._modes

    def _read(self, file: IO[bytes]) -> None:
        for column in self._columns:
            size = len(column) * column.itemsize
            data = file.read(size)
            if len(data) != size:
                raise ValueError("cut short")
            del column[:]
            column.frombytes(data)

    def _patch(self, file: IO[bytes]) -> None:
        """Take what rollbacks have appended, as far as it is whole and of contents that are there now."""
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, OverflowError):
            for line in file:
                for name, (sha256, mtime_ns, ctime_ns, inode, mode) in json.loads(line)["rows"].items():
                    at = self._found(name, sha256, mode)
                    if at is not None:
                        self._set(at, mtime_ns, ctime_ns, inode, mode)

    def _found(self, name: str, sha256: str, mode: int) -> int | None:
        """The entry of this name, if it has this content and mode."""
        at = self.manifest.find(name)
        if at is None or self.manifest.digest(at).hex() != sha256:
            return None
        return at if self.manifest.executable(at) == bool(mode & 0o100) else None

    def _set(self, at: int, mtime_ns: int, ctime_ns: int, inode: int, mode: int) -> None:
        self._mtimes[at], self._ctimes[at], self._inodes[at], self._modes[at] = mtime_ns, ctime_ns, inode, mode
        self.dirty = True

    def for_manifest(self, manifest: Manifest) -> StatCache:
        """The rows of the files that are the same in another manifest."""
        if manifest.sha256 == self.manifest.sha256:
            return self
        fresh = StatCache(manifest)
        for _, here, there in side_by_side(self.manifest, manifest):
            if here is not None and there is not None and self.manifest.same(here, manifest, there):
                for old, new in zip(self._columns, fresh._columns, strict=True):
                    new[there] = old[here]
        return fresh

    def fits(self, at: int, status: Status) -> bool:
        """Whether a file that looks like this is known to be as the manifest has the entry."""
        return (
            status.ctime_ns == self._ctimes[at] != 0
            and status.mtime_ns == self._mtimes[at]
            and status.size == self.manifest.size(at)
            and status.inode == self._inodes[at]
            and status.mode & 0o7777 == self._modes[at]
        )

    def identity_at(self, at: int) -> tuple[int, int]:
        """The inode of the file that the row is of, and its mtime in nanoseconds."""
        return self._inodes[at], self._mtimes[at]

    def record_at(self, at: int, status: Status, *, content_ns: int, seen_ns: int) -> None:
        """As `Rows.record`, of a file that is as the manifest has this entry."""
        if _at_rest(status, content_ns, seen_ns):
            self._set(at, status.mtime_ns, status.ctime_ns, status.inode, stat.S_IMODE(status.mode))
        else:
            self.forget_at(at)

    def forget_at(self, at: int) -> None:
        """As `Rows.forget`."""
        if self._ctimes[at]:
            self._set(at, 0, 0, 0, 0)

    def record(self, name: str, status: Status, sha256: str, *, content_ns: int, seen_ns: int) -> None:
        """See `Rows`; what is not as the manifest has it has no row."""
        at = self._found(name, sha256, status.mode)
        if at is not None:
            self.record_at(at, status, content_ns=content_ns, seen_ns=seen_ns)
        else:
            self.forget(name)

    def forget(self, name: str) -> None:
        """See `Rows`."""
        at = self.manifest.find(name)
        if at is not None:
            self.forget_at(at)

    def save(self, path: str) -> None:
        """Write it, in place of what is there.

        Raises:
            OSError: it can't be written; the old one, or none, is left.
        """
        fresh = f"{path}~"
        size = sum(len(column) * column.itemsize for column in self._columns)
        head = {"format": _FORMAT, "manifest": self.manifest.sha256.hex(), "bytes": size}
        with open(fresh, "wb") as file:
            file.write(json.dumps(head).encode() + b"\n")
            for column in self._columns:
                file.write(column)
        os.replace(fresh, path)
        self.dirty = False


def append(patch: Patch, path: str) -> None:
    """Add rows of whatever manifest to a cache, without reading it.

    Raises:
        OSError: it can't be written, or there is none.
    """
    if patch.rows:
        with open(path, "r+b") as log:
            log.seek(0, os.SEEK_END)
            log.write(json.dumps({"rows": patch.rows}, separators=(",", ":")).encode() + b"\n")


class _Status(NamedTuple):
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    mode: int


def stamp(
    rows: Rows,
    root: str,
    changes: Collection[Change],
    *,
    but: Collection[str],
    certain_ns: Callable[[str], int],
    probe: str,
) -> None:
    """Note what a commit put under each name, where a change by others since can't hide.

    Args:
        but: names of files that are none of the release.
        certain_ns: by name, `clock_ns` when the content was certain, as in `Rows.record`: for what we wrote, after
            that and before the commit; for what was hashed, before it was.
        probe: the file for `clock_ns`.
    """
    if next(_files(changes), None) is None:
        return
    seen_ns = 0
    with contextlib.suppress(OSError):  # without a clock nothing is certain, and the files are read again
        seen_ns = next_tick_ns(probe)  # later than our own renames
    for change in _files(changes):
        found = None
        with contextlib.suppress(OSError):
            found = os.lstat(os.path.join(root, change.name))
        if change.after is None or found is None or signature(found) != change.signature or change.name in but:
            rows.forget(change.name)
        else:
            status = _Status(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_mode)
            rows.record(change.name, status, change.after.sha256, content_ns=certain_ns(change.name), seen_ns=seen_ns)


def _files(changes: Iterable[Change]) -> Iterator[Change]:
    """Those of the tree's files, and not of perfkit's own."""
    return (change for change in changes if not is_private(change.name))
