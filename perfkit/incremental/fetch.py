"""Files fetched into a directory that outlives a crash, and the contents that are made of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from perfkit.downloads.manager import DownloadManager
from perfkit.downloads.request import Download, Request
from perfkit.filesystem.hashing import hash_file
from perfkit.filesystem.store import copy_into, write_all
from perfkit.incremental.manifest import Manifest
from perfkit.progress.meter import Progress
from perfkit.progress.stage import Stage

__all__ = ["Assembly", "Fetcher"]


class Fetcher:
    """Downloads into `stage`, and counts what that costs.

    Attributes:
        stage: the directory; a crash leaves what is in it.
        requests, bytes_received: so far.
    """

    def __init__(self, downloads: DownloadManager, stage: str) -> None:
        self.stage = stage
        self._downloads = downloads
        self.requests = self.bytes_received = 0

    def path(self, name: str) -> str:
        """Where a request of this name leaves its file."""
        return os.path.join(self.stage, name)

    def get(self, requests: Sequence[Request]) -> list[Download]:
        """What came of these, in their order; each must have a name.

        Raises:
            TransferError, OSError: the first that failed, when all others are done.
        """
        found: dict[int, Download] = {}
        for index, download in self._downloads.run(requests, self.stage) if requests else ():
            self.requests += download.requests
            self.bytes_received += download.bytes_received
            found[index] = download
        for index in range(len(requests)):
            if (error := found[index].error) is not None:
                raise error
        return [found[index] for index in range(len(requests))]


class Assembly:
    """Contents in `stage`, by digest: written in parts, in any order, and there when their SHA-256 is right.

    Attributes:
        done: the paths of contents that are whole.
    """

    def __init__(self, stage: str, *, progress: Progress | None = None) -> None:
        self._stage = stage
        self._progress = progress
        self._shown: Stage | None = None
        self.done: dict[bytes, str] = {}
        self._left: dict[bytes, int] = {}
        self._open: tuple[bytes, int] | None = None

    @contextlib.contextmanager
    def making(self, *, files: int | None = None, total_bytes: int | None = None) -> Iterator[None]:
        """Show, inside this block, what is made: so many contents of so many bytes, where that is known."""
        with Stage(self._progress, "apply", files=files, total_bytes=total_bytes) as self._shown:
            try:
                yield
            finally:
                self._shown = None

    def _count(self, *, files: int = 0, count_bytes: int = 0) -> None:
        if self._shown is not None:
            self._shown.count(files=files, count_bytes=count_bytes)

    def take_up(self, sizes: Mapping[bytes, int]) -> None:
        """Find what an earlier run made of these contents."""
        for digest, size in sizes.items():
            path = self._path(digest)
            with contextlib.suppress(FileNotFoundError):
                if os.path.getsize(path) == size and hash_file(path).sha256 == digest.hex():
                    self.done[digest] = path
                else:
                    os.unlink(path)

    def copy(self, digest: bytes, path: str) -> None:
        """Take the content from another file, if that has it; by reflink where there is one."""
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            fresh = self._path(digest) + "~"
            with open(_create(fresh), "r+b", buffering=0) as copy:
                found = copy_into(file.fileno(), copy.fileno())
            if found == digest.hex():
                os.rename(fresh, self._path(digest))
                self.done[digest] = self._path(digest)
            else:
                os.unlink(fresh)

    def add(self, pieces: Iterable[bytes]) -> tuple[bytes, int]:
        """Take in a content whose digest isn't known before; returns its SHA-256 and its size."""
        path = os.path.join(self._stage, "content~")
        digest, size = hashlib.sha256(), 0
        with open(_create(path), "wb", buffering=0) as file:
            for piece in pieces:
                write_all(file.fileno(), piece)
                digest.update(piece)
                size += len(piece)
                self._count(count_bytes=len(piece))
        found = digest.digest()
        os.rename(path, self._path(found))
        self.done[found] = self._path(found)
        self._count(files=1)
        return found, size

    def writer(self, manifest: Manifest) -> Callable[[int, int, memoryview], None]:
        """Takes parts of the files of this manifest."""

        def write(entry: int, offset: int, data: memoryview) -> None:
            digest = manifest.digest(entry)
            if digest not in self.done:
                self._write(digest, manifest.size(entry), offset, data)

        return write

    def _write(self, digest: bytes, size: int, offset: int, data: memoryview) -> None:
        if self._open is None or self._open[0] != digest:
            self._close()
            self._open = digest, _create(self._path(digest) + "~", empty=digest not in self._left)
            self._left.setdefault(digest, size)
        while data:
            count = os.pwrite(self._open[1], data, offset)
            data, offset = data[count:], offset + count
            self._left[digest] -= count
            self._count(count_bytes=count)
        if self._left[digest] <= 0:
            self._close()
            self._finish(digest)

    def _finish(self, digest: bytes) -> None:
        del self._left[digest]
        path = self._path(digest)
        if hash_file(path + "~").sha256 != digest.hex():
            os.unlink(path + "~")
            return  # it stays missing, and another route may bring it
        os.rename(path + "~", path)
        self.done[digest] = path
        self._count(files=1)

    def _close(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def forget_parts(self) -> None:
        """A route has ended: what it began and didn't finish is begun anew by the next."""
        self._close()
        self._left.clear()

    def _path(self, digest: bytes) -> str:
        return os.path.join(self._stage, f"content-{digest.hex()}")


def _create(path: str, *, empty: bool = True) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags | os.O_TRUNC if empty else flags, 0o600)
