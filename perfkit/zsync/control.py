"""zsync: bring a local file up to date by the `.zsync` control file that `zsyncmake` makes for a new one.

Format: zsync(1), zsyncmake(1) and the source of zsync 0.6.2. Header lines end at an empty one; then each block of the
file has a weak checksum and a part of its MD4. The SHA-1 in the header decides what is right, not these.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, BinaryIO, NamedTuple
from urllib.parse import urljoin

from perfkit.archives.coalesce import coalesce
from perfkit.errors import ConfigError, FileChangedError, ManifestError, UnsafePathError
from perfkit.filesystem.paths import check_name

if TYPE_CHECKING:
    from perfkit.archives.members import Readable, Writable

__all__ = [
    "CONTROL_BYTES",
    "Control",
    "Copy",
    "Fetch",
    "Recipe",
    "assemble",
    "make_recipe",
    "parse_control",
    "unpack_whole",
]

CONTROL_BYTES = 64 << 20  # the longest control file that is read
_HEADER_BYTES = 64 << 10
_MAP_ENTRY_BYTES = 4
_PIECE_BYTES = 256 << 10
_JOINED_BYTES = 1 << 20
_PIECES_AHEAD = 3  # read and not yet written
_LINE = re.compile(rb"([A-Za-z0-9-]+): ([^\r\n\0]*)")


class Control(NamedTuple):
    """What a control file says.

    Attributes:
        filename: of the file, a plain safe name; of the gzip file with `keep_gzip`.
        urls: where its bytes are, or with `gzip` those of its gzip form; absolute.
        gzip: only the gzip form is served: there is no delta, and `unpack_whole` ends a whole download.
        keep_gzip: it is the gzip form that is wanted.
        size: bytes of the file, unpacked.
        sha1: hexadecimal, of the file, unpacked.
        sums: the checksums of all blocks; none with `gzip`.
        sequence: how many neighbouring blocks must match before one is believed.
    """

    filename: str
    urls: tuple[str, ...]
    gzip: bool
    keep_gzip: bool
    size: int
    sha1: str
    block_size: int
    sequence: int
    rsum_bytes: int
    strong_bytes: int
    sums: bytes


def parse_control(data: bytes, *, url: str) -> Control:
    """Read a control file that came from `url`.

    Raises:
        ManifestError: damaged, cut short, without something that is needed, or with numbers that can't be.
        UnsafePathError: the file's name is not a plain one.
    """
    headers: dict[str, list[str]] = {}
    position = 0
    while True:
        end = data.find(b"\n", position, _HEADER_BYTES + position)
        line = data[position:end]
        if end < 0 or (position == 0 and not line.startswith(b"zsync: ")):
            raise ManifestError("not a .zsync control file, or its header is damaged")
        position = end + 1
        if not line:
            break
        match = _LINE.fullmatch(line)
        if match is None or len(headers) > 100:
            raise ManifestError(f"the control file has a damaged header line: {line[:80]!r}")
        key, value = match[1].decode(), match[2].decode(errors="replace")
        headers.setdefault(key, []).append(value)
        if key == "Z-Map2":
            position += _MAP_ENTRY_BYTES * _number(headers, key, 0, CONTROL_BYTES)  # binary, and not needed
    return _control(headers, data[position:], url)


def _control(headers: dict[str, list[str]], sums: bytes, url: str) -> Control:
    block_size = _number(headers, "Blocksize", 64, 1 << 20)
    if block_size & (block_size - 1):
        raise ManifestError(f"the control file has blocks of {block_size} bytes, which is no power of two")
    size = _number(headers, "Length", 0, 1 << 50)
    lengths = re.fullmatch(r"([12]),([1-4]),(\d\d?)", _only(headers, "Hash-Lengths"))
    if lengths is None or not 3 <= int(lengths[3]) <= 16:
        raise ManifestError(f"the control file has checksums of unknown lengths: {_only(headers, 'Hash-Lengths')!r}")
    sequence, rsum_bytes, strong_bytes = map(int, lengths.groups())
    gzip = "URL" not in headers
    blocks = 0 if gzip else -(-size // block_size)
    if gzip:
        sums = b""  # they describe the file unpacked, of which the server has no ranges
    if len(sums) != blocks * (rsum_bytes + strong_bytes):
        raise ManifestError(f"the control file has {len(sums)} bytes of checksums, and {blocks} blocks to describe")
    sha1 = _only(headers, "SHA-1").lower()
    if not re.fullmatch("[0-9a-f]{40}", sha1):
        raise ManifestError(f"the control file has no SHA-1 of the file: {sha1!r}")
    keep_gzip = gzip and "Recompress" in headers
    filename = _only(headers, "Z-Filename" if keep_gzip and "Z-Filename" in headers else "Filename")
    if "/" in check_name(filename):
        raise UnsafePathError(filename, "a control file names one file, without directories")
    urls = headers.get("Z-URL" if gzip else "URL", [])
    if not urls:
        raise ManifestError("the control file does not say where the file is: there is no URL")
    return Control(
        filename=filename,
        urls=tuple(urljoin(url, each) for each in urls),
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
        raise ManifestError(f"the control file has {len(values)} lines of {key}, and needs one")
    return values[0]


def _number(headers: dict[str, list[str]], key: str, least: int, most: int) -> int:
    text = _only(headers, key)
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise ManifestError(f"the control file has {key} {text!r}; {least} to {most} is possible")
    return int(text)


class Copy(NamedTuple):
    """Bytes that the old file has."""

    offset: int  # in the old file
    size: int


class Fetch(NamedTuple):
    """Bytes that the server has: from `start` (inclusive) to `end` (exclusive) of the new file."""

    start: int
    end: int


class Recipe(NamedTuple):
    """How the new file comes about, from its beginning to its end."""

    steps: tuple[Copy | Fetch, ...]

    @property
    def fetches(self) -> list[Fetch]:
        return [step for step in self.steps if isinstance(step, Fetch)]

    @property
    def fetched_bytes(self) -> int:
        return sum(step.end - step.start for step in self.fetches)


def make_recipe(control: Control, old: BinaryIO | None, *, gap: int, strict: bool = False) -> Recipe:
    """Look for the new file's blocks in an old one; what isn't there is to be fetched.

    Args:
        old: open for reading; None if there is none.
        gap: as for `coalesce`.
        strict: check each block that is found. Without, which takes half of the time, a changed block is rarely taken
            for the old one; then `assemble` finds the file to be a wrong one.

    Raises:
        ConfigError: numpy is not installed.
        OSError: the old file can't be read.
    """
    if old is None or os.fstat(old.fileno()).st_size == 0 or not control.sums:
        return Recipe((Fetch(0, control.size),) if control.size else ())
    try:
        from perfkit.zsync.matcher import find_blocks
    except ImportError as error:
        raise ConfigError("updating by a .zsync control file needs numpy: pip install 'perfkit[zsync]'") from error
    where = find_blocks(
        old.fileno(),
        control.sums,
        block_size=control.block_size,
        rsum_bytes=control.rsum_bytes,
        strong_bytes=control.strong_bytes,
        sequence=control.sequence,
        strict=strict,
    )
    runs = _runs(where.tolist(), control.size, control.block_size, os.fstat(old.fileno()).st_size)
    return _recipe(runs, control.size, gap)


def _runs(where: list[int], size: int, block_size: int, old_size: int) -> list[tuple[int, Copy]]:
    """Blocks in a row that stand in a row in the old file too, and where in the new one they begin."""
    runs = []
    first, expected = 0, -1  # block of the run, and the old file's offset where the next one would stand
    for index, offset in enumerate([*where, -1]):
        if offset == expected:
            expected += block_size if offset >= 0 else 0
            continue
        if expected >= 0:
            end = min(index * block_size, size)
            while end - first * block_size > old_size - where[first]:  # the matcher reads zeros beyond, we can't
                end = (end - 1) // block_size * block_size
            if end > first * block_size:
                runs.append((first * block_size, Copy(where[first], end - first * block_size)))
        first, expected = index, offset + block_size if offset >= 0 else -1
    return runs


def _recipe(runs: list[tuple[int, Copy]], size: int, gap: int) -> Recipe:
    """What is between the runs is fetched; so is a run that is not worth stepping over."""
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
    """Write the new file to `out`, and see that it is the right one.

    Args:
        fetched: gives the bytes of a step, as a stream; asked in order.
        out: written to by another thread meanwhile.

    Raises:
        ManifestError: it is not the file that the control file describes; what was written is worthless, and a whole
            download may still serve.
        FileChangedError: the old file became shorter meanwhile.
        OSError: the local disk.
        Anything that `fetched` and its streams raise.
    """
    digest = hashlib.sha1(usedforsecurity=False)
    with ThreadPoolExecutor(1) as writer:
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
    """The same in larger pieces: to hand one to another thread takes as long as to hash some 100 KiB."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= _JOINED_BYTES:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)


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
            raise FileChangedError(str(old.name), "it became shorter while it was used for an update")
        position += len(piece)
        yield piece


def unpack_whole(control: Control, downloaded: Readable, out: Writable | None) -> None:
    """Verify a whole download of one of `control.urls`, and write what it unpacks to.

    Args:
        downloaded: the file at its URL; for a `gzip` control file that is a gzip stream, otherwise the file itself.
        out: takes the file, unpacked; None where the download itself is wanted, as with `keep_gzip`.

    Raises:
        ManifestError: it is not the file that the control file describes, or not gzip.
    """
    digest = hashlib.sha1(usedforsecurity=False)
    size = 0
    for piece in _unpacked(downloaded) if control.gzip else iter(lambda: downloaded.read(_PIECE_BYTES), b""):
        size += len(piece)
        if size > control.size:
            raise ManifestError(f"the file is longer than the {control.size} bytes that the control file says")
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
        raise ManifestError(f"{control.filename}: SHA-1 is {found}, and the control file says {control.sha1}")
