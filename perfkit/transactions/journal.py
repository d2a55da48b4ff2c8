"""The journal: the operations of a commit, written before the first is applied, and applied as they are read back.

So the operations of a change of a hundred thousand files are never all in memory, and a commit that a crash interrupted
is completed by the same code that would have completed it without the crash.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from perfkit.transactions.records import JournalOp, has_valid_checksum, read_checked, with_checksum

__all__ = ["Journal"]

_KIND, _FORMAT = "perfkit-journal", 2
_SEPARATOR = ["rest"]  # between the reversible operations and the final ones


class Journal:
    """The operations of one change.

    Args:
        open_file: opens the file that they are in.
    """

    def __init__(self, open_file: Callable[[], IO[bytes]]) -> None:
        self._open = open_file

    @staticmethod
    def write(file: IO[bytes], reversible: Iterable[JournalOp], final: Iterable[JournalOp]) -> None:
        """Write these operations."""
        file.writelines(with_checksum(itertools.chain([[_KIND, _FORMAT]], reversible, [_SEPARATOR], final)))

    def check(self) -> None:
        """Check that the journal is complete and of a known format.

        Raises:
            ValueError: it is not.
        """
        with self._open() as file:
            if not has_valid_checksum(file):
                raise ValueError("truncated or damaged")
        with self._open() as file:
            kind, version, *_ = next(read_checked(file), (None, None))
        if kind != _KIND or version not in (1, _FORMAT):
            raise ValueError(f"in format {version!r}; this version of perfkit reads formats up to {_FORMAT}")

    @contextlib.contextmanager
    def read(self) -> Iterator[tuple[Iterator[JournalOp], Iterator[JournalOp]]]:
        """The reversible operations and the final ones; the first must be exhausted before the second is begun."""
        with self._open() as file:
            ops = _ops(file)
            yield iter(functools.partial(next, ops), None), filter(None, ops)


def _ops(file: IO[bytes]) -> Iterator[JournalOp | None]:
    """All operations, with None between the reversible and the final ones."""
    rows: Iterator[Any] = read_checked(file)
    _, version, *count = next(rows)
    for number, row in enumerate(rows):
        if version == 1 and number == count[0]:  # format 1 has the number of reversible operations in its header
            yield None
        yield None if row == _SEPARATOR else JournalOp(*row)
