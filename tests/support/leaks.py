"""Descriptors, threads, temporary files and objects: what some work has used is gone after it."""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator

_WAIT_S = 100.0  # for threads that are ending, and for what they close


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Every descriptor, thread and temporary file of the work inside is gone when it ends."""
    scratch = tempfile.gettempdir()
    before = _present(scratch)
    yield
    deadline = time.monotonic() + _WAIT_S
    while (left := _present(scratch) - before) and time.monotonic() < deadline:
        gc.collect()  # what only cycles hold is no leak
        time.sleep(0.02)
    assert not left, f"left behind: {', '.join(map(_described, left))}"


def freed_at_once(make: Callable[[], object]) -> bool:
    """Whether what this makes goes without the garbage collector, which runs seldom where there are many objects."""
    gc.disable()
    try:
        made = make()
        left = weakref.ref(made)
        del made
        return left() is None
    finally:
        gc.enable()


def _present(scratch: str) -> set[object]:
    descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
    return {*filter(_is_open, descriptors), *threading.enumerate(), *os.listdir(scratch)}


def _is_open(fd: int) -> bool:  # one was that of the listing itself
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _described(left: object) -> str:
    if isinstance(left, int):
        with contextlib.suppress(OSError):
            return f"descriptor {left} of {os.readlink(f'/proc/self/fd/{left}')}"
    return str(left)
