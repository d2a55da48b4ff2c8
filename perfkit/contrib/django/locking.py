"""One at a time: a change of a tree together with what its receivers make of it."""

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
    """Which trees the current thread holds (a greenlet, where gevent has patched threads)."""

    def __init__(self) -> None:
        self.dests: set[str] = set()


_held = _Held()


def when_free(deadline_s: float, action: Callable[[], T]) -> T:
    """Run the action, again and again while another process or thread has the tree.

    Args:
        deadline_s: on the monotonic clock; the last try is not before it.

    Raises:
        LockedError: the tree was not free in time.
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
    """Hold the directory `dest`, so that a second change of it waits until the receivers of the first have ended.

    The tree's own lock ends with the commit. A receiver may change its tree, such as roll it back: the same thread
    comes in again. Where directories can't be locked (some network file systems) there is only the tree's own lock.

    Raises:
        LockedError: another holds it, and went on for too long.
        OSError: the directory is not there.
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
                fcntl.flock(directory, fcntl.LOCK_UN)  # closing would not do if a process was forked meanwhile
    finally:
        os.close(directory)


def _lock(directory: int, dest: str) -> None:
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LockedError(f"{dest} is being changed, or its receivers are at work; wait for that to end") from error
    except OSError:
        pass  # EBADF of NFS, ENOLCK: no locks on directories here
