"""What holds for a connection and its answers, whatever the server does: aborts, resets, framing (RFC 9112)."""

from __future__ import annotations

import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from perfkit import CancelledError, Config, TransferError
from perfkit.downloads.cancel import Cancel
from perfkit.downloads.http.exchange import Incoming
from perfkit.downloads.http.transport import Get, HttpTransport, Response
from perfkit.downloads.throttle import Throttle
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.kits import SOON_S

Start = Callable[..., MisbehavingServer]

BODY = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def transport() -> Iterator[HttpTransport]:
    made = HttpTransport(Config(read_timeout_s=60.0, connect_timeout_s=60.0))
    yield made
    made.close()


def read_all(response: Response) -> bytes:
    body = bytearray()
    while data := response.read1(1 << 16):
        body += data
    return bytes(body)


def get(transport: HttpTransport, url: str) -> tuple[int, bytes]:
    with transport.open(Get(url=url), Cancel()) as response:
        return response.status, read_all(response)


# -- outages ---------------------------------------------------------------------------------------------------------


def test_a_body_that_an_outage_silenced_is_not_taken_for_whole(transport: HttpTransport, misbehaving: Start) -> None:
    """Where only the end of the connection ends it, and it is we who ended that: the rest is asked for anew."""

    def handler(x: Exchange) -> None:
        x.send(b"HTTP/1.0 200 OK\r\n\r\nbegun")
        x.stall()

    server = misbehaving(handler)
    with transport.open(Get(url=f"{server.url}/1"), Cancel()) as response:
        assert bytes(response.read1(1 << 16)) == b"begun"
        response.exchange.incoming.interrupt()  # type: ignore[attr-defined]
        with pytest.raises(TransferError) as caught:
            response.read1(1 << 16)
    assert caught.value.transient


# -- heads -----------------------------------------------------------------------------------------------------------


