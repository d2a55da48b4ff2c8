"""Connections that are opened before they are needed."""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections import deque
from concurrent.futures import Future
from typing import Any

import pytest
import trustme
import urllib3

from perfkit import Config
from perfkit.downloads.cancel import Cancel
from perfkit.downloads.http import dial
from perfkit.downloads.http.connection import POOL_CLASSES
from perfkit.downloads.http.transport import Get, HttpTransport
from perfkit.downloads.http.urls import origin_of
from tests.support.fakes import MisbehavingServer, Start
from tests.support.network import server_context
from tests.support.waiting import wait_until


def connections(server: MisbehavingServer) -> int:
    return len(server._threads) - 1  # and the listener


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_request_finds_it(misbehaving: Start, authority: trustme.CA, ca_file: str, scheme: str) -> None:
    """And the next one, too: it is kept as any other."""
    server = misbehaving(lambda x: x.serve(b"body"), tls=server_context(authority) if scheme == "https" else None)
    transport, cancel = HttpTransport(Config(ca_bundle=ca_file)), Cancel()
    try:
        transport.warm(f"{server.url}/", cancel)
        wait_until(lambda: connections(server) == 1)
        for _ in range(2):
            with transport.open(Get(url=f"{server.url}/f"), cancel) as response:
                body = b""
                while data := response.read1(100):  # it may come in pieces
                    body += data
                assert body == b"body"
        assert connections(server) == 1
    finally:
        transport.close()


def test_a_connection_begun_early_is_left_to_the_first_request(misbehaving: Start) -> None:
    """Which would otherwise wait for one of its own."""
    server = misbehaving(lambda x: x.serve(b"body"))
    place = origin_of(server.url)[1:]
    begun: Future[socket.socket] = Future()
    begun.set_result(socket.create_connection(place))
    dial._begun[place] = deque([(time.monotonic(), begun)])
    transport = HttpTransport(Config())
    try:
        transport.warm(f"{server.url}/", Cancel())
        assert [made for _, made in dial._begun.pop(place)] == [begun]
        wait_until(lambda: connections(server) == 2)
    finally:
        transport.close()
        begun.result().close()


def test_session_tickets_do_not_end_it(authority: trustme.CA) -> None:
    """A server sends them when the handshake is over, and urllib3 would drop the connection for that."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    manager = urllib3.PoolManager(ssl_context=context)
    manager.pool_classes_by_scheme = POOL_CLASSES
    with MisbehavingServer(lambda x: x.hang_up(), tls=server_context(authority)) as server:
        pool: Any = manager.connection_from_url(server.url)
        pool.warm(20.0)
        connection = pool.pool.queue[-1]
        wait_until(lambda: select.select([connection.sock], [], [], 0)[0])
        assert connection.is_connected
        assert connection.is_connected
    wait_until(lambda: not connection.is_connected)
    manager.clear()


def test_a_server_that_is_away_is_no_error() -> None:
    """The request that needs it will say so."""
    with MisbehavingServer(lambda x: x.serve(b"body")) as server:
        url = server.url
    transport = HttpTransport(Config())
    transport.warm(url, Cancel())
    transport.close()
