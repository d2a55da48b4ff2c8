"""Compare large files with the last release while they are hashed, so that what has not changed is read only once."""

from __future__ import annotations

import contextlib
import hashlib
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

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
_HANDED_OVER_BYTES = 64 << 10  # less is hashed in less time than it takes to wake a thread
_LARGE_BYTES = 1 << 20  # smaller files are hashed again when they are packed
_NEW_SHARE = 1 / 16  # of a file: if more is new, it is cut into pieces when they are packed, while threads compress


class BackgroundHash:
    """The SHA-256 of what is added, computed by another thread while the caller works on it if it is large.

    Args:
        thread: hashes in the order of calls, so it must be a single thread.
    """

    def __init__(self, thread: WorkerPool) -> None:
        self._thread = thread
        self._sha256 = hashlib.sha256()
        self._added: Future[None] | None = None

    def add(self, data: bytes) -> None:
        """Hash further bytes, soon."""
        if self._added is not None:
            self._added.result()
            self._added = None
        if len(data) < _HANDED_OVER_BYTES:
            self._sha256.update(data)
        else:
            self._added = self._thread.submit(self._sha256.update, data)

    def digest(self) -> bytes:
        """The digest of all that was added."""
        if self._added is not None:
            self._added.result()
        return self._sha256.digest()


class FoundPiece(NamedTuple):
    """A piece of a file.

    Attributes:
        same: the number of an old piece of these bytes; None: it is new.
        data: the bytes of a new piece.
    """

    offset: int
    length: int
    same: int | None
    data: bytes = b""


class Window:
    """A file that is read in blocks, from a place on that moves forwards.

    Args:
        added: called with each block.
    """

    def __init__(self, file: BinaryIO, added: Callable[[bytes], object]) -> None:
        self.end = 0  # of what was read
        self._file = file
        self._added = added
        self.place = self._start = 0  # the buffer has what begins at `_start`
        self._buffer = b""

    def extend(self) -> int:
        """Read the next block; returns its size, which is 0 at the end of the file."""
        data = self._file.read(READ_BYTES)
        if data:
            self._added(data)
        self._buffer = self._buffer[self.place - self._start :] + data
        self._start = self.place
        self.end += len(data)
        return len(data)

    def read_rest(self) -> None:
        """Read the file to its end, and keep nothing."""
        while self.extend():
            self.place = self.end

    def begins_with(self, data: bytes) -> bool:
        """Whether these bytes are at the place."""
        while self.end < self.place + len(data) and self.extend():
            pass
        return self._buffer.startswith(data, self.place - self._start)

    def read(self, start: int, size: int) -> bytes:
        """The bytes at `start`, which is not before the place; fewer at the end of the file."""
        while self.end < start + size and self.extend():
            pass
        return self._buffer[start - self._start : start - self._start + size]

    def pass_by(self, data: bytes, same: int | None) -> FoundPiece:
        """Move the place past a piece, which has these bytes."""
        piece = FoundPiece(self.place, len(data), same, data if same is None else b"")
        self.place += len(data)
        return piece


class _WindowReader:
    """Reads a window from its place on, without moving that."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._place = window.place

    def read(self, size: int) -> bytes:
        data = self._window.read(self._place, size)
        self._place += len(data)
        return data


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

    def add(self, piece: FoundPiece) -> None:
        """Add the next piece."""
        self.lengths.append(piece.length)
        self.same.append(-1 if piece.same is None else piece.same)
        self.new_bytes += len(piece.data)
        self._new_sha256.update(piece.data)

    def read(self, file: BinaryIO, name: str) -> Iterator[FoundPiece]:
        """The pieces; the new ones are read again.

        Raises:
            FileChangedError: at the end, if the file is not as it was.
        """
        digest, offset = hashlib.sha256(), 0
        for length, same in zip(self.lengths, self.same, strict=True):
            if same >= 0:
                yield FoundPiece(offset, length, same)
            else:
                file.seek(offset)
                data = file.read(length)
                digest.update(data)
                yield FoundPiece(offset, length, None, data)
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
        digest, pieces = BackgroundHash(self._hasher), HashedPieces(state)

        def added(data: bytes) -> None:
            digest.add(data)
            shown.count(count_bytes=len(data))

        window = Window(file, added)
        # What can't be read of the site is reported when the file is packed, unless another publisher has replaced it.
        with contextlib.suppress(ManifestError, OSError):
            for piece in find_pieces(window, old, numbers):
                pieces.add(piece)
                if pieces.new_bytes > _NEW_SHARE * state[1]:
                    break
            else:
                self.pieces[name] = pieces
        window.read_rest()
        return window.end, digest.digest()

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


def find_pieces(window: Window, old: BlobReader | None, numbers: Sequence[int]) -> Iterator[FoundPiece]:
    """The pieces of a file, as `split_pieces` makes them.

    Where a file is as in the last release, it is compared with its old pieces: that is faster than a search for pieces.
    Instead of a piece, the last release may have its parts: these are compared together.

    Args:
        window: at the beginning of the file.
        numbers: the old pieces of the file with the same name.
    """
    if old is None:
        yield from (window.pass_by(data, None) for data in split_pieces(_WindowReader(window)))
        return
    index = old.index
    groups: list[list[int]] = []
    for number in numbers:
        if groups and max(index.lengths[number], index.lengths[groups[-1][-1]]) < LEAST_PIECE_BYTES:
            groups[-1].append(number)
        else:
            groups.append([number])
    here = {index.piece(group[0]).tag: at for at, group in enumerate(groups) if len(group) == 1}
    at = 0
    while True:
        for group in groups[at:-1]:  # the last one may be longer now
            contents = [old.content(number) for number in group]
            if not window.begins_with(b"".join(contents)):
                break
            for data, number in zip(contents, group, strict=True):
                yield window.pass_by(data, number)
        at = len(groups)
        for data in split_pieces(_WindowReader(window)):
            key = tag(data)
            number = groups[here[key]][0] if key in here else old.tags.get(key, -1)
            same = number >= 0 and old.content(number) == data
            yield window.pass_by(data, number if same else None)
            if same and key in here:
                at = here[key] + 1
                break
        else:
            return