def test_repeated_fields_count_as_one_with_all_their_values(transport: HttpTransport, misbehaving: Start) -> None:
    """RFC 9110 section 5.3."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nVia: 1.1 a\r\nCache-Control: no-store\r\nvia:1.1 b \r\n\r\n"
    server = misbehaving(lambda x: x.send(head))
    with transport.open(Get(url=f"{server.url}/1"), Cancel()) as response:
        assert response.headers["via"] == "1.1 a, 1.1 b"
        assert response.headers["cache-control"] == "no-store"


# -- aborts ----------------------------------------------------------------------------------------------------------


def test_a_late_abort_does_not_end_the_next_request(transport: HttpTransport, misbehaving: Start) -> None:
    """A request that is cancelled between the end of its body and its own end leaves the connection alone, which
    carries another request by then."""
    go_on = threading.Event()

    def handler(x: Exchange) -> None:
        x.serve(BODY, pause=(lambda: go_on.wait(100)) if x.number == 2 else None)

    server = misbehaving(handler)
    first, second = Cancel(), Cancel()
    with transport.open(Get(url=f"{server.url}/1"), first) as one:
        assert read_all(one) == BODY
        with transport.open(Get(url=f"{server.url}/2"), second) as two:
            begun = bytes(two.read1(1 << 16))
            first.cancel()
            go_on.set()
            assert begun + read_all(two) == BODY
    assert len(server._threads) == 2, "not the same connection: nothing was tested"


def test_a_connection_that_is_given_up_late(transport: HttpTransport, misbehaving: Start) -> None:
    """Between the end of a body and that of its request: it is left alone while it carries another, or ended."""
    go_on = threading.Event()

    def handler(x: Exchange) -> None:
        x.serve(BODY, pause=(lambda: go_on.wait(100)) if x.number == 2 else None)

    server = misbehaving(handler)
    with transport.open(Get(url=f"{server.url}/1"), Cancel()) as one:
        assert read_all(one) == BODY
        with transport.open(Get(url=f"{server.url}/2"), Cancel()) as two:
            begun = bytes(two.read1(1 << 16))
            one.end_after(0)
            go_on.set()
            assert begun + read_all(two) == BODY
            assert len(server._threads) == 2, "not the same connection: nothing was tested"
            two.end_after(0)
    assert get(transport, server.url)[1] == BODY
    assert len(server._threads) == 3, "the same connection: it was not ended"


def test_an_abort_ends_its_own_request(transport: HttpTransport, misbehaving: Start) -> None:
    """On a connection that was used before, too."""
    server = misbehaving(lambda x: x.serve(BODY, pause=x.stall if x.number == 2 else None))
    assert get(transport, server.url)[1] == BODY
    cancel = Cancel()
    with transport.open(Get(url=server.url), cancel) as response:
        began_s = time.monotonic()
        threading.Timer(0.2, cancel.cancel).start()
        with pytest.raises(CancelledError):
            read_all(response)
    assert time.monotonic() - began_s < SOON_S


def test_an_abort_while_the_body_ends_with_the_connection(transport: HttpTransport, misbehaving: Start) -> None:
    """Such a connection is closed for urllib3 as soon as its head is there; its body can still be aborted."""

    def handler(x: Exchange) -> None:
        x.head("200 OK", Connection="close")
        x.send(b"begun")
        x.stall()

    cancel = Cancel()
    with transport.open(Get(url=misbehaving(handler).url), cancel) as response:
        assert bytes(response.read1(100)) == b"begun"
        began_s = time.monotonic()
        threading.Timer(0.2, cancel.cancel).start()
        with pytest.raises(CancelledError):
            response.read1(100)
    assert time.monotonic() - began_s < SOON_S


# -- the end of a body -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_bytes_before_a_reset_count(transport: HttpTransport, misbehaving: Start, framing: str) -> None:
    """All of them are handed over, and the next read is the error; never the end of the body."""
    arrived = threading.Event()

    def handler(x: Exchange) -> None:
        match framing:
            case "length":
                x.head("200 OK", Content_Length=str(2 * len(BODY)))
            case "chunked":
                x.head("200 OK", Transfer_Encoding="chunked")
                x.send(b"%x\r\n" % (2 * len(BODY)))
            case "close":
                x.head("200 OK", Connection="close")
        x.send(BODY)
        arrived.wait(100)
        x.reset()

    body = bytearray()
    with transport.open(Get(url=misbehaving(handler).url), Cancel()) as response:
        while len(body) < len(BODY):
            body += response.read1(1 << 20)
        arrived.set()
        with pytest.raises(TransferError) as caught:
            response.read1(1 << 20)
    assert bytes(body) == BODY
    assert caught.value.transient


@pytest.mark.parametrize("notified", [True, False])
def test_a_body_over_tls_ends_with_close_notify(
    authority: trustme.CA, misbehaving: Start, tmp_path: Path, notified: bool
) -> None:
    """Where only the close ends it, a connection that just ends may have been cut (RFC 9112 section 9.8)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    def handler(x: Exchange) -> None:
        x.head("200 OK", Connection="close")
        x.send(BODY)
        assert isinstance(x.connection, ssl.SSLSocket)
        if notified:
            x.connection.unwrap()
        x.connection.shutdown(socket.SHUT_WR)
        x.hang_up()

    transport = HttpTransport(Config(ca_bundle=str(tmp_path / "ca.pem")))
    url = misbehaving(handler, tls=context).url
    try:
        if notified:
            assert get(transport, url) == (200, BODY)
        else:
            with pytest.raises(TransferError) as caught:
                get(transport, url)
            assert caught.value.transient
    finally:
        transport.close()


GOOD = b"5\r\nhello\r\n"


