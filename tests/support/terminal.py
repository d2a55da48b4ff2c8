"""A real terminal for tests: a pty, and a screen that shows what a person would see on it."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios
import time
from typing import TextIO

import pyte


class Terminal:
    """A pty of `columns` by `lines`, inside a `with` block; programs write to `stream` or `slave`."""

    def __init__(self, columns: int = 100, lines: int = 24, *, encoding: str = "utf-8") -> None:
        self._master, self.slave = os.openpty()
        self.stream: TextIO = open(os.dup(self.slave), "w", encoding=encoding)  # noqa: SIM115
        self.screen = pyte.HistoryScreen(columns, lines, history=1000)
        self._feed = pyte.ByteStream(self.screen)
        self.raw = b""
        self.resize(columns, lines)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        os.close(self.slave)
        os.close(self._master)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.screen.resize(max(1, lines), max(1, columns))

    def read(self, wait_s: float = 0.0) -> list[str]:
        """The lines on the screen that aren't empty, once no more comes."""
        while select.select([self._master], [], [], wait_s)[0]:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # EIO: the other end is gone
                break
            self.raw += data
            self._feed.feed(data)
        return [line.rstrip() for line in self.screen.display if line.strip()]

    def wait_for(self, text: str, timeout_s: float = 100.0) -> list[str]:
        """Read until the screen shows `text`."""
        deadline = time.monotonic() + timeout_s
        while text not in "\n".join(lines := self.read(0.05)):
            assert time.monotonic() < deadline, f"{text!r} not on the screen:\n" + "\n".join(lines)
        return lines

    @property
    def scrolled_away(self) -> int:
        """Lines that left the screen at its top."""
        return len(self.screen.history.top)
