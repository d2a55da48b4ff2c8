"""Hashing: SHA-256 of a file, whole and by chunks, of bytes that were one version of it. See docs/adr/0002."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import stat
from collections.abc import Callable
from itertools import count
from types import TracebackType
from typing import NamedTuple

from perfkit.errors import ConfigError, FileChangedError
from perfkit.filesystem.hashing.small_files import LARGE_BYTES, READ_BYTES
from perfkit.filesystem.scan import ScanEntry
from perfkit.filesystem.thread_map import pooled, usable_cpus

__all__ = ["FileHash", "hash_file", "hash_one"]

_WINDOW_BYTES = 2 << 20  # mapped at once by a thread: mapped pages are resident memory
_MAP_FROM_BYTES = LARGE_BYTES  # of a file
_MAP_LEAST_BYTES = _WINDOW_BYTES  # of what is asked for: mapping less costs more than copying it
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY  # a pipe in a file's place must not block
_POPULATE_READ = 22  # MADV_POPULATE_READ, Linux 5.14; Python has no name for it


class FileHash(NamedTuple):
    """The digests of a file, and which version of it they belong to. A tuple, as `ScanEntry` is: trees have many."""

    name: str  # as it was given, or relative to the root
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    sha256: str | None = None  # hexadecimal, of the whole file
    chunk_bytes: int | None = None
    chunks: tuple[str, ...] = ()  # hexadecimal SHA-256 of each chunk; the last one may be short, an empty file has none
    error: Exception | None = None  # FileChangedError or OSError, where files are hashed by the many


def hash_file(
    path: str | os.PathLike[str], *, chunk_bytes: int | None = None, whole: bool = True, threads: int | None = None
) -> FileHash:
    """SHA-256 of one file; memory stays within a few MiB whatever its size.

    The whole digest is serial by nature. Chunk digests use all processors, and come beside the whole one in the same
    pass where both are wanted.

    Args:
        chunk_bytes: also the digest of each chunk of so many bytes.
        whole: False for the chunks only.
        threads: by default as many as there are processors, four at most.

    Raises:
        FileChangedError: the file changed in content, size or metadata while it was read.
        ConfigError: `chunk_bytes` is not positive, or nothing is asked for.
        OSError: it can't be read, or is no regular file.
    """
    name = os.fspath(path)
    if chunk_bytes is None and not whole:
        raise ConfigError("hash_file: with whole=False, chunk_bytes must be given")
    if chunk_bytes is not None and chunk_bytes < 1:
        raise ConfigError(f"hash_file: chunk_bytes must be at least 1; got {chunk_bytes}")
    with _Source(name, name) as source:
        digest: str | None = None
        chunks: list[str] = []
        if chunk_bytes is None:
            digest = _whole(source)
        elif whole:
            digest, chunks = _both(source, chunk_bytes)
        else:
            chunks = _chunks(source, chunk_bytes, threads or usable_cpus())
        return source.confirmed(digest, chunk_bytes, tuple(chunks))


def hash_one(base: str, entry: ScanEntry) -> FileHash:
    """One file of many, below `base`: an error is its result."""
    if entry.error is not None:
        return FileHash(entry.name, error=entry.error)
    try:
        with _Source(base + entry.name, entry.name, os.O_NOFOLLOW) as source:
            return source.confirmed(_whole(source), None, ())
    except (OSError, FileChangedError) as error:
        return FileHash(entry.name, error=error)


class _Source:
    """An open file whose bytes can be had a window at a time, mapped where that is safe."""

    def __init__(self, path: str, name: str, flags: int = 0) -> None:
        self.path = path
        self.name = name
        self._leased = False
        self.descriptor = os.open(path, _FLAGS | flags)
        try:
            self.status = os.fstat(self.descriptor)
            if not stat.S_ISREG(self.status.st_mode):
                code = errno.EISDIR if stat.S_ISDIR(self.status.st_mode) else errno.EINVAL
                raise OSError(code, "not a regular file", path)
            self.size = self.status.st_size
            if self.size >= _MAP_FROM_BYTES:
                self._leased = _lease(self.descriptor)
        except BaseException:
            os.close(self.descriptor)
            raise

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        os.close(self.descriptor)  # the lease goes with it

    def feed(self, update: Callable[[memoryview], object], start: int, end: int, buffer: memoryview) -> None:
        """Pass the bytes from `start` to `end` on, in pieces.

        Raises:
            FileChangedError: the file ends before.
            OSError: it can't be read.
        """
        while start < end:
            mappable = self._leased and end - start >= _MAP_LEAST_BYTES
            window = self._map(start, min(end, start + _WINDOW_BYTES)) if mappable else None
            if window is not None:
                mapped, skip = window
                with mapped, memoryview(mapped) as whole, whole[skip:] as view:
                    update(view)
                    start += len(view)
                continue
            received = os.preadv(self.descriptor, [buffer[: end - start]], start)
            if received == 0:
                raise FileChangedError(self.path, f"cut short to {start} bytes while it was read")
            update(buffer[:received])
            start += received

    def _map(self, start: int, end: int) -> tuple[mmap.mmap, int] | None:
        """A window, and where in it `start` is; None where reading is the safe way.

        While we hold the lease nobody can open the file for writing or cut it short: they wait until we let go, which
        we do after the window in hand. A medium that can't be read shows when the pages are brought in, as an error and
        not as a SIGBUS; then reading says which one.
        """
        skip = start % mmap.ALLOCATIONGRANULARITY
        try:
            if fcntl.fcntl(self.descriptor, fcntl.F_GETLEASE) == fcntl.F_RDLCK:
                mapped = mmap.mmap(self.descriptor, end - start + skip, mmap.MAP_SHARED, mmap.PROT_READ,
                                   offset=start - skip)  # fmt: skip
                try:
                    mapped.madvise(_POPULATE_READ)
                except OSError:
                    mapped.close()
                    raise
                return mapped, skip
        except (OSError, ValueError):
            pass
        self.release()
        return None

    def release(self) -> None:
        """Let those who wait to write have the file."""
        if self._leased:
            self._leased = False
            fcntl.fcntl(self.descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    def confirmed(self, sha256: str | None, chunk_bytes: int | None, chunks: tuple[str, ...]) -> FileHash:
        """The result, if the file is still the one that was opened.

        Raises:
            FileChangedError: it is not.
        """
        before, after = self.status, os.fstat(self.descriptor)
        if after.st_size != before.st_size:
            raise FileChangedError(self.path, f"went from {before.st_size} to {after.st_size} bytes while it was read")
        if (after.st_mtime_ns, after.st_ctime_ns) != (before.st_mtime_ns, before.st_ctime_ns):
            raise FileChangedError(self.path, "changed while it was read")
        return FileHash(self.name, self.size, after.st_mtime_ns, after.st_ctime_ns, sha256, chunk_bytes, chunks)


def _lease(descriptor: int) -> bool:
    """Take a read lease (fcntl(2), "Leases"): not to be had on others' files, on files open for writing, over networks.

    A lease that is to end is told by a signal, which by default (SIGIO) would kill the process. We ask instead.
    """
    import signal

    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)  # is ignored by default
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETOWN, 0)  # and goes to nobody
    except (OSError, AttributeError):
        return False
    return True


def _whole(source: _Source) -> str:
    digest = hashlib.sha256()
    source.feed(digest.update, 0, source.size, memoryview(bytearray(READ_BYTES)))
    return digest.hexdigest()


def _both(source: _Source, chunk_bytes: int) -> tuple[str, list[str]]:
    """The whole digest here and the chunks in one more thread, both of the same window, in one pass."""
    from concurrent.futures import ThreadPoolExecutor

    digest, chunks = hashlib.sha256(), _Chunks(chunk_bytes)
    with ThreadPoolExecutor(1, thread_name_prefix="perfkit-disk") as pool:

        def update(view: memoryview) -> None:
            beside = pool.submit(chunks.update, view)
            digest.update(view)
            beside.result()

        source.feed(update, 0, source.size, memoryview(bytearray(_WINDOW_BYTES)))
    return digest.hexdigest(), chunks.finish()


class _Chunks:
    """Digests of chunks, from pieces in order."""

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


def _chunks(source: _Source, chunk_bytes: int, threads: int) -> list[str]:
    """Chunks only: each thread takes the next one until there is none."""
    total = -(-source.size // chunk_bytes)
    found = [""] * total
    numbers = count()  # `next` of it is atomic

    def work(_: int) -> None:
        buffer = memoryview(bytearray(min(READ_BYTES, chunk_bytes)))
        while (number := next(numbers)) < total:
            digest = hashlib.sha256()
            start = number * chunk_bytes
            source.feed(digest.update, start, min(source.size, start + chunk_bytes), buffer)
            found[number] = digest.hexdigest()

    for _ in pooled(work, range(min(threads, total)), threads):
        pass
    return found
