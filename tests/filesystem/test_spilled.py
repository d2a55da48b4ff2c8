"""What is kept in a file says the same as the bytes and lists that it stands for."""

from __future__ import annotations

import os
import sys
import tempfile
from random import Random
from struct import Struct

import hypothesis.strategies as st
import pytest
from hypothesis import given

from perfkit.filesystem import spilled
from perfkit.filesystem.own_files import create_unnamed
from perfkit.filesystem.spilled import FileBytes, FileRows, chunks, keep_bytes

pytestmark = pytest.mark.once


def unnamed_file() -> int:
    return create_unnamed(tempfile.gettempdir())


@given(st.integers(0, 40_000), st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 20_000)), max_size=9))
def test_bytes_of_a_file(size: int, slices: list[tuple[int, int]]) -> None:
    """Read in any order and amount, they are those of the file."""
    data = Random(size).randbytes(size)
    file = unnamed_file()
    os.write(file, data)
    stored = FileBytes(file)
    assert len(stored) == size
    assert stored[:] == data
    for start, length in slices:
        start, stop = min(start, size), min(start + length, size)
        assert stored[start:stop] == data[start:stop]
        if start < size:
            assert stored[start:] == data[start:]


@given(st.integers(0, 2_000), st.integers(1, 900), st.integers(1, 900), st.integers(0, 2_000))
def test_bytes_that_are_kept(size: int, in_memory: int, chunk: int, start: int) -> None:
    """Few in memory, many in a file; in any case the same when they are read in chunks."""
    data = Random(size).randbytes(size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spilled, "_IN_MEMORY", in_memory)
        patch.setattr(spilled, "_CHUNK_BYTES", chunk)
        kept = keep_bytes(chunks(data), unnamed_file)
        assert isinstance(kept, bytes) == (size <= in_memory)
        assert b"".join(chunks(kept, start)) == data[start:]
        assert b"".join(chunks(kept, start, min(size, start + 300))) == data[start : start + 300]


def test_a_file_that_becomes_shorter() -> None:
    """An error, and not other bytes, nor a signal."""
    file = unnamed_file()
    os.write(file, bytes(30_000))
    stored = FileBytes(file)
    os.truncate(file, 29_000)
    assert stored[8_000:9_000] == bytes(1_000)
    for wanted in (slice(29_990, 30_000), slice(None)):
        with pytest.raises(OSError, match="became shorter"):
            stored[wanted]


def test_rows_in_a_file() -> None:
    """More rows than are kept in memory, written and read in any order, also again."""
    files: list[int] = []

    def create() -> int:
        files.append(unnamed_file())
        return files[-1]

    rows, random = FileRows(Struct("=IB"), create), Random(1)
    for number in range(20_000):
        rows.append(number, number % 256)
    model = [(number, number % 256) for number in range(20_000)]
    for _ in range(2_000):
        at = random.randrange(20_000)
        model[at] = rows[at] = random.randrange(1 << 32), random.randrange(256)
        assert rows[(place := random.randrange(20_000))] == model[place]
    assert list(map(rows.__getitem__, range(len(rows)))) == model
    (file,) = files
    assert os.fstat(file).st_size > 10_000 * 5
    del rows
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)


def test_few_rows_need_no_file() -> None:
    """Nor does a small change."""
    rows = FileRows(Struct("=I"), lambda: pytest.fail("no file is needed"))
    for number in range(1_000):
        rows.append(number)
    assert rows[999] == (999,)


@pytest.mark.parametrize("kind", [FileBytes, FileRows])
def test_a_signal_before_the_first_line(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """What never became an object is collected in silence."""
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    kind.__new__(kind)
    assert unraisable == []
