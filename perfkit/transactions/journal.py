"""The journal: the operations of a commit, written before the first is applied, and applied as they are read back.

So the operations of a change of a hundred thousand files are never all in memory, and a commit that a crash interrupted
is completed by the same code that would have completed it without the crash.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from perfkit.transactions.records import JournalOp, Previous, has_valid_checksum, read_checked, with_checksum

__all__ = ["Journal"]

_KIND, _FORMAT = "perfkit-journal", 3


class Journal:
    """The operations of one change.

    Args:
        open_file: opens the file that they are in.
    """

    def __init__(self, open_file: Callable[[], IO[bytes]]) -> None:
        self._open = open_file

    @staticmethod
    def write(file: IO[bytes], ops: Iterable[JournalOp]) -> None:
        """Write these operations."""
        file.writelines(with_checksum(itertools.chain([[_KIND, _FORMAT]], ops)))

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
        if kind != _KIND or version != _FORMAT:
            raise ValueError(f"in format {version!r}; this version of perfkit reads format {_FORMAT}")

    @contextlib.contextmanager
    def read(self) -> Iterator[Iterator[JournalOp]]:
        """The operations, in order."""
        with self._open() as file:
            rows: Iterator[Any] = read_checked(file)
            next(rows)
            yield (_op(*row) for row in rows)


def _op(kind: str, name: str, source: str, previous: list[Any] | None) -> JournalOp:
    return JournalOp(kind, name, source, None if previous is None else Previous(*previous))
