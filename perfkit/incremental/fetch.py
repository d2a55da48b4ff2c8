"""Objects and ranges of a site, fetched into a directory that outlives a crash, and the files that are made of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from typing import BinaryIO

from perfkit.downloads.manager import DownloadManager
from perfkit.downloads.request import Request
from perfkit.errors import ManifestError, TransferError
from perfkit.filesystem.hashing import hash_file
from perfkit.incremental.codec import expand
from perfkit.incremental.index import Index, PackRange
from perfkit.incremental.manifest import Manifest
from perfkit.incremental.release import MAX_POINTER_BYTES, POINTER_NAME, ObjectRef, PackedRef, Pointer
from perfkit.incremental.routes.blocks import unpack
from perfkit.incremental.routes.delta import Delta, Span

__all__ = ["Assembly", "Fetcher", "fetch_blocks", "fetch_deltas"]


class Fetcher:
    """Gets what a site has, by its URL, into `stage`; what is there already is not fetched again.

    Attributes:
        requests, bytes_received: so far.
    """

    def __init__(self, downloads: DownloadManager, source: str, stage: str) -> None:
        self.source = source.removesuffix(POINTER_NAME).rstrip("/") + "/"
        self.stage = stage
        self._downloads = downloads
        self.requests = self.bytes_received = 0

    def pointer(self) -> Pointer:
        """The pointer, asked for conditionally where an earlier one is there.

        Raises:
            ManifestError, TransferError, OSError: there is none that can be used.
        """
        path = os.path.join(self.stage, POINTER_NAME)
        self._run([Request(self.source + POINTER_NAME, POINTER_NAME)])
        try:
            with open(path, "rb") as file:
                return Pointer.parse(file.read(MAX_POINTER_BYTES + 1))
        except ManifestError:
            os.unlink(path)
            raise

    def objects(self, refs: Iterable[ObjectRef]) -> list[str]:
        """Paths of these objects, verified."""
        wanted = list(refs)
        unique = {ref.sha256: ref for ref in wanted}.values()
        self._run([Request(self.source + r.path, r.sha256, checksum=f"sha256:{r.sha256}") for r in unique])
        return [os.path.join(self.stage, ref.sha256) for ref in wanted]

    def packed(self, packed: PackedRef) -> bytes:
        """What a compressed object holds."""
        (path,) = self.objects([packed.object])
        with open(path, "rb") as file:
            return expand(file.read(packed.object.bytes + 1), packed.size)

    def ranges(self, index: Index, ranges: list[PackRange]) -> list[str]:
        """Paths of these ranges; nothing says yet that their bytes are right."""
        requests, paths = [], []
        for each in ranges:
            ref = index.packs[each.pack].object
            name = f"{ref.sha256}.{each.start}-{each.end}"
            paths.append(os.path.join(self.stage, name))
            try:
                there = os.path.getsize(paths[-1]) == each.end - each.start
            except FileNotFoundError:
                there = False
            if not there:
                requests.append(Request(self.source + ref.path, name, byte_range=(each.start, each.end)))
        self._run(requests)
        return paths

    def _run(self, requests: list[Request]) -> None:
        """All of them; the first error is raised when the others are done."""
        error: Exception | None = None
        for _, download in self._downloads.run(requests, self.stage) if requests else ():
            self.requests += download.requests
            self.bytes_received += download.bytes_received
            error = error or download.error
        if error is not None:
            raise error


class Assembly:
    """Contents in `stage`, by digest: written in parts, in any order, and there when their SHA-256 is right.

    Attributes:
        done: the paths of contents that are whole.
    """

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self.done: dict[bytes, str] = {}
        self._left: dict[bytes, int] = {}
        self._open: tuple[bytes, int] | None = None
        self.bytes_written = 0

    def take_up(self, sizes: dict[bytes, int]) -> None:
        """Find what an earlier run made of these contents."""
        for digest, size in sizes.items():
            path = self._path(digest)
            with contextlib.suppress(FileNotFoundError):
                if os.path.getsize(path) == size and hash_file(path).sha256 == digest.hex():
                    self.done[digest] = path
                else:
                    os.unlink(path)

    def writer(self, manifest: Manifest) -> Callable[[int, int, memoryview], None]:
        """Takes parts of the files of this manifest."""

        def write(entry: int, offset: int, data: memoryview) -> None:
            digest = manifest.digest(entry)
            if digest not in self.done:
                self._write(digest, manifest.size(entry), offset, data)

        return write

    def _write(self, digest: bytes, size: int, offset: int, data: memoryview) -> None:
        if self._open is None or self._open[0] != digest:
            self.close()
            fresh = os.O_TRUNC if digest not in self._left else 0
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | fresh
            self._open = digest, os.open(self._path(digest) + "~", flags, 0o600)
            self._left.setdefault(digest, size)
        while data:
            count = os.pwrite(self._open[1], data, offset)
            data, offset = data[count:], offset + count
            self.bytes_written += count
            self._left[digest] -= count
        if self._left[digest] <= 0:
            self.close()
            self._finish(digest)

    def _finish(self, digest: bytes) -> None:
        del self._left[digest]
        path = self._path(digest)
        if hash_file(path + "~").sha256 != digest.hex():
            os.unlink(path + "~")
            return  # it stays missing, and another route may bring it
        os.rename(path + "~", path)
        self.done[digest] = path

    def close(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def forget_parts(self) -> None:
        """A route has ended: what it began and didn't finish is begun anew by the next."""
        self.close()
        self._left.clear()

    def _path(self, digest: bytes) -> str:
        return os.path.join(self._stage, f"content-{digest.hex()}")


