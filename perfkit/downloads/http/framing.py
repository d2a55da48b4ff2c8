"""Responses held to RFC 9112: where their heads and bodies end."""

from __future__ import annotations

import http.client
import re
from collections.abc import Callable
from typing import Any

from perfkit.downloads.http.exchange import AbortHandle, Incoming, exchange_here

_COOKIE_BYTES = 8 << 10
_SIZE_LINE_BYTES = 20  # of a chunk, without extensions
_EXCESS_BYTES = 16 << 10
_STATUS_LINE = re.compile(r"HTTP/1\.(\d) +(\d{3})(?: ([^\n]*))?\r?\n", re.ASCII)
_FOLD = re.compile(r"\r?\n[ \t]+")  # RFC 9112 section 5.2: a value that continues on the next line
_FIELD = re.compile(r"^([^:\s]+)[ \t]*:([^\n]*)$", re.MULTILINE)
_LENGTH = re.compile(r"(\d{1,19})(?:, ?\1)*", re.ASCII)  # perhaps repeated (RFC 9110 section 8.6)
_CHUNK_SIZE = re.compile(rb"[0-9a-fA-F]{1,16}[ \t]*(;.*)?\r?\n", re.DOTALL)


class _Chunks:
    """A chunked body as http.client and urllib3 read it, held to RFC 9112 section 7.1: both accept invalid sizes, skip
    anything where a chunk should end, and miss a truncated trailer. Whatever is not body must arrive within the
    time-out, and be smaller than the body.
    """

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming
        self._left = 0  # of the chunk
        self._trailer_deadline_s: float | None = None  # None: no trailer yet
        self._excess_bytes = 0  # of chunk extensions and trailer, over twice the body

    def readline(self, limit: int = -1) -> bytes:
        """The line with a chunk's size, or one of the trailer."""
        line = self._incoming.line(self._trailer_deadline_s)
        if not line.endswith(b"\n"):
            raise http.client.IncompleteRead(b"")
        if self._trailer_deadline_s is not None:
            self._excess_bytes += len(line)
        elif not _CHUNK_SIZE.fullmatch(line):
            raise http.client.HTTPException("a chunk of the body has no size")
        else:
            self._left = int(line.partition(b";")[0], 16)
            self._excess_bytes = max(0, self._excess_bytes + len(line) - _SIZE_LINE_BYTES - 2 * self._left)
            if self._left == 0:
                self._trailer_deadline_s = self._incoming.deadline_s()
        if self._excess_bytes > _EXCESS_BYTES:
            raise http.client.HTTPException("the chunks of the body have more extensions and trailers than body")
        return line

    def read1(self, most: int = -1) -> bytes | memoryview:
        data = self._incoming.read1(min(most, self._left) if most >= 0 else self._left)
        self._left -= len(data)
        return data

    def read(self, count: int = -1) -> bytes:
        if self._left == 0:
            if (end := self._incoming.read(2)) != b"\r\n":
                raise http.client.HTTPException(
                    "a chunk of the body is longer than its size"
                    if len(end) == 2
                    else "the connection ended within the body"
                )
            return end
        data = self._incoming.read(min(count, self._left))
        self._left -= len(data)
        return data

    def flush(self) -> None: ...

    def close(self) -> None:
        self._incoming.close()


class StrictResponse(http.client.HTTPResponse):
    """http.client's response, with its own parser for the head: http.client accepts truncated heads, contradictory
    framing and invalid lengths, and builds an email message from the head, which takes longer than a small file.
    """

    fp: Any

    def __init__(
        self,
        sock: Any,
        debuglevel: int = 0,
        method: str | None = None,
        url: str | None = None,
        *,
        handle: AbortHandle | None = None,
    ) -> None:
        incoming = Incoming(sock, handle)
        if (exchange := exchange_here()) is not None:
            exchange.incoming, incoming.limit = incoming, exchange.limit
        super().__init__(incoming, debuglevel, method, url)  # type: ignore[arg-type]

    def begin(self) -> None:
        """Read the head of the final response (RFC 9112 sections 4 to 6).

        Raises:
            http.client.HTTPException: it is cut off, too long, or not a head; the framing of the body is unknown.
        """
        incoming: Incoming = self.fp
        while True:  # interim responses may come for as long as the final one may take
            text = incoming.head().decode("latin-1")
            match = _STATUS_LINE.match(text)
            if not text:
                raise http.client.RemoteDisconnected("the connection ended without an answer")
            if match is None:
                raise http.client.BadStatusLine(text.partition("\n")[0][:80])
            self.status = self.code = int(match[2])
            if self.status >= 200 or self.status == 101:
                break
        self.version, self.reason = 10 + int(match[1]), (match[3] or "").strip()
        self.headers = self.msg = message = _Fields()
        fields = incoming.fields = {}
        repeated: dict[str, list[str]] = {}
        for name, value in _FIELD.findall(_FOLD.sub(" ", text[match.end() :])):  # skips what is not a field
            kind, value = name.lower(), value.strip()
            if not (kind.startswith("set-cookie") and _is_unusable_cookie(kind, value)):
                message.set_raw(name, value)
                if kind in fields:
                    repeated.setdefault(kind, [fields[kind]]).append(value)
                else:
                    fields[kind] = value
        fields.update({kind: ", ".join(values) for kind, values in repeated.items()})
        self._frame(incoming, fields.get)

    def _frame(self, incoming: Incoming, get: Callable[[str], str | None]) -> None:
        """Determine where the body ends (section 6.3)."""
        coding, declared = get("transfer-encoding") or "", get("content-length")
        codings = {each.strip() for each in coding.lower().split(",")} - {"", "identity"}
        options = (get("connection") or "").lower()
        self.will_close = "close" in options if self.version > 10 else "keep-alive" not in options
        self.length, self.chunked, self.chunk_left = None, False, None
        if self.status in (101, 204, 304) or self._method == "HEAD":  # type: ignore[attr-defined]
            self.length = 0
        elif codings == {"chunked"}:
            self.chunked = True
            self.fp = _Chunks(incoming)
            self.will_close |= declared is not None  # either of the two may be right
        elif codings:
            raise http.client.HTTPException(f"the transfer coding {coding[:40]!r} was not asked for")
        elif declared is not None and (length := _LENGTH.fullmatch(declared)):
            self.length = int(length[1])
        else:
            self.will_close = True


class _Fields(http.client.HTTPMessage):
    """The fields of a head as received, without the email parser's check for what Latin-1 text can't have."""

    def items(self) -> list[tuple[str, str]]:
        return list(self.raw_items())

    def get_payload(self, *_: object, **options: object) -> None:
        """urllib3 asks for what the email parser could not read; nothing is left unread here."""


def _is_unusable_cookie(kind: str, value: str) -> bool:
    """Whether a field sets a cookie in the obsolete form that http.cookiejar takes quadratic time to read, or one
    larger than browsers accept (RFC 6265 sections 6.1 and 9.4).
    """
    return kind == "set-cookie2" or (kind == "set-cookie" and len(value) > _COOKIE_BYTES)
