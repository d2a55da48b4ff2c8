"""A lock that covers a change of a tree and the receivers that process it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator

from perfkit.errors import LockedError
from perfkit.libc import try_lock

_POLL_S = 0.1


class _Held(threading.local):
    """The trees that the current thread has locked (the current greenlet, if gevent has patched threads)."""

    def __init__(self) -> None:
        self.dests: set[str] = set()


_held = _Held()


@contextlib.contextmanager
def one_at_a_time(dest: str, wait_s: float) -> Iterator[float]:
    """Lock the directory `dest`, so that another change of it waits until the receivers of this one have ended; yields
    how much of `wait_s` is left.

    The tree's own lock ends with the commit. This lock is reentrant, since a receiver may change its tree, for example
    roll it back. Where directories can't be locked (some network file systems), only the tree's own lock remains.

    Raises:
        LockedError: another thread or process still has it locked after `wait_s`.
        OSError: the directory does not exist.
    """
    dest, deadline_s = os.path.realpath(dest), time.monotonic() + wait_s
    if dest in _held.dests:
        yield wait_s
        return
    directory = os.open(dest, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(directory, dest, deadline_s)
        try:
            _held.dests.add(dest)
            yield max(0.0, deadline_s - time.monotonic())
        finally:
            _held.dests.discard(dest)
            with contextlib.suppress(OSError):
                fcntl.flock(directory, fcntl.LOCK_UN)  # a forked child may still have the descriptor open
    finally:
        os.close(directory)


def _lock(directory: int, dest: str, deadline_s: float) -> None:
    while True:
        try:
            try_lock(directory)
            return
        except BlockingIOError as error:
            left_s = deadline_s - time.monotonic()
            if not left_s > 0:  # or not a number
                raise LockedError(
                    f"{dest} is being changed, or its receivers are still running; try again when they have ended"
                ) from error
            time.sleep(min(_POLL_S, left_s))
