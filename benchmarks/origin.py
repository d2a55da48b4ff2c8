"""The server side: nginx on loopback, and a relay that counts the bytes that reach the client."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_CONFIG = """\
{user}
worker_processes 1;
daemon off;
pid {home}/nginx.pid;
error_log {home}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    log_format bytes '$request_length $bytes_sent $request_uri';
    access_log {log};
    sendfile on;
    tcp_nopush on;
    keepalive_requests 100000;
    client_body_temp_path {home}/t1; proxy_temp_path {home}/t2; fastcgi_temp_path {home}/t3;
    uwsgi_temp_path {home}/t4; scgi_temp_path {home}/t5;
    server {{
        listen 127.0.0.1:{http};
        listen 127.0.0.1:{https} ssl;
        ssl_certificate {home}/cert.pem;
        ssl_certificate_key {home}/key.pem;
        root {site};
        location /limited/ {{ alias {site}/; limit_rate {limit}; }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests, and bytes in both directions, including headers."""

    requests: int
    bytes: int


class Nginx:
    """Serves `site` with one worker, inside a `with` block: plain, over TLS, and limited per connection.

    `ca` is the certificate to trust, which signs itself. With `counted`, `traffic` tells what was asked for.
    """

    def __init__(self, site: Path, home: Path, *, limit: str = "1m", counted: bool = False) -> None:
        home.mkdir()
        self._log = home / "access.log"
        self._read = 0  # bytes of the log
        self._fences = 0
        self.ca = home / "cert.pem"
        http, self._https = _free_ports(2)
        self.http_port = http
        self._home = home
        config = _CONFIG.format(
            user="user root;" if os.geteuid() == 0 else "",
            home=home,
            site=site,
            http=http,
            https=self._https,
            limit=limit,
            log=f"{self._log} bytes" if counted else "off",
        )
        (home / "nginx.conf").write_text(config, encoding="utf-8")

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def https(self) -> str:
        return f"https://127.0.0.1:{self._https}"

    @property
    def limited(self) -> str:
        return f"{self.http}/limited"

    def traffic(self) -> Traffic:
        """The traffic since the last call: requests as received, responses with headers.

        A request that is made now is the last that counts: one worker writes its log in the order it works.
        """
        self._fences += 1
        fence = f"/fence-{self._fences}"
        with contextlib.suppress(urllib.error.HTTPError):  # the file does not exist
            urllib.request.urlopen(self.http + fence, timeout=10)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:  # a log line is written after its response is sent
            lines = self._log.read_bytes()[self._read :].splitlines(keepends=True)
            rows = [line.decode().split() for line in lines]
            if rows and rows[-1][-1:] == [fence] and lines[-1].endswith(b"\n"):
                self._read += sum(map(len, lines))
                return Traffic(len(rows) - 1, sum(int(received) + int(sent) for received, sent, _ in rows[:-1]))
            time.sleep(0.001)
        raise RuntimeError(f"{self._log} says nothing of {fence}")

    def __enter__(self) -> Nginx:
        certificate = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "3",
            "-subj",
            "/CN=perfkit",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "keyUsage=digitalSignature,keyCertSign",
            "-keyout",
            str(self._home / "key.pem"),
            "-out",
            str(self.ca),
        ]
        subprocess.run(certificate, check=True, capture_output=True)
        program = shutil.which("nginx", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin")
        if program is None:
            raise FileNotFoundError("the benchmark needs nginx, which is neither on PATH nor in sbin")
        command = [program, "-p", f"{self._home}/", "-c", f"{self._home}/nginx.conf", "-e", f"{self._home}/error.log"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.http_port), 1):
                return self
            if self._process.poll() is not None:
                break
            time.sleep(0.01)
        self.__exit__(None, None, None)
        raise RuntimeError(f"nginx did not start: {(self._home / 'error.log').read_text(encoding='utf-8')}")

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in taken]


_SAMPLE_S = 0.005
_INFO_BYTES = 216  # struct tcp_info up to tcpi_bytes_sent (at 200) and tcpi_bytes_retrans; Linux 4.19
_SENT = struct.Struct("=QQ")


class CountingRelay:
    """Relays connections to a port of this machine, and samples how many bytes were sent to the client.

    With a `rate`, in bytes per second, all connections share a line of that speed, in turns.

    The kernel is asked for what it sent on each connection (TCP_INFO), not what we wrote: bytes in a send buffer have
    not arrived, bytes sent over loopback have. `samples` are (seconds, bytes of all connections so far).
    """

    def __init__(self, target_port: int, rate: float | None = None) -> None:
        self._rate = rate
        self._free_at_s = 0.0  # when the line has sent all that was given to it
        self._target = ("127.0.0.1", target_port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.samples: list[tuple[float, int]] = []
        self._lock = threading.Lock()
        self._live: set[socket.socket] = set()
        self._gone = 0  # bytes of closed connections
        self._over = threading.Event()

    def __enter__(self) -> CountingRelay:
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._accept, self._sample)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for client in self._live:
                client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server:
            with self._lock:
                self._live.add(client)
            forth = threading.Thread(target=_pump, args=(client, server), daemon=True)
            forth.start()
            _pump(server, client, self._take_turn)
            forth.join()
            with self._lock:
                self._live.discard(client)
                self._gone += _sent(client)

    def _take_turn(self, count: int) -> None:
        """Wait until the line has sent so many bytes more."""
        if self._rate is not None:
            with self._lock:
                self._free_at_s = max(self._free_at_s, time.monotonic()) + count / self._rate
                until_s = self._free_at_s
            time.sleep(max(0.0, until_s - time.monotonic()))

    def _sample(self) -> None:
        while not self._over.wait(_SAMPLE_S):
            with self._lock:
                count = self._gone + sum(map(_sent, self._live))
            self.samples.append((time.monotonic(), count))


def _pump(source: socket.socket, sink: socket.socket, take_turn: Callable[[int], None] = lambda count: None) -> None:
    """Relay bytes until either side closes; then close both."""
    buffer = memoryview(bytearray(16 << 10))
    with contextlib.suppress(OSError):
        while count := source.recv_into(buffer):
            take_turn(count)
            sink.sendall(buffer[:count])
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _sent(connection: socket.socket) -> int:
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    except OSError:
        return 0
    sent, again = _SENT.unpack_from(info, 200)
    return int(sent - again)
