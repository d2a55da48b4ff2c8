"""One version of a file while it is downloaded: the partial file, what it has, and its publication.

The partial file is beside the destination, as `NAME.perfkit-part`. A slow download syncs it from time to time, so that
a power cut leaves what the resume journal says.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable

from perfkit.downloads.cancel import Cancel
from perfkit.downloads.checksums import Checksum, RunningDigest
from perfkit.downloads.file_origin import digest_of, write_origin
from perfkit.downloads.http.semantics import NO_VERSION, Version
from perfkit.downloads.http.urls import is_signed
from perfkit.downloads.resume_journal import Resumable, ResumeJournal, is_own
from perfkit.downloads.segments import Range, Runner, SegmentMap
from perfkit.errors import CancelledError, IntegrityError, TransferError
from perfkit.libc import rename_to_new, set_mode, sync_directory, sync_file, try_lock

_log = logging.getLogger(__name__)

_SAVE_EVERY_S = 0.5
_SYNC_EVERY_S = 30.0
_NAME_MAX = 255
_COMPARED_BYTES = 64 << 10  # of an earlier run's data, fetched again to compare
_IDLE_S = 300.0  # another process that has written nothing for this long is not waited for
_SPACE_CHECK_BYTES = 1 << 20  # for a smaller file, writing it is the check
_HASH_STEP_BYTES = 1 << 20
_NOT_REPLACEABLE = {errno.EBUSY: "it is a mount point", errno.EPERM: "it or its directory is immutable or append-only"}
_HASH_WAIT_S = (0.002, 0.05)  # least and most wait for more to hash; short, so that none is left when a fast file ends


def part_path(dest: str) -> str:
    """The path of a destination's partial file; a name too long for a suffix is replaced by its digest."""
    directory, slash, name = dest.rpartition("/")
    part = f"{name}.perfkit-part"
    if 4 * len(part) > _NAME_MAX and len(os.fsencode(part)) + len(".json~") > _NAME_MAX:
        part = f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.perfkit-part"
    return f"{directory}{slash}{part}"


class ChangedError(Exception):
    """The file at the origin is another version than the one that the partial file was begun with."""


class OccupiedError(Exception):
    """Another process is writing the partial file, and making progress."""


