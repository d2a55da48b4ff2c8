"""A small HTTP server on loopback, for development, examples and tests; not for production.

It supports what a correct downloader relies on: single ranges (RFC 9110 section 14), strong ETags, `If-Range`,
`If-Match` and the other conditions (section 13), and keep-alive. Bodies are sent by the kernel (`sendfile`).
"""

from __future__ import annotations

import contextlib
import html
import http.server
import logging
import mimetypes
import os
import socket
import socketserver
import stat
import threading
import time
from urllib.parse import quote, unquote_to_bytes, urlsplit

from perfkit.config import checks_arguments
from perfkit.errors import ConfigError
from perfkit.redact import redacted, redacted_text
from perfkit.server.conditional import Representation, failed_condition, select_part

_log = logging.getLogger(__name__)

_SLICE_BYTES = 1 << 20
_SLICES_PER_S = 20  # on a rate-limited connection
_BODY_BYTES = 1 << 20  # of a request, at most, to keep its connection


@checks_arguments
class Server:
    """Serves the files under `root` at `url`, in its own threads, inside a `with` block.

    Args:
        root: the directory to serve; nothing outside it can be reached, not even through symbolic links.
        port: 0 selects a free one.
        host: the address to listen on.
        bytes_per_s: rate limit of each connection, to simulate a slow link; None for no limit.

    Raises:
        ConfigError: `root` is not a directory, or the port is in use or not permitted.
    """

    def __init__(
        self, root: str | os.PathLike[str], *, port: int = 0, host: str = "127.0.0.1", bytes_per_s: int | None = None
    ) -> None:
        if not os.path.isdir(root):
            raise ConfigError(f"can't serve {os.fspath(root)}: it is not a directory")
        try:
            self._server = _ThreadingServer((host, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"can't listen on {host} port {port}: {reason}; --port 0 selects a free one") from error
        self._server.root = os.path.realpath(root)
        self._server.bytes_per_s = bytes_per_s
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="perfkit-serve", daemon=True
        )
        self._closed = threading.Event()

    @property
    def url(self) -> str:
        """The URL of the root, ending in a slash."""
        host, port = self._server.server_address[:2]
        return f"http://[{host!s}]:{port}/" if ":" in str(host) else f"http://{host!s}:{port}/"

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self) -> None:
        """Block until the server is closed, or interrupted by the keyboard."""
        # Not by joining the thread: CPython 3.11 considers a thread ended when its join is interrupted. And not without
        # a timeout: a signal that arrives just before the wait would not end it.
        while not self._closed.wait(0.2):
            pass

    def close(self) -> None:
        """Close all connections and stop all threads. Idempotent."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        self._closed.set()


class _ThreadingServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    request_queue_size = 128
    root: str
    bytes_per_s: int | None

    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        with self._connections_lock:
            self._connections.add(request)  # type: ignore[arg-type]
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        with self._connections_lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        with self._connections_lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        super().server_close()  # waits for the threads

    def handle_error(self, request: object, client_address: object) -> None:
        _log.debug("connection from %s ended", client_address, exc_info=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "perfkit"
    disable_nagle_algorithm = True
    server: _ThreadingServer

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        _log.debug("%s %s: %s", self.command, redacted(getattr(self, "path", "")), code)  # an invalid one has no path

    def log_message(self, format: str, *args: object) -> None:
        _log.debug(redacted_text(format % args))

    def do_GET(self) -> None:
        self._discard_body()
        path = self._path()
        if path is None:
            self._send_text(404, "no such file\n")
            return
        if os.path.isdir(path):
            try:
                self._send_index(path)
            except PermissionError as error:
                self._send_text(403, f"{error.strerror}\n")
            return
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            self._send_text(404, f"{error.strerror}\n")
            return
        try:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode):
                self._send_file(path, descriptor, status)
            else:
                self._send_text(404, "no such file\n")
        finally:
            os.close(descriptor)

    do_HEAD = do_GET  # bodies are sent for GET only

    def _discard_body(self) -> None:
        """Read the body of a request, which is ignored (RFC 9110 section 9.3.1), or close the connection afterwards:
        what is left would be taken for a request.
        """
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" not in self.headers and length.isdecimal() and int(length) <= _BODY_BYTES:
            self.rfile.read(int(length))
        else:
            self.close_connection = True

    def _path(self) -> str | None:
        """The real path of the requested file, if it is inside the root."""
        name = self._name()
        if "\0" in name or ".." in name.split("/"):
            return None
        path = os.path.realpath(os.path.join(self.server.root, name.lstrip("/")))
        inside = path == self.server.root or path.startswith(self.server.root.rstrip("/") + "/")
        exists = os.path.isdir(path) if name.endswith("/") else os.path.exists(path)
        return path if inside and exists else None

    def _name(self) -> str:
        """The requested path, decoded like a file name, which may be any bytes."""
        try:
            return os.fsdecode(unquote_to_bytes(urlsplit(self.path).path.encode("latin-1")))
        except ValueError:  # such as unbalanced brackets
            return "\0"

    def _send_file(self, path: str, descriptor: int, status: os.stat_result) -> None:
        size = status.st_size
        etag = f'"{status.st_mtime_ns:x}-{size:x}-{status.st_ino:x}"'
        file = Representation(size, etag, status.st_mtime)
        headers = {**file.headers, "Content-Type": mimetypes.guess_type(path)[0] or "application/octet-stream"}
        requested = {name.lower(): value for name, value in self.headers.items()}
        if (status_code := failed_condition(requested, file)) is not None:
            self._send_head(status_code, {**headers, "Content-Length": "0"} if status_code == 412 else headers)
            return
        part = select_part(requested if self.command == "GET" else {}, file)
        self._send_head(part.status, part.headers if part.status == 416 else {**headers, **part.headers})
        if self.command == "GET":
            self._send_bytes(descriptor, part.start, part.end)

    def _send_bytes(self, descriptor: int, start: int, end: int) -> None:
        limit = self.server.bytes_per_s
        piece = _SLICE_BYTES if limit is None else max(1, limit // _SLICES_PER_S)
        began, sent = time.monotonic(), 0
        while start + sent < end:
            count = os.sendfile(self.connection.fileno(), descriptor, start + sent, min(piece, end - start - sent))
            if count == 0:
                self.close_connection = True  # the file was truncated, so Content-Length can't be met
                return
            sent += count
            if limit is not None:
                time.sleep(max(0.0, began + sent / limit - time.monotonic()))

    def _send_index(self, path: str) -> None:
        name = self._name()
        if not name.endswith("/"):
            self._send_head(301, {"Location": f"/{quote(os.fsencode(name.lstrip('/')))}/", "Content-Length": "0"})
            return
        rows = []
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = entry.name + ("/" if entry.is_dir() else "")
                shown = html.escape(name.encode(errors="replace").decode())
                rows.append(f'<li><a href="{quote(os.fsencode(name))}">{shown}</a>')
        text = f"<!doctype html><meta charset=utf-8><title>perfkit serve</title><ul>{''.join(rows)}</ul>\n"
        self._send_text(200, text, kind="text/html; charset=utf-8")

    def _send_text(self, code: int, text: str, *, kind: str = "text/plain; charset=utf-8") -> None:
        body = text.encode()
        self._send_head(code, {"Content-Type": kind, "Content-Length": str(len(body))})
        if self.command == "GET":
            self.wfile.write(body)

    def _send_head(self, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
