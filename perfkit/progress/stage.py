"""Progress of work other than downloads: stages, each displayed only if it takes long enough to be noticed."""

from __future__ import annotations

import time

from perfkit.progress.meter import Progress, Snapshot
from perfkit.progress.operation import SHOWN_FROM_S
from perfkit.progress.pace import Pace

_EVERY_S = 0.1


class Stage:
    """One stage of an operation: a `with` block in one thread, which counts its work.

    Args:
        progress: the display; None for none.
        phase: what the stage does, in words for people, such as `checking files`.
        files: how many files the stage handles; None if unknown.
        total_bytes: how many bytes; None if unknown.
    """

    def __init__(
        self, progress: Progress | None, phase: str, *, files: int | None = None, total_bytes: int | None = None
    ) -> None:
        self._progress = progress
        self._phase = phase
        self._files = files
        self._total_bytes = total_bytes
        self._files_done = self._bytes_done = self._failed = 0
        self._began_s = self._drawn_s = time.monotonic()
        self._pace = Pace(self._began_s)
        self._shown = False

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, kind: object, value: BaseException | None, at: object) -> None:
        self.end(failed=value is not None)

    def end(self, *, failed: bool = False) -> None:
        """End the stage, done or failed; for stages that are not a `with` block."""
        if self._progress is not None and self._shown:
            self._progress.finish(self._snapshot(time.monotonic(), ended=not failed))

    def expect(self, files: int | None, total_bytes: int | None) -> None:
        """Set how many files and bytes there are, if that turns out later."""
        self._files, self._total_bytes = files, total_bytes

    def count(self, *, files: int = 0, count_bytes: int = 0, failed: int = 0) -> None:
        """Add finished work."""
        self._files_done += files
        self._failed += failed
        self._bytes_done += count_bytes
        if self._progress is None:
            return
        now = time.monotonic()
        if now - self._began_s >= SHOWN_FROM_S and now - self._drawn_s >= _EVERY_S:
            self._drawn_s, self._shown = now, True
            self._progress.update(self._snapshot(now))

    def _snapshot(self, now: float, *, ended: bool = False) -> Snapshot:
        done, total = self._bytes_done, self._total_bytes
        if not total:  # by the number of files
            done, total = self._files_done + self._failed, self._files
        speed = self._pace.record(now, done)
        total_bytes = None if self._total_bytes is None else max(self._total_bytes, self._bytes_done)
        return Snapshot(
            phase=self._phase,
            files_total=self._files,
            files_done=self._files_done,
            files_failed=self._failed,
            received_bytes=self._bytes_done,
            total_bytes=total_bytes,
            known_bytes=total_bytes or self._bytes_done,
            resumed_bytes=0,
            speed_bytes_per_s=speed if self._total_bytes else self._bytes_done / max(1e-3, now - self._began_s),
            eta_s=None if total is None else self._pace.eta_s(max(0, total - done)),
            elapsed_s=now - self._began_s,
            share=self._pace.share(done, total, ended=ended),
        )
