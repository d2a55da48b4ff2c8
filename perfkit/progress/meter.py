"""Counts the bytes and files of a run; `pace.py` computes speed, time left and percentage. No I/O and no threads.

Workers count into one `FileMeter` per file; displays take a `Snapshot`, whose cost grows with the active files.
"""

from __future__ import annotations

import enum
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Protocol

from perfkit.progress.pace import Pace

WAITING = "waiting"  # the phase of a first request, which has no file yet
_SETTLED_S = 0.5  # before that, a total estimated from the first sizes gives no share
_FINISHED_KEPT = 100  # of files that ended between two snapshots, for the next one
_REASONS_KEPT = 5


class State(enum.Enum):
    """The state of a file."""

    QUEUED = "queued"
    ACTIVE = "active"
    RETRYING = "retrying"
    VERIFYING = "verifying"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class FileProgress:
    """One file at one moment."""

    name: str
    state: State
    received_bytes: int  # including resumed ones
    total_bytes: int | None
    resumed_bytes: int
    speed_bytes_per_s: float  # over the last seconds; of a file that has ended, its mean
    eta_s: float | None
    share: float | None = None  # of the bytes, 0 to 1; never falls, and is 1 only at the end
    elapsed_s: float = 0.0  # since it began
    path: str = ""  # where it goes
    host: str = ""  # of its source, as host:port
    unchanged: bool = False  # it was current already
    reason: str = ""  # why it failed or is tried again
    retries: int = 0  # failed attempts so far
    retry_in_s: float | None = None  # until the next attempt, while the state is `RETRYING`


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run at one moment."""

    phase: str  # `download`, or what else is being done, such as `checking files`
    files_total: int | None  # None while the list of files is still being read
    files_done: int
    files_failed: int
    received_bytes: int  # of all files, including resumed ones
    total_bytes: int | None  # None while nothing is known; see `total_estimated`
    known_bytes: int  # the sum of the sizes known so far
    resumed_bytes: int
    speed_bytes_per_s: float  # over the last seconds, without resumed bytes
    eta_s: float | None  # for the rest of the bytes at their recent speed
    elapsed_s: float
    active: tuple[FileProgress, ...] = ()
    finished: tuple[FileProgress, ...] = ()  # since the last snapshot, at most the last hundred
    total_estimated: bool = False  # some sizes are unknown yet, and assumed to be the mean of the others
    share: float | None = None  # of the work, 0 to 1; never falls, and is 1 only at the end
    files_unchanged: int = 0  # of `files_done`: were current already
    files_resumed: int = 0  # of `files_done`: continued what an earlier run had left
    files_cancelled: int = 0  # were not finished when the run was interrupted
    kept_bytes: int = 0  # in partial files, which the next run continues
    unit: str = "file"  # what is counted; `download` where a sync fetches ranges and objects, too
    failures: tuple[tuple[str, int], ...] = ()  # the first reasons for failures, and how often each occurred


class Progress(Protocol):
    """Displays a run. A Toolkit never overlaps its calls; it calls `update` about ten times a second.

    An exception raised here ends the work and reaches its caller. One object may display several runs one after
    another; Toolkits that work at the same time need one each.
    """

    def update(self, snapshot: Snapshot) -> None: ...

    def finish(self, snapshot: Snapshot) -> None:
        """The run ended; the same object may display another one afterwards."""


class Silent:
    """Displays nothing."""

    def update(self, snapshot: Snapshot) -> None: ...
    def finish(self, snapshot: Snapshot) -> None: ...


class FileMeter:
    """Counts one file; all methods are thread-safe. Once the file has ended, further calls have no effect."""

    def __init__(self, meter: Meter, name: str, path: str, total_bytes: int | None) -> None:
        self.name = name
        self.path = path
        self.state = State.QUEUED
        self.total_bytes = total_bytes
        self.received_bytes = 0
        self.resumed_bytes = 0
        self.transferred_bytes = 0  # over the network; never decreases
        self.unchanged = False
        self._meter = meter
        self._lock = meter.lock
        self._pace: Pace | None = None
        self._began_s: float | None = None
        self._ended_s = 0.0
        self._host = self._reason = ""
        self._retries = 0
        self._retry_at_s = 0.0
        self._ended = False

    def start(self, total_bytes: int | None, *, host: str = "", path: str = "") -> None:
        """The file is being transferred; called again when its size (None: as before), source or path changes."""
        with self._lock:
            if self._ended:
                return
            if total_bytes is not None:
                self._meter.resize(self.total_bytes, total_bytes)
                self.total_bytes = total_bytes
            self._host, self.path = host or self._host, path or self.path
            if self._began_s is None:
                self._began_s = self._meter.clock()
                self._meter.begin(self)
            self.state = State.ACTIVE

    def resumed(self, count: int) -> None:
        """`count` bytes are present from an earlier run."""
        with self._lock:
            if not self._ended:
                self.received_bytes += count
                self.resumed_bytes += count
                self._meter.add(received=count, resumed=count)

    def advance(self, count: int) -> None:
        """`count` bytes were received and are in place."""
        with self._lock:
            if not self._ended:
                self.received_bytes += count
                self.transferred_bytes += count
                self._meter.add(received=count, transferred=count)
                self.state = State.ACTIVE

    def reset(self) -> None:
        """All bytes so far were discarded: a retry starts from the first byte, or the file changed."""
        with self._lock:
            if not self._ended:
                self._discard()

    def retrying(self, reason: str = "", wait_s: float = 0.0) -> None:
        """An attempt failed, and another one follows after `wait_s` seconds."""
        with self._lock:
            if not self._ended:
                self.state, self._reason = State.RETRYING, reason
                self._retries += 1
                self._retry_at_s = self._meter.clock() + wait_s

    def verifying(self) -> None:
        """All bytes are present and are being verified."""
        with self._lock:
            if not self._ended:
                self.state = State.VERIFYING

    def done(self, *, unchanged: bool = False) -> None:
        """The file is complete; `unchanged`: it was current already."""
        with self._lock:
            if not self._ended:
                self.unchanged = unchanged
                self._meter.resize(self.total_bytes, self.received_bytes)
                self._end(State.DONE)

    def failed(self, reason: str = "", *, kept: bool = False, cancelled: bool = False) -> None:
        """The file failed for good; its bytes no longer count.

        Args:
            kept: they stay in a partial file, for the next run.
            cancelled: the caller ended it.
        """
        with self._lock:
            if not self._ended:
                self._reason = reason
                self._meter.keep(self.received_bytes if kept else 0)
                self._discard()
                self._meter.resize(self.total_bytes, 0)
                self._end(State.CANCELLED if cancelled else State.FAILED)

    def progress(self, now: float) -> FileProgress:
        """The numbers at this moment of the meter's clock; the caller holds the meter's `lock`."""
        speed, eta_s, share, elapsed_s = 0.0, None, None, 0.0
        if self._began_s is not None:
            elapsed_s = (self._ended_s or now) - self._began_s
            self._pace = self._pace or Pace(self._began_s)
            speed = self._pace.record(now, self.transferred_bytes)
            left = None if self.total_bytes is None else max(0, self.total_bytes - self.received_bytes)
            eta_s = self._pace.eta_s(left)
            share = self._pace.share(self.received_bytes, self.total_bytes, ended=self.state is State.DONE)
        if self._ended and elapsed_s > 0:
            speed = self.transferred_bytes / elapsed_s
        waits = self.state is State.RETRYING
        return FileProgress(
            name=self.name,
            state=self.state,
            received_bytes=self.received_bytes,
            total_bytes=self.total_bytes,
            resumed_bytes=self.resumed_bytes,
            speed_bytes_per_s=speed,
            eta_s=eta_s,
            share=share,
            elapsed_s=elapsed_s,
            path=self.path,
            host=self._host,
            unchanged=self.unchanged,
            reason=self._reason if waits or self._ended else "",
            retries=self._retries,
            retry_in_s=max(0.0, self._retry_at_s - now) if waits else None,
        )

    def _discard(self) -> None:
        self._meter.add(received=-self.received_bytes, resumed=-self.resumed_bytes)
        self.received_bytes = self.resumed_bytes = 0

    def _end(self, state: State) -> None:
        self.state, self._ended = state, True
        self._ended_s = self._meter.clock()
        self._meter.end(self, self._reason)


@dataclass(slots=True)
class _Totals:
    """The sums over all files that a `Snapshot` has under these names."""

    files_done: int = 0
    files_failed: int = 0
    files_cancelled: int = 0
    files_unchanged: int = 0
    files_resumed: int = 0
    received_bytes: int = 0
    resumed_bytes: int = 0
    kept_bytes: int = 0
    known_bytes: int = 0


class Meter:
    """Counts all files of a run. Sizes may become known late, and the list of files may still be growing."""

    def __init__(self, *, phase: str = "download", clock: Callable[[], float] | None = None) -> None:
        self.clock = clock or time.monotonic  # seconds that never decrease
        # guards the counters, those of the files too; `add`, `resize`, `keep`, `begin` and `end` need it held
        self.lock = threading.Lock()
        self._phase = phase
        self._started_s = self.clock()
        self._pace = Pace(self._started_s)
        self._totals = _Totals()
        self._expected = 0
        self._open_lists = 0  # lists of files that are still being read
        self._sized = 0  # files whose size is known
        self._transferred = 0
        self._failures: dict[str, int] = {}
        self._active: dict[FileMeter, None] = {}  # in the order they began
        self._finished: deque[FileMeter] = deque(maxlen=_FINISHED_KEPT)

    def expect(self, files: int | None, sizes: Iterable[int | None] = ()) -> None:
        """`files` more files will follow; None: a list of unknown length, until `all_known`.

        Args:
            sizes: of these files, where they are known.
        """
        with self.lock:
            if files is None:
                self._open_lists += 1
            else:
                self._expected += files
            for size in sizes:
                self.resize(None, size)

    def file(self, name: str, *, path: str = "", total_bytes: int | None = None, announced: bool = False) -> FileMeter:
        """The meter of one of the expected files.

        Args:
            path: where it goes.
            total_bytes: its size, if that is known already.
            announced: the size was among those that `expect` was given.
        """
        if not announced:
            with self.lock:
                self.resize(None, total_bytes)
        return FileMeter(self, name, path, total_bytes)

    def all_known(self) -> None:
        """A list of unknown length has ended."""
        with self.lock:
            self._open_lists -= 1

    def add(self, *, received: int = 0, resumed: int = 0, transferred: int = 0) -> None:
        """Count bytes of a file; negative numbers take them back."""
        self._totals.received_bytes += received
        self._totals.resumed_bytes += resumed
        self._transferred += transferred

    def resize(self, before: int | None, after: int | None) -> None:
        """The size of a file became known, or changed."""
        self._sized += (after is not None) - (before is not None)
        self._totals.known_bytes += (after or 0) - (before or 0)

    def keep(self, count: int) -> None:
        """`count` bytes of a file that failed stay, for the next run."""
        self._totals.kept_bytes += count

    def begin(self, file: FileMeter) -> None:
        """A file became active."""
        self._active[file] = None

    def end(self, file: FileMeter, reason: str) -> None:
        """A file is done, failed or cancelled."""
        if file.state is State.DONE:
            self._totals.files_done += 1
            self._totals.files_unchanged += file.unchanged
            self._totals.files_resumed += file.resumed_bytes > 0
        elif file.state is State.CANCELLED:
            self._totals.files_cancelled += 1
        else:
            self._totals.files_failed += 1
            if reason in self._failures or len(self._failures) < _REASONS_KEPT:
                self._failures[reason] = self._failures.get(reason, 0) + 1
        self._active.pop(file, None)
        self._finished.append(file)

    def snapshot(self, *, files: bool = True) -> Snapshot:
        """The current numbers; with `files`, also those of files that are active, or ended since the last snapshot."""
        with self.lock:
            now = self.clock()
            speed = self._pace.record(now, self._transferred)
            expected = None if self._open_lists else self._expected
            ended = self._totals.files_done + self._totals.files_failed + self._totals.files_cancelled
            total = self._total_bytes(expected)
            estimated = total is not None and expected is not None and self._sized < expected
            soon = estimated and now - self._started_s < _SETTLED_S
            active = tuple(each.progress(now) for each in self._active) if files else ()
            finished = tuple(each.progress(now) for each in self._finished) if files else ()
            self._finished.clear()
            return Snapshot(
                **asdict(self._totals),
                phase=self._phase,
                files_total=expected,
                total_bytes=total,
                speed_bytes_per_s=speed,
                eta_s=self._eta_s(now, expected, ended, total),
                elapsed_s=now - self._started_s,
                active=active,
                finished=finished,
                total_estimated=estimated,
                share=None if soon else self._share(expected, ended, total),
                unit="file" if self._phase == "download" else "download",
                failures=tuple(self._failures.items()),
            )

    def _total_bytes(self, expected: int | None) -> int | None:
        """The sum of all sizes, unknown ones assumed to be the mean of the others; None if none is known."""
        if expected is None or (not self._sized and expected):
            return None
        mean = self._totals.known_bytes // max(1, self._sized)
        more = sum(max(0, each.received_bytes - mean) for each in self._active if each.total_bytes is None)
        return max(self._totals.received_bytes, self._totals.known_bytes + max(0, expected - self._sized) * mean + more)

    def _eta_s(self, now: float, expected: int | None, ended: int, total: int | None) -> float | None:
        """Seconds left, from bytes if there are any, else from the number of files; None if unknown."""
        if total is not None and self._totals.received_bytes:
            longer = total == self._totals.received_bytes and self._sized < (expected or 0)  # than was estimated
            return None if longer else self._pace.eta_s(total - self._totals.received_bytes)
        if expected is None or not ended:
            return None
        return (now - self._started_s) / ended * max(0, expected - ended)

    def _share(self, expected: int | None, ended: int, total: int | None) -> float | None:
        done = expected is not None and ended >= expected
        if total == 0:  # nothing but empty and unchanged files so far
            return self._pace.share(ended, expected, ended=done)
        return self._pace.share(self._totals.received_bytes, total, ended=done)
