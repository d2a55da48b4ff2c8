"""A proxy, an address that refuses, and servers with certificates of an authority that the test makes."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import ssl
import threading
from collections.abc import Iterator

import trustme

from tests.support.fakes import Exchange

BODY = random.Random(1).randbytes(1 << 20)
SHA256 = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


def serve_body(x: Exchange) -> None:
    x.serve(BODY)


def server_context(authority: trustme.CA, host: str = "127.0.0.1", *, clients: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host).configure_cert(context)
    if clients:
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@contextlib.contextmanager
def unheard() -> Iterator[tuple[str, int]]:
    """An address that refuses connections, and that no server gets meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()


class Proxy:
    """Forwards absolute-form requests and CONNECT tunnels; notes what it was asked and with which credentials."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.credentials: list[str | None] = []
        self.password: str | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]
        self._sockets: list[socket.socket] = []
        self._threads[0].start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._sockets:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads:
            thread.join(100)
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(client)
            self._threads.append(threading.Thread(target=self._talk, args=(client,)))
            self._threads[-1].start()

    def _talk(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = client.recv(65536)
            if not data:
                return
            head += data
        lines = head.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
        self.asked.append(f"{method} {target}")
        self.credentials.append(headers.get("proxy-authorization"))
        if self.password is not None and self.credentials[-1] != self.password:
            with contextlib.suppress(OSError):  # the client may have gone
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                client.shutdown(socket.SHUT_WR)
            return
        authority = target if method == "CONNECT" else target.split("/")[2]
        host, _, port = authority.rpartition(":")
        try:
            server = socket.create_connection((host, int(port)))
        except OSError:
            with contextlib.suppress(OSError):  # the client may have gone
                client.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
                client.shutdown(socket.SHUT_WR)
            return
        self._sockets.append(server)
        if method == "CONNECT":
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            server.sendall(head)
        back = threading.Thread(target=_pump, args=(server, client))
        self._threads.append(back)
        back.start()
        _pump(client, server)


class SocksProxy(Proxy):
    """Speaks SOCKS 5 (RFC 1928) with a password (RFC 1929); notes the host and the port that it was asked for."""

    def _talk(self, client: socket.socket) -> None:
        with client.makefile("rb") as read:
            read.read(read.read(2)[1])  # the methods that the client has
            client.sendall(b"\5\2")
            user = read.read(read.read(2)[1]).decode()
            self.credentials.append(f"{user}:{read.read(read.read(1)[0]).decode()}")
            client.sendall(b"\1\0")
            head = read.read(4)
            if len(head) < 4:
                return  # the client does not know the server
            kind = head[3]
            host = socket.inet_ntoa(read.read(4)) if kind == 1 else read.read(read.read(1)[0]).decode()
            port = int.from_bytes(read.read(2), "big")
        self.asked.append(f"{'address' if kind == 1 else 'name'} {host}:{port}")
        try:
            server = socket.create_connection((host, port))
        except OSError:
            client.sendall(b"\5\5\0\1" + bytes(6))
            return
        self._sockets.append(server)
        client.sendall(b"\5\0\0\1" + bytes(6))
        back = threading.Thread(target=_pump, args=(server, client))
        self._threads.append(back)
        back.start()
        _pump(client, server)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
