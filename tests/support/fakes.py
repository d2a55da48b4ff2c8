"""A server that misbehaves on purpose, one behaviour a test, on a raw socket where no library tidies up after it."""

from __future__ import annotations

import contextlib
import email.utils
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Handler = Callable[["Exchange"], None]


@dataclass
class Asked:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]  # by lower-case name

    @property
    def range(self) -> tuple[int, int | None] | None:
        """Start and end (exclusive; None: to the end) of a single range."""
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        return (int(match[1]), int(match[2]) + 1 if match[2] else None) if match else None


@dataclass
class Exchange:
    """One request, and the wire to answer it on."""

    server: MisbehavingServer
    connection: socket.socket
    asked: Asked
    number: int  # of this request, counted from 1 over the whole server
    keep: bool = True  # whether the connection goes on to another request

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def head(self, status: str, **headers: str) -> None:
        """A status line such as `206 Partial Content`, and headers (underscores become hyphens)."""
        lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def respond(self, status: str, body: bytes = b"", **headers: str) -> None:
        self.head(status, **{"Content_Length": str(len(body)), **headers})
        self.send(body)

    def serve(
        self,
        body: bytes,
        *,
        etag: str | None = '"v1"',
        pause: Callable[[], object] | None = None,
        pause_at: float = 0.5,
        **headers: str,
    ) -> None:
        """Answer as a correct server does. `pause` is called when this share of the body has been sent: 0 for all
        segments to be under way, since a range whose half was sent may be complete when others have taken from it.
        """
        if etag is not None:
            headers["ETag"] = etag
            if self.asked.headers.get("if-match", etag) != etag:
                return self.respond("412 Precondition Failed")
        wanted = self.asked.range
        if wanted is not None and self.asked.headers.get("if-range", etag) != etag:
            wanted = None
        if wanted is None:
            self.head("200 OK", Content_Length=str(len(body)), **headers)
            part = body
        elif wanted[0] >= len(body):
            return self.respond("416 Range Not Satisfiable", Content_Range=f"bytes */{len(body)}")
        else:
            start, end = wanted[0], min(wanted[1] or len(body), len(body))
            part = body[start:end]
            self.head(
                "206 Partial Content",
                Content_Length=str(len(part)),
                Content_Range=f"bytes {start}-{end - 1}/{len(body)}",
                **headers,
            )
        place = int(len(part) * pause_at)
        self.send(part[:place])
        if pause is not None:
            pause()
        self.send(part[place:])
        return None

    def stall(self) -> None:
        """Say nothing until the server is closed or the client goes."""
        with contextlib.suppress(OSError):
            self.connection.settimeout(120)
            self.connection.recv(1)
        self.keep = False

    def drip(self, data: bytes, every_s: float) -> None:
        for byte in data:
            self.send(bytes([byte]))
            if self.server.stopped.wait(every_s):
                break
        self.keep = False

    def reset(self) -> None:
        """End the connection with a TCP RST."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.keep = False
        self.connection.close()

    def hang_up(self) -> None:
        self.keep = False


@dataclass
class MisbehavingServer:
    """Runs `handler` for every request, on an ephemeral port of loopback, inside a `with` block."""

    handler: Handler
    tls: ssl.SSLContext | None = None
    host: str = "127.0.0.1"
    requests: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stopped = threading.Event()
        self._changed = threading.Condition()
        self._listener = socket.create_server((self.host, 0), backlog=128)
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self._listener.getsockname()[1]}"

    def __enter__(self) -> MisbehavingServer:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._changed:
            self._changed.notify_all()
            for connection in tuple(self._connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(100)

    def wait_for(self, requests: int, timeout_s: float = 100.0) -> bool:
        """Block until so many requests have come; False if they did not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.requests) >= requests or self.stopped.is_set(), timeout_s)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name="misbehaving-server")
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self.stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.add(connection)
            self._start(self._talk, connection)

    def _talk(self, connection: socket.socket) -> None:
        raw = connection
        try:
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                self._connections.add(connection)  # `raw` has given its socket away
                connection.do_handshake()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.closing(connection):
                for asked in _requests(connection):
                    with self._changed:
                        self.requests.append(asked)
                        number = len(self.requests)
                        self._changed.notify_all()
                    exchange = Exchange(self, connection, asked, number)
                    self.handler(exchange)
                    if not exchange.keep or connection.fileno() < 0:
                        return
        except (OSError, ValueError):
            pass  # the client left, as clients of wrong servers do
        finally:
            self._connections -= {raw, connection}
            connection.close()
            raw.close()


def _requests(connection: socket.socket) -> Iterator[Asked]:
    buffer = b""
    while True:
        while b"\r\n\r\n" not in buffer:
            data = connection.recv(65536)
            if not data:
                return
            buffer += data
        head, _, buffer = buffer.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        method, path, _ = line.split(" ")
        pairs = (text.partition(":") for text in fields)
        yield Asked(method, path, {name.strip().lower(): value.strip() for name, _, value in pairs})


def http_date(seconds_from_now: float) -> str:
    return email.utils.formatdate(time.time() + seconds_from_now, usegmt=True)


Start = Callable[..., MisbehavingServer]  # the fixture `misbehaving`
