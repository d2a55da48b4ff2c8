"""What goes on between downloads: the stages of a longer work, each shown if it takes long enough to be looked at."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from types import TracebackType

from perfkit.progress.meter import Progress, Snapshot, SpeedWindow

__all__ = ["Patient", "Stage"]

_SHOWN_FROM_S = 0.3  # what is over sooner needs no bar
_EVERY_S = 0.1


class Stage:
    """One stage, in a `with` block of one thread, which counts what it has done.

    Args:
        progress: where it is shown; None: nowhere.
        phase: what goes on, in a word, such as `commit`.
        files: how many there will be; None: nobody knows.
        total_bytes: likewise.
    """

    def __init__(
        self, progress: Progress | None, phase: str, *, files: int | None = None, total_bytes: int | None = None
    ) -> None:
        self._progress = progress
        self._phase = phase
        self._files = files
        self._total_bytes = total_bytes
        self._files_done = self._bytes_done = 0
        self._began_s = self._drawn_s = time.monotonic()
        self._window = SpeedWindow(self._began_s)
        self._shown = False

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if self._progress is not None and self._shown:
            self._progress.finish(self._snapshot(time.monotonic()))

    def count(self, *, files: int = 0, count_bytes: int = 0) -> None:
        """So much more is done."""
        self._files_done += files
        self._bytes_done += count_bytes
        if self._progress is None:
            return
        now = time.monotonic()
        if now - self._began_s >= _SHOWN_FROM_S and now - self._drawn_s >= _EVERY_S:
            self.show(now)

    def show(self, now: float | None = None) -> None:
        """Show it now, however long it takes: what follows can't be counted."""
        if self._progress is not None:
            self._drawn_s = time.monotonic() if now is None else now
            self._shown = True
            self._progress.update(self._snapshot(self._drawn_s))

    def _snapshot(self, now: float) -> Snapshot:
        speed = self._window.see(now, self._bytes_done)
        left = None if self._total_bytes is None else max(0, self._total_bytes - self._bytes_done)
        return Snapshot(
            phase=self._phase,
            files_total=self._files,
            files_done=self._files_done,
            files_failed=0,
            received_bytes=self._bytes_done,
            total_bytes=self._total_bytes,
            known_bytes=self._bytes_done if self._total_bytes is None else self._total_bytes,
            resumed_bytes=0,
            speed_bytes_per_s=speed,
            eta_s=left / speed if left is not None and speed > 0 else None,
            elapsed_s=now - self._began_s,
            active=(),
            finished=(),
        )


class Patient:
    """A `Progress` that is told only of downloads that take a while, as long as it is asked to wait.

    A sync makes several downloads, most of them tiny; each would else have its summary. May be used by several threads.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._waiting = 0  # how many ask for it
        self._shown = False

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait, inside this block."""
        with self._lock:
            self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1

    def update(self, snapshot: Snapshot) -> None:
        if not self._waiting or snapshot.elapsed_s >= _SHOWN_FROM_S:
            self._shown = True
            self._progress.update(snapshot)

    def finish(self, snapshot: Snapshot) -> None:
        shown, self._shown = self._shown, False
        if shown or not self._waiting:
            self._progress.finish(snapshot)
