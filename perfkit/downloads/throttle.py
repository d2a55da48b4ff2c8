"""A bandwidth limit shared by any number of threads: the generic cell rate algorithm, counted in bytes."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from perfkit.downloads.cancel import Cancel
from perfkit.errors import ConfigError

_QUANTUM_S = 0.005  # read at most this much time's worth at once, so that the flow is even
_CREDIT_S = 0.03  # a thread that was woken late may catch up by this much
_BUFFER_S = 1 / 128  # of the limit, in the buffer of each connection: eight hold a sixteenth of a second
_LEAST_BUFFER_BYTES, _MOST_BUFFER_BYTES = 8 << 10, 1 << 30
_FIRST_WINDOW_BYTES = 96 << 10  # of a new connection over a network, and what arrives before the window narrows
_LOOK_EVERY_S = 0.25
_NEARLY_ALL = 0.9
_REBATE, _SURCHARGE = 16, 2  # of a read's bytes, one in this many may cost nothing, or twice as much
_RECHECK_S = 0.1  # how soon a waiting thread sees a changed rate


def receive_buffer(rate: int, ahead_s: float = 0.0) -> int:
    """How many unread bytes of a connection the kernel should buffer (SO_RCVBUF), if it is read at this rate with
    `ahead_s` of data in flight. Linux buffers up to twice as many (tcp(7)).
    """
    return min(_MOST_BUFFER_BYTES, max(_LEAST_BUFFER_BYTES, int(rate * (_BUFFER_S + ahead_s))))


class _Pacer:
    """The generic cell rate algorithm: a thread that has charged too much waits until the rate has paid for it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.rate: int | None = None
        self._lock = threading.Lock()
        self._clock = clock
        self.charged = 0.0  # bytes charged so far
        self._paid = 0.0  # bytes paid for at _paid_at_s; grows by the rate from there
        self._paid_at_s = clock()
        self._until_s = math.inf  # when the limit becomes 0

    def set_rate(self, rate: int | None, until_s: float) -> None:
        with self._lock:
            self._settle()
            self.rate, self._until_s = rate, until_s

    def refund(self, count: int) -> None:
        """Take back the charge for bytes that will not come."""
        with self._lock:
            if self.rate is not None:
                self._settle()
                self._paid = min(self._paid + count, self.charged + self.rate * _CREDIT_S)

    def charge(self, count: int, cancel: Cancel, *, on_credit: bool = False) -> None:
        """Charge bytes, and sleep until they are paid for, or `cancel` is set.

        Args:
            on_credit: sleep only until the bytes charged before are paid for.
        """
        if self.rate is None:
            return
        with self._lock:
            self._settle()
            self.charged += count
            ticket = self.charged - (count if on_credit else 0)
        while (due_s := self._due_s(ticket)) > 0:
            if cancel.wait(min(due_s, _RECHECK_S)):
                return

    def _due_s(self, ticket: float) -> float:
        with self._lock:
            self._settle()
            return 0.0 if self.rate is None else (ticket - self._paid) / self.rate

    def _settle(self) -> None:
        """Let the time since the last call pay for the charges, and at most a small credit."""
        now = self._clock()
        if self.rate is None:
            self._paid = self.charged
        else:
            earned = self.rate * max(0.0, min(now, self._until_s) - self._paid_at_s)
            self._paid = min(self._paid + earned, self.charged + self.rate * _CREDIT_S)
        self._paid_at_s = now


