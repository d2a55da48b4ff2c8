"""Progress without a terminal: plain lines for logs, JSON lines for programs, a callback for code."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import sys
from collections.abc import Callable
from typing import TextIO

from perfkit.progress.meter import Snapshot
from perfkit.progress.text import amount, clock, printable, summary

__all__ = ["CallbackProgress", "JsonLines", "PlainLines", "print_line", "terminal_size", "write_text"]

_CLEAR_REST = "\x1b[K"

_STEPS = 10  # a line for each tenth of the work
_EVERY_S = 30.0  # and at least one in this interval


def terminal_size(stream: TextIO | None) -> os.terminal_size | None:
    """The size of the terminal behind a stream; None without a terminal, or if it cannot move its cursor."""
    try:
        if stream is None or not stream.isatty() or os.environ.get("TERM", "dumb") == "dumb":
            return None
        return os.get_terminal_size(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return None  # Jupyter's streams have no file descriptor


def print_line(text: str, stream: TextIO | None = None) -> None:
    """Print a text as exactly one line, by default on standard error; bars drawn there move down."""
    stream = stream or sys.stderr
    write_text(stream, printable(text) + (f"{_CLEAR_REST}\n" if terminal_size(stream) else "\n"))


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


class PlainLines:
    """Prints a line for every tenth of the work or every half minute, and a summary; for CI logs, files and pipes.

    Args:
        stream: by default standard error.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._alive = True
        self._step = 0  # the last one printed
        self._next_s = _EVERY_S

    def update(self, snapshot: Snapshot) -> None:
        share = _share(snapshot)
        step = self._step if share is None else int(share * _STEPS + 1e-9)
        if step < self._step - 1:
            self._step = step  # it decreased: a size became known, or a retry started over
        due = self._step < step < _STEPS
        if not due and snapshot.elapsed_s < self._next_s:
            return
        self._step = step
        self._next_s = snapshot.elapsed_s + _EVERY_S
        self._say(_line(snapshot, share))

    def finish(self, snapshot: Snapshot) -> None:
        self._say(summary(snapshot))
        self._step, self._next_s = 0, _EVERY_S

    def _say(self, text: str) -> None:
        self._alive = self._alive and write_text(self._stream, f"{text}\n")


def _share(snapshot: Snapshot) -> float | None:
    """The fraction of the work that is done, 0..1, by bytes or else by files; None if unknown."""
    if snapshot.total_bytes:
        return snapshot.received_bytes / snapshot.total_bytes
    if snapshot.files_total:
        return (snapshot.files_done + snapshot.files_failed) / snapshot.files_total
    return None


def _line(snapshot: Snapshot, share: float | None) -> str:
    percent = "" if share is None else f"{share:4.0%}  "
    total = f"/{amount(snapshot.total_bytes)}" if snapshot.total_bytes is not None else ""
    files = f"{snapshot.files_done}" + (f"/{snapshot.files_total}" if snapshot.files_total is not None else "")
    failed = f", {snapshot.files_failed} failed" if snapshot.files_failed else ""
    what = "" if snapshot.phase == "download" else f"{snapshot.phase}: "
    return (
        f"{what}{percent}{amount(snapshot.received_bytes)}{total}  {amount(snapshot.speed_bytes_per_s)}/s"
        f"  ETA {clock(snapshot.eta_s)}  {files} files{failed}"
    )


class CallbackProgress:
    """Calls a function with each `Snapshot`, including the last one. An exception from it ends the work."""

    def __init__(self, function: Callable[[Snapshot], object]) -> None:
        self._function = function

    def update(self, snapshot: Snapshot) -> None:
        self._function(snapshot)

    def finish(self, snapshot: Snapshot) -> None:
        self._function(snapshot)


class JsonLines:
    """Prints one JSON object per line: `event`, which is `progress` or finally `finish`, and the fields of `Snapshot`.

    Args:
        stream: by default standard error.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._alive = True

    def update(self, snapshot: Snapshot) -> None:
        self._write("progress", snapshot)

    def finish(self, snapshot: Snapshot) -> None:
        self._write("finish", snapshot)

    def _write(self, event: str, snapshot: Snapshot) -> None:
        if self._alive:
            record = {"event": event, **dataclasses.asdict(snapshot)}
            self._alive = write_text(self._stream, json.dumps(record, default=_plain) + "\n")


def _plain(value: object) -> object:
    return value.value if isinstance(value, enum.Enum) else str(value)
