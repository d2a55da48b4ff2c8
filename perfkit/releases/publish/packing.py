"""Write packs: large frames of similar files, and small frames that can be fetched one by one.

Both are written in one pass over the files. Compression runs in threads (zstd releases the GIL); results are taken in
the order of submission, so that the same files make the same packs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from perfkit.errors import FileChangedError
from perfkit.filesystem.thread_map import WorkerPool
from perfkit.releases.format.frames import CUT_ABOVE_BYTES, split_pieces
from perfkit.releases.format.index import Frame, Index, Pack, Piece
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.format.pointer import PackedRef
from perfkit.releases.format.zstd import compress, compress_many, dictionary, train, zstd
from perfkit.releases.publish.site import BlobReader, ObjectWriter, Site

__all__ = [
    "Open",
    "PackWriter",
    "ReusedFrames",
    "pool",
    "reusable_frames",
    "solid_order",
    "train_dictionary",
    "write_fine",
    "write_solid",
]

SOLID_LEVEL = 19
FINE_LEVEL = 12
SOLID_BYTES = 16 << 20  # of a frame's content: twice the window; larger frames save little, and are reused less
_PACK_BYTES = 256 << 20  # approximate maximum of an object
_BATCH_BYTES = 1 << 20  # small frames are compressed in batches
_DICTIONARY_BYTES = 32 << 10
_SAMPLES = 2000
_SAMPLE_BYTES = 8 << 10
_READ_BYTES = 1 << 20
_LIVE_SHARE = 0.5  # of a pack of small frames: below it, those in use are copied to a new pack

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


def solid_order(manifest: Manifest, entries: Iterable[int]) -> list[int]:
    """Sort entries so that similar files are adjacent: by suffix, then by directory and name."""

    def key(entry: int) -> tuple[str, str, str]:
        directory, _, base = manifest.name(entry).rpartition("/")
        return base.rpartition(".")[2], directory, base

    return sorted(entries, key=key)


def _checked(manifest: Manifest, entry: int, parts: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """Offsets and parts of a file; raises FileChangedError if it is not as in the manifest."""
    digest, offset = hashlib.sha256(), 0
    for data in parts:
        digest.update(data)
        yield offset, data
        offset += len(data)
        if offset > manifest.size(entry):
            break
    if digest.digest() != manifest.digest(entry):
        raise FileChangedError(manifest.name(entry), "it changed while it was being published; publish again")


def write_solid(manifest: Manifest, entries: Iterable[int], opened: Open, writer: PackWriter) -> None:
    """Write files into large frames, one after the other; a frame may end in the middle of a file."""
    buffer = bytearray()
    pieces: list[Piece] = []
    for entry in entries:
        with opened(entry) as file:
            for offset, data in _checked(manifest, entry, iter(lambda: file.read(_READ_BYTES), b"")):
                if len(buffer) + len(data) > SOLID_BYTES:
                    writer.add(bytes(buffer), tuple(pieces))
                    buffer.clear()
                    pieces.clear()
                if pieces and pieces[-1].entry == entry:
                    last = pieces.pop()
                    pieces.append(Piece(entry, last.offset, last.start, last.length + len(data)))
                else:
                    pieces.append(Piece(entry, offset, len(buffer), len(data)))
                buffer += data
    if buffer:
        writer.add(bytes(buffer), tuple(pieces))


def write_fine(
    manifest: Manifest,
    entries: Iterable[int],
    opened: Open,
    writer: PackWriter,
    reused: ReusedFrames,
    old: BlobReader | None,
) -> None:
    """Write files into small frames: one for each file, or for each piece of a large one. Existing frames are reused.

    Args:
        reused: gets the pieces that frames of the earlier release have.
        old: the earlier release.
    """
    frame_by_tag = {} if old is None else old.tags()
    fresh: dict[bytes, int] = {}
    for entry in entries:
        with opened(entry) as file:
            if manifest.size(entry) <= CUT_ABOVE_BYTES:
                for _, data in _checked(manifest, entry, iter((file.read(),))):
                    writer.add(data, (Piece(entry, 0, 0, len(data)),))
                continue
            for offset, data in _checked(manifest, entry, split_pieces(file)):
                digest = hashlib.sha256(data).digest()
                tag = int.from_bytes(digest[:8], "little")
                piece = Piece(entry, offset, 0, len(data), tag)
                if digest in fresh:
                    writer.share(fresh[digest], piece)
                elif old is not None and tag in frame_by_tag and old.frame(frame_by_tag[tag]) == data:
                    reused.pieces.setdefault(frame_by_tag[tag], []).append(piece)
                else:
                    fresh[digest] = writer.add(data, (piece,))


def train_dictionary(manifest: Manifest, entries: list[int], opened: Open) -> bytes | None:
    """Train a dictionary for small frames on samples of these files; None: they are too few."""
    step = max(1, len(entries) // _SAMPLES)
    samples = []
    for entry in entries[::step]:
        with opened(entry) as file:
            samples.append(file.read(_SAMPLE_BYTES))
    return train(samples, _DICTIONARY_BYTES) if len(samples) >= 50 else None


@dataclass(slots=True)
class ReusedFrames:
    """The frames of an earlier release that the new one reuses.

    Attributes:
        index: the earlier index; None: there is no earlier release.
        pieces: by number of the frame, the pieces of the new release in it.
        entries: the new entries that the frames cover completely.
    """

    index: Index | None = None
    pieces: dict[int, list[Piece]] = field(default_factory=dict)
    entries: set[int] = field(default_factory=set)

    def joined(self, writer: PackWriter) -> tuple[list[Pack], list[Frame]]:
        """The reused packs and frames, then the new ones, numbered as in the new index."""
        packs: list[Pack] = []
        frames: list[Frame] = []
        places: dict[int, int] = {}
        for number, pieces in sorted(self.pieces.items()):
            assert self.index is not None
            frame = self.index[number]
            if frame.pack not in places:
                places[frame.pack] = len(packs)
                packs.append(self.index.packs[frame.pack])
            frames.append(replace(frame, pack=places[frame.pack], pieces=tuple(pieces)))
        frames += [replace(frame, pack=frame.pack + len(packs)) for frame in writer.frames]
        return [*packs, *writer.packs], frames

    def merge_small(self, writer: PackWriter, old: BlobReader) -> None:
        """Move the frames of small packs, and of packs of which most is unused, to the new packs.

        Each pack that stays is larger than all smaller ones and the new frames together. So there are few of them,
        however many releases there were, and a frame is copied a few times in its life.

        Args:
            old: the earlier release.
        """
        if self.index is None:
            return
        frames: dict[int, list[int]] = {}
        for number in sorted(self.pieces):
            frames.setdefault(self.index.pack_of(number), []).append(number)
        live = {pack: sum(self.index.place(number)[1] for number in numbers) for pack, numbers in frames.items()}
        total = writer.flush()
        for pack in sorted(live, key=lambda number: live[number]):
            wasteful = live[pack] < _LIVE_SHARE * self.index.packs[pack].object.bytes
            if self.index.packs[pack].dictionary == writer.shared and (wasteful or live[pack] <= total):
                for number in frames[pack]:
                    pieces = tuple(self.pieces.pop(number))
                    writer.copy(old.compressed(number), self.index.content_bytes(number), pieces)
                total += live[pack]

    def dictionary(self) -> PackedRef | None:
        """The latest dictionary."""
        packs = self.index.packs if self.index else ()
        return next((pack.dictionary for pack in reversed(packs) if pack.dictionary), None)


def reusable_frames(
    index: Index, old: Manifest, first: dict[bytes, int], *, share: float, packs: int | None
) -> ReusedFrames:
    """Select the frames of an earlier release that the new one reuses.

    Args:
        first: the first entry of the new manifest with each blob.
        share: the minimum share of a frame's content that the new release must use.
        packs: the maximum number of packs, of which those with most used content are chosen; None: no limit.
    """
    frames = list(index)
    moved = [first.get(digest, -1) for digest in old.digests()]
    live = [sum(piece.length for piece in frame.pieces if moved[piece.entry] >= 0) for frame in frames]
    good = [size > 0 and size >= share * frame.size for frame, size in zip(frames, live, strict=True)]
    per_pack = [0] * len(index.packs)
    for frame, size, use in zip(frames, live, good, strict=True):
        per_pack[frame.pack] += size if use else 0
    ranked = sorted(range(len(per_pack)), key=lambda number: -per_pack[number])
    chosen = set(ranked[:packs])
    lost = {  # entries that would not be complete
        piece.entry
        for frame, use in zip(frames, good, strict=True)
        if not use or frame.pack not in chosen
        for piece in frame.pieces
    }
    reused = ReusedFrames(index)
    for number, frame in enumerate(frames):
        for piece in frame.pieces:
            if moved[piece.entry] >= 0 and piece.entry not in lost:
                reused.pieces.setdefault(number, []).append(replace(piece, entry=moved[piece.entry]))
                reused.entries.add(moved[piece.entry])
    return reused


class PackWriter:
    """Writes frames to new packs, numbered from 0: call `add` for each frame, then `finish`.

    Attributes:
        shared: the dictionary of all its frames.
    """

    def __init__(self, site: Site, threads: ThreadPoolExecutor, *, level: int, shared: PackedRef | None = None) -> None:
        self.packs: list[Pack] = []
        self.frames: list[Frame] = []
        self._site = site
        self._threads = threads
        self._level = level
        self.shared = shared
        self._dictionary: zstd.ZstdDict | None = dictionary(site.get_packed(shared)) if shared else None
        self._batch: list[tuple[bytes, tuple[Piece, ...]]] = []
        self._batch_bytes = self._added = 0
        self._pending: deque[tuple[Future[list[bytes]], list[tuple[int, tuple[Piece, ...]]]]] = deque()
        self._more: dict[int, list[Piece]] = {}
        self._writer: ObjectWriter | None = None

    def add(self, content: bytes, pieces: tuple[Piece, ...]) -> int:
        """Queue one frame; returns its number among the new frames."""
        number, self._added = self._added, self._added + 1
        self._batch.append((content, pieces))
        self._batch_bytes += len(content)
        if self._batch_bytes >= _BATCH_BYTES:
            self._submit()
        return number

    def share(self, number: int, piece: Piece) -> None:
        """Add another piece to a frame that was added."""
        self._more.setdefault(number, []).append(piece)

    def _submit(self) -> None:
        contents = [content for content, _ in self._batch]
        rows = [(len(content), pieces) for content, pieces in self._batch]
        work = _compress_each if self._dictionary is None and len(contents) == 1 else compress_many
        self._pending.append((self._threads.submit(work, contents, level=self._level, shared=self._dictionary), rows))
        self._batch, self._batch_bytes = [], 0
        while len(self._pending) > 3:
            self._write(*self._pending.popleft())

    def _write(self, work: Future[list[bytes]], rows: list[tuple[int, tuple[Piece, ...]]]) -> None:
        for frame, (size, pieces) in zip(work.result(), rows, strict=True):
            self._append(frame, size, pieces)

    def _append(self, frame: bytes, size: int, pieces: tuple[Piece, ...]) -> None:
        if self._writer is None:
            self._writer = ObjectWriter(self._site.objects)
        self.frames.append(Frame(len(self.packs), self._writer.bytes, len(frame), size, pieces))
        self._writer.write(frame)
        if self._writer.bytes >= _PACK_BYTES:
            self._close()

    def flush(self) -> int:
        """Compress and write all queued frames; returns the bytes of all frames so far."""
        self._drain()
        return sum(frame.bytes for frame in self.frames)

    def _drain(self) -> None:
        if self._batch:
            self._submit()
        while self._pending:
            self._write(*self._pending.popleft())

    def copy(self, frame: bytes, size: int, pieces: tuple[Piece, ...]) -> None:
        """Add a frame that was compressed before, with the same dictionary.

        Args:
            size: of its content, in bytes.
        """
        self._drain()
        self._added += 1
        self._append(frame, size, pieces)

    def _close(self) -> None:
        if self._writer is not None:
            self.packs.append(Pack(self._site.finish(self._writer), self.shared))
            self._writer = None

    def finish(self) -> None:
        """Compress and write all queued frames; `packs` and `frames` are then complete."""
        self._drain()
        self._close()
        for number, pieces in self._more.items():
            frame = self.frames[number]
            self.frames[number] = replace(frame, pieces=(*frame.pieces, *pieces))
        self._more.clear()

    def discard(self) -> None:
        """Discard what is not finished."""
        for work, _ in self._pending:
            work.cancel()
        if self._writer is not None:
            self._writer.discard()


def _compress_each(contents: list[bytes], *, level: int, shared: zstd.ZstdDict | None) -> list[bytes]:
    return [compress(content, level=level) for content in contents]
