"""Makes calls that nothing can interrupt, such as name resolution, in a thread that is abandoned if the caller cannot
wait for it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

_ABORT_CHECK_S = 0.05

T = TypeVar("T")


class AbortedError(OSError):
    """The call was abandoned."""


def call_abortable(
    function: Callable[[], T],
    aborted: Callable[[], bool],
    discard: Callable[[T], object] = lambda _: None,
    *,
    start: Callable[[Callable[[], None]], None] | None = None,
) -> T:
    """Make an uninterruptible call in a daemon thread; once aborted, its result goes to `discard`.

    Args:
        aborted: called some twenty times a second; says whether to give up.
        start: makes the call in another thread; by default, a new one.

    Raises:
        AbortedError: `aborted` said so.
        Exception: whatever the function raises.
    """
    results: SimpleQueue[tuple[bool, Any]] = SimpleQueue()
    lock = threading.Lock()
    abandoned = False

    def call() -> None:
        try:
            result: tuple[bool, Any] = True, function()
        except Exception as error:
            result = False, error
        with lock:
            if not abandoned:
                results.put(result)
            elif result[0]:
                discard(result[1])

    (start or _in_a_thread)(call)
    while not aborted():
        with contextlib.suppress(Empty):
            succeeded, value = results.get(timeout=_ABORT_CHECK_S)
            if not succeeded:
                raise value
            return value  # type: ignore[no-any-return]
    with lock:
        abandoned = True
        while not results.empty():
            succeeded, value = results.get()
            if succeeded:
                discard(value)
    raise AbortedError("aborted")


def _in_a_thread(call: Callable[[], None]) -> None:
    try:
        threading.Thread(target=call, name="perfkit-connect", daemon=True).start()
    except RuntimeError:  # the system allows no more threads; this call can't be aborted
        call()


class HelperThread:
    """Makes calls for another thread, one by one. `end` it when it is no longer needed, or a call does not return."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._ended = False
        self._start: Callable[[Callable[[], None]], None] = self._calls.put
        try:
            threading.Thread(target=_make_calls, args=(self._calls,), name="perfkit-adapter", daemon=True).start()
        except RuntimeError:
            self._start = _in_a_thread

    def call(self, function: Callable[[], T], aborted: Callable[[], bool], discard: Callable[[T], object]) -> T:
        """As `call_abortable`. After an AbortedError, it takes no further calls."""
        try:
            return call_abortable(function, aborted, discard, start=self._start)
        except AbortedError:
            self.end()
            raise

    @property
    def ended(self) -> bool:
        return self._ended

    def end(self) -> None:
        self._ended = True
        self._calls.put(None)

    __del__ = end  # the thread that it worked for has ended


def _make_calls(calls: SimpleQueue[Callable[[], None] | None]) -> None:
    while (call := calls.get()) is not None:
        call()
        del call  # it may hold a response, and with it a connection
