"""A bandwidth limit shared by any number of threads: the generic cell rate algorithm, counted in bytes."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from perfkit.downloads.cancel import Cancel
from perfkit.errors import ConfigError

__all__ = ["Throttle", "Toll", "receive_buffer"]

_QUANTUM_S = 0.005  # read at most this much time's worth at once, so that the flow is even
_CREDIT_S = 0.03  # a thread that the system woke late may catch up by this much
_BUFFER_S = 1 / 128  # of the limit, in the buffer of each connection: eight hold a sixteenth of a second
_LEAST_BUFFER_BYTES = 8 << 10
_FIRST_WINDOW_BYTES = 64 << 10  # of a new connection over a network
_LOOK_EVERY_S = 0.25
_NEARLY_ALL = 0.9
_RECHECK_S = 0.1  # how soon a waiting thread sees a changed rate


def receive_buffer(rate: int, ahead_s: float = 0.0) -> int:
    """How many bytes of a connection the kernel should keep until they are read (SO_RCVBUF), if it is to be read at
    this rate, and what is on its way takes `ahead_s`. Linux keeps up to twice as many (tcp(7)).
    """
    return max(_LEAST_BUFFER_BYTES, int(rate * (_BUFFER_S + ahead_s)))


class Throttle:
    """Bytes are charged after they are read; who has charged too much waits until they are paid for.

    Args:
        rate: bytes per second, None for no limit.
    """

    def __init__(self, rate: int | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._rate: int | None = None
        self._charged = 0.0  # bytes charged so far
        self._paid = 0.0  # bytes paid for at _paid_at_s; grows by the rate from there
        self._paid_at_s = clock()
        self._seen, self._seen_at_s = 0.0, clock()  # bytes charged when `has_room` looked last, and when that was
        self._refunded = 0.0
        self._until_s = math.inf  # when the limit becomes 0
        self._usual_size = math.inf  # of a body
        self.set_rate(rate)

    @property
    def rate(self) -> int | None:
        """Bytes per second, None for no limit."""
        return self._rate

    @property
    def spent(self) -> int:
        """Bytes charged and not refunded, while there was a limit."""
        return int(self._charged - self._refunded)

    def set_rate(self, rate: int | None, *, until_s: float = math.inf) -> None:
        """Change the limit; threads already waiting see it within a tenth of a second.

        Args:
            until_s: the clock's time from which on nothing more is paid for, until the next change.

        Raises:
            ConfigError: the rate is not positive.
        """
        if rate is not None and rate <= 0:
            raise ConfigError(f"a rate limit must be more than 0 bytes per second, or None for no limit; got {rate!r}")
        with self._lock:
            self._settle()
            self._rate, self._until_s = rate, until_s

    def quantum(self, most: int) -> int:
        """How many bytes to read at once, `most` at the most."""
        rate = self._rate
        return most if rate is None else max(1, min(most, max(1024, int(rate * _QUANTUM_S))))

    def ahead(self, *, near: bool = False) -> int:
        """How many bytes the kernel is likely to take for a request before they are read.

        Args:
            near: from this machine.
        """
        if self._rate is None:
            return 0
        window = max(2 * receive_buffer(self._rate), 0 if near else _FIRST_WINDOW_BYTES)
        return int(min(window, self._rate // 4, self._usual_size))

    def has_room(self) -> bool:
        """Whether clearly less has come lately than the limit allows: says so to one thread every quarter second."""
        with self._lock:
            now, rate = self._clock(), self._rate
            if rate is None or now - self._seen_at_s < _LOOK_EVERY_S:
                return False
            room = self._charged - self._seen < _NEARLY_ALL * rate * (now - self._seen_at_s)
            self._seen, self._seen_at_s = self._charged, now
            return room

    def expect(self, size: int) -> None:
        """Bodies of about that size will come."""
        self._usual_size = size if self._usual_size == math.inf else self._usual_size + (size - self._usual_size) / 4

    def refund(self, count: int) -> None:
        """Bytes that were charged will not come."""
        with self._lock:
            if self._rate is not None:
                self._settle()
                self._refunded += count
                self._paid = min(self._paid + count, self._charged + self._rate * _CREDIT_S)

    def charge(self, count: int, cancel: Cancel) -> None:
        """Account for `count` bytes read, and sleep until they are paid for or `cancel` is set."""
        if self._rate is None:
            return
        with self._lock:
            self._settle()
            self._charged += count
            ticket = self._charged
        while (due_s := self._due_s(ticket)) > 0:
            if cancel.wait(min(due_s, _RECHECK_S)):
                return

    def _due_s(self, ticket: float) -> float:
        with self._lock:
            self._settle()
            return 0.0 if self._rate is None else (ticket - self._paid) / self._rate

    def _settle(self) -> None:
        """Let the time since the last look pay, up to the charges and a small credit."""
        now = self._clock()
        if self._rate is None:
            self._paid = self._charged
        else:
            earned = self._rate * max(0.0, min(now, self._until_s) - self._paid_at_s)
            self._paid = min(self._paid + earned, self._charged + self._rate * _CREDIT_S)
        self._paid_at_s = now


class Toll:
    """What one request is charged by the throttles that it passes. A context manager around the request.

    It pays for its first bytes before it is sent, and for its last ones not at all: the kernel takes that many from the
    network before they are read, and requests that begin together would exceed the limit by as much.
    """

    def __init__(self, throttles: tuple[Throttle, ...], cancel: Cancel, *, near: bool = False) -> None:
        self._throttles = throttles
        self._near = near
        self._cancel = cancel
        self._ahead = 0  # bytes that have been charged and may not come
        self._due: int | None = None  # bytes that will come and have not been charged, if that is known

    def __enter__(self) -> Toll:
        self._ahead = min((each.ahead(near=self._near) for each in self._throttles if each.rate is not None), default=0)
        self._pay(self._ahead)
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back(self._ahead)

    def begin(self, size: int | None) -> None:
        """The body has so many bytes; None: unknown."""
        if size is not None:
            for throttle in self._throttles:
                throttle.expect(size)
            self._due = max(0, size - self._ahead)
            self._give_back(max(0, self._ahead - size))
            self._ahead = 0

    def quantum(self, most: int) -> int:
        """How many bytes to read at once, `most` at the most."""
        return min(throttle.quantum(most) for throttle in self._throttles)

    def charge(self, count: int) -> None:
        """Account for `count` bytes read, and sleep until they are paid for."""
        if self._due is not None:
            count = min(self._due, count)
            self._due -= count
        if count:
            self._pay(count)

    def _pay(self, count: int) -> None:
        for throttle in self._throttles:
            throttle.charge(count, self._cancel)

    def _give_back(self, count: int) -> None:
        for throttle in self._throttles:
            throttle.refund(count)
