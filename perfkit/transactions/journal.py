"""The journal: what a commit is to do, written before it is done and read from the disk as it is done.

So the steps of a change of a hundred thousand files are never in memory all at once, and a commit that a crash
interrupted is completed by the very code that would have completed it without.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from perfkit.transactions.records import Step, is_sealed, seal, unseal

__all__ = ["Journal"]

_KIND, _FORMAT = "perfkit-journal", 2
_REST = ["rest"]  # between the steps that can be taken back and those that need no space


class Journal:
    """The steps of one change.

    Args:
        open_file: opens the file they are in.
    """

    def __init__(self, open_file: Callable[[], IO[bytes]]) -> None:
        self._open = open_file

    @staticmethod
    def write(file: IO[bytes], firm: Iterable[Step], rest: Iterable[Step]) -> None:
        """Write these steps down."""
        file.writelines(seal(itertools.chain([[_KIND, _FORMAT]], firm, [_REST], rest)))

    def check(self) -> None:
        """See that it is whole, and of a kind that can be carried out.

        Raises:
            ValueError: it is not.
        """
        with self._open() as file:
            if not is_sealed(file):
                raise ValueError("cut short or damaged")
        with self._open() as file:
            kind, version, *_ = next(unseal(file), (None, None))
        if kind != _KIND or version not in (1, _FORMAT):
            raise ValueError(f"of format {version!r}, and this perfkit knows {_FORMAT}")

    @contextlib.contextmanager
    def steps(self) -> Iterator[tuple[Iterator[Step], Iterator[Step]]]:
        """The steps that can be taken back, and those that need no space; to be gone through one after the other."""
        with self._open() as file:
            steps = _steps(file)
            yield iter(functools.partial(next, steps), None), filter(None, steps)


def _steps(file: IO[bytes]) -> Iterator[Step | None]:
    """All steps, and None between the two kinds."""
    rows: Iterator[Any] = unseal(file)
    _, version, *count = next(rows)
    for number, row in enumerate(rows):
        if version == 1 and number == count[0]:  # said in the header how many come first
            yield None
        yield None if row == _REST else Step(*row)
