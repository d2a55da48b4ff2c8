"""A lock over a change of a tree and the receivers that process it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from perfkit.errors import LockedError

__all__ = ["one_at_a_time", "when_free"]

T = TypeVar("T")

_POLL_S = 0.1


class _Held(threading.local):
    """The trees that the current thread has locked (the current greenlet, if gevent has patched threads)."""

    def __init__(self) -> None:
        self.dests: set[str] = set()


_held = _Held()


def when_free(deadline_s: float, action: Callable[[], T]) -> T:
    """Run the action, repeatedly while another process or thread has the tree locked.

    Args:
        deadline_s: on the monotonic clock; the last attempt is not before it.

    Raises:
        LockedError: the tree was still locked at the deadline.
    """
    while True:
        try:
            return action()
        except LockedError:
            if (left_s := deadline_s - time.monotonic()) <= 0:
                raise
            time.sleep(min(_POLL_S, left_s))


@contextlib.contextmanager
def one_at_a_time(dest: str, deadline_s: float) -> Iterator[None]:
    """Lock the directory `dest`, so that another change of it waits until the receivers of this one have ended.

    The tree's own lock ends with the commit. The lock is reentrant, since a receiver may change its tree, for example
    roll it back. Where directories can't be locked (some network file systems), only the tree's own lock remains.

    Raises:
        LockedError: another thread or process still has it locked at the deadline.
        OSError: the directory does not exist.
    """
    dest = os.path.realpath(dest)
    if dest in _held.dests:
        yield
        return
    directory = os.open(dest, os.O_RDONLY | os.O_DIRECTORY)
    try:
        when_free(deadline_s, lambda: _lock(directory, dest))
        _held.dests.add(dest)
        try:
            yield
        finally:
            _held.dests.discard(dest)
            with contextlib.suppress(OSError):
                fcntl.flock(directory, fcntl.LOCK_UN)  # a forked child may still have the descriptor open
    finally:
        os.close(directory)


def _lock(directory: int, dest: str) -> None:
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LockedError(
            f"{dest} is being changed, or its receivers are still running; try again when they have ended"
        ) from error
    except OSError:
        pass  # EBADF on NFS, ENOLCK: directories can't be locked here
