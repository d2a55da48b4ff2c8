"""What hashing tells of a file."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FileHash"]


class FileHash(NamedTuple):
    """The digests of a file, and which version of it they belong to. A tuple, as `ScanEntry` is: trees have many."""

    name: str  # as it was given, or relative to the root
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    sha256: str | None = None  # hexadecimal, of the whole file
    chunk_bytes: int | None = None
    chunks: tuple[str, ...] = ()  # hexadecimal SHA-256 of each chunk; the last one may be short, an empty file has none
    error: Exception | None = None  # FileChangedError or OSError, where files are hashed by the many
