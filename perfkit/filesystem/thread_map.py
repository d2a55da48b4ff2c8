"""Work spread over a few threads: in order, with little in flight, and no thread left when it ends."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["pooled", "usable_cpus"]

T = TypeVar("T")
R = TypeVar("R")


def usable_cpus(most: int = 4) -> int:
    """Processors that this process may use, `most` at most: the memory of the work goes with it."""
    return max(1, min(most, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


def pooled(work: Callable[[T], R], items: Iterable[T], threads: int) -> Generator[R, None, None]:
    """What `work` makes of each item, in their order. Items are taken as threads get free; they had better be batches.

    Closing the iterator, or an error, lets what is under way end and drops the rest.
    """
    if threads == 1:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="perfkit-disk")
    flying: deque[Future[R]] = deque()
    try:
        for item in items:
            flying.append(pool.submit(work, item))
            if len(flying) > 2 * threads:
                yield flying.popleft().result()
        while flying:
            yield flying.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