class PartialFile:
    """The partial file of one version, with the map of what it holds."""

    def __init__(
        self,
        dest: str,
        url: str,
        checksum: Checksum | None = None,
        part: Range | None = None,
        key: str | None = None,
        *,
        durable: bool = False,
    ) -> None:
        self.dest = dest
        self.url = url  # the origin that `version` belongs to
        self.source = digest_of(url, key)  # what identifies it on disk
        self._key = key
        self._checksum = checksum  # the caller's, which holds wherever the bytes come from
        self.part = part  # the bytes of the resource that the file consists of; None: all of them
        self.map = SegmentMap(None if part is None else part[1] - part[0])
        self.total: int | None = None  # size of the whole resource
        self.version = NO_VERSION  # as the origin named it
        self.digest: RunningDigest | None = None
        self.settled = False  # an origin has confirmed version and size
        self.ranges = True  # the origin has not refused ranges
        self.ranges_promised = False  # it says that it supports them,
        self.ranges_seen = False  # or has sent one
        self._compared: Range | None = None  # an earlier run's bytes there must equal those fetched
        self.resumed_bytes = 0
        self.mixed = False  # some bytes came from an earlier run or another server
        self.retired = False
        self.path = part_path(dest)
        self.descriptor = -1
        self._durable = durable  # whether data and name are synced at the end
        self._directory = -1  # its descriptor, if durable; opened early, while a lack of descriptors can be waited out
        self._journal = ResumeJournal(self.path)
        self._journal_lock = threading.Lock()
        self._synced: list[Range] = []
        self._lost = False  # whether the system could not write what it had taken
        self._saved_at_s = self._synced_at_s = time.monotonic()

    @property
    def lasting(self) -> Version:
        """The version, as far as a later run may remember it; a part of a file has none."""
        return self.version.lasting if self.part is None else NO_VERSION

    @property
    def expires(self) -> bool:
        """Whether a later URL may continue where this one is refused."""
        return self._key is not None or is_signed(self.url)

    def resume(self) -> bool:
        """Continue what an earlier run left, if any of it can be used; otherwise remove it.

        Raises:
            OccupiedError: another process is writing it.
            TransferError: another process holds it, and makes no progress.
            OSError: it cannot be opened.
        """
        if (text := self._journal.read()) is None:
            return False
        self._open()
        try:
            self._continue(Resumable.parse(text))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            _log.info("%s: not resumed: %s", self.dest, error)
            self.discard()
        return self.resumed_bytes > 0

    def _continue(self, found: Resumable) -> None:
        if found.part != self.part:
            raise ValueError(f"the journal is for bytes {found.part}")
        same_sum = self._checksum is not None and found.checksum == str(self._checksum)
        version = found.version if found.source == self.source else NO_VERSION
        if not (version.proves or same_sum):
            raise ValueError("no validator or checksum tells whether the file at the origin is still the same")
        size, done = found.size, found.done
        if self.part is not None and size != self.map.size:
            raise ValueError("the journal contradicts itself")
        present = os.fstat(self.descriptor).st_size
        if SegmentMap(size, done).done() != done or (done and done[-1][1] > present):
            raise ValueError("the journal does not fit the partial file")
        if done:
            # The end of the first range is fetched again and compared: another version may have the same size, date and
            # ETag (reproducible builds, `rsync -t`, an ETag made of the second).
            start, end = done[0]
            self._compared = max(start, end - _COMPARED_BYTES), end
            done = ([(start, self._compared[0])] if self._compared[0] > start else []) + done[1:]
        if _total(done) < _COMPARED_BYTES:
            raise ValueError("too little is left to be worth a comparison")
        self.version = version
        self.map = SegmentMap(size, done)
        self.total = size if self.part is None else None
        self._synced = found.durable
        self.resumed_bytes = _total(done)
        self.mixed = self.resumed_bytes > 0

    def create(self, size: int | None) -> None:
        """Create the partial file, empty, and check that its file system has room for it.

        Raises:
            OccupiedError: another process is writing it.
            TransferError: another process holds it, and makes no progress.
            OSError: no space (ENOSPC), no permission, a read-only file system.
        """
        if size is not None and size >= _SPACE_CHECK_BYTES:
            space = os.statvfs(os.path.dirname(self.path) or ".")
            if size > (free := space.f_bavail * space.f_frsize):
                what = f"No space left on device: {size} bytes are needed, {free} are free"
                raise OSError(errno.ENOSPC, what, self.dest)
        found = self._open()
        self._journal.remove(certainly=found > 0)  # one that describes other bytes must not outlive them
        if found:
            os.ftruncate(self.descriptor, 0)

    def _open(self) -> int:
        """Open and lock the partial file; returns its size. Removes what others have put there under its name."""
        if self._durable:
            self._directory = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return self._open_locked()
        except BaseException:
            self.close()
            raise

    def _open_locked(self) -> int:
        while True:
            descriptor, found = self._open_or_create()
            try:
                try_lock(descriptor)
                status = os.fstat(descriptor)
                if os.path.samestat(status, os.lstat(self.path)):
                    if not found or is_own(status):
                        self.descriptor = descriptor
                        return status.st_size
                    os.unlink(self.path)
            except FileNotFoundError:
                pass
            except BlockingIOError:
                idle_s = time.time() - os.fstat(descriptor).st_mtime
                os.close(descriptor)
                if idle_s < _IDLE_S:
                    raise OccupiedError from None
                reason = f"another process is downloading to {self.dest}, and has received nothing for {idle_s:.0f} s"
                raise TransferError(self.url, reason) from None
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)  # its owner published or removed it between our two steps

    def _open_or_create(self) -> tuple[int, bool]:
        """Its descriptor, and whether it existed already."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        while True:
            try:
                return os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o666), False
            except FileExistsError:
                with contextlib.suppress(FileNotFoundError):
                    return self._open_existing(flags | os.O_NONBLOCK), True

    def _open_existing(self, flags: int) -> int:
        try:
            return os.open(self.path, flags)
        except PermissionError:  # another user's, such as root's; a read-only descriptor is enough to remove it
            descriptor = os.open(self.path, flags & ~os.O_RDWR)
            if not is_own(os.fstat(descriptor)):
                return descriptor
            os.close(descriptor)
            raise

    def write(self, data: memoryview, position: int) -> None:
        """Write bytes at their position.

        Raises:
            ChangedError: an earlier run left other bytes there, so none of its bytes can be used.
            OSError: such as ENOSPC or EIO.
        """
        if self._compared is not None:
            self._compare(data, position, *self._compared)
        while data:
            count = os.pwrite(self.descriptor, data, position)
            data, position = data[count:], position + count

    def _compare(self, data: memoryview, position: int, start: int, end: int) -> None:
        first, last = max(position, start), min(position + len(data), end)
        if first < last:
            fetched = data[first - position : last - position]
            if os.pread(self.descriptor, last - first, first) != fetched:
                raise ChangedError("its bytes differ from those that an earlier run left")

    @property
    def resumable(self) -> bool:
        """Whether a later request could continue it."""
        return bool(self.ranges and self.map.size and (self.version.proves or self._checksum)) and not self._lost

    def change_source(self, url: str) -> None:
        """Continue from another server, whose validators are unknown yet; only a checksum holds across servers."""
        self.url, self.source = url, digest_of(url)
        self.version, self.settled = NO_VERSION, False
        self.ranges_promised = self.ranges_seen = False
        self.mixed = self.descriptor >= 0
        self.total = self.total if self.mixed else None

    def save_if_due(self) -> None:
        """Write the journal if it is due; for the workers, after each write of data."""
        due = time.monotonic() - self._saved_at_s >= _SAVE_EVERY_S
        if due and self._journal_lock.acquire(blocking=False):
            try:
                self._save()
            finally:
                self._journal_lock.release()

    def _save(self) -> None:
        if not self.resumable or self.retired:
            return
        done = self.map.done()
        if time.monotonic() - self._synced_at_s >= _SYNC_EVERY_S:
            self._sync(getattr(os, "fdatasync", sync_file))  # macOS has none
            self._synced = done
            self._synced_at_s = time.monotonic()
        checksum = None if self._checksum is None else str(self._checksum)
        size = self.map.size or 0
        self._journal.write(Resumable(self.source, self.version, size, self.part, checksum, done, self._synced))
        self._saved_at_s = time.monotonic()

    def _sync(self, sync: Callable[[int], object]) -> None:
        """Sync the file by this function. If that fails, nothing of it can be kept: which bytes are lost is unknown,
        and a further sync would report nothing (fsync(2)).
        """
        try:
            sync(self.descriptor)
        except OSError:
            self._lost = True
            raise

    def verify(self, cancel: Cancel) -> None:
        """Check the digest of the whole file, if there is one to check.

        Raises:
            IntegrityError: the digest does not match.
            CancelledError: cancelled before.
            OSError: the file cannot be read.
        """
        size = self.map.size
        if self.digest is None or size is None:
            return
        self.digest.catch_up(self.descriptor, size, cancel)
        if cancel.cancelled and self.digest.position < size:
            raise CancelledError(self.url, "cancelled")
        for expected, found in self.digest.mismatches():
            what = "checksum mismatch" if expected == self._checksum else "the server's Repr-Digest does not match"
            raise IntegrityError(self.url, what, str(expected), f"{expected.algorithm}:{found}")

    def hash_behind(self, stopped: Callable[[], bool], cancel: Cancel) -> None:
        """Hash from front to back what the workers have written, until the whole file is hashed or `stopped`.

        Raises:
            OSError: the file cannot be read.
        """
        digest, size = self.digest, self.map.size
        assert digest is not None
        assert size is not None
        least_s, most_s = _HASH_WAIT_S
        wait_s = least_s
        while not stopped() and digest.position < size:
            before = digest.position
            digest.catch_up(self.descriptor, self.map.frontier, cancel)
            if digest.position < size:
                wait_s = least_s if digest.position - before >= _HASH_STEP_BYTES else min(2 * wait_s, most_s)
                cancel.wait(wait_s)

    def publish(self, path: str, *, replace: bool = True) -> None:
        """Give the whole file its final name, in one step.

        Args:
            path: that name, in the same directory as `dest`.
            replace: whether a file that has the name already may be replaced.

        Raises:
            FileExistsError: something that may not be replaced has the name.
            OSError: the destination is a directory, can't be replaced, or its directory cannot be changed.
        """
        with contextlib.suppress(FileNotFoundError):
            before = os.lstat(path)
            check_replaceable(before, path)
            if stat.S_ISREG(before.st_mode):
                set_mode(self.descriptor, stat.S_IMODE(before.st_mode) & 0o777)
        if lasting := self.lasting:
            write_origin(self.descriptor, self.source, lasting)
        self._sync(sync_file if self._durable else _flush)
        try:
            (os.replace if replace else rename_to_new)(self.path, path)
        except OSError as error:
            if (reason := _NOT_REPLACEABLE.get(error.errno or 0)) is None:
                raise
            text = f"{reason}, so it can't be replaced; {self.path} has the new file"
            raise OSError(error.errno, text, path) from error
        if self._durable:
            sync_directory(self._directory)
        with contextlib.suppress(OSError):
            self._journal.remove()
        self.close()

    def discard(self) -> None:
        """Remove the partial file and its journal."""
        self._remove()
        self.close()

    def keep_or_discard(self) -> bool:
        """Keep what a later run can resume, with a current journal; remove the rest. Returns whether it was kept."""
        if self.descriptor >= 0 and self.resumable and _total(self.map.done()) >= 2 * _COMPARED_BYTES:
            try:
                self._sync(_flush)
                with self._journal_lock:
                    self._save()
                self.close()
                return True
            except OSError as error:
                _log.warning("%s: the resume journal cannot be written: %s", self.dest, error)
        self.discard()
        return False

    def retire(self, *, but: Runner | None = None) -> None:
        """Make way for another partial file: cancel the runners, and leave the names to the other."""
        with self._journal_lock:
            self.retired = True
            self._remove()
        self.map.cancel_others(but)
        self.close_if_retired()

    def close_if_retired(self) -> None:
        """Close a retired partial file that has no runners left. Whichever thread is last does: if two did, the second
        could close what another thread has opened since.
        """
        if self.retired:
            with self._journal_lock:
                if not self.map.runners():
                    self.close()

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            if self.descriptor >= 0:
                os.unlink(self.path)
        with contextlib.suppress(OSError):
            self._journal.remove()

    def close(self) -> None:
        descriptors = self.descriptor, self._directory
        self.descriptor = self._directory = -1
        for descriptor in descriptors:
            if descriptor >= 0:
                with contextlib.suppress(OSError):  # what is worth keeping was flushed
                    os.close(descriptor)


def _flush(descriptor: int) -> None:
    """Raise what closing the file would: network file systems report only then what they could not write (close(2))."""
    try:
        copy = os.dup(descriptor)
    except OSError:  # no descriptors are left
        return
    os.close(copy)


def check_replaceable(status: os.stat_result, path: str) -> None:
    """Check that a destination has a file or a link, which a file may replace.

    Raises:
        IsADirectoryError, FileExistsError: it is a directory, a device, a FIFO or a socket.
    """
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "the destination is a directory", path)
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
        raise FileExistsError(errno.EEXIST, "the destination is a device, FIFO or socket; choose a file", path)


def _total(ranges: Iterable[Range]) -> int:
    return sum(end - start for start, end in ranges)
