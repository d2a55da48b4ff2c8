"""Writes to standard error and other streams, which may be terminals, files, or closed."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from perfkit.progress.text import printable

_CLEAR_REST = "\x1b[K"


def terminal_size(stream: TextIO | None) -> os.terminal_size | None:
    """The size of the terminal behind a stream; None without a terminal, or if it cannot move its cursor."""
    try:
        if stream is None or not stream.isatty() or os.environ.get("TERM", "dumb") == "dumb":
            return None
        return os.get_terminal_size(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return None  # Jupyter's streams have no file descriptor


def print_line(text: str) -> None:
    """Print a text as exactly one line on standard error; bars drawn there move down."""
    write_text(sys.stderr, printable(text) + (f"{_CLEAR_REST}\n" if terminal_size(sys.stderr) else "\n"))


def write_text(stream: TextIO | None, text: str) -> bool:
    """Write and flush; False if the stream is closed or broken, which must not end a download."""
    if stream is None:  # sys.stderr of a process that was started without one
        return False
    try:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(text.encode(encoding, "replace").decode(encoding))
        stream.flush()
    except (OSError, ValueError):  # ValueError: closed
        return False
    return True
