"""SHA-256 of one consistent version of a file, whole and by chunks. See docs/adr/0002-hashing.md."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import stat
import threading
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

from perfkit.errors import ConfigError, FileChangedError
from perfkit.filesystem.hashing.small_files import LARGE_BYTES, READ_BYTES
from perfkit.filesystem.scan import ScanEntry
from perfkit.filesystem.thread_map import WorkerPool, map_in_threads, usable_cpus
from perfkit.libc import preadv, take_lease

_WINDOW_BYTES = 2 << 20  # mapped at once by each thread: mapped pages are resident memory
_MAP_FROM_BYTES = LARGE_BYTES  # smallest file that is mapped
_MAP_MIN_BYTES = _WINDOW_BYTES  # smallest range that is mapped: below, copying is cheaper
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY  # a FIFO must not block
_POPULATE_READ = 22  # MADV_POPULATE_READ, Linux 5.14; Python has no name for it


class FileHash(NamedTuple):
    """The digests of a file, and the version of it that they belong to. A tuple for speed, like `ScanEntry`."""

    name: str  # the path as given, or relative to the root
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    sha256: str | None = None  # hexadecimal, of the whole file
    chunk_bytes: int | None = None
    chunks: tuple[str, ...] = ()  # hexadecimal SHA-256 of each chunk; an empty file has none
    error: Exception | None = None  # FileChangedError or OSError; only where many files are hashed


def hash_file(
    path: str | os.PathLike[str], *, chunk_bytes: int | None = None, whole: bool = True, lease: bool = False
) -> FileHash:
    """SHA-256 of one file; see `Toolkit.hash_file`."""
    name = os.fspath(path)
    if chunk_bytes is None and not whole:
        raise ConfigError("hash_file: with whole=False, chunk_bytes must be given")
    if chunk_bytes is not None and chunk_bytes < 1:
        raise ConfigError(f"hash_file: chunk_bytes must be at least 1; got {chunk_bytes}")
    with _Source(name, name, lease=lease) as source:
        digest: str | None = None
        chunks: list[str] = []
        if chunk_bytes is None:
            digest = _whole(source)
        elif whole:
            digest, chunks = _both(source, chunk_bytes)
        else:
            chunks = _chunks(source, chunk_bytes)
        return source.confirmed(digest, chunk_bytes, tuple(chunks))


def hash_one(base: str, entry: ScanEntry) -> FileHash:
    """One file of many, below `base`; an error is returned, not raised."""
    if entry.error is not None:
        return FileHash(entry.name, error=entry.error)
    try:
        with _Source(base + entry.name, entry.name, flags=os.O_NOFOLLOW) as source:
            return source.confirmed(_whole(source), None, ())
    except (OSError, FileChangedError) as error:
        return FileHash(entry.name, error=error)


class _Source:
    """An open file that is read in pieces, or mapped under a lease; by several threads, if each has a buffer."""

    def __init__(self, path: str, name: str, *, flags: int = 0, lease: bool = False) -> None:
        self.path = path
        self.name = name
        self._leased = False
        self._lock = threading.Lock()
        self._windows = 0  # that are mapped, or about to be; under the lock
        self.descriptor = os.open(path, _FLAGS | flags)
        try:
            self.status = os.fstat(self.descriptor)
            if not stat.S_ISREG(self.status.st_mode):
                code = errno.EISDIR if stat.S_ISDIR(self.status.st_mode) else errno.EINVAL
                raise OSError(code, "not a regular file", path)
            self.size = self.status.st_size  # from its stat, until all of it has been read
            if lease:
                with contextlib.suppress(OSError):  # it is read, then
                    take_lease(self.descriptor)
                    self._leased = True
        except BaseException:
            os.close(self.descriptor)
            raise

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)  # this ends the lease

    def feed(self, update: Callable[[memoryview], object], start: int, end: int, buffer: memoryview) -> None:
        """Pass the bytes from `start` to `end` to `update`, in pieces."""
        while start < end:
            mappable = self._leased and self.size >= _MAP_FROM_BYTES and end - start >= _MAP_MIN_BYTES
            window = self._map(start, min(end, start + _WINDOW_BYTES)) if mappable else None
            if window is not None:
                mapped, skip = window
                try:
                    with mapped, memoryview(mapped) as whole, whole[skip:] as view:
                        update(view)
                        start += len(view)
                finally:
                    self._unmapped()
                continue
            received = preadv(self.descriptor, [buffer[: end - start]], start)
            if received == 0:
                raise FileChangedError(self.path, f"the file was truncated to {start} bytes while it was read")
            update(buffer[:received])
            start += received

    def feed_all(self, update: Callable[[memoryview], object], buffer: memoryview) -> None:
        """Pass all bytes to `update`, as `feed` does; a small file is read to its end, whatever its stat says."""
        if self.size >= READ_BYTES:
            self.feed(update, 0, self.size, buffer)
            return
        self.size = 0
        while received := preadv(self.descriptor, [buffer], self.size):
            update(buffer[:received])
            self.size += received

    def _map(self, start: int, end: int) -> tuple[mmap.mmap, int] | None:
        """A mapped window, and the offset of `start` in it; None if it has to be read instead.

        While we hold the lease, other processes can't open the file for writing or truncate it: they wait until we
        release it, which we do when no thread has a window left. Pages are populated at once, so that a media error is
        an OSError and not a SIGBUS; reading then reports which one.
        """
        skip = start % mmap.ALLOCATIONGRANULARITY
        with self._lock:
            self._windows += 1
        try:
            if fcntl.fcntl(self.descriptor, fcntl.F_GETLEASE) == fcntl.F_RDLCK:
                length, offset = end - start + skip, start - skip
                mapped = mmap.mmap(self.descriptor, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=offset)
                try:
                    mapped.madvise(_POPULATE_READ)
                except OSError:
                    mapped.close()
                    raise
                return mapped, skip
        except (OSError, ValueError):
            pass
        self._leased = False
        self._unmapped()
        return None

    def _unmapped(self) -> None:
        """Let waiting writers open the file, if this was the last window."""
        with self._lock:
            self._windows -= 1
            if not (self._windows or self._leased):
                with contextlib.suppress(OSError):  # another thread has
                    fcntl.fcntl(self.descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    def confirmed(self, sha256: str | None, chunk_bytes: int | None, chunks: tuple[str, ...]) -> FileHash:
        """The result; FileChangedError is raised if the file was modified since it was opened."""
        before, after = self.status, os.fstat(self.descriptor)
        if after.st_size != before.st_size:
            raise FileChangedError(
                self.path, f"its size changed from {before.st_size} to {after.st_size} bytes while it was read"
            )
        if (after.st_mtime_ns, after.st_ctime_ns) != (before.st_mtime_ns, before.st_ctime_ns):
            raise FileChangedError(self.path, "the file was modified while it was read")
        return FileHash(self.name, self.size, after.st_mtime_ns, after.st_ctime_ns, sha256, chunk_bytes, chunks)


def _whole(source: _Source) -> str:
    digest = hashlib.sha256()
    source.feed_all(digest.update, memoryview(bytearray(READ_BYTES)))
    return digest.hexdigest()


def _both(source: _Source, chunk_bytes: int) -> tuple[str, list[str]]:
    """The whole digest in this thread and the chunks in another one, window by window, in one pass."""
    digest, chunks = hashlib.sha256(), _Chunks(chunk_bytes)
    with WorkerPool(1) as pool:

        def update(view: memoryview) -> None:
            pending = pool.submit(chunks.update, view)
            digest.update(view)
            pending.result()

        source.feed_all(update, memoryview(bytearray(_WINDOW_BYTES)))
    return digest.hexdigest(), chunks.finish()


class _Chunks:
    """Digests of chunks, from consecutive pieces of a file."""

    def __init__(self, chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        self._left = chunk_bytes
        self._digest = hashlib.sha256()
        self._done: list[str] = []

    def update(self, view: memoryview) -> None:
        start = 0
        while start < len(view):
            with view[start : start + self._left] as piece:
                self._digest.update(piece)
                start += len(piece)
                self._left -= len(piece)
            if self._left == 0:
                self._next()

    def _next(self) -> None:
        self._done.append(self._digest.hexdigest())
        self._digest, self._left = hashlib.sha256(), self._chunk_bytes

    def finish(self) -> list[str]:
        if self._left < self._chunk_bytes:
            self._next()
        return self._done


def _chunks(source: _Source, chunk_bytes: int) -> list[str]:
    """Only the chunks: each thread takes the next one until none is left."""
    if source.size < READ_BYTES:
        chunks = _Chunks(chunk_bytes)
        source.feed_all(chunks.update, memoryview(bytearray(READ_BYTES)))
        return chunks.finish()
    total = -(-source.size // chunk_bytes)
    found = [""] * total
    numbers = count()  # its `next` is atomic
    threads = min(usable_cpus(), total)

    def work(_: int) -> None:
        buffer = memoryview(bytearray(min(READ_BYTES, chunk_bytes)))
        while (number := next(numbers)) < total:
            digest = hashlib.sha256()
            start = number * chunk_bytes
            source.feed(digest.update, start, min(source.size, start + chunk_bytes), buffer)
            found[number] = digest.hexdigest()

    for _ in map_in_threads(work, range(threads), threads):
        pass
    return found
