"""The journal: the operations of a commit, written before the first is applied, and applied as they are read back.

So the operations of a change of a hundred thousand files are never all in memory, and the same code completes a commit
with or without a crash in between.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import IO, Any

from perfkit.filesystem.paths import check_name
from perfkit.transactions.layout import PRIVATE_DIR, check_own_name, check_staged_name, check_stored_name, is_private
from perfkit.transactions.records import (
    DELETE,
    MALFORMED,
    MKDIR,
    RENAME,
    RMDIR,
    JournalOp,
    Previous,
    is_count,
    read_checked,
    with_checksum,
)

_KIND, _FORMAT = "perfkit-journal", 3


def write_ops(file: IO[bytes], ops: Iterable[JournalOp]) -> None:
    """Write a journal of these operations."""
    file.writelines(with_checksum(itertools.chain([[_KIND, _FORMAT]], ops)))


def read_ops(file: IO[bytes]) -> Iterator[JournalOp]:
    """The operations of a journal, in order."""
    rows: Iterator[Any] = read_checked(file)
    next(rows)
    return (_op(*row) for row in rows)


def check_ops(file: IO[bytes]) -> None:
    """Check that a journal is complete, of a known format, and changes nothing but files of its tree.

    Somebody else may have made the tree and its journal: it may be an unpacked archive, or a clone.

    Raises:
        ValueError: it is incomplete, has another format, or changes other files.
    """
    try:
        rows = read_checked(file)
        kind, version, *_ = next(rows, (None, None))
        if kind != _KIND or version != _FORMAT:
            raise ValueError(f"in format {version!r}; this version of perfkit reads format {_FORMAT}")
        for row in rows:
            _check(_op(*row))
    except MALFORMED as error:
        raise ValueError(f"not one that perfkit wrote: {error}") from error


def _check(op: JournalOp) -> None:
    """Check that an operation of an untrusted journal is one that a commit may have written."""
    if not isinstance(op.name, str):
        raise ValueError(f"{op.name!r} is not a name")
    if op.kind != RMDIR and (op.kind, op.name) != (MKDIR, PRIVATE_DIR):  # a removed directory may have any plain name
        check_own_name(op.name) if is_private(op.name) else check_name(op.name)
    if op.kind == RENAME or (op.kind == DELETE and op.source):
        check_staged_name(op.source)
    elif op.kind not in (MKDIR, DELETE, RMDIR) or op.source:
        raise ValueError(f"{op.kind!r} is not an operation")
    if op.previous is not None:
        stored, size, mtime_ns, mode, ino = op.previous
        if stored:
            check_stored_name(stored)
        numbers = is_count(size), is_count(abs(mtime_ns), 1 << 94), is_count(mode, 0o10000), is_count(ino, 1 << 64)
        if not all(numbers):
            raise ValueError(f"{op.previous} is not a file")


def _op(kind: str, name: str, source: str, previous: list[Any] | None) -> JournalOp:
    return JournalOp(kind, name, source, None if previous is None else Previous(*previous))