class Throttle:
    """A rate limit. Bytes are charged when they have arrived; the thread that charges waits until they are paid for."""

    rate: int | None  # bytes per second, None for no limit; to be changed by `set_rate`

    def __init__(self, rate: int | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._come = _Pacer(clock)
        self._requests = _Pacer(clock)  # charged with what each brings before it is read
        self._seen, self._seen_at_s = 0.0, clock()  # bytes charged at the last look of `has_room`, and its time
        self._usual_size = math.inf  # of a body
        self.set_rate(rate)

    @property
    def spent(self) -> int:
        """Bytes charged while there was a limit."""
        return int(self._come.charged)

    def set_rate(self, rate: int | None, *, until_s: float = math.inf) -> None:
        """Change the limit; threads already waiting see it within a tenth of a second.

        Args:
            until_s: the clock's time from which the rate is 0, until the next change.

        Raises:
            ConfigError: the rate is not positive.
        """
        if rate is not None and rate <= 0:
            raise ConfigError(f"a rate limit must be more than 0 bytes per second, or None for no limit; got {rate!r}")
        self._come.set_rate(rate, until_s)
        self._requests.set_rate(rate, until_s)
        self.rate = rate

    def announce(self, count: int, cancel: Cancel) -> None:
        """Wait until a request may be sent that brings `count` bytes before any is read: until those of the requests
        before it are paid for.
        """
        self._requests.charge(count, cancel, on_credit=True)

    def withdraw(self, count: int) -> None:
        """Take back `count` announced bytes, which will not come."""
        self._requests.refund(count)

    def charge(self, count: int, cancel: Cancel) -> None:
        """Charge `count` bytes that have arrived, and sleep until they are paid for or `cancel` is set."""
        self._come.charge(count, cancel)

    def quantum(self, most: int) -> int:
        """How many bytes to read at once, `most` at the most."""
        rate = self.rate
        return most if rate is None else max(1, min(most, max(1024, int(rate * _QUANTUM_S))))

    def ahead(self, *, near: bool = False) -> int:
        """How many bytes of a response the kernel is likely to receive before they are read.

        Args:
            near: whether the server is this machine.
        """
        if self.rate is None:
            return 0
        window = max(2 * receive_buffer(self.rate), 0 if near else _FIRST_WINDOW_BYTES)
        return int(min(window, self.rate // 4, self._usual_size))

    def has_room(self) -> bool:
        """Whether clearly less has come lately than the limit allows; True at most once every quarter second."""
        with self._lock:
            now, rate, charged = self._clock(), self.rate, self._come.charged
            if rate is None or now - self._seen_at_s < _LOOK_EVERY_S:
                return False
            room = charged - self._seen < _NEARLY_ALL * rate * (now - self._seen_at_s)
            self._seen, self._seen_at_s = charged, now
            return room

    def expect(self, size: int) -> None:
        """Expect bodies of about this size."""
        self._usual_size = size if self._usual_size == math.inf else self._usual_size + (size - self._usual_size) / 4


class Toll:
    """What one request is charged by the throttles that it passes. A context manager around the request.

    The kernel receives bytes before they are read. So a request is sent only when there is room for its bytes after
    those of the requests before it, and bytes are charged when they arrive, read or not: a read costs more while more
    arrives than is read, and a little less while less does. The flow stays even, and no bytes go uncharged when many
    bodies end together.
    """

    def __init__(self, throttles: tuple[Throttle, ...], cancel: Cancel, *, near: bool = False) -> None:
        self._throttles = throttles
        self._near = near
        self._cancel = cancel
        self._ahead = 0  # bytes that are likely to come before any is read
        self._size: int | None = None
        self._read = self._charged = 0

    def __enter__(self) -> Toll:
        if limited := self.limited:
            self._ahead = min(each.ahead(near=self._near) for each in limited)
            for throttle in limited:
                throttle.announce(self._ahead, self._cancel)
        return self

    def __exit__(self, *_: object) -> None:
        self._expect(self._charged)

    @property
    def limited(self) -> list[Throttle]:
        """The throttles that currently have a limit."""
        return [throttle for throttle in self._throttles if throttle.rate is not None]

    def begin(self, size: int | None) -> None:
        """Begin a body of `size` bytes; None: unknown."""
        self._size = size
        if size is not None:
            for throttle in self._throttles:
                throttle.expect(size)
            self._expect(size)

    def _expect(self, count: int) -> None:
        """Expect at most `count` bytes."""
        if count < self._ahead:
            for throttle in self._throttles:
                throttle.withdraw(self._ahead - count)
            self._ahead = count

    def quantum(self, most: int) -> int:
        """How many bytes to read at once, `most` at the most."""
        for throttle in self._throttles:
            most = throttle.quantum(most)
        return most

    def charge(self, count: int, unread: int | None = None) -> None:
        """Charge `count` bytes read, and sleep until they are paid for.

        Args:
            unread: bytes that have arrived, but were not read; None: unknown, and assumed to be as expected.
        """
        self._read += count
        if not (limited := self.limited):
            self._charged += count
            return
        if unread is None:
            unread = 0 if self._size is None else self._ahead
        come = max(self._read + unread, self._charged + count - count // _REBATE)
        if self._charged:
            come = min(come, self._charged + count + count // _SURCHARGE)
        if self._size is not None:
            come = min(come, max(self._size, self._read))
        due, self._charged = come - self._charged, come
        if due > 0:
            for throttle in limited:
                throttle.charge(due, self._cancel)
