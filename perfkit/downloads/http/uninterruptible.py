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

    def call(self, function: Callable[[], T], aborted: Callable[[], bool], discard: Callable[[T], object]) -> T:
        """Make an uninterruptible call; once aborted, its result goes to `discard`, and no further calls are taken.

        Args:
            aborted: called some twenty times a second; says whether to give up.

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

        self._start(call)
        while not aborted():
            with contextlib.suppress(Empty):
                succeeded, value = results.get(timeout=_ABORT_CHECK_S)
                if not succeeded:
                    raise value
                return value  # type: ignore[no-any-return]
        self.end()
        with lock:
            abandoned = True
            while not results.empty():
                succeeded, value = results.get()
                if succeeded:
                    discard(value)
        raise AbortedError("aborted")

    def end(self) -> None:
        self.ended = True
        self._calls.put(None)

    __del__ = end  # the thread that it worked for has ended


def _make_calls(calls: SimpleQueue[Callable[[], None] | None]) -> None:
    while (call := calls.get()) is not None:
        call()
        del call  # it may hold a response, and with it a connection


def call_abortable(
    function: Callable[[], T], aborted: Callable[[], bool], discard: Callable[[T], object] = lambda _: None
) -> T:
    """As `HelperThread.call`, in a thread of its own."""
    return HelperThread().call(function, aborted, discard)
