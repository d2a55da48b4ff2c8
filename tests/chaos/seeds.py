"""Cases by seed, of which each can be run again by itself.

`PERFKIT_TEST_CHAOS=long` chooses the number of cases for a night, `PERFKIT_TEST_SEED` another series of them, and
`PERFKIT_TEST_CASE` a single one: the command that a failure names.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import pytest

LONG = os.environ.get("PERFKIT_TEST_CHAOS") == "long"
TIMEOUT_S = 7200 if LONG else 120
SEED = os.environ.get("PERFKIT_TEST_SEED", "1")
CASE = os.environ.get("PERFKIT_TEST_CASE")
_MOST_FAILURES = 10

T = TypeVar("T")


def some(everything: Sequence[T], short: int) -> list[T]:
    """All of them in the long form, or a few by the seed."""
    return list(everything) if LONG else random.Random(SEED).sample(everything, short)


@dataclass
class Cases:
    """The cases of one test, and what came of them."""

    request: pytest.FixtureRequest
    ends: Counter[str] = field(default_factory=Counter)
    failures: list[Exception] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the test."""
        return self.request.node.name  # type: ignore[no-any-return]

    def run(self, short: int, long: int) -> Iterator[tuple[int, random.Random]]:
        """Numbers of cases, with their sources of chance."""
        numbers = range(long if LONG else short) if CASE is None else [int(CASE)]
        for number in numbers:
            yield number, random.Random(f"{SEED} {self.name} {number}")

    @contextlib.contextmanager
    def case(self, number: int, what: str = "") -> Iterator[None]:
        """An error inside says what was tried, and how to try it again; the other cases go on."""
        try:
            yield
        except BaseException as error:
            form = "PERFKIT_TEST_CHAOS=long " if LONG else ""
            again = f"{form}PERFKIT_TEST_SEED={SEED} PERFKIT_TEST_CASE={number} pytest '{self.request.node.nodeid}'"
            error.add_note(f"{what}\nagain: {again}")
            if not isinstance(error, Exception) or len(self.failures) == _MOST_FAILURES:
                raise
            self.failures.append(error)

    def report(self) -> None:
        """Have the numbers shown in the summary, and fail if a case did."""
        told = ", ".join(f"{count} {what}" for what, count in sorted(self.ends.items()))
        self.request.node.user_properties.append(("chaos", f"{self.name}: {told}"))
        if self.failures:
            raise ExceptionGroup(f"{len(self.failures)} cases failed", self.failures)
