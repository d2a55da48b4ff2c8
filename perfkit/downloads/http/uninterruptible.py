"""Makes calls that nothing can interrupt, such as name resolution, in a thread that is abandoned if the caller cannot
wait for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

_ABORT_CHECK_S = 0.05

T = TypeVar("T")


class AbortedError(OSError):
    """The call was abandoned."""


class HelperThread:
    """Makes calls for another thread, one by one. `end` it when it is no longer needed, or a call does not return."""

    def __init__(self) -> None:
        self.ended = False  # whether it takes no further calls
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._start: Callable[[Callable[[], None]], None] = self._calls.put
        try:
            threading.Thread(target=_make_calls, args=(self._calls,), name="perfkit-helper", daemon=True).start()
        except RuntimeError:  # the system allows no more threads; calls can't be aborted
            self._start = lambda call: call()

    def begin(self, function: Callable[[], T]) -> Future[T]:
        """Begin an uninterruptible call."""
        made: Future[T] = Future()

        def call() -> None:
            try:
                made.set_result(function())
            except Exception as error:
                made.set_exception(error)

        self._start(call)
        return made

    def call(self, function: Callable[[], T], aborted: Callable[[], bool], discard: Callable[[T], object]) -> T:
        """Make an uninterruptible call; once aborted, no further calls are taken. As `result_of`."""
        try:
            return result_of(self.begin(function), aborted, discard)
        except AbortedError:
            self.end()
            raise

    def end(self) -> None:
        self.ended = True
        self._calls.put(None)

    __del__ = end  # the thread that it worked for has ended


def _make_calls(calls: SimpleQueue[Callable[[], None] | None]) -> None:
    while (call := calls.get()) is not None:
        call()
        del call  # it may hold a response, and with it a connection


def result_of(made: Future[T], aborted: Callable[[], bool], discard: Callable[[T], object]) -> T:
    """Wait for the result of a call; once aborted, it goes to `discard`.

    Args:
        aborted: called some twenty times a second; says whether to give up.

    Raises:
        AbortedError: `aborted` said so.
        Exception: whatever the call raises.
    """
    while not aborted():
        try:
            return made.result(_ABORT_CHECK_S)
        except TimeoutError as error:
            if made.done() and made.exception() is error:
                raise
    discard_result(made, discard)
    raise AbortedError("aborted")


def discard_result(made: Future[T], discard: Callable[[T], object]) -> None:
    """Give the result of a call to `discard` as soon as there is one."""
    made.add_done_callback(lambda made: made.exception() or discard(made.result()))
