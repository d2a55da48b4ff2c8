"""The journal as a file."""

from __future__ import annotations

import hashlib
import io

import pytest

from perfkit.transactions.journal import check_ops, read_ops, write_ops
from perfkit.transactions.records import JournalOp, Previous, read_line

pytestmark = pytest.mark.once

OPS = [
    JournalOp("mkdir", "d"),
    JournalOp("put", "d/x", ".perfkit/stage-01/1"),
    JournalOp("drop", "é", "", Previous(f".perfkit/objects/{'ab' * 32}", 3, 4, 0o644, 5)),
]


@pytest.mark.parametrize("count", range(4))
def test_a_journal_is_read_as_written(count: int) -> None:
    """What is written is read."""
    file = io.BytesIO()
    write_ops(file, OPS[:count])
    check_ops(io.BytesIO(file.getvalue()))
    assert list(read_ops(io.BytesIO(file.getvalue()))) == OPS[:count]


def test_journal_that_is_none() -> None:
    """Cut anywhere, changed, empty, or of a format to come."""
    file = io.BytesIO()
    write_ops(file, OPS)
    whole = file.getvalue()
    later = whole.replace(b'perfkit-journal",3', b'perfkit-journal",4')[: whole.rindex(b"\n", 0, -1) + 1]
    sealed = later + hashlib.sha256(later).hexdigest().encode() + b"\n"
    empty = hashlib.sha256().hexdigest().encode() + b"\n"
    for data in (*(whole[:end] for end in range(len(whole))), whole.replace(b"d/x", b"d/y"), sealed, empty):
        with pytest.raises(ValueError, match=r"truncated|format"):
            check_ops(io.BytesIO(data))


def test_line_of_more_than_one_value() -> None:
    """Or of none: others may have written the file."""
    assert read_line(b'["a",1]\n') == ["a", 1]
    for line in (b'["a"] ["b"]\n', b'["a"]]', b"\n", b"", b'\xff["a"]\n', b"[" * 100_000):
        with pytest.raises(ValueError, match="truncated or damaged"):
            read_line(line)
