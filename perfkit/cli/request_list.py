"""Lists of what to download, one line each: `URL[<TAB>NAME[<TAB>CHECKSUM]]`, or, given the URL that the names are
relative to, a line of `SHA256SUMS`. A list may still be written while it is read, and is never loaded as a whole.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
from collections.abc import Iterator
from types import TracebackType
from typing import Any
from urllib.parse import quote, urljoin

from perfkit.downloads.checksum_files import parse_line
from perfkit.downloads.http.urls import origin_of
from perfkit.downloads.request import LONGEST_LINE_BYTES, Download, Request, split_line
from perfkit.errors import ConfigError

_READ_BYTES = 64 << 10
_WAIT_S = 0.1


class RequestList:
    """The requests in a file, or in standard input (`-`), inside a `with` block.

    Iterating gives a `Request` for each line, or, for an invalid line, a `Download` with the error; and None
    where the list is still being written and has no more at the moment. Empty lines and those that begin with `#` are
    skipped. At most 64 KiB are read ahead.

    Args:
        base: what URLs in the list, and names in a checksum file, are relative to.
        options: of every request, such as `headers` and `resume`.

    Raises:
        ConfigError: `base` is not a URL; the file does not exist (in `with`), or a line of more than 64 KiB (while
            iterating).
    """

    def __init__(self, path: str, *, base: str | None = None, **options: Any) -> None:
        if base is not None:
            origin_of(base)
        self._path = path
        self._base = base
        self._options = options
        self._descriptor = -1

    def __enter__(self) -> RequestList:
        try:
            self._descriptor = os.dup(0) if self._path == "-" else os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            os.read(self._descriptor, 0)  # fails for a directory
        except OSError as error:
            self.close()
            raise ConfigError(f"{self._path}: {error.strerror}") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the list. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def count(self) -> int | None:
        """How many files an ordinary file lists, before it is iterated over; None: it is a pipe, or a terminal."""
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            return None
        position = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        found = 0
        with contextlib.suppress(ConfigError):  # which iterating will raise
            for line in self._lines():
                text = (line or b"").strip()
                found += bool(text) and not text.startswith(b"#")
        os.lseek(self._descriptor, position, os.SEEK_SET)
        return found

    def __iter__(self) -> Iterator[Request | Download | None]:
        number = 0
        for line in self._lines():
            if line is None:
                yield None
                continue
            number += 1
            text = line.decode("utf-8-sig", "replace")  # some editors write a byte order mark
            url = ""
            try:
                if (parts := self._split(text)) is None:
                    continue
                url, name, checksum = parts
                yield Request(url, name, checksum=checksum, **self._options)
            except ConfigError as error:
                refusal = ConfigError(f"{self._path}, line {number}: {error}")
                yield Download(url=url or text.strip(), path="", error=refusal)

    def _split(self, line: str) -> tuple[str, str | None, str | None] | None:
        """URL, name and checksum of a line; None: it is empty, or a comment."""
        listed = parse_line(line)
        if listed is not None and listed.name:
            if self._base is None:
                raise ConfigError("it has a checksum and a name; to download what SHA256SUMS lists, give --base URL")
            name = listed.name.removeprefix("./")
            return urljoin(self._base, quote(name)), name, str(listed.checksum)
        parts = split_line(line)
        return parts if parts is None or self._base is None else (urljoin(self._base, parts[0]), *parts[1:])

    def _lines(self) -> Iterator[bytes | None]:
        rest = b""
        while True:
            if not self._readable(0.0):
                yield None
                if not self._readable(_WAIT_S):
                    continue
            data = os.read(self._descriptor, _READ_BYTES)
            if not data:
                yield rest
                return
            *lines, rest = (rest + data).split(b"\n")
            yield from lines
            if len(rest) > LONGEST_LINE_BYTES:
                raise ConfigError(f"{self._path}: a line has more than {LONGEST_LINE_BYTES} bytes")

    def _readable(self, timeout_s: float) -> bool:
        return bool(select.select([self._descriptor], [], [], timeout_s)[0])
