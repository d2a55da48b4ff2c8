"""Cancels work: a flag, a wait that the flag cuts short, and hooks that wake threads blocked elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Hook = Callable[[], None]


class Cancel:
    """Set once, never cleared. A child is cancelled with its parent; a parent outlives its children.

    Attributes:
        cancelled: whether it is set.
    """

    cancelled: bool

    def __init__(self) -> None:
        self.cancelled = False
        self._lock = threading.Lock()
        self._hooks: set[Hook] = set()

    def cancel(self) -> None:
        """Set the flag and run every hook, once. Hooks must neither block nor raise."""
        with self._lock:
            self.cancelled = True
            hooks, self._hooks = self._hooks, set()
        for hook in tuple(hooks):
            hook()

    def wait(self, timeout_s: float) -> bool:
        """Sleep that long, or until cancelled; returns whether it was cancelled."""
        woken = threading.Event()
        self.add(woken.set)
        try:
            woken.wait(timeout_s)
        finally:
            self.discard(woken.set)
        return self.cancelled

    def add(self, hook: Hook) -> None:
        """Run `hook` when cancelled; at once if that has happened already."""
        with self._lock:
            if not self.cancelled:
                self._hooks.add(hook)
                return
        hook()

    def discard(self, hook: Hook) -> None:
        self._hooks.discard(hook)  # without the lock, which another thread may have held when this process was forked

    @contextmanager
    def child(self) -> Iterator[Cancel]:
        """A Cancel that ends with this one, and can be ended alone."""
        child = Cancel()
        self.add(child.cancel)
        try:
            yield child
        finally:
            self.discard(child.cancel)