@pytest.mark.parametrize(
    ("chunks", "right"),
    [
        (GOOD + b"0\r\n\r\n", True),
        (GOOD + b"6;name=value\r\n world\r\n0\r\nTrailer: 1\r\n\r\n", True),
        (GOOD + b"00\r\n\r\n", True),
        (b"+5\r\nhello\r\n0\r\n\r\n", False),
        (b"0x5\r\nhello\r\n0\r\n\r\n", False),
        (b"-5\r\nhello\r\n0\r\n\r\n", False),
        (b"1_0\r\nhello\r\n0\r\n\r\n", False),
        (b"\r\n", False),
        (b"11112222333344445\r\nhello\r\n0\r\n\r\n", False),
        (b"5\r\nhello world\r\n0\r\n\r\n", False),
        (GOOD, False),
        (GOOD + b"0\r\n", False),
        (GOOD + b"0\r\nTrailer: 1\r\n", False),
        (GOOD + b"0\r\n" + b"Trailer: 1\r\n" * 2000 + b"\r\n", False),
        (GOOD + b"5" * 100_000, False),
    ],
)
def test_malformed_chunks_are_errors(transport: HttpTransport, misbehaving: Start, chunks: bytes, right: bool) -> None:
    """RFC 9112 section 7.1; http.client takes most of the wrong ones."""

    def handler(x: Exchange) -> None:
        x.head("200 OK", Transfer_Encoding="chunked")
        x.send(chunks)
        x.hang_up()

    url = misbehaving(handler).url
    if right:
        assert get(transport, url)[1].startswith(b"hello")
    else:
        with pytest.raises(TransferError):
            get(transport, url)


# -- heads -----------------------------------------------------------------------------------------------------------


def answering(head: bytes, body: bytes = b"") -> Callable[[Exchange], None]:
    def handler(x: Exchange) -> None:
        x.send(head + body)
        x.hang_up()

    return handler


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 60_000 + b"\r\n",
    ],
)
def test_heads_that_are_refused(transport: HttpTransport, misbehaving: Start, head: bytes) -> None:
    """Cut off, too long, or not HTTP/1."""
    with pytest.raises(TransferError):
        get(transport, misbehaving(answering(head)).url)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 5\n\n",
        b"HTTP/1.0 200 OK\r\ncontent-length:5 \t\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno field\r\n: none\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 103 Early\r\nLink: a\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\nContent-Length: 5\n\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
    ],
)
def test_heads_that_are_understood(transport: HttpTransport, misbehaving: Start, head: bytes) -> None:
    """What RFC 9112 sections 2.2 and 4 to 6 lets a recipient take."""
    assert get(transport, misbehaving(answering(head, b"hello")).url) == (200, b"hello")


def test_a_lone_cr_begins_no_field(transport: HttpTransport, misbehaving: Start) -> None:
    """Else whoever can put text into a field's value could frame the body (RFC 9112 section 2.2)."""
    head = b"HTTP/1.1 200 OK\r\nX-Name: a\rContent-Length: 1\r\nContent-Length: 5\r\n\r\n"
    with transport.open(Get(url=misbehaving(answering(head, b"hello")).url), Cancel()) as response:
        assert response.headers["x-name"] == "a Content-Length: 1"
        assert read_all(response) == b"hello"


def test_a_folded_value_is_one_line(transport: HttpTransport, misbehaving: Start) -> None:
    """RFC 9112 section 5.2."""
    head = b'HTTP/1.1 200 OK\r\nETag:\r\n "a"\r\nX-Long: one\r\n\ttwo\r\nContent-Length: 5\r\n\r\n'
    with transport.open(Get(url=misbehaving(answering(head, b"hello")).url), Cancel()) as response:
        assert (response.headers["etag"], response.headers["x-long"]) == ('"a"', "one two")


def test_a_coding_that_is_sent_twice_is_one(transport: HttpTransport, misbehaving: Start) -> None:
    """An application and its server may both set it, and the body is chunked once."""

    def handler(x: Exchange) -> None:
        x.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\ntransfer-encoding: Chunked\r\n\r\n")
        x.send(GOOD + b"0\r\n\r\n")

    assert get(transport, misbehaving(handler).url) == (200, b"hello")


