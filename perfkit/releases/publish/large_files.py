"""Compare large files with the last release while they are hashed, so that what has not changed is read only once."""

from __future__ import annotations

import contextlib
import hashlib
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from perfkit.errors import FileChangedError, ManifestError
from perfkit.filesystem.thread_map import WorkerPool
from perfkit.progress.stage import Stage
from perfkit.releases.format.frames import LEAST_PIECE_BYTES, split_pieces, tag
from perfkit.releases.format.index import Index
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.format.pointer import PackedRef
from perfkit.releases.publish.blob_reader import BlobReader
from perfkit.releases.publish.site import Site
from perfkit.releases.publish.source_tree import CHANGED

READ_BYTES = 1 << 20
_LARGE_BYTES = 1 << 20  # smaller files are hashed again when they are packed
_NEW_SHARE = 1 / 16  # of a file: if more is new, it is cut into pieces when they are packed, while threads compress


class BackgroundHash:
    """The SHA-256 of what is added, computed by another thread while the caller works on it.

    Args:
        thread: hashes in the order of calls, so it must be a single thread.
    """

    def __init__(self, thread: WorkerPool) -> None:
        self._thread = thread
        self._sha256 = hashlib.sha256()
        self._batch = bytearray()
        self._hashed = thread.submit(lambda: None)

    def add(self, data: bytes) -> None:
        """Hash further bytes, soon."""
        self._batch += data
        if len(self._batch) >= READ_BYTES:
            self._hashed.result()
            self._hashed = self._thread.submit(self._sha256.update, self._batch)
            self._batch = bytearray()

    def digest(self) -> bytes:
        """The digest of all that was added."""
        self._hashed.result()
        self._sha256.update(self._batch)
        self._batch.clear()
        return self._sha256.digest()


@dataclass(slots=True)
class HashedPieces:
    """The pieces of a file, as it was when it was hashed; in columns.

    Attributes:
        state: the file's inode, size and mtime, before it was hashed.
        lengths: the sizes of the pieces.
        same: the equal pieces of the last release; -1: a new piece.
    """

    state: tuple[int, int, int]
    lengths: array[int] = field(default_factory=lambda: array("I"))
    same: array[int] = field(default_factory=lambda: array("q"))
    new_bytes: int = 0
    _new_sha256: hashlib._Hash = field(default_factory=hashlib.sha256)  # of the new pieces, one after the other

    def add(self, data: bytes, same: int | None) -> None:
        """Add the next piece."""
        self.lengths.append(len(data))
        self.same.append(-1 if same is None else same)
        if same is None:
            self.new_bytes += len(data)
            self._new_sha256.update(data)

    def read(self, file: BinaryIO, name: str) -> Iterator[tuple[int, bytes, int | None]]:
        """The offset and the bytes of each new piece; the offset, no bytes, and the equal piece of each other one.

        Raises:
            FileChangedError: at the end, if the file is not as it was.
        """
        digest, offset = hashlib.sha256(), 0
        for length, same in zip(self.lengths, self.same, strict=True):
            if same >= 0:
                yield offset, b"", same
            else:
                file.seek(offset)
                data = file.read(length)
                digest.update(data)
                yield offset, data, None
            offset += length
        if digest.digest() != self._new_sha256.digest() or _state(file) != self.state:
            raise FileChangedError(name, CHANGED)


class LastRelease:
    """The last release of a site; large files are compared with it while they are hashed.

    Args:
        manifest: the manifest of the last release.

    Attributes:
        fine: the index of small frames that numbers its pieces; None: no file was compared.
        reader: reads these pieces.
        pieces: the pieces of the files that were compared, by name, unless much of a file is new.
    """

    def __init__(self, site: Site, manifest: Manifest) -> None:
        self.manifest = manifest
        self.fine: PackedRef | None = None
        self.reader: BlobReader | None = None
        self.pieces: dict[str, HashedPieces] = {}
        self._site = site
        self._hasher = WorkerPool(1)

    def close(self) -> None:
        """Close the site's files."""
        self._hasher.shutdown(wait=False)
        if self.reader is not None:
            self.reader.close()

    def hash(self, name: str, file: BinaryIO, shown: Stage) -> tuple[int, bytes] | None:
        """The size and the SHA-256 of a file, from its beginning; None: there is nothing to compare it with.

        Args:
            shown: counts the bytes.

        Raises:
            OSError: it can't be read.
        """
        state = _state(file)
        old = self._open() if state[1] >= _LARGE_BYTES else None
        numbers = [] if old is None else old.pieces(name)
        if not numbers:
            return None
        size, digest, pieces = 0, BackgroundHash(self._hasher), HashedPieces(state)
        # What can't be read of the site is reported when the file is packed, unless another publisher has replaced it.
        with contextlib.suppress(ManifestError, OSError):
            for data, same in find_pieces(file, old, numbers):
                digest.add(data)
                size += len(data)
                shown.count(count_bytes=len(data))
                pieces.add(data, same)
                if pieces.new_bytes > _NEW_SHARE * state[1]:
                    break
            else:
                self.pieces[name] = pieces
        file.seek(size)
        while data := file.read(READ_BYTES):
            digest.add(data)
            size += len(data)
            shown.count(count_bytes=len(data))
        return size, digest.digest()

    def _open(self) -> BlobReader | None:
        if self.fine is None:
            with contextlib.suppress(ManifestError, OSError):  # reported when the site is locked
                pointer = self._site.pointer()
                if pointer is not None and pointer.manifest_sha256 == self.manifest.sha256.hex():
                    index = Index.parse(self._site.get_packed(pointer.fine), self.manifest, known=True)
                    self.fine, self.reader = pointer.fine, BlobReader(self._site, self.manifest, index)
        return self.reader


def _state(file: BinaryIO) -> tuple[int, int, int]:
    found = os.fstat(file.fileno())
    return found.st_ino, found.st_size, found.st_mtime_ns


def find_pieces(file: BinaryIO, old: BlobReader | None, numbers: Sequence[int]) -> Iterator[tuple[bytes, int | None]]:
    """The pieces of a file, as `split_pieces` makes them, each with the number of an old piece of these bytes, if any.

    Where a file is as in the last release, it is compared with its old pieces: that is faster than a search for pieces.
    Instead of a piece, the last release may have its parts: these are compared together.

    Args:
        numbers: the old pieces of the file with the same name.
    """
    if old is None:
        yield from ((data, None) for data in split_pieces(file))
        return
    index = old.index
    groups: list[list[int]] = []
    for number in numbers:
        if groups and max(index.lengths[number], index.lengths[groups[-1][-1]]) < LEAST_PIECE_BYTES:
            groups[-1].append(number)
        else:
            groups.append([number])
    here = {index.piece(group[0]).tag: at for at, group in enumerate(groups) if len(group) == 1}
    at = place = 0
    while True:
        for group in groups[at:-1]:  # the last one may be longer now
            parts = [file.read(index.lengths[number]) for number in group]
            if parts != [old.content(number) for number in group]:
                break
            yield from zip(parts, group, strict=True)
            place += sum(map(len, parts))
        file.seek(place)
        at = len(groups)
        for data in split_pieces(file):
            key = tag(data)
            number = groups[here[key]][0] if key in here else old.tags.get(key, -1)
            same = number >= 0 and old.content(number) == data
            yield data, number if same else None
            place += len(data)
            if same and key in here:
                at = here[key] + 1
                break
        else:
            return
        file.seek(place)
