"""What the kernel tells of the way to a server."""

from __future__ import annotations

import math
import socket

import pytest

from perfkit.downloads.http.network_path import measured, queued
from tests.support.waiting import wait_until


def test_what_has_come_and_was_not_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        server, _ = listener.accept()
        with server:
            server.sendall(bytes(5000))
            wait_until(lambda: (path := measured(client)) is not None and path.unread == 5000)
            assert len(client.recv(2000)) == 2000
            path = measured(client)
            assert path is not None
            assert path.unread == 3000


def test_a_closed_connection_has_no_path() -> None:
    client, _ = socket.socketpair()
    client.close()
    assert measured(client) is None
    assert measured(None) is None


@pytest.mark.parametrize(
    ("round_trip_s", "least_s", "expected"),
    [(0.08, 0.08, False), (0.1, 0.08, False), (0.101, 0.08, True), (0.006, 0.003, False), (0.008, 0.003, True)],
)
def test_queues_take_a_quarter_of_the_way_and_four_ms(round_trip_s: float, least_s: float, expected: bool) -> None:
    assert queued(round_trip_s, least_s) is expected
    assert queued(math.inf, least_s)
