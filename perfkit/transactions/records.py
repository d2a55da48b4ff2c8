"""Records next to a managed tree: lines of JSON, followed by a line with their SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

from perfkit.errors import UnsafePathError

FORMAT = 1
_DECODER = json.JSONDecoder()
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
# What reading a malformed file raises.
MALFORMED = (ValueError, TypeError, KeyError, AttributeError, UnsafePathError)
_DIGEST = re.compile("[0-9a-f]{64}")

# What a `JournalOp` does, as it is written in a journal.
MKDIR = "mkdir"  # create directory `name`
RENAME = "put"  # rename the staged file `source` to `name`
DELETE = "drop"  # delete `name`, if it is still the `previous` file
RMDIR = "rmdir"  # remove directory `name`, if it is empty


class Content(NamedTuple):
    """The content of a file: its SHA-256 in hex, its size in bytes, and its permission bits."""

    sha256: str
    size: int
    mode: int


class Seen(NamedTuple):
    """A file as it was when it was hashed: its SHA-256 in hex, and its stat.

    The ctime is left out, since our own links and renames change it.
    """

    sha256: str
    ino: int
    size: int
    mtime_ns: int


class Change(NamedTuple):
    """One name that a commit changed. A tuple, since it is created for each file.

    `before` is None if the name was absent, `after` if it is absent now; `signature` is that of the new file, or 0.
    """

    name: str
    before: Content | None
    after: Content | None
    signature: int = 0


class Previous(NamedTuple):
    """What a name was before an operation, and where its content is, so that the operation can be undone."""

    stored: str  # the object with its content; "" for an empty file or a directory
    size: int
    mtime_ns: int
    mode: int
    ino: int


class JournalOp(NamedTuple):
    """One operation of a journal; it and its reverse are idempotent. Names are relative to the root."""

    kind: str
    name: str
    source: str = ""  # RENAME: the staged file; DELETE: that of another spelling of the same name
    previous: Previous | None = None  # None: there was nothing


def signature(found: os.stat_result) -> int:
    """A 64-bit hash of what stat(2) tells of a file, and what renaming it leaves as it is."""
    return hash((found.st_ino, found.st_size, found.st_mtime_ns))


def with_checksum(rows: Iterable[object]) -> Iterator[bytes]:
    """The rows as lines of JSON, then a line with the SHA-256 of all of them.

    Args:
        rows: bytes are written as they are: a line, or a piece of one that is too long to be kept whole.
    """
    digest = hashlib.sha256()
    for row in rows:
        line = row
        if not isinstance(line, bytes):
            line = _ENCODER.encode(row).encode(errors="surrogatepass") + b"\n"  # of paths that are not UTF-8
        digest.update(line)
        yield line
    yield digest.hexdigest().encode() + b"\n"


def read_checked(file: IO[bytes], before: Iterable[bytes] = ()) -> Iterator[Any]:
    """The rows that `with_checksum` wrote. They are verified only once the iterator is exhausted.

    Args:
        before: what was read of the file before, in pieces.

    Raises:
        ValueError: the file is truncated or damaged.
    """
    digest = hashlib.sha256()
    for piece in before:
        digest.update(piece)
    previous: bytes | None = None
    for line in file:
        if previous is not None:
            digest.update(previous)
            yield read_line(previous)
        previous = line
    if previous is None or previous.decode(errors="replace") != digest.hexdigest() + "\n":
        raise ValueError("truncated or damaged")


def read_line(line: bytes) -> Any:
    """The value of one line.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        text = line.decode(errors="surrogatepass")
        value, end = _DECODER.raw_decode(text)  # `json.loads` takes twice as long for a short line
    except (ValueError, RecursionError) as error:
        raise ValueError("truncated or damaged") from error
    if text[end:].strip():
        raise ValueError("truncated or damaged")
    return value


def is_count(value: object, limit: int = 1 << 53) -> bool:
    """Whether this is a whole number, at least 0 and less than the limit."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < limit


def unpack(row: list[Any] | None) -> Content | None:
    """A content that was written as JSON.

    Raises:
        ValueError, TypeError: the row is malformed.
    """
    if row is None:
        return None
    sha256, size, mode = row
    if not (_DIGEST.fullmatch(sha256) and is_count(size) and is_count(mode, 0o10000)):
        raise ValueError(f"{row!r} is not a content")
    return Content(sha256, size, mode)
