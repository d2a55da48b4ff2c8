"""The signal sent when a tree has changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.dispatch import Signal

from perfkit.errors import PerfkitError
from perfkit.updates.report import SyncReport

#: Sent by `perfkit_sync`, `perfkit_rollback`, `trees.sync` and `trees.rollback` when a tree has another generation than
#: its receivers last processed, and only after the change is committed to the disk.
#:
#: Arguments: `sender` (the class `TreeSettings`), `name` (of the tree in the settings), `dest` (its directory, a str),
#: `report` (a `SyncReport`).
#:
#: Each receiver is called at least once for the current generation. If one raises, the others are still called, the
#: change stays, and the next sync sends the signal to all of them again, even if there is nothing new.
tree_updated = Signal()


class ReceiverError(PerfkitError):
    """A tree was changed, but receivers of `tree_updated` failed; the next sync calls all of them again.

    Attributes:
        name: the name of the tree.
        report: the report of the change, which stays.
        failures: name and exception of each failed receiver. Django has logged the tracebacks.
    """

    def __init__(self, name: str, report: SyncReport, failures: Sequence[tuple[str, Exception]]) -> None:
        super().__init__(name, report, failures)
        self.name = name
        self.report = report
        self.failures = failures

    def __str__(self) -> str:
        failed = "; ".join(f"{receiver}: {type(error).__name__}: {error}" for receiver, error in self.failures)
        return (
            f"the tree {self.name!r} is at {self.report.version} (generation {self.report.generation}), but "
            f"receivers failed ({failed}); fix them and sync again, which calls all receivers again"
        )


def receiver_name(receiver: Any) -> str:
    """A name for a function, a bound method or a callable instance."""
    name = getattr(receiver, "__qualname__", type(receiver).__qualname__)
    return f"{getattr(receiver, '__module__', None) or type(receiver).__module__}.{name}"
