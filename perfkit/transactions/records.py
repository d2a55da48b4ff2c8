"""What perfkit writes down beside a managed tree: lines of JSON, sealed by their SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

__all__ = ["Change", "Content", "Seen", "Step", "is_sealed", "seal", "signature", "unseal"]

FORMAT = 1


class Content(NamedTuple):
    """What a name holds: the SHA-256 in hex, the size in bytes, and the permission bits."""

    sha256: str
    size: int
    mode: int


class Seen(NamedTuple):
    """What a file was found to be when it was hashed, and what it looked like then: the SHA-256 in hex, and its stat.

    Not its ctime, which links and renames of our own change.
    """

    sha256: str
    ino: int
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Change:
    """One name that a commit changed.

    `before` is None if the name was absent, `after` if it is now; `signature` is that of the new file, taken after the
    commit.
    """

    name: str
    before: Content | None
    after: Content | None
    signature: int | None = None


class Step(NamedTuple):
    """One step of a journal; names are relative to the root.

    mkdir name; put source as name; drop name, if it is still the file of this size and mtime; rmdir name, if empty.
    """

    kind: str
    name: str
    source: str = ""  # of put: the staged file; of drop: the object that has the same content
    size: int = 0
    mtime_ns: int = 0


def signature(found: os.stat_result) -> int:
    """What stat(2) says of a file, as far as it tells whether the file changed, in 64 bits."""
    return hash((found.st_ino, found.st_size, stat.S_IMODE(found.st_mode), found.st_mtime_ns, found.st_ctime_ns))


def seal(rows: Iterable[object]) -> Iterator[bytes]:
    """The rows as lines, and a last one with the digest of all before it."""
    digest = hashlib.sha256()
    for row in rows:
        line = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        digest.update(line)
        yield line
    yield digest.hexdigest().encode() + b"\n"


def unseal(file: IO[bytes]) -> Iterator[Any]:
    """The rows of what `seal` wrote; only when the last has come is it certain that they are whole.

    Raises:
        ValueError: cut short, or changed.
    """
    digest = hashlib.sha256()
    held: bytes | None = None
    for line in file:
        if held is not None:
            digest.update(held)
            yield json.loads(held)
        held = line
    if held is None or held.decode(errors="replace") != digest.hexdigest() + "\n":
        raise ValueError("cut short or damaged")


def is_sealed(file: IO[bytes]) -> bool:
    """Whether this is all of what `seal` wrote."""
    digest = hashlib.sha256()
    held = b""
    for line in file:
        digest.update(held)
        held = line
    return held.decode(errors="replace") == digest.hexdigest() + "\n"


def pack(content: Content | None) -> list[object] | None:
    return None if content is None else [content.sha256, content.size, content.mode]


def unpack(row: list[Any] | None) -> Content | None:
    return None if row is None else Content(str(row[0]), int(row[1]), int(row[2]))
