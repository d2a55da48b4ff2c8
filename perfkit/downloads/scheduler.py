"""The worker threads, and which task each of them does next."""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from perfkit.config import Config
from perfkit.downloads.concurrency import AdaptiveController, HostLimiter
from perfkit.downloads.transfer import Task, Transfer
from perfkit.filesystem.thread_map import submit_or_refuse

_QUEUED_PER_WORKER = 8
_LOOK_AHEAD = 32  # queued files examined for one whose host has a free place
_IDLE_WAIT_S = 0.2
_BRIEF_S = 0.01  # how long a task counts as having just begun
_LONG_S = 1.0  # a file that takes longer is not a small one
_HELPERS = 2  # threads beyond the workers, which hash behind them

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Queue:
    """One caller's transfers that have not begun. The `Scheduler` changes it, under its lock.

    Args:
        is_low: called when half of what it may hold has begun.
    """

    is_low: Callable[[], None]
    waiting: deque[Transfer] = field(default_factory=deque)


class Scheduler:
    """Worker threads for the queues of any number of callers: those at work, and one that waits to be the next.

    Args:
        between: called by workers between two tasks.
    """

    def __init__(
        self, config: Config, limiter: HostLimiter, controller: AdaptiveController, between: Callable[[], None]
    ) -> None:
        self._most = config.most_streams
        self._most_files = config.most_files
        self._low_water = config.most_streams * _QUEUED_PER_WORKER // 2
        self._limiter = limiter
        self._controller = controller
        self._between = between
        self._local = threading.local()
        self._lock = threading.RLock()  # guards the state below
        self._changed = threading.Condition(self._lock)  # notified when there may be work
        self._executor: ThreadPoolExecutor | None = None
        self._closed = False
        self._queues: deque[Queue] = deque()
        self._active: list[Transfer] = []  # begun, and not ended
        self._running: dict[Task, tuple[Transfer, float]] = {}  # and when each began, oldest first
        self._workers = 0
        self._waiting = False  # whether one of them waits for work

    # -- for the callers' threads -------------------------------------------------------------------------------------

    @property
    def busy(self) -> int:
        """How many workers are doing a task."""
        return len(self._running)

    def runs_here(self) -> bool:
        """Whether the current thread is one of ours."""
        return getattr(self._local, "ours", False)

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Run something alongside the transfers.

        Raises:
            OSError: the system allows no more threads.
        """
        with self._lock:
            future = submit_or_refuse(self._started().submit, function)
        if future is None:
            raise _no_thread()
        return future

    def spawn(self, function: Callable[[], None]) -> bool:
        """Run something optional alongside the transfers; False if closing, or if no thread can be started."""
        executor = self._executor
        return executor is not None and submit_or_refuse(executor.submit, function) is not None

    def join(self, queue: Queue) -> None:
        """Begin to work on a queue."""
        with self._lock:
            self._started()
            self._queues.append(queue)

    def room(self, queue: Queue) -> int:
        """How many transfers the queue may get: a few for each worker."""
        return 2 * self._low_water - len(queue.waiting)

    def add(self, queue: Queue, transfers: Iterable[Transfer]) -> None:
        """Append transfers to a queue."""
        with self._lock:
            queue.waiting.extend(transfers)
            self._changed.notify_all()
            self.notify()

    def clear(self, queue: Queue) -> None:
        """Empty a queue, and wake the waiting worker."""
        with self._lock:
            queue.waiting.clear()
            self._changed.notify_all()

    def leave(self, queue: Queue) -> None:
        """Stop working on a queue, if that has begun."""
        with self._lock:
            if queue in self._queues:
                self._queues.remove(queue)
            self._changed.notify_all()

    def ended(self, transfer: Transfer) -> None:
        """Forget a transfer that has its result."""
        with self._lock:
            if transfer in self._active:
                self._active.remove(transfer)

    def notify(self) -> None:
        """Wake or start a worker, since there may be more to do.

        Raises:
            OSError: the system allows no thread at all; never in a worker.
        """
        with self._lock:
            if self._waiting:
                if len(self._running) < self._controller.target:  # waking it for nothing costs more than a small file
                    self._changed.notify_all()
            elif self._workers < self._most and self._executor is not None and not self._closed:
                if submit_or_refuse(self._executor.submit, self._work) is not None:
                    self._workers += 1  # last: a Ctrl-C between the two makes one too many, not one too few
                elif not self._workers:
                    raise _no_thread()

    def close(self) -> None:
        """End all threads after their current task, and wait for them."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=True)

    def _started(self) -> ThreadPoolExecutor:
        if self._executor is None:
            most, mark = self._most + _HELPERS, functools.partial(setattr, self._local, "ours", True)
            self._executor = ThreadPoolExecutor(most, thread_name_prefix="perfkit", initializer=mark)
        return self._executor

    # -- the workers --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """A worker: does tasks until nothing is left to do. A file that has come whole gets its name while the server
        responds to the next request.
        """
        come: list[Transfer] = []  # one, at most

        def finish() -> None:
            while come:
                come.pop().leave()

        while (found := self._take(wait=not come)) is not None or come:
            if found is None:
                finish()
                self._between()
                continue
            transfer, task = found
            transfer.run(task, finish)
            self._limiter.leave(task.host)
            with self._lock:
                del self._running[task]
            come.append(transfer)
            if not transfer.may_finish_later:
                finish()
            self._between()

    def _take(self, *, wait: bool) -> tuple[Transfer, Task] | None:
        """Take a task; None if there is none. With `wait`, wait for one; then None ends the worker: closed, no queues
        are left, or another worker is already waiting.
        """
        with self._lock:
            while (found := self._next()) is None:
                if not wait:
                    return None
                if self._waiting or not self._queues or self._closed:
                    self._workers -= 1
                    return None
                self._waiting = True
                self._changed.wait(self._idle_s())
                self._waiting = False
            transfer, task = found
            self._running[task] = transfer, time.monotonic()
            self.notify()
            return found

    def _idle_s(self) -> float:
        """How long until something happens without a notification, such as a retry falling due."""
        now = time.monotonic()
        due = [
            max(due_s, self._limiter.resumes_s(each.host)) - now
            for each in self._active
            if (due_s := each.due_s()) is not None
        ]
        due += [until for _, began_s in self._running.values() if (until := began_s + _BRIEF_S - now) > 0]
        return min(_IDLE_WAIT_S, max(0.005, min(due, default=_IDLE_WAIT_S)))

    def _next(self) -> tuple[Transfer, Task] | None:
        """What to do next: finish what is begun, begin another file, or share the one with most left to fetch."""
        now = time.monotonic()
        for transfer in self._active:
            wanted = transfer.idle or len(self._running) < self._controller.target
            if wanted and transfer.may_claim and (found := self._within_limit(transfer, lambda each: each.claim(now))):
                return found
        if self._may_begin(now) and (found := self._begin(now)):
            return found
        full = self._controller.congested and any(queue.waiting for queue in self._queues)  # files that wait come first
        if len(self._running) < self._controller.target and not full:
            unfinished = filter(Transfer.missing_bytes, self._active)
            for transfer in sorted(unfinished, key=Transfer.missing_bytes, reverse=True):
                if found := self._within_limit(transfer, Transfer.share):
                    return found
        return None

    def _may_begin(self, now: float) -> bool:
        """Whether another file may begin. Only tasks that have just begun count against the number of streams, so that
        no file waits for a slow one: more files cost little where each takes long, for whatever reason. As many as are
        already waiting may begin at once, which doubles their number every 10 ms.
        """
        if not self._running:
            return True
        ages = [(transfer, now - began_s) for transfer, began_s in self._running.values()]
        brief = sum(age < _BRIEF_S for _, age in ages)
        waiting = sum(_BRIEF_S <= age < _LONG_S for _, age in ages)
        long = {transfer for transfer, age in ages if age >= _LONG_S}
        return brief < max(self._controller.target, waiting) and len(long) < self._most_files

    def _begin(self, now: float) -> tuple[Transfer, Task] | None:
        for _ in range(len(self._queues)):
            queue = self._queues[0]
            self._queues.rotate(-1)  # callers take turns
            for transfer in islice(queue.waiting, _LOOK_AHEAD):
                if found := self._within_limit(transfer, lambda each: each.claim(now)):
                    self._active.append(transfer)
                    queue.waiting.remove(transfer)
                    if len(queue.waiting) + 1 == self._low_water:
                        queue.is_low()
                    return found
        return None

    def _within_limit(
        self, transfer: Transfer, take: Callable[[Transfer], Task | None]
    ) -> tuple[Transfer, Task] | None:
        """A task of the transfer, if its host's limit has room for one."""
        host = transfer.host
        if not self._limiter.enter(host):
            return None
        task = take(transfer)
        if task is None:
            self._limiter.leave(host)
            return None
        task.host = host
        return transfer, task


def _no_thread() -> OSError:
    return OSError("no thread can be started; raise the limit of processes (ulimit -u, or pids.max)")
