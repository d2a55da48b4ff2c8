"""The signal that a tree has changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.dispatch import Signal

from perfkit.errors import PerfkitError
from perfkit.updates.report import SyncReport

__all__ = ["ReceiverError", "tree_updated"]

#: Sent when a tree has another generation than its receivers were last told of, after `perfkit_sync`,
#: `perfkit_rollback`, and `trees.sync` and `trees.rollback`; never before the change is committed to the disk.
#:
#: Arguments: `sender` (the class `TreeSettings`), `name` (of the tree, as in the settings), `dest` (its directory, a
#: str), `report` (a `SyncReport`).
#:
#: Each receiver is called at least once for the generation that stays. If one raises, the others are called all the
#: same, the change stays, and the next sync sends the signal again, to all of them and even if nothing new is there.
tree_updated = Signal()


class ReceiverError(PerfkitError):
    """A tree has changed, and receivers of `tree_updated` failed; the next sync calls all of them again.

    Attributes:
        name: of the tree.
        report: of the change, which stays.
        failures: what each failed receiver is called, and what it raised. Django has logged the tracebacks.
    """

    def __init__(self, name: str, report: SyncReport, failures: Sequence[tuple[str, Exception]]) -> None:
        super().__init__(name, report, failures)
        self.name = name
        self.report = report
        self.failures = failures

    def __str__(self) -> str:
        told = "; ".join(f"{receiver}: {type(error).__name__}: {error}" for receiver, error in self.failures)
        return (
            f"the tree {self.name!r} is at {self.report.version} (generation {self.report.generation}), but "
            f"receivers failed ({told}); mend them and sync again: they are then called again"
        )


def receiver_name(receiver: Any) -> str:
    """A function, a bound method or an instance, as a log may call it."""
    name = getattr(receiver, "__qualname__", type(receiver).__qualname__)
    return f"{getattr(receiver, '__module__', None) or type(receiver).__module__}.{name}"
