"""Update a local file by the `.zsync` control file that `zsyncmake` made for the new one.

Format: zsync(1), zsyncmake(1) and the source of zsync 0.6.2. An empty line ends the header; then each block of the file
has a weak checksum and a part of its MD4. The SHA-1 in the header decides whether the result is right.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, BinaryIO, NamedTuple
from urllib.parse import urljoin

from perfkit.archives.coalesce import coalesce
from perfkit.errors import ConfigError, FileChangedError, ManifestError, UnsafePathError
from perfkit.filesystem.paths import check_name
from perfkit.filesystem.thread_map import WorkerPool

if TYPE_CHECKING:
    from perfkit.archives.members import Readable, Writable

CONTROL_BYTES = 64 << 20  # limit of a control file
_BLOCKS = 2 << 20  # the most blocks to search for, each of which takes 90 bytes: 8 GiB with the blocks of zsyncmake
_HEADER_BYTES = 64 << 10
_MAP_ENTRY_BYTES = 4
_PIECE_BYTES = 256 << 10
_JOINED_BYTES = 1 << 20
_PIECES_AHEAD = 3  # read, but not yet written
_LINE = re.compile(rb"([A-Za-z0-9-]+): ([^\r\n\0]*)")


class Control(NamedTuple):
    """A parsed control file."""

    filename: str  # a safe name without directories; with `keep_gzip`, that of the gzip file
    urls: tuple[str, ...]  # absolute, a relative one resolved against every base; with `gzip`, those of the gzip file
    gzip: bool  # the server only has a gzip file: there are no ranges, only a whole download and `unpack_whole`
    keep_gzip: bool  # the gzip file itself is wanted
    size: int  # uncompressed bytes
    sha1: str  # of the uncompressed file, hexadecimal
    block_size: int
    sequence: int  # how many adjacent blocks must match before one is accepted
    rsum_bytes: int
    strong_bytes: int
    sums: bytes | memoryview  # the checksums of all blocks; empty with `gzip`


def parse_control(data: bytes, *, bases: tuple[str, ...]) -> Control:
    """Read a control file; lines may end as on Windows.

    Args:
        bases: the requested URL and the one that responded; relative URLs in it are resolved against each, in order.

    Raises:
        ManifestError: damaged, truncated, a header is missing, or a value is invalid.
        UnsafePathError: the file name is unsafe, or has directories.
    """
    headers: dict[str, list[str]] = {}
    position = 0
    while True:
        end = data.find(b"\n", position, _HEADER_BYTES + position)
        line = data[position:end]
        if end < 0 or (position == 0 and not line.startswith(b"zsync: ")):
            raise ManifestError("not a .zsync control file, or its header is damaged")
        position = end + 1
        line = line.removesuffix(b"\r")
        if not line:
            break
        match = _LINE.fullmatch(line)
        if match is None or len(headers) > 100:
            raise ManifestError(f"the control file has a damaged header line: {line[:80]!r}")
        key, value = match[1].decode(), match[2].decode(errors="replace")
        headers.setdefault(key, []).append(value)
        if key == "Z-Map2":
            position += _MAP_ENTRY_BYTES * _number(headers, key, 0, CONTROL_BYTES)  # binary, and not used
    try:
        return _control(headers, memoryview(data)[position:], bases)
    except ValueError as error:  # of urljoin
        raise ManifestError(f"the control file has an invalid URL: {error}") from error


def _control(headers: dict[str, list[str]], sums: bytes | memoryview, bases: tuple[str, ...]) -> Control:
    block_size = _number(headers, "Blocksize", 64, 1 << 20)
    if block_size & (block_size - 1):
        raise ManifestError(f"the control file has blocks of {block_size} bytes, which is not a power of two")
    size = _number(headers, "Length", 0, 1 << 50)
    lengths = re.fullmatch(r"([12]),([1-4]),(\d\d?)", _only(headers, "Hash-Lengths"))
    if lengths is None or not 3 <= int(lengths[3]) <= 16:
        raise ManifestError(f"the control file has checksums of unknown lengths: {_only(headers, 'Hash-Lengths')!r}")
    sequence, rsum_bytes, strong_bytes = map(int, lengths.groups())
    gzip = "URL" not in headers
    blocks = 0 if gzip else -(-size // block_size)
    if gzip:
        sums = b""  # they are for the uncompressed file, whose ranges the server can't send
    if len(sums) != blocks * (rsum_bytes + strong_bytes):
        raise ManifestError(f"the control file has {len(sums)} bytes of checksums for {blocks} blocks")
    sha1 = _only(headers, "SHA-1").lower()
    if not re.fullmatch("[0-9a-f]{40}", sha1):
        raise ManifestError(f"the control file has no SHA-1 of the file: {sha1!r}")
    keep_gzip = gzip and "Recompress" in headers
    filename = _only(headers, "Z-Filename" if keep_gzip and "Z-Filename" in headers else "Filename")
    if "/" in check_name(filename):
        raise UnsafePathError(filename, "the file name in a control file must not have directories")
    urls = headers.get("Z-URL" if gzip else "URL", [])
    if not urls:
        raise ManifestError("the control file has no URL")
    return Control(
        filename=filename,
        urls=tuple(dict.fromkeys(urljoin(base, url) for url in urls for base in bases)),
        gzip=gzip,
        keep_gzip=keep_gzip,
        size=size,
        sha1=sha1,
        block_size=block_size,
        sequence=sequence,
        rsum_bytes=rsum_bytes,
        strong_bytes=strong_bytes,
        sums=sums,
    )


def _only(headers: dict[str, list[str]], key: str) -> str:
    values = headers.get(key, [])
    if len(values) != 1:
        raise ManifestError(f"the control file has {len(values)} {key} headers instead of one")
    return values[0]


def _number(headers: dict[str, list[str]], key: str, least: int, most: int) -> int:
    text = _only(headers, key)
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise ManifestError(f"the control file has {key} {text!r}, not a number from {least} to {most}")
    return int(text)


class Copy(NamedTuple):
    """Bytes to copy from the old file."""

    offset: int  # in the old file
    size: int


class Fetch(NamedTuple):
    """Bytes to fetch: from `start` (inclusive) to `end` (exclusive) of the new file."""

    start: int
    end: int


class Recipe(NamedTuple):
    """The steps that make the new file, from start to end."""

    steps: tuple[Copy | Fetch, ...]

    @property
    def fetches(self) -> list[Fetch]:
        return [step for step in self.steps if isinstance(step, Fetch)]


def make_recipe(control: Control, old: BinaryIO | None, *, gap: int, strict: bool = False) -> Recipe:
    """Find the new file's blocks in an old one; all others are to be fetched.

    Args:
        old: open for reading, if there is one. It is not used for a new file of more than 2 million blocks.
        gap: as for `coalesce`.
        strict: verify each block that is found. Without this, the search takes half the time, and rarely misses a
            changed block; `assemble` then finds that the result is wrong.

    Raises:
        ConfigError: numpy is not installed.
        OSError: the old file can't be read.
    """
    few = len(control.sums) <= _BLOCKS * (control.rsum_bytes + control.strong_bytes)
    if old is None or os.fstat(old.fileno()).st_size == 0 or not control.sums or not few:
        return Recipe((Fetch(0, control.size),) if control.size else ())
    try:
        from perfkit.zsync.block_sums import BlockSums
        from perfkit.zsync.matcher import find_blocks
    except ImportError as error:
        raise ConfigError("updating by a .zsync control file needs numpy: pip install 'perfkit[zsync]'") from error
    wanted = BlockSums(control.sums, control.block_size, control.rsum_bytes, control.strong_bytes, control.sequence)
    where = find_blocks(old.fileno(), wanted, strict=strict)
    runs = _runs(where.tolist(), control.size, control.block_size, os.fstat(old.fileno()).st_size)
    return _recipe(runs, control.size, gap)


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
    steps: list[tuple[int, Copy | Fetch]] = [(start, Fetch(start, end)) for start, end in fetches]
    covered = iter([*fetches, (size, size)])
    start, end = next(covered)
    for position, run in runs:
        while end <= position < size:
            start, end = next(covered)
        if position < start or not fetches:
            steps.append((position, run))
    return Recipe(tuple(step for _, step in sorted(steps, key=itemgetter(0))))


def assemble(
    control: Control, recipe: Recipe, old: BinaryIO | None, fetched: Callable[[Fetch], Readable], out: Writable
) -> None:
    """Write the new file to `out`, and verify it.

    Args:
        fetched: returns the bytes of a step, as a stream; called in order.
        out: another thread writes to it until this returns.

    Raises:
        ManifestError: the SHA-1 is wrong; discard what was written, and try a whole download.
        FileChangedError: the old file was truncated.
        OSError: the local disk failed.
        Anything that `fetched` and its streams raise.
    """
    digest = hashlib.sha1(usedforsecurity=False)
    with WorkerPool(1) as writer:
        writing: deque[Future[object]] = deque()
        for piece in _joined(_pieces(recipe, old, fetched)):
            if len(writing) == _PIECES_AHEAD:
                writing.popleft().result()
            writing.append(writer.submit(out.write, piece))
            digest.update(piece)
        for each in writing:
            each.result()
    _check_sha1(control, digest.hexdigest())


def _pieces(recipe: Recipe, old: BinaryIO | None, fetched: Callable[[Fetch], Readable]) -> Iterator[bytes]:
    for step in recipe.steps:
        if isinstance(step, Fetch):
            yield from _read_stream(fetched(step), step.end - step.start)
        else:
            assert old is not None
            yield from _read_old(old, step)


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


def _read_stream(stream: Readable, size: int) -> Iterator[bytes]:
    while size:
        piece = stream.read(min(size, _PIECE_BYTES))
        if not piece:
            raise ManifestError(f"a fetched range is {size} bytes short")
        size -= len(piece)
        yield piece


def _read_old(old: BinaryIO, step: Copy) -> Iterator[bytes]:
    position, end = step.offset, step.offset + step.size
    while position < end:
        piece = os.pread(old.fileno(), min(end - position, _PIECE_BYTES), position)
        if not piece:
            raise FileChangedError(str(old.name), "it was truncated while it was used for an update")
        position += len(piece)
        yield piece


def unpack_whole(control: Control, downloaded: Readable, out: Writable | None) -> None:
    """Verify a whole download of one of `control.urls`, and write the uncompressed file.

    Args:
        downloaded: a gzip stream if `control.gzip`, else the file itself.
        out: gets the uncompressed file; None if the download itself is wanted, as with `keep_gzip`.

    Raises:
        ManifestError: its size or SHA-1 is wrong, or it is not gzip.
    """
    digest = hashlib.sha1(usedforsecurity=False)
    size = 0
    for piece in _unpacked(downloaded) if control.gzip else iter(lambda: downloaded.read(_PIECE_BYTES), b""):
        size += len(piece)
        if size > control.size:
            raise ManifestError(f"the file is larger than the {control.size} bytes in the control file")
        digest.update(piece)
        if out is not None:
            out.write(piece)
    _check_sha1(control, digest.hexdigest())


def _unpacked(gzip: Readable) -> Iterator[bytes]:
    from perfkit.archives.decompress import DecompressedStream
    from perfkit.archives.members import Limits

    return iter(DecompressedStream(gzip, Limits()).read_chunk, b"")


def _check_sha1(control: Control, found: str) -> None:
    if found != control.sha1:
        raise ManifestError(f"{control.filename}: its SHA-1 is {found} instead of {control.sha1}")
