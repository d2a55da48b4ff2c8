"""The numbers of a run: how much of what has come, how fast, and when it will be done. No I/O and no threads.

Workers count into a `FileMeter` each; whoever draws takes a `Snapshot`, which costs as much as there are active files.
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
_FINISHED_KEPT = 100  # files that ended between two snapshots and are told of


class State(enum.Enum):
    """Where a file is on its way."""

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
    received_bytes: int  # in place, resumed ones included
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
    received_bytes: int  # of all files, in place, resumed ones included
    total_bytes: int | None  # None until the size of every file is known
    known_bytes: int  # the sizes known so far, added up
    resumed_bytes: int
    speed_bytes_per_s: float  # over the last seconds; resumed bytes don't count
    eta_s: float | None
    elapsed_s: float
    active: tuple[FileProgress, ...]
    finished: tuple[FileProgress, ...]  # since the last snapshot; the last hundred of them


class Progress(Protocol):
    """Shows a run. A Toolkit's calls never overlap, and `update` comes about ten times a second.

    An exception raised here ends the work and reaches its caller. One object shows one run after another; Toolkits
    that work at the same time have one each.
    """

    def update(self, snapshot: Snapshot) -> None: ...

    def finish(self, snapshot: Snapshot) -> None:
        """The last word of a run; the same object may then see another one."""
        ...


class Silent:
    """Shows nothing."""

    def update(self, snapshot: Snapshot) -> None:
        pass

    def finish(self, snapshot: Snapshot) -> None:
        pass


class SpeedWindow:
    """Bytes per second over the last few seconds, from a running total that never falls."""

    def __init__(self, now: float) -> None:
        self._samples: deque[tuple[float, int]] = deque([(now, 0)])

    def see(self, now: float, total: int) -> float:
        """Note the total at this moment; returns the speed up to it."""
        samples = self._samples
        if now - samples[-1][0] >= _SAMPLE_EVERY_S or len(samples) == 1:
            samples.append((now, total))
        while len(samples) > 2 and now - samples[1][0] >= _WINDOW_S:
            samples.popleft()
        elapsed = now - samples[0][0]
        return max(0, total - samples[0][1]) / elapsed if elapsed > 0 else 0.0


class FileMeter:
    """What the workers of one file count into; any of them may call any method. The end is final: none counts after."""

    def __init__(self, meter: Meter, name: str) -> None:
        self.name = name
        self._meter = meter
        self._lock = meter._lock
        self._window: SpeedWindow | None = None
        self.state = State.QUEUED
        self.total_bytes: int | None = None
        self.received_bytes = 0
        self.resumed_bytes = 0
        self.transferred_bytes = 0  # over the network, and never less than before

    @property
    def _ended(self) -> bool:
        return self.state in (State.DONE, State.FAILED)

    def start(self, total_bytes: int | None) -> None:
        """The file is under way; called again when its size becomes known, or another."""
        with self._lock:
            if self._ended:
                return
            self._meter._total_changed(self.total_bytes, total_bytes)
            self.total_bytes = total_bytes
            if self._window is None:
                self._window = SpeedWindow(self._meter.clock())
                self._meter._active[self] = None
            self.state = State.ACTIVE

    def resumed(self, count: int) -> None:
        """So many bytes are there from an earlier run."""
        with self._lock:
            if self._ended:
                return
            self.received_bytes += count
            self.resumed_bytes += count
            self._meter._received += count
            self._meter._resumed += count

    def advance(self, count: int) -> None:
        """So many bytes have come and are in place."""
        with self._lock:
            if self._ended:
                return
            self.received_bytes += count
            self.transferred_bytes += count
            self._meter._received += count
            self._meter._transferred += count
            self.state = State.ACTIVE

    def reset(self) -> None:
        """What was there has been thrown away: a retry from the first byte, or a changed file."""
        with self._lock:
            if self._ended:
                return
            self._meter._received -= self.received_bytes
            self._meter._resumed -= self.resumed_bytes
            self.received_bytes = self.resumed_bytes = 0

    def retrying(self) -> None:
        """Something failed and will be tried again."""
        self._enter(State.RETRYING)

    def verifying(self) -> None:
        """All bytes are there and are being checked."""
        self._enter(State.VERIFYING)

    def done(self) -> None:
        """The file is whole."""
        self._end(State.DONE)

    def failed(self) -> None:
        """The file will not come. What came of it no longer counts."""
        self._end(State.FAILED)

    def _enter(self, state: State) -> None:
        with self._lock:
            if not self._ended:
                self.state = state

    def _end(self, state: State) -> None:
        with self._lock:
            if self._ended:
                return
            meter = self._meter
            if state is State.FAILED:
                meter._received -= self.received_bytes
                meter._resumed -= self.resumed_bytes
                meter._total_changed(self.total_bytes, 0)
                meter._failed += 1
            else:
                meter._total_changed(self.total_bytes, self.received_bytes)
                meter._done += 1
            self.state = state
            meter._active.pop(self, None)
            meter._finished.append(self)

    def _progress(self, now: float) -> FileProgress:
        speed = self._window.see(now, self.transferred_bytes) if self._window else 0.0
        left = None if self.total_bytes is None else max(0, self.total_bytes - self.received_bytes)
        return FileProgress(
            self.name, self.state, self.received_bytes, self.total_bytes, self.resumed_bytes, speed, _eta_s(left, speed)
        )


class Meter:
    """All files of a run together. Sizes may become known late, and the list of files may still be growing."""

    def __init__(self, *, phase: str = "download", clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._phase = phase
        self._lock = threading.Lock()
        self._started_s = clock()
        self._window = SpeedWindow(self._started_s)
        self._expected = 0
        self._open_lists = 0  # lists of files whose end nobody has seen yet
        self._sized = 0  # files whose size is known
        self._known = 0  # their sizes, added up
        self._received = 0
        self._resumed = 0
        self._transferred = 0
        self._done = 0
        self._failed = 0
        self._active: dict[FileMeter, None] = {}  # in the order they began
        self._finished: deque[FileMeter] = deque(maxlen=_FINISHED_KEPT)

    def expect(self, files: int | None) -> None:
        """So many more files are to come; None: a list of unknown length, until `all_known`."""
        with self._lock:
            if files is None:
                self._open_lists += 1
            else:
                self._expected += files

    def file(self, name: str) -> FileMeter:
        """The meter of one file of those expected."""
        return FileMeter(self, name)

    def all_known(self) -> None:
        """A list of unknown length has come to its end."""
        with self._lock:
            self._open_lists -= 1

    def _total_changed(self, before: int | None, after: int | None) -> None:
        self._sized += (after is not None) - (before is not None)
        self._known += (after or 0) - (before or 0)

    def snapshot(self) -> Snapshot:
        """The numbers now. Files that ended since the last snapshot are told of in this one only."""
        now = self.clock()
        with self._lock:
            speed = self._window.see(now, self._transferred)
            expected = None if self._open_lists else self._expected
            total = self._known if expected is not None and self._sized >= expected else None
            active = tuple(each._progress(now) for each in self._active)
            finished = tuple(each._progress(now) for each in self._finished)
            self._finished.clear()
            elapsed = now - self._started_s
            ended = self._done + self._failed
            if total is not None:
                eta = _eta_s(max(0, total - self._received), speed)
            elif expected is not None and ended:
                # By files, while sizes are missing; and not before the bytes that are known of have come.
                by_bytes = _eta_s(max(0, self._known - self._received), speed)
                eta = max(elapsed / ended * max(0, expected - ended), by_bytes or 0.0)
            else:
                eta = None
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
                eta,
                elapsed,
                active,
                finished,
            )


def _eta_s(left_bytes: int | None, speed: float) -> float | None:
    if left_bytes is None:
        return None
    if left_bytes == 0:
        return 0.0
    return left_bytes / speed if speed > 0 else None