def fetch_deltas(
    fetcher: Fetcher, pointer: Pointer, old: Manifest, where: Callable[[bytes], str | None], assembly: Assembly
) -> Manifest:
    """Follow the deltas that lead from `old` to the release; returns its manifest.

    Args:
        where: the path of a file of the tree that has this content.

    Raises:
        ManifestError: a delta is damaged, or the tree has not the old content.
        TransferError, OSError: as it is fetched.
    """
    hops = pointer.chain(old.sha256.hex())
    paths = fetcher.objects(hop.object for hop in hops)
    for path in paths:
        with open(path, "rb") as file:
            delta = Delta.open(file)
            new = delta.new_manifest(old)
            groups = delta.groups(old, new)

            def read(span: Span, old: Manifest = old) -> bytes:
                digest = old.digest(span.entry)
                source = assembly.done.get(digest) or where(digest)
                if source is None:
                    raise ManifestError(f"delta: the tree does not have the old content of {old.name(span.entry)}")
                with open(source, "rb") as content:
                    return os.pread(content.fileno(), span.length, span.offset)

            try:
                delta.apply(groups, read, assembly.writer(new))
            finally:
                assembly.forget_parts()
        old = new
    if old.sha256.hex() != pointer.manifest_sha256:
        raise ManifestError("delta: it does not lead to this release")
    return old


def fetch_blocks(
    fetcher: Fetcher, pointer: Pointer, manifest: Manifest, missing: set[bytes], assembly: Assembly
) -> None:
    """Make the missing contents from frames of packs.

    Raises:
        ManifestError: an index or a frame is damaged.
        TransferError, OSError: as they are fetched.
    """
    entries = [entry for entry, digest in enumerate(manifest.digests()) if digest in missing]
    most = 2 * sum(map(manifest.size, entries)) > manifest.total_bytes
    index = Index.parse(fetcher.packed(pointer.solid if most else pointer.fine), manifest)
    pieces = index.pieces(entries)
    ranges = index.ranges(pieces)
    shared = {number: fetcher.packed(packed) for number in {each.pack for each in ranges}
              if (packed := index.packs[number].dictionary) is not None}  # fmt: skip
    write = assembly.writer(manifest)
    try:
        for each, path in zip(ranges, fetcher.ranges(index, ranges), strict=True):
            file: BinaryIO
            with open(path, "rb") as file:
                try:
                    unpack(index, each, file, write, wanted=pieces, shared=shared.get(each.pack))
                except ManifestError:
                    os.unlink(path)
                    raise
    finally:
        assembly.forget_parts()
    if lacking := missing.difference(assembly.done):
        for path in fetcher.ranges(index, ranges):
            os.unlink(path)
        raise TransferError(fetcher.source, f"{len(lacking)} contents are not what the manifest says; nothing was done")
