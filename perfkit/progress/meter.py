"""Counts bytes and files of a run, and computes speed and ETA. No I/O and no threads.

Workers count into one `FileMeter` per file; displays take a `Snapshot`, whose cost grows with the active files.
"""

from __future__ import annotations

import enum
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

__all__ = ["FileMeter", "FileProgress", "Meter", "Progress", "Silent", "Snapshot", "SpeedWindow", "State"]

_WINDOW_S = 5.0
_SAMPLE_EVERY_S = 0.1
_FINISHED_KEPT = 100  # files that ended between two snapshots and are in the next one


class State(enum.Enum):
    """The state of a file."""

    QUEUED = "queued"
    ACTIVE = "active"
    RETRYING = "retrying"
    VERIFYING = "verifying"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class FileProgress:
    """One file at one moment."""

    name: str
    state: State
    received_bytes: int  # including resumed ones
    total_bytes: int | None
    resumed_bytes: int
    speed_bytes_per_s: float
    eta_s: float | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run at one moment."""

    phase: str
    files_total: int | None  # None while the list of files is still being read
    files_done: int
    files_failed: int
    received_bytes: int  # of all files, including resumed ones
    total_bytes: int | None  # None until the size of every file is known
    known_bytes: int  # the sizes known so far, added up
    resumed_bytes: int
    speed_bytes_per_s: float  # over the last seconds, without resumed bytes
    eta_s: float | None
    elapsed_s: float
    active: tuple[FileProgress, ...]
    finished: tuple[FileProgress, ...]  # since the last snapshot, at most the last hundred


class Progress(Protocol):
    """Displays a run. A Toolkit never overlaps its calls; it calls `update` about ten times a second.

    An exception raised here ends the work and reaches its caller. One object may display several runs one after
    another; Toolkits that work at the same time need one each.
    """

    def update(self, snapshot: Snapshot) -> None: ...

    def finish(self, snapshot: Snapshot) -> None:
        """The run ended; the same object may display another one afterwards."""
        ...


class Silent:
    """Displays nothing."""

    def update(self, snapshot: Snapshot) -> None:
        pass

    def finish(self, snapshot: Snapshot) -> None:
        pass


class SpeedWindow:
    """Bytes per second over the last few seconds, from a running total that never decreases."""

    def __init__(self, now: float) -> None:
        self._samples: deque[tuple[float, int]] = deque([(now, 0)])

    def see(self, now: float, total: int) -> float:
        """Record the total at this moment; returns the current speed."""
        samples = self._samples
        if now - samples[-1][0] >= _SAMPLE_EVERY_S or len(samples) == 1:
            samples.append((now, total))
        while len(samples) > 2 and now - samples[1][0] >= _WINDOW_S:
            samples.popleft()
        elapsed = now - samples[0][0]
        return max(0, total - samples[0][1]) / elapsed if elapsed > 0 else 0.0


class FileMeter:
    """Counts one file; all methods are thread-safe. Once the file is done or failed, further calls have no effect."""

    def __init__(self, meter: Meter, name: str) -> None:
        self.name = name
        self.state = State.QUEUED
        self.total_bytes: int | None = None
        self.received_bytes = 0
        self.resumed_bytes = 0
        self.transferred_bytes = 0  # over the network; never decreases
        self._meter = meter
        self._lock = meter.lock
        self._window: SpeedWindow | None = None

    @property
    def _ended(self) -> bool:
        return self.state in (State.DONE, State.FAILED)

    def start(self, total_bytes: int | None) -> None:
        """The file is being transferred; called again when its size becomes known or changes."""
        with self._lock:
            if self._ended:
                return
            self._meter.resize(self.total_bytes, total_bytes)
            self.total_bytes = total_bytes
            if self._window is None:
                self._window = SpeedWindow(self._meter.clock())
                self._meter.begin(self)
            self.state = State.ACTIVE

    def resumed(self, count: int) -> None:
        """`count` bytes are present from an earlier run."""
        with self._lock:
            if self._ended:
                return
            self.received_bytes += count
            self.resumed_bytes += count
            self._meter.add(received=count, resumed=count)

    def advance(self, count: int) -> None:
        """`count` bytes were received and are in place."""
        with self._lock:
            if self._ended:
                return
            self.received_bytes += count
            self.transferred_bytes += count
            self._meter.add(received=count, transferred=count)
            self.state = State.ACTIVE

    def reset(self) -> None:
        """All bytes so far were discarded: a retry starts from the first byte, or the file changed."""
        with self._lock:
            if self._ended:
                return
            self._meter.add(received=-self.received_bytes, resumed=-self.resumed_bytes)
            self.received_bytes = self.resumed_bytes = 0

    def retrying(self) -> None:
        """An attempt failed, and another one follows."""
        self._enter(State.RETRYING)

    def verifying(self) -> None:
        """All bytes are present and are being verified."""
        self._enter(State.VERIFYING)

    def done(self) -> None:
        """The file is complete."""
        self._end(State.DONE)

    def failed(self) -> None:
        """The file failed for good; its bytes no longer count."""
        self._end(State.FAILED)

    def progress(self, now: float) -> FileProgress:
        """The numbers at this moment of the meter's clock; the caller holds the meter's `lock`."""
        speed = self._window.see(now, self.transferred_bytes) if self._window else 0.0
        left = None if self.total_bytes is None else max(0, self.total_bytes - self.received_bytes)
        return FileProgress(
            self.name,
            self.state,
            self.received_bytes,
            self.total_bytes,
            self.resumed_bytes,
            speed,
            _eta_s(left, speed),
        )

    def _enter(self, state: State) -> None:
        with self._lock:
            if not self._ended:
                self.state = state

    def _end(self, state: State) -> None:
        with self._lock:
            if self._ended:
                return
            self.state = state
            if state is State.FAILED:
                self._meter.add(received=-self.received_bytes, resumed=-self.resumed_bytes)
                self._meter.resize(self.total_bytes, 0)
            else:
                self._meter.resize(self.total_bytes, self.received_bytes)
            self._meter.end(self)


class Meter:
    """Counts all files of a run. Sizes may become known late, and the list of files may still be growing.

    Attributes:
        clock: seconds that never decrease.
        lock: guards the counters, those of the files too; `add`, `resize`, `begin` and `end` need it held.
    """

    def __init__(self, *, phase: str = "download", clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.lock = threading.Lock()
        self._phase = phase
        self._started_s = clock()
        self._window = SpeedWindow(self._started_s)
        self._expected = 0
        self._open_lists = 0  # lists of files that are still being read
        self._sized = 0  # files of known size
        self._known = 0  # their sizes, added up
        self._received = 0
        self._resumed = 0
        self._transferred = 0
        self._done = 0
        self._failed = 0
        self._active: dict[FileMeter, None] = {}  # in the order they began
        self._finished: deque[FileMeter] = deque(maxlen=_FINISHED_KEPT)

    def expect(self, files: int | None) -> None:
        """`files` more files will follow; None: a list of unknown length, until `all_known`."""
        with self.lock:
            if files is None:
                self._open_lists += 1
            else:
                self._expected += files

    def file(self, name: str) -> FileMeter:
        """The meter of one of the expected files."""
        return FileMeter(self, name)

    def all_known(self) -> None:
        """A list of unknown length has ended."""
        with self.lock:
            self._open_lists -= 1

    def add(self, *, received: int = 0, resumed: int = 0, transferred: int = 0) -> None:
        """Count bytes of a file; negative numbers take them back."""
        self._received += received
        self._resumed += resumed
        self._transferred += transferred

    def resize(self, before: int | None, after: int | None) -> None:
        """The size of a file became known, or changed."""
        self._sized += (after is not None) - (before is not None)
        self._known += (after or 0) - (before or 0)

    def begin(self, file: FileMeter) -> None:
        """A file became active."""
        self._active[file] = None

    def end(self, file: FileMeter) -> None:
        """A file is done or failed."""
        if file.state is State.FAILED:
            self._failed += 1
        else:
            self._done += 1
        self._active.pop(file, None)
        self._finished.append(file)

    def snapshot(self) -> Snapshot:
        """The current numbers. Files that ended since the last snapshot are only in this one."""
        now = self.clock()
        with self.lock:
            speed = self._window.see(now, self._transferred)
            expected = None if self._open_lists else self._expected
            total = self._known if expected is not None and self._sized >= expected else None
            active = tuple(each.progress(now) for each in self._active)
            finished = tuple(each.progress(now) for each in self._finished)
            self._finished.clear()
            elapsed = now - self._started_s
            return Snapshot(
                self._phase,
                expected,
                self._done,
                self._failed,
                self._received,
                total,
                self._known,
                self._resumed,
                speed,
                self._total_eta_s(expected, total, speed, elapsed),
                elapsed,
                active,
                finished,
            )

    def _total_eta_s(self, expected: int | None, total: int | None, speed: float, elapsed: float) -> float | None:
        """Seconds left, from bytes if all sizes are known, else from the number of files; None if unknown."""
        if total is not None:
            return _eta_s(max(0, total - self._received), speed)
        ended = self._done + self._failed
        if expected is None or not ended:
            return None
        by_bytes = _eta_s(max(0, self._known - self._received), speed)  # the known bytes take at least this long
        return max(elapsed / ended * max(0, expected - ended), by_bytes or 0.0)


def _eta_s(left_bytes: int | None, speed: float) -> float | None:
    if left_bytes is None:
        return None
    if left_bytes == 0:
        return 0.0
    return left_bytes / speed if speed > 0 else None
