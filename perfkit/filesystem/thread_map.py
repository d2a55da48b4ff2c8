"""Work in a few threads, or in the caller's where no thread can be started; properties that threads compute once."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class cached_property(functools.cached_property[T]):
    """As from Python 3.12 on. Before, a lock makes the threads of all objects wait for each other, and the child of a
    fork for ever if another thread held it.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        super().__init__(compute)
        self.lock = contextlib.nullcontext()


def usable_cpus() -> int:
    """The number of CPUs that this process may use, at most four: memory use grows with it."""
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class WorkerPool(ThreadPoolExecutor):
    """An executor that runs work at once, in the thread that submits it, if the system allows no more threads.

    A container's process limit counts threads, too; and old versions of Docker refuse clone3(2).
    """

    def __init__(self, threads: int) -> None:
        super().__init__(threads, thread_name_prefix="perfkit-disk")

    def submit(self, fn: Callable[..., R], /, *args: Any, **options: Any) -> Future[R]:
        """As `Executor.submit`."""
        work = functools.partial(fn, *args, **options)
        future = submit_or_refuse(super().submit, work)
        if future is None:
            future = Future()
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
        return future


def submit_or_refuse(submit: Callable[[Callable[[], R]], Future[R]], work: Callable[[], R]) -> Future[R] | None:
    """Submit work to an executor. If the system refuses a thread or the executor is shut down, return None and never do
    it; an executor alone would keep it in its queue, and do it later.

    Args:
        submit: the executor's.
    """
    turn, refused = threading.Lock(), False

    def run() -> R:
        with turn:
            if refused:
                raise CancelledError
        return work()

    with turn:
        try:
            return submit(run)
        except RuntimeError:
            refused = True
            return None


def map_in_threads(work: Callable[[T], R], items: Iterable[T], threads: int) -> Generator[R, None, None]:
    """Apply `work` to each item in threads; yields the results in order. Submit batches: each item is one task.

    Items are read as threads become free. Closing the iterator, or an error, waits for running tasks and cancels the
    others.
    """
    if threads == 1:
        yield from map(work, items)
        return
    pool = WorkerPool(threads)
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
