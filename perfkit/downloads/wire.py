"""HTTP/1.1 as it comes from a socket (RFC 9112): the head of an answer, and its body by whatever framing it has.

http.client builds a mail message of every head, which takes more processor time than all the rest of a small file; its
buffered streams would copy the bytes of a large one; and to import it costs a fifth of a short command's time.
"""

from __future__ import annotations

import re
from typing import Protocol

__all__ = ["Answer", "ConnectionEnded", "IncompleteBody", "ProtocolError", "Sock", "TooLong"]

_RECEIVE_BYTES = 16 << 10
_HEAD_BYTES = 64 << 10
_LINE_BYTES = 8 << 10  # of a chunk's size with its extensions, or of a trailer field
_TRAILER_FIELDS = 100

_HEAD_END = re.compile(rb"\r?\n\r?\n")  # section 2.2: a lone LF may end a line
_FOLD = re.compile(r"\n[ \t]+")  # section 5.2: a value that goes on in the next line
_FIELD = re.compile(r"^([^:\s]+)[ \t]*:[ \t]*(.*)$", re.MULTILINE)
_STATUS_LINE = re.compile(r"HTTP/1\.(\d) +(\d{3})(?: .*)?", re.ASCII)
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,16})[ \t]*(?:;.*)?\r?\n", re.DOTALL)
_LENGTH = re.compile(r"\d{1,19}", re.ASCII)


class Sock(Protocol):
    """What is used of a socket."""

    def recv(self, most: int, /) -> bytes: ...
    def recv_into(self, view: memoryview, /) -> int: ...
    def gettimeout(self) -> float | None: ...
    def settimeout(self, seconds: float | None, /) -> None: ...


class ProtocolError(Exception):
    """This is not HTTP/1.1, or not as a GET is answered."""


class TooLong(ProtocolError):
    """A head, a line or a trailer beyond all measure."""


class IncompleteBody(ProtocolError):
    """The connection ended before the body did."""


class ConnectionEnded(ProtocolError, ConnectionResetError):
    """The connection ended before there was an answer."""


class _Incoming:
    """What has come from a socket and was not taken yet, and what will come."""

    def __init__(self, sock: Sock) -> None:
        self._sock = sock
        self.rest = b""

    def head(self) -> bytes:
        """Up to the first empty line, without it."""
        data, searched = self.rest, 0
        while (end := _HEAD_END.search(data, searched)) is None:
            if len(data) > _HEAD_BYTES:
                raise TooLong(f"the headers are more than {_HEAD_BYTES} bytes")
            searched = max(0, len(data) - 3)
            if not (more := self._sock.recv(_RECEIVE_BYTES)):
                raise ConnectionEnded(f"the connection ended {'in the middle of' if data else 'before'} the headers")
            data += more
        self.rest = data[end.end() :]
        return data[: end.start()]

    def line(self) -> bytes:
        """Up to the first line feed, with it."""
        data = self.rest
        while (end := data.find(b"\n")) < 0:
            if len(data) > _LINE_BYTES:
                raise TooLong(f"a line between chunks is more than {_LINE_BYTES} bytes")
            if not (more := self._sock.recv(_RECEIVE_BYTES)):
                raise IncompleteBody("the connection ended between two chunks")
            data += more
        self.rest = data[end + 1 :]
        return data[: end + 1]

    def into(self, view: memoryview) -> int:
        """As much as is here, waiting for at least one byte; 0 where the connection ends."""
        if self.rest:
            count = min(len(view), len(self.rest))
            view[:count] = self.rest[:count]
            self.rest = self.rest[count:]
            return count
        count = self._sock.recv_into(view)
        return count + _arrived(self._sock, view[count:]) if 0 < count < len(view) else count


def _arrived(sock: Sock, view: memoryview) -> int:
    """What else is here by now: TLS gives a record, 16 KiB, at once at the most (RFC 8446 section 5.1), and a fast link
    sends on while we read. What is done with the bytes costs less in large pieces.
    """
    patience_s, total = sock.gettimeout(), 0
    sock.settimeout(0.0)
    try:
        while total < len(view) and (count := sock.recv_into(view[total:])):
            total += count
    except OSError as error:
        if not isinstance(error, BlockingIOError) and type(error).__name__ != "SSLWantReadError":
            raise  # named, since ssl is imported by those only who need it
    finally:
        sock.settimeout(patience_s)
    return total


