"""The checksums of a file's pieces: check a download with them, and fetch only damaged pieces again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import replace
from typing import BinaryIO, NamedTuple

from perfkit.archives.coalesce import coalesce
from perfkit.downloads.checksums import Checksum
from perfkit.downloads.request import Request
from perfkit.errors import CancelledError, IntegrityError, TransferError
from perfkit.transactions.object_store import write_all
from perfkit.updates.staging import Fetcher

_READ_BYTES = 256 << 10


class Pieces(NamedTuple):
    """The checksums of a file's pieces, all of one length except the last (RFC 5854 section 4.1.3)."""

    length: int  # bytes
    checksums: tuple[Checksum, ...]

    @property
    def digest(self) -> str:
        """A SHA-256 that identifies these pieces."""
        return hashlib.sha256(repr((self.length, self.checksums)).encode()).hexdigest()

    def fit(self, size: int) -> bool:
        """Whether a file of `size` bytes has this many pieces."""
        return len(self.checksums) == -(-size // self.length)

    def damaged(self, file: BinaryIO, among: Iterable[int]) -> list[int]:
        """The numbers, from 0, of the pieces of a seekable file that do not match."""
        return [number for number in among if self.digest_in(file, number) != self.checksums[number].hex]

    def digest_in(self, file: BinaryIO, number: int) -> str:
        """The checksum of a piece of a seekable file, in hexadecimal."""
        digest = hashlib.new(self.checksums[number].algorithm, usedforsecurity=False)
        file.seek(number * self.length)
        left = self.length
        while left and (data := file.read(min(left, _READ_BYTES))):
            digest.update(data)
            left -= len(data)
        return digest.hexdigest()


def mend(path: str, pieces: Pieces, request: Request, fetcher: Fetcher) -> None:
    """Check a downloaded file, and fetch its damaged pieces again: from each mirror, and last from the first URL.

    Args:
        path: the file's path, in the directory of the fetcher.
        request: the request that downloaded it.

    Raises:
        IntegrityError: no URL has them intact; the file is removed.
        TransferError: a URL may have them later; the file stays for the next sync.
        OSError: the local disk.
    """
    size, count, error = os.path.getsize(path), len(pieces.checksums), None
    if not pieces.fit(size):
        os.unlink(path)
        expected = f"{count} pieces of {pieces.length} bytes"
        raise IntegrityError(request.url, "not as long as the pieces in the list", expected, f"{size} bytes")
    with open(path, "r+b", buffering=0) as file:
        damaged = pieces.damaged(file, range(count))
        for url in (*request.mirrors, request.url):
            if not damaged:
                return
            spans = ((number * pieces.length, min(size, (number + 1) * pieces.length)) for number in damaged)
            try:
                _fetch_into(file, replace(request, url=url, mirrors=()), coalesce(spans, gap=0), fetcher)
            except CancelledError:
                raise
            except TransferError as caught:
                error = caught
            damaged = pieces.damaged(file, damaged)
        if not damaged:
            return
        first = damaged[0]
        found = pieces.digest_in(file, first)
    if error is not None and error.transient:
        raise error
    os.unlink(path)
    reason = f"no URL in the list has piece {first + 1} of {count} intact ({len(damaged)} in all)"
    raise IntegrityError(request.url, reason, str(pieces.checksums[first]), found) from error


def _fetch_into(file: BinaryIO, request: Request, spans: Iterable[tuple[int, int]], fetcher: Fetcher) -> None:
    """Replace these bytes of a file with those at the request's URL."""
    name = f"{os.path.basename(file.name)}.part"
    parts = [replace(request, name=f"{name}-{start}-{end}", byte_range=(start, end)) for start, end in spans]
    for found, (start, _) in zip(fetcher.get(parts), (part.byte_range or (0, 0) for part in parts), strict=True):
        file.seek(start)
        with open(found.path, "rb", buffering=0) as part:
            while data := part.read(_READ_BYTES):
                write_all(file.fileno(), data)
        os.unlink(found.path)
