"""An ordered map over a few threads, with little in flight, and no thread left when it ends."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["map_in_threads", "usable_cpus"]

T = TypeVar("T")
R = TypeVar("R")


def usable_cpus(most: int = 4) -> int:
    """The number of processors this process may use, at most `most`: memory use grows with it."""
    return max(1, min(most, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


def map_in_threads(work: Callable[[T], R], items: Iterable[T], threads: int) -> Generator[R, None, None]:
    """Apply `work` to each item in threads; yields the results in order. Submit batches: each item is one task.

    Items are read as threads become free. Closing the iterator, or an error, waits for running tasks and cancels the
    others.
    """
    if threads == 1:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="perfkit-disk")
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
