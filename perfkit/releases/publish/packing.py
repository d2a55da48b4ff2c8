"""Write packs: large frames of similar files, and small frames that can be fetched one by one.

Both are written in one pass over the files. Compression runs in threads (zstd releases the GIL); results are taken in
the order of submission, so that the same files make the same packs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from array import array
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import BinaryIO

from perfkit.errors import FileChangedError
from perfkit.filesystem.compact import sort_numbers
from perfkit.filesystem.thread_map import WorkerPool
from perfkit.progress.stage import Stage
from perfkit.releases.format.frames import CUT_ABOVE_BYTES, split_parts, tag, tag_of_digest
from perfkit.releases.format.index import Pack, Piece
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.format.pointer import PackedRef
from perfkit.releases.format.zstd import compress_many, dictionary, train, zstd
from perfkit.releases.publish.blob_reader import BlobReader
from perfkit.releases.publish.frame_table import Copies, FrameTable, Gaps
from perfkit.releases.publish.large_files import (
    READ_BYTES,
    BackgroundHash,
    FoundPiece,
    HashedPieces,
    Window,
    find_pieces,
)
from perfkit.releases.publish.site import ObjectWriter, Site
from perfkit.releases.publish.source_tree import CHANGED

FINE_LEVEL = 12
SOLID_BYTES = 16 << 20  # of a frame's content: twice the window; larger frames save little, and are reused less
_PACK_BYTES = 256 << 20  # approximate maximum of an object
_BATCH_BYTES = 1 << 20  # small frames are compressed in batches
_THREADED_BYTES = 1 << 10  # per content, on average; below this, compressing takes less time than waking a thread
_DICTIONARY_BYTES = 32 << 10
_SAMPLES = 2000
_SAMPLE_BYTES = 8 << 10
_AHEAD_BYTES = 128 << 10  # of an old file: where to look for the parts of a piece, besides as much as the piece has
_LEAST_CUT_BYTES = 1 << 10  # a smaller file is not compared with its old parts: they would be listed for little
_PART_SHARE = 0.25  # of an old frame: if new pieces have less, it is not used for them
_LIVE_SHARE = 0.5  # of a pack: if less of it is in use, the frames in use are copied to a new pack

Open = Callable[[int], BinaryIO]  # opens the file of an entry


@contextlib.contextmanager
def pool() -> Iterator[WorkerPool]:
    """Threads for compression; each takes tens of megabytes at level 19.

    The end of the block does not wait for them: after Ctrl-C, a large frame takes another ten seconds.
    """
    threads = WorkerPool(min(4, max(2, os.cpu_count() or 1)))
    try:
        yield threads
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def solid_order(manifest: Manifest, entries: Iterable[int]) -> Sequence[int]:
    """Sort entries so that similar files are adjacent: by suffix, then by directory and name."""

    def key(entry: int) -> tuple[str, str, str]:
        directory, _, base = manifest.name(entry).rpartition("/")
        return base.rpartition(".")[2], directory, base

    return array("I", sort_numbers(array("I", entries), key))


def _checked(manifest: Manifest, entry: int, file: BinaryIO, hasher: WorkerPool) -> Iterator[tuple[int, bytes]]:
    """A file in blocks, with their offsets; raises if it differs from the manifest."""
    digest, offset = BackgroundHash(hasher), 0
    while data := file.read(READ_BYTES):
        digest.add(data)
        yield offset, data
        offset += len(data)
        if offset > manifest.size(entry):
            break
    _check(manifest, entry, digest.digest())


def _check(manifest: Manifest, entry: int, digest: bytes) -> None:
    if digest != manifest.digest(entry):
        raise FileChangedError(manifest.name(entry), CHANGED)


def write_solid(manifest: Manifest, gaps: Gaps, opened: Open, writer: PackWriter) -> None:
    """Write ranges of files into large frames, one after the other; a frame may end in the middle of a file.

    There are as few frames as possible, of about the same size, so that no thread waits long for another.
    """
    most = min(SOLID_BYTES, gaps.bytes // (gaps.bytes // SOLID_BYTES + 1) + READ_BYTES)
    buffer = bytearray()
    pieces: list[Piece] = []
    for entry in solid_order(manifest, gaps.entries()):
        with opened(entry) as file:
            ranges = tuple(gaps.of(entry))
            for at, data in _checked(manifest, entry, file, writer.hasher):
                for begin, end in ranges:
                    low, high = max(begin, at), min(end, at + len(data))
                    if low >= high:
                        continue
                    if len(buffer) + high - low > most:
                        writer.add(bytes(buffer), tuple(pieces))
                        buffer.clear()
                        pieces.clear()
                    last = pieces[-1] if pieces else None
                    if last is not None and last.entry == entry and last.offset + last.length == low:
                        pieces[-1] = Piece(entry, last.offset, last.start, last.length + high - low)
                    else:
                        pieces.append(Piece(entry, low, len(buffer), high - low))
                    buffer += data[low - at : high - at]
    if buffer:
        writer.add(bytes(buffer), tuple(pieces))


def write_fine(
    manifest: Manifest,
    entries: Iterable[int],
    opened: Open,
    writer: PackWriter,
    copies: Copies,
    old: BlobReader | None,
    hashed: Mapping[str, HashedPieces],
) -> None:
    """Write files into small frames: one for each file, or for each piece of a large one. Existing frames are reused.

    Args:
        copies: receives the ranges that the last release has, too.
        old: the last release.
        hashed: files that were compared with it when they were hashed.
    """
    fresh: dict[bytes, int] = {}
    for entry in entries:
        size, name = manifest.size(entry), manifest.name(entry)
        numbers = [] if old is None or size < _LEAST_CUT_BYTES else old.pieces(name)
        finder = _PartFinder(old, numbers)
        with opened(entry) as file:
            if name in hashed:
                pieces = hashed[name].read(file, name)
            else:
                pieces = _pieces(manifest, entry, file, old, numbers, writer.hasher)
            for offset, length, same, data in pieces:
                if same is not None and old is not None:
                    finder.skip_to(same)
                    index = old.index
                    piece = Piece(entry, offset, index.starts[same], length, index.tags[same])
                    writer.share(index.frame_of(same), piece)
                    copies.add(index.entries[same], index.offsets[same], length, entry, offset)
                elif old is not None and (parts := finder.find(data)):
                    _write_parts(parts, entry, offset, old, writer, copies)
                elif size <= CUT_ABOVE_BYTES:
                    writer.add(data, (Piece(entry, 0, 0, length),))
                else:
                    digest = hashlib.sha256(data).digest()
                    piece = Piece(entry, offset, 0, length, tag_of_digest(digest))
                    if digest in fresh:
                        writer.share(fresh[digest], piece)
                    else:
                        fresh[digest] = writer.add(data, (piece,))


def _pieces(
    manifest: Manifest, entry: int, file: BinaryIO, old: BlobReader | None, numbers: Sequence[int], hasher: WorkerPool
) -> Iterator[FoundPiece]:
    """The pieces of a file; raises if it differs from the manifest."""
    size = manifest.size(entry)
    if size <= CUT_ABOVE_BYTES:
        data = file.read(size + 1)
        yield FoundPiece(0, len(data), None, data)
        _check(manifest, entry, hashlib.sha256(data).digest())
        return
    digest = BackgroundHash(hasher)
    window = Window(file, digest.add)
    for piece in find_pieces(window, old, numbers):
        yield piece
        if window.end > size:
            break
    _check(manifest, entry, digest.digest())


class _PartFinder:
    """Finds the parts of new pieces in the old pieces of the file with the same name, from the same place on.

    Args:
        numbers: the old pieces, in order.
    """

    def __init__(self, old: BlobReader | None, numbers: Sequence[int]) -> None:
        self._old = old
        self._numbers = numbers
        self._at = {number: at for at, number in enumerate(numbers)}
        self._next = 0
        self._left = 0  # how much more of the old pieces to look at
        self._places: dict[bytes, tuple[int, int]] = {}  # by digest: the old piece, and the offset in it

    def skip_to(self, number: int) -> None:
        """The new file goes on after this piece, as the old one does."""
        self._next = self._at.get(number, self._next - 1) + 1
        self._left = 0
        self._places.clear()

    def find(self, data: bytes) -> list[tuple[bytes, tuple[int, int] | None]]:
        """The parts of a piece, and where the old pieces have each; empty: the old frames have too little of it."""
        if self._old is None or not self._numbers:
            return []
        index = self._old.index
        self._left += len(data) + _AHEAD_BYTES
        while self._left > 0 and self._next < len(self._numbers):
            number = self._numbers[self._next]
            self._next += 1
            self._left -= index.lengths[number]
            at = 0
            for part in split_parts(self._old.content(number), len(data)):
                self._places[hashlib.sha256(part).digest()] = number, at
                at += len(part)
        found = [(part, self._places.get(hashlib.sha256(part).digest())) for part in split_parts(data, len(data))]
        used: dict[int, int] = defaultdict(int)
        for part, place in found:
            if place is not None:
                used[index.frame_of(place[0])] += len(part)
        enough = {frame for frame, size in used.items() if size >= _PART_SHARE * index.sizes[frame]}
        found = [(part, place if place and index.frame_of(place[0]) in enough else None) for part, place in found]
        return found if enough else []


def _write_parts(
    parts: Iterable[tuple[bytes, tuple[int, int] | None]],
    entry: int,
    offset: int,
    old: BlobReader,
    writer: PackWriter,
    copies: Copies,
) -> None:
    """Write those parts of a piece that the old pieces don't have into one frame.

    Args:
        offset: the offset of the piece in its file.
    """
    content, pieces = bytearray(), []
    for part, place in parts:
        piece = Piece(entry, offset, len(content), len(part), tag(part))
        if place is None:
            pieces.append(piece)
            content += part
        else:
            number, at = place
            writer.share(old.index.frame_of(number), piece._replace(start=old.index.starts[number] + at))
            copies.add(old.index.entries[number], old.index.offsets[number] + at, len(part), entry, offset)
        offset += len(part)
    if content:
        writer.add(bytes(content), pieces)


def train_dictionary(manifest: Manifest, entries: Sequence[int], opened: Open) -> bytes | None:
    """Train a dictionary for small frames on samples of these files; None: they are too few."""
    step = max(1, len(entries) // _SAMPLES)
    samples = []
    for entry in entries[::step]:
        with opened(entry) as file:
            samples.append(file.read(_SAMPLE_BYTES))
    return train(samples, _DICTIONARY_BYTES) if len(samples) >= 50 else None


def merge_packs(table: FrameTable, old: BlobReader, writer: PackWriter) -> None:
    """Move the frames of small packs, and of packs of which most is unused, to the new packs.

    Each pack that stays is larger than all smaller ones and the new frames together. So there are few packs, however
    many releases there were, and each frame is copied only a few times.

    Args:
        old: the last release, whose frames have the same numbers as in the table.
    """
    total = writer.flush()  # of the new frames and of all smaller packs
    merged: list[int] = []
    smaller: list[int] = []  # packs that stay unless a larger one is merged
    used = {pack: frames for pack, frames in table.used().items() if pack < len(old.index.packs)}
    live = {pack: sum(table.packed[frame] for frame in frames) for pack, frames in used.items()}
    for pack in sorted(used, key=live.__getitem__):
        wasteful = live[pack] < _LIVE_SHARE * table.packs[pack].object.bytes
        if not wasteful and table.packs[pack].dictionary != writer.shared:
            continue
        smaller.append(pack)
        if wasteful or live[pack] <= total:
            merged += smaller
            smaller.clear()
        total += live[pack]
    for pack in merged:
        same = table.packs[pack].dictionary == writer.shared
        for frame in used[pack]:
            writer.move(frame, old.compressed(frame) if same else writer.compress(old.frame(frame)))


class PackWriter:
    """Writes frames to new packs, and lists them in a table: call `add` for each frame, then `finish`.

    Args:
        shown: counts the bytes of content that were packed.
        shared: the dictionary of all frames.
    """

    def __init__(
        self,
        site: Site,
        threads: ThreadPoolExecutor,
        table: FrameTable,
        shown: Stage,
        *,
        level: int,
        shared: PackedRef | None = None,
    ) -> None:
        self.shared = shared
        self.bytes = 0  # total size of the frames that were added and written
        self.hasher = WorkerPool(1)  # hashes what is packed
        self._site = site
        self._threads = threads
        self._table = table
        self._shown = shown
        self._level = level
        self._dictionary: zstd.ZstdDict | None = dictionary(site.get_packed(shared)) if shared else None
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._next = len(table)
        self._pending: deque[tuple[Future[list[bytes]], list[int]]] = deque()
        self._writer: ObjectWriter | None = None

    def add(self, content: bytes, pieces: Iterable[Piece]) -> int:
        """Queue one frame; returns its number."""
        number, self._next = self._next, self._next + 1
        for piece in pieces:
            self.share(number, piece)
        self._batch.append(content)
        self._batch_bytes += len(content)
        if self._batch_bytes >= _BATCH_BYTES:
            self._submit()
        return number

    def share(self, number: int, piece: Piece) -> None:
        """Add another piece to a frame."""
        self._table.add_piece(number, piece.entry, piece.offset, piece.start, piece.length, piece.tag)

    def compress(self, content: bytes) -> bytes:
        """Compress content as `add` does."""
        return compress_many((content,), level=self._level, shared=self._dictionary)[0]

    def _submit(self) -> None:
        contents, sizes = self._batch, list(map(len, self._batch))
        compress = partial(compress_many, contents, level=self._level, shared=self._dictionary)
        if self._batch_bytes < _THREADED_BYTES * len(contents):
            work: Future[list[bytes]] = Future()
            work.set_result(compress())
        else:
            work = self._threads.submit(compress)
        self._pending.append((work, sizes))
        self._batch, self._batch_bytes = [], 0
        while len(self._pending) > 3:
            self._write(*self._pending.popleft())

    def _write(self, work: Future[list[bytes]], sizes: list[int]) -> None:
        for frame, size in zip(work.result(), sizes, strict=True):
            pack, at = self._append(frame)
            self._table.add_frame(pack, at, len(frame), size)
            self.bytes += len(frame)
            self._shown.count(count_bytes=size)
            self._close_if_full()

    def _append(self, frame: bytes) -> tuple[int, int]:
        """Write a frame; returns its pack and its offset there."""
        if self._writer is None:
            self._writer = ObjectWriter(self._site.objects)
        at = self._writer.bytes
        self._writer.write(frame)
        return len(self._table.packs), at

    def flush(self) -> int:
        """Compress and write all queued frames; returns `bytes`."""
        if self._batch:
            self._submit()
        while self._pending:
            self._write(*self._pending.popleft())
        return self.bytes

    def move(self, number: int, frame: bytes) -> None:
        """Write a frame of the table to a new pack; call `flush` before."""
        self._table.packs_of[number], self._table.at[number] = self._append(frame)
        self._table.packed[number] = len(frame)
        self._close_if_full()

    def _close_if_full(self) -> None:
        if self._writer is not None and self._writer.bytes >= _PACK_BYTES:
            self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._table.packs.append(Pack(self._site.finish(self._writer), self.shared))
            self._writer = None

    def finish(self) -> None:
        """Compress and write all queued frames; the table is then complete."""
        self.flush()
        self._close()

    def close(self) -> None:
        """Discard what is not finished."""
        for work, _ in self._pending:
            work.cancel()
        self.hasher.shutdown(wait=False)
        if self._writer is not None:
            self._writer.discard()
