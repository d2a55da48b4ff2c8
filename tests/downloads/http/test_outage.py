"""Outages, on a clock that only the test moves. A full queue of connections drops what is sent to it, as outages do."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from perfkit.downloads.http.outage import OutageWatch
from tests.support.clock import Clock


@dataclass
class Stream:
    sock: socket.socket
    waits_since_s: float | None
    interrupted: bool = False

    def interrupt(self) -> None:
        self.interrupted = True


@dataclass
class Network:
    """A host that takes one connection at a time, with a connection to it that has been silent since the start."""

    listener: socket.socket
    clock: Clock
    stream: Stream
    watch: OutageWatch

    def after(self, seconds: float) -> bool:
        """Let time pass, look, and say whether the stream was interrupted."""
        self.clock.now += seconds
        self.watch.look([self.stream])
        return self.stream.interrupted

    def arrivals(self) -> int:
        """How many connections have come that nobody has accepted."""
        count = 0
        self.listener.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.listener.accept()[0].close()
                count += 1
        return count


@pytest.fixture
def network() -> Iterator[Network]:
    clock = Clock()
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as listener,
        socket.create_connection(listener.getsockname()) as sock,
        listener.accept()[0],
    ):
        watch = OutageWatch(clock)
        yield Network(listener, clock, Stream(sock, clock.now), watch)
        watch.close()


def test_streams_are_ended_when_the_network_is_back(network: Network) -> None:
    """Not before, and within a second or two, however long it was gone."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(TimeoutError):  # when the host takes no more
            while True:
                stack.enter_context(socket.create_connection(network.listener.getsockname(), timeout=0.2))
        assert not any(network.after(0.1) for _ in range(400))
    network.arrivals()
    assert any(network.after(0.1) for _ in range(20))


def test_a_host_that_answers_is_only_slow(network: Network) -> None:
    """It is asked for another connection every five seconds, and its streams are left alone."""
    assert not any(network.after(0.1) for _ in range(9))
    assert network.arrivals() == 0
    arrived = 0
    for _ in range(120):
        assert not network.after(0.1)
        arrived += network.arrivals()
    assert arrived in (2, 3)


def test_streams_from_an_address_that_is_gone_are_ended(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first connection that is answered comes from another one: a network card, a tunnel or a lease has changed."""

    class Moved:
        family = socket.AF_INET
        getpeername = network.stream.sock.getpeername

        def getsockname(self) -> tuple[str, int]:
            return "192.0.2.1", 1

    network.stream.sock = Moved()  # type: ignore[assignment]
    assert any(network.after(0.1) for _ in range(15))


@pytest.mark.parametrize("waits", [None, 5000.0])
def test_nothing_is_tried_while_something_comes(network: Network, waits: float | None) -> None:
    """Or while nobody reads, as under a rate limit."""
    network.stream.waits_since_s = waits
    assert not any(network.after(0.1) for _ in range(50))
    network.watch.look([])
    assert network.arrivals() == 0
