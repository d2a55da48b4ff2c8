"""Files fetched into a directory that outlives a crash, and the contents that are made of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import BinaryIO

from perfkit.downloads.manager import DownloadManager
from perfkit.downloads.peek import Peek
from perfkit.downloads.protocol import Version
from perfkit.downloads.request import Download, Request
from perfkit.filesystem.hashing.hash_file import hash_file
from perfkit.progress.meter import Progress
from perfkit.progress.stage import Stage
from perfkit.releases.format.manifest import Manifest
from perfkit.transactions.commit import FETCHED
from perfkit.transactions.object_store import copy_into
from perfkit.updates.digest_index import Contents, ContentSet

__all__ = ["Assembly", "Fetcher"]

_PREFIX = FETCHED.rpartition("/")[2]
_CONTENT = re.compile(re.escape(_PREFIX) + "[0-9a-f]{64}")


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

    def peek(self, url: str, *, most: int, known: Version | None = None) -> Peek:
        """The first `most` bytes of a file, and what its origin says of it, unless it is the version `known`.

        Raises:
            TransferError: no answer that can be used.
        """
        seen = self._downloads.peek(url, most=most, known=known)
        self.requests += seen.requests
        self.bytes_received += len(seen.first)
        return seen

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


class Done:
    """Contents that are whole, and their paths, which are made when they are asked for."""

    def __init__(self, path: Callable[[bytes], str]) -> None:
        self._path = path
        self._wanted: ContentSet | None = None
        self._others: set[bytes] = set()

    def expect(self, contents: Contents) -> None:
        """These are what is wanted; most of what will be done is of them."""
        self._wanted = ContentSet(contents)
        self._others = {digest for digest in self._others if not self._wanted.add(digest)}

    def add(self, digest: bytes) -> None:
        """This content is whole now."""
        if self._wanted is None or not self._wanted.add(digest):
            self._others.add(digest)

    def __getitem__(self, digest: bytes) -> str:
        if digest not in self:
            raise KeyError(digest)
        return self._path(digest)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._others or (self._wanted is not None and digest in self._wanted)

    def lacking(self, missing: Set[bytes]) -> Set[bytes]:
        """Those of the contents that are not whole yet."""
        return missing - (self._others if self._wanted is None else self._wanted)


class Assembly:
    """Contents in `stage`, by digest: written in parts, in any order, and there when their SHA-256 is right.

    Attributes:
        done: the paths of contents that are whole.
        expected: the contents that are wanted.
        standing: the path of what stands in the tree under a name; contents may be made of parts of it.
    """

    def __init__(
        self,
        stage: str,
        *,
        progress: Progress | None = None,
        standing: Callable[[str], str | None] = lambda name: None,
    ) -> None:
        self.standing = standing
        self._stage = stage
        self._progress = progress
        self._shown: Stage | None = None
        self.done = Done(self._path)
        self.expected = Contents(Manifest.of(()))
        self._left: dict[bytes, int] = {}
        self._writing: _Writing | None = None

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

    def expect(self, contents: Contents) -> None:
        """These are what is wanted."""
        self.expected = contents
        self.done.expect(contents)

    def lacking(self, missing: Set[bytes]) -> Set[bytes]:
        """Those of the contents that are not there yet."""
        return self.done.lacking(missing)

    def take_up(self, missing: Set[bytes]) -> None:
        """Find what an earlier run made of these contents."""
        with os.scandir(self._stage) as found:
            names = [each.name for each in found if _CONTENT.fullmatch(each.name)]
        for name in names:
            digest = bytes.fromhex(name.removeprefix(_PREFIX))
            if digest not in missing or digest in self.done:
                continue
            path = self._path(digest)
            if hash_file(path).sha256 == digest.hex():
                self.done.add(digest)
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
                self.done.add(digest)
            else:
                os.unlink(fresh)

    def add(self, pieces: Iterable[bytes | memoryview]) -> tuple[bytes, int]:
        """Take in a content whose digest isn't known before; returns its SHA-256 and its size."""
        digest, size = hashlib.sha256(), 0
        with self.begin() as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
                size += len(piece)
                self._count(count_bytes=len(piece))
        self.end(digest.digest())
        return digest.digest(), size

    def begin(self) -> BinaryIO:
        """A new file for a content whose digest isn't known before; one at a time. `end` takes it in."""
        return open(_create(self._fresh), "wb")

    def end(self, digest: bytes) -> None:
        """The file of `begin` is written and closed; its content has this SHA-256."""
        self.adopt(self._fresh, digest)

    def adopt(self, path: str, digest: bytes) -> None:
        """Take in a file of the stage, which has this SHA-256."""
        os.rename(path, self._path(digest))
        self.done.add(digest)
        self._count(files=1)

    @property
    def _fresh(self) -> str:
        return os.path.join(self._stage, "content~")

    def writer(self, manifest: Manifest) -> Callable[[int, int, memoryview], None]:
        """Takes parts of the files of this manifest."""

        def write(entry: int, offset: int, data: memoryview) -> None:
            digest = manifest.digest(entry)
            if digest not in self.done:
                self._write(digest, manifest.size(entry), offset, data)

        return write

    def _write(self, digest: bytes, size: int, offset: int, data: memoryview) -> None:
        writing = self._writing
        if writing is None or writing.digest != digest:
            self._close()
            begun = digest in self._left
            self._left.setdefault(digest, size)
            writing = self._writing = _Writing(digest, _create(self._path(digest) + "~", empty=not begun), begun=begun)
        writing.put(offset, data)
        self._left[digest] -= len(data)
        self._count(count_bytes=len(data))
        if self._left[digest] <= 0:
            self._close()
            self._finish(writing)

    def _finish(self, writing: _Writing) -> None:
        digest = writing.digest
        del self._left[digest]
        path = self._path(digest)
        if (writing.sha256 or hash_file(path + "~").sha256) != digest.hex():
            os.unlink(path + "~")
            return  # it stays missing, and another route may bring it
        os.rename(path + "~", path)
        self.done.add(digest)
        self._count(files=1)

    def _close(self) -> None:
        if self._writing is not None:
            os.close(self._writing.descriptor)
            self._writing = None

    def forget_parts(self) -> None:
        """A route has ended: what it began and didn't finish is begun anew by the next."""
        self._close()
        self._left.clear()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._fresh)

    def _path(self, digest: bytes) -> str:
        return os.path.join(self._stage, f"{_PREFIX}{digest.hex()}")


def _create(path: str, *, empty: bool = True) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags | os.O_TRUNC if empty else flags, 0o600)


class _Writing:
    """A content as it is written; hashed on the way if it comes in one go from its beginning to its end."""

    __slots__ = ("_end", "_hash", "descriptor", "digest")

    def __init__(self, digest: bytes, descriptor: int, *, begun: bool) -> None:
        self.digest = digest
        self.descriptor = descriptor
        self._hash = None if begun else hashlib.sha256()
        self._end = 0

    def put(self, offset: int, data: memoryview) -> None:
        if self._hash is not None and offset == self._end:
            self._hash.update(data)
            self._end += len(data)
        else:
            self._hash = None
        while data:
            count = os.pwrite(self.descriptor, data, offset)
            data, offset = data[count:], offset + count

    @property
    def sha256(self) -> str | None:
        """In hexadecimal; None if only reading it will tell."""
        return None if self._hash is None else self._hash.hexdigest()