class Answer:
    """The answer to a GET. Making one waits for its head.

    Attributes:
        status: the final status; interim ones (1xx) are passed over.
        headers: by name in lower case, repeated ones joined with commas (RFC 9110 section 5.3).
        cookies: each Set-Cookie as it was sent, since those can't be joined.
        length: of the body, if it is declared or follows from the status; None: to the last chunk, or the end.
        ended: the body has come to its end.

    Raises:
        ProtocolError: this is no HTTP, or the connection ended before the head did.
        OSError: of the socket, TimeoutError included.
    """

    def __init__(self, sock: Sock) -> None:
        self._incoming = incoming = _Incoming(sock)
        while True:
            minor, self.status, self.headers, self.cookies = _parse(incoming.head())
            if self.status >= 200 or self.status == 101:
                break
        get = self.headers.get
        coding = get("transfer-encoding", "").lower()
        self._chunked = coding == "chunked"
        declared = get("content-length", "")
        self.length: int | None = None
        if self.status in (204, 304):
            self.length = 0
        elif coding and not self._chunked:
            raise ProtocolError(f"the transfer coding {coding[:40]!r} was not asked for")
        elif not self._chunked and _LENGTH.fullmatch(declared):
            self.length = int(declared)
        options = get("connection", "").lower()
        self._lasts = "close" not in options if minor else "keep-alive" in options
        self._left = self.length or 0  # of the body, or of the chunk
        self._first_chunk = True
        self.ended = self.length == 0

    @property
    def reusable(self) -> bool:
        """Whether the connection can carry another request: the body is over, and nothing came after it."""
        return self.ended and self._lasts and not self._incoming.rest

    def read_into(self, view: memoryview) -> int:
        """Fill the view with what has arrived, waiting for at least one byte; 0 at the end of the body.

        Raises:
            IncompleteBody: the connection ended before the body.
            ProtocolError: the chunks are garbled.
            OSError: of the socket.
        """
        if self.ended:
            return 0
        if self._chunked:
            if self._left == 0 and not self._next_chunk():
                return 0
            view = view[: self._left]
        elif self.length is not None:
            view = view[: self._left]
        count = self._incoming.into(view)
        if self._chunked or self.length is not None:
            if count == 0:
                raise IncompleteBody(f"the connection ended {self._left} bytes early")
            self._left -= count
            self.ended = self._left == 0 and not self._chunked
        elif count == 0:
            self.ended, self._lasts = True, False
        return count

    def _next_chunk(self) -> bool:
        """Read on to a chunk's first byte (section 7.1); False after the last one and its trailer."""
        if not self._first_chunk and self._incoming.line() not in (b"\r\n", b"\n"):
            raise ProtocolError("a chunk is longer than it says")
        self._first_chunk = False
        match = _CHUNK_SIZE.fullmatch(self._incoming.line())
        if match is None:
            raise ProtocolError("a chunk without a size")
        self._left = int(match[1], 16)
        if self._left:
            return True
        for _ in range(_TRAILER_FIELDS):
            if self._incoming.line() in (b"\r\n", b"\n"):
                self.ended = True
                return False
        raise TooLong(f"more than {_TRAILER_FIELDS} trailer fields")


def _parse(head: bytes) -> tuple[int, int, dict[str, str], list[str]]:
    """Minor version, status, headers and cookies."""
    text = head.decode("latin-1").replace("\r\n", "\n")
    if "\n " in text or "\n\t" in text:
        text = _FOLD.sub(" ", text)
    first, _, fields = text.partition("\n")
    match = _STATUS_LINE.fullmatch(first)
    if match is None:
        raise ProtocolError(f"{first[:80]!r} is no status line")
    headers: dict[str, str] = {}
    cookies: list[str] = []
    for name, value in _FIELD.findall(fields):  # a line that is no field is passed over, as browsers do
        name, value = name.lower(), value.rstrip(" \t")
        if name == "set-cookie":
            cookies.append(value)
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return int(match[1]), int(match[2]), headers, cookies
