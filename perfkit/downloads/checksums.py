"""Parses checksums, and hashes a file while it arrives."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import threading
from typing import NamedTuple

from perfkit.downloads.cancel import Cancel
from perfkit.errors import ConfigError
from perfkit.libc import preadv

_READ_BYTES = 512 << 10
_HEX = re.compile("[0-9a-f]+")


class Checksum(NamedTuple):
    """A promised digest. Prints as `algorithm:hex`."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


def parse_checksum(text: str) -> Checksum:
    """Read `algorithm:hex`, the algorithm being any of fixed length that hashlib offers here.

    Raises:
        ConfigError: no such algorithm, or not a digest of its length.
    """
    if not isinstance(text, str):
        raise ConfigError(f"checksum {text!r}: write it as text, such as sha256:HEX")
    name, _, digest = text.partition(":")
    algorithm, size = _algorithm(name.strip())
    if size == 0:
        raise ConfigError(f"checksum {text!r}: this Python has no algorithm {name!r}; write for example sha256:HEX")
    digest = digest.strip().lower()
    if len(digest) != 2 * size or not _HEX.fullmatch(digest):
        raise ConfigError(f"checksum {text!r}: a {algorithm} digest is {2 * size} hexadecimal digits")
    return Checksum(algorithm, digest)


@functools.lru_cache(maxsize=64)
def _algorithm(name: str) -> tuple[str, int]:
    """hashlib's name and digest size in bytes, for a name in any case and hyphenation; size 0 if it is unknown."""
    marks = str.maketrans("", "", "-_")
    short = name.lower().translate(marks)
    known = {each.translate(marks): each for each in hashlib.algorithms_available}.get(short, short)
    try:
        return known, hashlib.new(known, usedforsecurity=False).digest_size
    except (ValueError, TypeError):  # TypeError: it is not valid Unicode
        return known, 0


def matches(path: str, checksum: Checksum, cancel: Cancel) -> bool:
    """Whether the file at `path` has this digest.

    Raises:
        OSError: the file cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would wait for its writer
    try:
        digest = RunningDigest((checksum,))
        digest.catch_up(descriptor, os.fstat(descriptor).st_size, cancel)
        return not digest.mismatches()
    finally:
        os.close(descriptor)


class RunningDigest:
    """The digests of a file's first `position` bytes. One thread at a time advances them."""

    def __init__(self, checksums: tuple[Checksum, ...]) -> None:
        self.checksums = checksums
        self.position = 0
        self._hashes = [hashlib.new(checksum.algorithm, usedforsecurity=False) for checksum in checksums]
        self._lock = threading.Lock()

    def offer(self, position: int, data: memoryview) -> None:
        """Hash bytes that have just been written, if they are the next ones and no other thread is hashing."""
        if position == self.position and self._lock.acquire(blocking=False):
            try:
                if position == self.position:
                    self._take(data)
            finally:
                self._lock.release()

    def catch_up(self, descriptor: int, end: int, cancel: Cancel) -> None:
        """Continue hashing from the file, up to `end`, or until cancelled."""
        with self._lock:
            buffer = memoryview(bytearray(max(0, min(_READ_BYTES, end - self.position))))
            while self.position < end and not cancel.cancelled:
                count = preadv(descriptor, [buffer[: end - self.position]], self.position)
                if count == 0:
                    return  # the file is shorter than it should be: the digest will not match
                self._take(buffer[:count])

    def _take(self, data: memoryview) -> None:
        for each in self._hashes:
            each.update(data)
        self.position += len(data)

    def mismatches(self) -> list[tuple[Checksum, str]]:
        """Each promised checksum that does not match, with the digest found."""
        pairs = zip(self.checksums, (each.hexdigest() for each in self._hashes), strict=True)
        return [(promised, found) for promised, found in pairs if promised.hex != found]
