"""The progress of all workers as that of one run, for the displays of a Toolkit."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Protocol

from perfkit.contrib.dask.cluster import ClusterState, ShardCount
from perfkit.progress.meter import FileProgress, Progress, Silent, Snapshot
from perfkit.progress.pace import Pace

_ACTIVE = 8  # files that are shown


class Result(Protocol):
    """The result for a file, or for a host."""

    @property
    def error(self) -> Exception | None: ...
    @property
    def bytes(self) -> int: ...


class ClusterProgress:
    """Adds up the shards that have ended and what the workers report about running ones.

    Args:
        sizes: of all files, or hosts; None for those that are unknown.
        known: results that are known already.
        unit: what is counted: `file` or `host`.
    """

    def __init__(
        self, progress: Progress | None, sizes: Sequence[int | None], known: Iterable[Result], *, unit: str
    ) -> None:
        self._progress = progress or Silent()
        self._unit = unit
        self._files = len(sizes)
        self._known_bytes = sum(size or 0 for size in sizes)
        self._all_known = None not in sizes
        self._running: dict[int, ShardCount] = {}
        self._ended = ShardCount()
        self._count(known)
        self._resumed = self._most = self._ended.bytes
        self._over: set[int] = set()  # shards that have ended, which a worker's last report may still contain
        self._began_s = time.monotonic()
        self._pace = Pace(self._began_s)

    def _count(self, results: Iterable[Result]) -> None:
        for each in results:
            self._ended.files += 1
            self._ended.failed += each.error is not None
            self._ended.bytes += each.bytes

    def ended(self, number: int, results: Sequence[Result]) -> None:
        """Count a shard that has ended, whatever its worker reported about it."""
        self._running.pop(number, None)
        self._over.add(number)
        self._count(results)

    def update(self, state: ClusterState) -> None:
        """Show what the workers reported."""
        for report in state.reports:
            self._running.update({at: each for at, each in report.shards.items() if at not in self._over})
        active = tuple(file for report in state.reports for file in report.active)
        self._progress.update(self._snapshot(active, ended=False))

    def finish(self) -> None:
        self._running = {}
        self._progress.finish(self._snapshot((), ended=True))

    def _snapshot(self, active: Sequence[FileProgress], *, ended: bool) -> Snapshot:
        now = time.monotonic()
        counts = [self._ended, *self._running.values()]
        files, failed = sum(each.files for each in counts), sum(each.failed for each in counts)
        received = sum(each.bytes for each in counts) + sum(each.received_bytes for each in active)
        # What a lost worker had is received again; a file that ends while its worker reports may be counted twice.
        self._most = received if ended else max(received, self._most)
        total = self._known_bytes if self._all_known else round(received / files * self._files) if files else None
        speed = self._pace.record(now, self._most - self._resumed)
        return Snapshot(
            phase="download",
            files_total=self._files,
            files_done=files - failed,
            files_failed=failed,
            received_bytes=self._most,
            total_bytes=total,
            known_bytes=self._known_bytes,
            resumed_bytes=self._resumed,
            speed_bytes_per_s=speed,
            eta_s=self._pace.eta_s(None if total is None else max(0, total - self._most)),
            elapsed_s=now - self._began_s,
            active=tuple(active[:_ACTIVE]),
            total_estimated=not self._all_known,
            share=self._pace.share(files, self._files, ended=ended),
            unit=self._unit,
        )
