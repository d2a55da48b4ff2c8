"""Make a new file from an old one and from ranges of the new one, and verify it by the SHA-1 of its control file."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from perfkit.archives.coalesce import coalesce
from perfkit.errors import ConfigError, FileChangedError, ManifestError
from perfkit.filesystem.thread_map import WorkerPool
from perfkit.zsync.control import Control

if TYPE_CHECKING:
    from perfkit.archives.decompress import Readable

_BLOCKS = 2 << 20  # the most blocks to search for, each of which takes 90 bytes: 8 GiB with the blocks of zsyncmake
_PIECE_BYTES = 256 << 10
_JOINED_BYTES = 512 << 10
_PIECES_AHEAD = 2  # read, but not yet hashed


class Copy(NamedTuple):
    """Bytes to copy from the old file."""

    offset: int  # in the old file
    size: int


class Fetch(NamedTuple):
    """Bytes to fetch: from `start` (inclusive) to `end` (exclusive) of the new file."""

    start: int
    end: int


Recipe = list[Copy | Fetch]  # the steps that make the new file, from start to end


def make_recipe(control: Control, old: BinaryIO, *, gap: int, strict: bool = False) -> Recipe:
    """Find the new file's blocks in an old one; all others are to be fetched.

    Args:
        old: open for reading. It is not used for a new file of more than 2 million blocks.
        gap: as for `coalesce`.
        strict: verify each block that is found. Without this, the search takes half the time, and rarely misses a
            changed block; `assemble` then finds that the result is wrong.

    Raises:
        ConfigError: numpy is not installed.
        OSError: the old file can't be read.
    """
    old_size = os.fstat(old.fileno()).st_size
    few = len(control.sums) <= _BLOCKS * (control.rsum_bytes + control.strong_bytes)
    if not old_size or not control.sums or not few:
        return _recipe([], control.size, gap)
    try:
        from perfkit.zsync.matcher import find_blocks
    except ImportError as error:
        raise ConfigError("updating by a .zsync control file needs numpy: pip install 'perfkit[zsync]'") from error
    where = find_blocks(old.fileno(), control, strict=strict)
    return _recipe(_runs(where.tolist(), control.size, control.block_size, old_size), control.size, gap)


def _runs(where: list[int], size: int, block_size: int, old_size: int) -> list[tuple[int, Copy]]:
    """Runs of blocks that are consecutive in the old file, too, and their offsets in the new one."""
    runs = []
    first, expected = 0, -1  # first block of the run, and the offset of its next block in the old file
    for index, offset in enumerate([*where, -1]):
        if offset == expected:
            expected += block_size if offset >= 0 else 0
            continue
        if expected >= 0:
            end = min(index * block_size, size)
            while end - first * block_size > old_size - where[first]:  # the matcher pads the file with zeros
                end = (end - 1) // block_size * block_size
            if end > first * block_size:
                runs.append((first * block_size, Copy(where[first], end - first * block_size)))
        first, expected = index, offset + block_size if offset >= 0 else -1
    return runs


def _recipe(runs: list[tuple[int, Copy]], size: int, gap: int) -> Recipe:
    """Fetch what is between the runs, and runs that are cheaper to fetch than to skip."""
    bounds = [(0, 0), *((start, start + run.size) for start, run in runs), (size, size)]
    fetches = coalesce([(end, start) for (_, end), (start, _) in pairwise(bounds)], gap=gap)
    ends = [end for _, end in fetches]
    steps: list[tuple[int, Copy | Fetch]] = [(start, Fetch(start, end)) for start, end in fetches]
    for position, run in runs:
        following = bisect_right(ends, position)
        if following == len(ends) or position < fetches[following][0]:
            steps.append((position, run))
    return [step for _, step in sorted(steps, key=itemgetter(0))]


def assemble(
    control: Control, recipe: Recipe, old: BinaryIO, fetched: Callable[[Fetch], Iterable[bytes]]
) -> Iterator[bytes]:
    """The bytes of the new file. They are verified only when the iterator has ended.

    Args:
        fetched: returns the bytes of a step; called in order.

    Raises:
        ManifestError: the SHA-1 is wrong; discard what was written, and try a whole download.
        FileChangedError: the old file was truncated.
        OSError: the local disk failed.
        Anything that `fetched` raises.
    """
    digest = hashlib.sha1(usedforsecurity=False)
    with WorkerPool(1) as hasher:  # the caller hashes the same bytes by SHA-256
        hashing: deque[Future[None]] = deque()
        for piece in _joined(_pieces(recipe, old, fetched)):
            if len(hashing) == _PIECES_AHEAD:
                hashing.popleft().result()
            hashing.append(hasher.submit(digest.update, piece))
            yield piece
    _check_sha1(control, digest.hexdigest())


def _pieces(recipe: Recipe, old: BinaryIO, fetched: Callable[[Fetch], Iterable[bytes]]) -> Iterator[bytes]:
    for step in recipe:
        yield from fetched(step) if isinstance(step, Fetch) else _read_old(old, step)


def _joined(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Join pieces into larger ones: handing one to another thread takes as long as hashing about 100 KiB."""
    joined: list[bytes] = []
    size = 0
    for piece in pieces:
        joined.append(piece)
        size += len(piece)
        if size >= _JOINED_BYTES:
            yield b"".join(joined)
            joined, size = [], 0
    yield b"".join(joined)


def _read_old(old: BinaryIO, step: Copy) -> Iterator[bytes]:
    position, end = step.offset, step.offset + step.size
    while position < end:
        piece = os.pread(old.fileno(), min(end - position, _PIECE_BYTES), position)
        if not piece:
            raise FileChangedError(str(old.name), "it was truncated while it was used for an update")
        position += len(piece)
        yield piece


def unpack_whole(control: Control, gzip: Readable) -> Iterator[bytes]:
    """The bytes of the file, from its gzip file. They are verified only when the iterator has ended.

    Raises:
        ManifestError: its size or SHA-1 is wrong, or it is not gzip.
    """
    from perfkit.archives.decompress import decompressed

    digest = hashlib.sha1(usedforsecurity=False)
    size = 0
    for piece in decompressed(gzip):
        size += len(piece)
        if size > control.size:
            raise ManifestError(f"the file is larger than the {control.size} bytes in the control file")
        digest.update(piece)
        yield piece
    _check_sha1(control, digest.hexdigest())


def _check_sha1(control: Control, found: str) -> None:
    if found != control.sha1:
        raise ManifestError(f"{control.filename}: its SHA-1 is {found} instead of {control.sha1}")