def test_both_framings_end_the_connection(transport: HttpTransport, misbehaving: Start) -> None:
    """Chunks win, and nothing else is sent on a connection whose framing was in doubt (RFC 9112 section 6.3)."""

    def handler(x: Exchange) -> None:
        x.head("200 OK", Transfer_Encoding="chunked", Content_Length="3")
        x.send(GOOD + b"0\r\n\r\n")

    server = misbehaving(handler)
    assert get(transport, server.url) == (200, b"hello")
    assert get(transport, server.url) == (200, b"hello")
    assert len(server._threads) == 3, "two connections, and the listener"


def test_what_follows_a_body_is_no_answer(transport: HttpTransport, misbehaving: Start) -> None:
    """Bytes behind the body's end make the connection unusable, also those that came along with it."""
    extra = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    server = misbehaving(lambda x: x.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello" + extra))
    for _ in range(3):
        assert get(transport, server.url) == (200, b"hello")
    assert len(server._threads) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the window")
def test_a_limit_makes_the_window_narrow(transport: HttpTransport, misbehaving: Start) -> None:
    """Eight connections at 1 MiB/s may bring an eighth of a second's bytes before they are read; without a limit, as
    much as the system likes."""
    offered: list[int] = []

    def handler(x: Exchange) -> None:
        info = x.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)  # struct tcp_info of Linux 5.4
        offered.extend(struct.unpack_from("I", info, 228))  # tcpi_snd_wnd
        x.respond("200 OK", b"hello", Connection="close")
        x.keep = False

    server = misbehaving(handler)
    for limit in (Throttle(1 << 20), Throttle(), None):
        with transport.open(Get(url=server.url, limit=limit), Cancel()) as response:
            assert read_all(response) == b"hello"
    narrow, *wide = offered
    assert 0 < narrow <= (1 << 20) / 8 / 8
    assert min(wide) > 2 * narrow


@pytest.mark.skipif(sys.platform != "linux", reason="a buffer of this size is Linux's")
def test_a_window_grows_while_the_limit_has_room(transport: HttpTransport, misbehaving: Start) -> None:
    """As it does for one connection on a long way, which needs what eight would share."""
    server = misbehaving(lambda x: x.serve(BODY))
    limit = Throttle(100 << 20, clock=lambda: 1000 * time.monotonic())
    with transport.open(Get(url=server.url, limit=limit), Cancel()) as response:
        sock = response.exchange.incoming.sock  # type: ignore[attr-defined]
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
        body, deadline_s = bytearray(), time.monotonic() + 100
        while sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) <= 40_000 and time.monotonic() < deadline_s:
            limit.charge(1, Cancel())
            body += response.read1(1000) or b""
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 80_000
        body += read_all(response)
    assert body == BODY


@pytest.mark.skipif(sys.platform != "linux", reason="a buffer of this size is Linux's")
@pytest.mark.parametrize("when", ["in the middle", "before the next"])
def test_a_window_is_wide_again_when_the_limit_was_lifted(
    transport: HttpTransport, misbehaving: Start, when: str
) -> None:
    """On a connection that was opened under it: its small window would hold a body up for as long as that takes."""
    server = misbehaving(lambda x: x.serve(BODY))
    limit = Throttle(1 << 20)
    for number in range(2):
        with transport.open(Get(url=server.url, limit=limit), Cancel()) as response:
            sock = response.exchange.incoming.sock  # type: ignore[attr-defined]
            narrow = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            assert narrow < 40_000
            if number == ["in the middle", "before the next"].index(when):
                limit.set_rate(None)
                body = bytes(response.read1(1000) or b"") + read_all(response)
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > 2 * narrow
                assert body == BODY
                break
            assert read_all(response) == BODY
    assert len(server._threads) == 2, "not the same connection: nothing was tested"


def test_http_client_reads_lines_however_long_the_machine_has_been_up() -> None:
    """It passes a limit in bytes, which was taken for a time: tunnels failed after 65,537 seconds."""
    here, there = socket.socketpair()
    with here, there:
        here.settimeout(100)
        there.sendall(b"HTTP/1.1 200 OK\r\n")
        assert Incoming(here, None).readline(1) == b"HTTP/1.1 200 OK\r\n"
