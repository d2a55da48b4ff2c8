"""Progress of an operation that has several stages: one percentage and one time left for all of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

from perfkit.progress.meter import Progress, Snapshot

SHOWN_FROM_S = 0.3  # shorter stages and downloads are not displayed
_ALMOST = 0.9999  # the largest share shown before an operation ends


class OperationProgress:
    """A `Progress` that, inside an `operation` block, displays stages and downloads as parts of one piece of work.

    What takes less than 0.3 s is not displayed: a sync makes several downloads, most of them tiny, and each would print
    a summary of its own.

    Attributes:
        lock: held while it displays. A `DownloadManager` sets its own, so that threads that share a Toolkit take turns.
    """

    lock: AbstractContextManager[object] = contextlib.nullcontext()

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        # Nested or concurrent ones. Without a lock, which the child of a fork would find held for ever.
        self._operations: list[_Operation] = []
        self._shown = False

    @contextlib.contextmanager
    def operation(self) -> Iterator[None]:
        """Display everything inside this block as one operation."""
        begun = _Operation(time.monotonic())
        self._operations.append(begun)
        try:
            yield
        finally:
            self._operations.remove(begun)

    def expect(self, stages: Mapping[str, float | None]) -> None:
        """Set the stages that are left, in order, including the current one. Others, such as the download of an index,
        do not count.

        Args:
            stages: phases, and about how many seconds each will take; None: unknown yet.
        """
        for operation in self._operations[:1]:
            operation.left = dict(stages)

    def update(self, snapshot: Snapshot) -> None:
        with self.lock:
            if self._is_noticed(snapshot):
                self._shown = True
                self._progress.update(self._in_whole(snapshot))

    def finish(self, snapshot: Snapshot) -> None:
        with self.lock:
            shown, self._shown = self._shown, False
            if shown or self._is_noticed(snapshot):
                self._progress.finish(replace(self._in_whole(snapshot), elapsed_s=snapshot.elapsed_s))

    def _is_noticed(self, snapshot: Snapshot) -> bool:
        return not self._operations or snapshot.elapsed_s >= SHOWN_FROM_S

    def _in_whole(self, snapshot: Snapshot) -> Snapshot:
        operations = self._operations[:]  # other threads' may end
        return operations[0].place(snapshot, time.monotonic()) if len(operations) == 1 else snapshot


class _Operation:
    """Places the numbers of a stage among those of its operation.

    The share done when a stage begins stays, and the rest is divided by time: what this stage has taken, what it still
    takes, and what those after it will take.
    """

    def __init__(self, now: float) -> None:
        self.left: dict[str, float | None] = {}
        self._began_s = now
        self._stage = ("", 0.0)  # its phase, and when it began
        self._base = self._share = 0.0  # the share when the stage began, and now

    def place(self, snapshot: Snapshot, now: float) -> Snapshot:
        """The snapshot with the operation's elapsed time, share and time left."""
        began_s, left_s = now - snapshot.elapsed_s, None
        if self._stage[0] != snapshot.phase or began_s - self._stage[1] > SHOWN_FROM_S:
            self._stage, self._base = (snapshot.phase, began_s), self._share
        if snapshot.phase in self.left and snapshot.share is not None:
            done, left_s = self._done(snapshot, snapshot.share)
            self._share = max(self._share, done)
        return replace(snapshot, elapsed_s=now - self._began_s, share=self._share or None, eta_s=left_s)

    def _done(self, snapshot: Snapshot, part: float) -> tuple[float, float | None]:
        """The share done, and the seconds that the rest takes."""
        after = list(self.left.values())[list(self.left).index(snapshot.phase) + 1 :]
        known_s, left_s = [each for each in after if each is not None], None
        if part == 1.0 and not after:
            return 1.0, 0.0
        if len(known_s) < len(after):
            part /= 2  # half of the work, until more is known
        elif snapshot.eta_s is not None:
            left_s = snapshot.eta_s + sum(known_s)
            part = snapshot.elapsed_s / max(1e-9, snapshot.elapsed_s + left_s)
        return min(_ALMOST, self._base + (1 - self._base) * part), left_s
