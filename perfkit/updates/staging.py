"""The staging area: what was fetched so far, in a directory that survives a crash."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import BinaryIO, NamedTuple

from perfkit.downloads.http.semantics import Version
from perfkit.downloads.manager import DownloadManager
from perfkit.downloads.probe import Probe
from perfkit.downloads.request import Download, Request
from perfkit.filesystem.compact import DigestSet
from perfkit.filesystem.hashing.hash_file import hash_file
from perfkit.filesystem.own_files import create_unnamed, open_own
from perfkit.filesystem.rootdir import RootDir
from perfkit.filesystem.spilled import Bytes, keep_bytes
from perfkit.libc import start_writing
from perfkit.progress.meter import Progress
from perfkit.progress.stage import Stage
from perfkit.releases.format.draft import DIGEST_BYTES, made_for
from perfkit.releases.format.manifest import Manifest
from perfkit.transactions import layout
from perfkit.transactions.object_store import copy_into, write_all
from perfkit.updates.digest_index import BlobIndex, BlobSet

_RETRIES_OF_ONE = 2  # of each site where there are mirrors
_PREFIX = layout.FETCHED_OBJECT.rpartition("/")[2]
_WRITE_BACK_BYTES = 1 << 20
_BLOB = re.compile(re.escape(_PREFIX) + "[0-9a-f]{64}")


class _Batch(NamedTuple):
    """Downloads under way."""

    names: frozenset[str | None]  # of those that `begin` has begun
    sent: dict[int, Request]  # those under way by index, with the URLs that are used
    running: Generator[tuple[int, Download], None, None]


class Fetcher:
    """Downloads into a directory, and counts requests and bytes.

    Attributes:
        directory: a crash leaves its files there.
        max_files: how many files a release may have.
        requests, bytes_received: totals so far.
    """

    def __init__(self, downloads: DownloadManager, directory: str, *, max_files: int) -> None:
        self.directory = directory
        self.max_files = max_files
        self._downloads = downloads
        self._home, self._sites, self._failed = "", list[str](), set[str]()
        self._begun: list[_Batch] = []
        self.requests = self.bytes_received = 0

    def use_mirrors(self, home: str, sites: Sequence[str]) -> None:
        """From now on, fetch URLs below `home` from the first of these sites, or from the others if it fails. A request
        without a checksum or range uses only the first, since its file may differ from site to site.
        """
        self._home, self._sites = home, [*sites]

    def failed_last(self, sites: Iterable[str]) -> list[str]:
        """The same sites, with those last that failed a request."""
        return sorted(sites, key=self._failed.__contains__)

    def _spread(self, request: Request) -> Request:
        if not self._sites or not request.url.startswith(self._home):
            return request
        sites = self._sites[:1]
        if request.checksum is not None or request.byte_range is not None:
            sites = self.failed_last(self._sites)
        first, *others = (site + request.url.removeprefix(self._home) for site in sites)
        retries = _RETRIES_OF_ONE if len(self._sites) > 1 else None
        # `known` describes the file of another server.
        return replace(request, url=first, mirrors=tuple(others), home=self._home, known=None, retries=retries)

    def _note_failures(self, request: Request, download: Download) -> None:
        asked = (request.url, *request.mirrors)
        for url in asked if download.error is not None else asked[: download.mirror]:
            self._failed.update(site for site in self._sites if url.startswith(site))

    def path(self, name: str) -> str:
        """Where a request with this name writes its file."""
        return os.path.join(self.directory, name)

    def keep(self, parts: Iterable[bytes]) -> Bytes:
        """All of these bytes, joined; megabytes are kept in a file without a name in `directory`."""
        return keep_bytes(parts, partial(create_unnamed, self.directory))

    def probe(self, url: str, *, most: int, known: Version | None = None, home: str | None = None) -> Probe:
        """The first `most` bytes of a file and its metadata, unless it is still the version `known`.

        Args:
            home: as in a `Request`.

        Raises:
            TransferError: no usable response.
        """
        found = self._downloads.probe(url, most=most, known=known, home=home)
        self.requests += found.requests
        self.bytes_received += len(found.first)
        return found

    def warm(self, url: str, connections: int) -> None:
        """Open connections for requests that will soon follow."""
        self._downloads.warm(self._spread(Request(url)).url, connections)

    def begin(self, requests: Sequence[Request]) -> None:
        """Begin these downloads, each of which must have a name, for which `get` and `each` then wait."""
        if requests:
            names = frozenset(request.name for request in requests)
            self._begun.append(self._start(requests, "fetching")._replace(names=names))

    def has_begun(self, name: str) -> bool:
        """Whether `begin` has begun a download of this name, and nothing has waited for it yet."""
        return any(name in batch.names for batch in self._begun)

    def close(self) -> None:
        """Cancel downloads that were begun, and that nothing has waited for."""
        while self._begun:
            self._begun.pop().running.close()

    def get(self, requests: Sequence[Request], *, phase: str = "fetching") -> list[Download]:
        """Make these downloads; returns them in the order of the requests, each of which must have a name.

        Args:
            phase: what progress displays call it.

        Raises:
            TransferError, OSError: the first failure, after all others have ended.
        """
        found = dict(self.each(requests, phase=phase))
        for index in range(len(requests)):
            if (error := found[index].error) is not None:
                raise error
        return [found[index] for index in range(len(requests))]

    def each(self, requests: Sequence[Request], *, phase: str = "fetching") -> Iterator[tuple[int, Download]]:
        """Make these downloads; yields the index of each request, and its result, when it ends."""
        indexes = {request.name: index for index, request in enumerate(requests)}
        for batch in [batch for batch in self._begun if not batch.names.isdisjoint(indexes)]:
            self._begun.remove(batch)
            for _, name, download in self._results(batch):
                if name in indexes:
                    yield indexes.pop(name), download
        if left := [request for request in requests if request.name in indexes]:
            for _, name, download in self._results(self._start(left, phase)):
                yield indexes[name], download

    def stream(self, requests: Iterable[Request], sizes: Sequence[int | None]) -> Iterator[tuple[int, Download]]:
        """As `each`, for requests that are made when they are taken, and that `begin` has not begun.

        Args:
            sizes: of all the files, in bytes; None: not known.
        """
        return ((index, download) for index, _, download in self._results(self._start(requests, "fetching", sizes)))

    def _start(self, requests: Iterable[Request], phase: str, sizes: Sequence[int | None] | None = None) -> _Batch:
        sent: dict[int, Request] = {}
        indexes = itertools.count()

        def prepare(request: Request) -> Request:  # called late: sites that have failed come last
            spread = sent[next(indexes)] = self._spread(request)
            return spread

        running = self._downloads.run(requests, self.directory, phase=phase, sizes=sizes, prepare=prepare, at_once=True)
        return _Batch(frozenset(), sent, running)

    def _results(self, batch: _Batch) -> Iterator[tuple[int, str | None, Download]]:
        """The index, the name and the result of each download, when it ends."""
        with contextlib.closing(batch.running):
            for index, download in batch.running:
                request = batch.sent.pop(index)
                self._note_failures(request, download)
                self.requests += download.requests
                self.bytes_received += download.bytes_received
                yield index, request.name, download


class StagingArea:
    """Blobs in a directory of `rootdir`. One may be written in parts, in any order; it counts if its digest matches."""

    def __init__(self, rootdir: RootDir, directory: str = "", *, progress: Progress | None = None) -> None:
        self._rootdir = rootdir
        self._directory = directory
        self._prefix = os.path.join(directory, _PREFIX)
        self._unnamed = os.path.join(directory, "content~")  # the file of `create`
        self._progress = progress
        self._shown: Stage | None = None
        self.expected = BlobSet(BlobIndex(Manifest.of(())))  # those that the update needs
        self._complete, self._others = BlobSet(self.expected.index), DigestSet()  # complete ones: expected, and not
        self._left: dict[bytes, int] = {}  # bytes that partial blobs still lack
        self._made = bytearray()  # see `writer`
        self._writing: _PartialBlob | None = None

    @contextlib.contextmanager
    def show_progress(
        self, phase: str = "unpacking", *, files: int | None = None, total_bytes: int | None = None
    ) -> Iterator[None]:
        """Inside this block, show the progress of writing blobs.

        Args:
            phase: what progress displays call it.
            files, total_bytes: how many are expected; None: unknown.
        """
        with Stage(self._progress, phase, files=files, total_bytes=total_bytes) as self._shown:
            try:
                yield
            finally:
                self._shown = None

    def _count(self, *, files: int = 0, count_bytes: int = 0) -> None:
        if self._shown is not None:
            self._shown.count(files=files, count_bytes=count_bytes)

    def expect(self, needed: BlobSet) -> None:
        """Set which blobs the update needs: use those that an earlier run completed, and delete its other blobs."""
        self.expected = needed
        self._complete = BlobSet(needed.index)
        self._others = DigestSet(digest for digest in self._others if not self._complete.add(digest))
        for name in self._rootdir.iterdir(self._directory):
            if _BLOB.fullmatch(name):
                self._take_over(bytes.fromhex(name.removeprefix(_PREFIX)))

    def _take_over(self, digest: bytes) -> None:
        """Use what an earlier run left of a blob, or delete it."""
        if digest in self:
            return
        name = self._name(digest)
        status = self._rootdir.lstat(name)
        assert status is not None
        # Any other was fetched for another version by a sync that failed, or planted by others.
        own = digest in self.expected and stat.S_ISREG(status.st_mode) and status.st_nlink == 1
        if own and hash_file(self._path(name)).sha256 == digest.hex():  # a crash may have left a part of it
            self._add(digest)
        else:
            self._rootdir.unlink(name)

    def __contains__(self, digest: bytes) -> bool:
        """Whether a blob is complete."""
        return digest in self._complete or digest in self._others

    def _add(self, digest: bytes) -> None:
        if not self._complete.add(digest):
            self._others.add(digest)

    def missing(self, wanted: Set[bytes]) -> Set[bytes]:
        """Those of these expected blobs that are not complete yet."""
        return wanted - self._complete

    def path(self, digest: bytes) -> str:
        """The path of a complete blob."""
        return self._path(self._name(digest))

    def copy(self, digest: bytes, path: str) -> None:
        """Copy the blob from another file, if that still has it; using a reflink where supported."""
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            with open(self._create(self._name(digest)), "r+b", buffering=0) as copy:
                found = copy_into(file.fileno(), copy.fileno())
            if found == digest.hex():
                self._add(digest)
            else:
                self._rootdir.unlink(self._name(digest))

    def add(self, chunks: Iterable[bytes | memoryview]) -> tuple[bytes, int]:
        """Write a blob whose digest isn't known beforehand; returns its SHA-256 and its size."""
        digest, size = hashlib.sha256(), 0
        with self.create() as file:
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                self._count(count_bytes=len(chunk))
        self.finish(digest.digest())
        return digest.digest(), size

    def create(self) -> BinaryIO:
        """A new file for a blob whose digest isn't known beforehand; one at a time. `finish` adds it."""
        return open(self._create(self._unnamed), "wb")

    def finish(self, digest: bytes) -> None:
        """Add the file of `create`, which is written and closed; its content has this SHA-256."""
        self.adopt(self._unnamed, digest)

    def adopt(self, path: str, digest: bytes) -> None:
        """Add a file of this directory whose content has this SHA-256."""
        self._rootdir.rename(os.path.join(self._directory, os.path.basename(path)), self._name(digest))
        self._add(digest)
        self._count(files=1)

    def writer(self, manifest: Manifest, made: bytearray | None = None) -> Callable[[int, int, memoryview], None]:
        """A function that writes parts of this manifest's files: index of the entry, offset in the file, bytes.

        Args:
            made: for a draft: receives the SHA-256 of each entry, which is not known beforehand.
        """
        self._made = bytearray() if made is None else made

        def write(entry: int, offset: int, data: memoryview) -> None:
            digest, size = manifest.digest(entry), manifest.size(entry)
            if len(data) == size:
                self._write_whole(digest, data)
            else:
                self._write_part(digest, size, offset, data)

        return write

    def _write_whole(self, digest: bytes, data: memoryview) -> None:
        found = hashlib.sha256(data).digest()
        if self._accept(digest, found):
            descriptor = self._create(self._name(found))
            try:
                write_all(descriptor, data)
            finally:
                os.close(descriptor)
            self._add(found)
            self._count(files=1, count_bytes=len(data))

    def _accept(self, digest: bytes, found: bytes) -> bool:
        """Whether `found` is the SHA-256 that a written blob has to have; for a draft, which lacks it, note it."""
        if (entry := made_for(digest)) is None:
            return found == digest
        self._made[DIGEST_BYTES * entry : DIGEST_BYTES * (entry + 1)] = found
        return True

    def _write_part(self, digest: bytes, size: int, offset: int, data: memoryview) -> None:
        partial = self._writing
        if partial is None or partial.digest != digest:
            self._close()
            begun = digest in self._left
            self._left.setdefault(digest, size)
            name = self._name(digest) + "~"
            descriptor = open_own(self._path(name), os.O_RDWR) if begun else self._create(name)
            partial = self._writing = _PartialBlob(digest, descriptor, begun=begun)
        partial.write(offset, data)
        self._left[digest] -= len(data)
        self._count(count_bytes=len(data))
        if self._left[digest] <= 0:
            self._close()
            self._finish(partial)

    def _finish(self, partial: _PartialBlob) -> None:
        digest = partial.digest
        del self._left[digest]
        name = self._name(digest) + "~"
        found = bytes.fromhex(partial.sha256 or str(hash_file(self._path(name)).sha256))
        if self._accept(digest, found):
            self.adopt(name, found)
        else:
            self._rootdir.unlink(name)  # it stays missing; another route may supply it

    def _close(self) -> None:
        partial, self._writing = self._writing, None
        if partial is not None:
            os.close(partial.descriptor)  # closes it even if it reports an error (close(2))

    def open_so_far(self, digest: bytes) -> BinaryIO | None:
        """A blob that `writer` has begun to write, or has written; None: it has not."""
        name = self._name(digest) + "~"
        if digest not in self._left:
            if (entry := made_for(digest)) is not None:
                digest = bytes(self._made[DIGEST_BYTES * entry : DIGEST_BYTES * (entry + 1)])
            name = self._name(digest)
        try:
            return open(self._path(name), "rb", buffering=0)
        except FileNotFoundError:
            return None

    def discard_partial(self) -> None:
        """Discard incomplete blobs at the end of a route: the next one writes them from the start."""
        self._close()
        self._left.clear()
        self._rootdir.unlink(self._unnamed)

    def _create(self, name: str) -> int:
        """A descriptor of a new file, which replaces whatever has this name."""
        try:
            return self._rootdir.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            self._rootdir.unlink(name)
            return self._create(name)

    def _name(self, digest: bytes) -> str:
        return self._prefix + digest.hex()

    def _path(self, name: str) -> str:
        return os.path.join(self._rootdir.root, name)


class _PartialBlob:
    """A blob that is being written; hashed on the way if it is written in order, without a break.

    The disk writes meanwhile, so that the commit waits only for the last part.
    """

    __slots__ = ("_end", "_hash", "_waiting", "descriptor", "digest")

    def __init__(self, digest: bytes, descriptor: int, *, begun: bool) -> None:
        self.digest = digest
        self.descriptor = descriptor
        self._hash = None if begun else hashlib.sha256()
        self._end = 0
        self._waiting = 0  # bytes that the disk was not told to write

    def write(self, offset: int, data: memoryview) -> None:
        self._waiting += len(data)
        if self._hash is not None and offset == self._end:
            self._hash.update(data)
            self._end += len(data)
        else:
            self._hash = None
        while data:
            count = os.pwrite(self.descriptor, data, offset)
            data, offset = data[count:], offset + count
        if self._waiting >= _WRITE_BACK_BYTES:
            start_writing(self.descriptor)
            self._waiting = 0

    @property
    def sha256(self) -> str | None:
        """In hexadecimal; None: the file has to be read for it."""
        return None if self._hash is None else self._hash.hexdigest()
