"""Progress without a terminal: plain lines for logs, JSON lines for programs, a callback for code."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import TextIO

from perfkit.config import checks_arguments
from perfkit.progress.meter import Snapshot
from perfkit.progress.stream import write_text
from perfkit.progress.summary import amounts, delay, files_of, summary
from perfkit.progress.text import clock, printable, share_text

_STEPS = 10  # a line for each tenth of the work
_EVERY_S = 30.0  # and at least one in this interval
_PATIENCE_S = 0.7  # without a byte, before it says what it waits for


@checks_arguments
class PlainLines:
    """Prints a line for every tenth of the work or every half minute, and a summary; for CI logs, files and pipes.

    Args:
        stream: by default standard error.
        updates: False prints the summaries of downloads only.
    """

    def __init__(self, stream: TextIO | None = None, *, updates: bool = True) -> None:
        self._stream = stream or sys.stderr
        self._updates = updates
        self._alive = True
        self._step = 0  # the last one printed
        self._next_s = _EVERY_S
        self._moves = False  # something has come, or the delay was reported

    def update(self, snapshot: Snapshot) -> None:
        if not self._updates:
            return
        if not self._moves and snapshot.elapsed_s >= _PATIENCE_S:
            self._say_what_delays(snapshot)
        share = snapshot.share
        step = self._step if share is None else int(share * _STEPS + 1e-9)
        due = self._step < step < _STEPS
        if not due and snapshot.elapsed_s < self._next_s:
            return
        self._step = step
        self._next_s = snapshot.elapsed_s + _EVERY_S
        self._say(_line(snapshot))

    def finish(self, snapshot: Snapshot) -> None:
        last = summary(snapshot)
        if last and (self._updates or snapshot.phase == "download"):
            self._say(last)
        self._step, self._next_s, self._moves = 0, _EVERY_S, False

    def _say_what_delays(self, snapshot: Snapshot) -> None:
        """Print once what delays the first bytes."""
        reasons = list(map(delay, snapshot.active))
        self._moves = not reasons or not all(reasons) or snapshot.received_bytes > snapshot.resumed_bytes
        if not self._moves:
            self._moves = True
            self._say(reasons[0])

    def _say(self, text: str) -> None:
        self._alive = self._alive and write_text(self._stream, f"{printable(text)}\n")


def _line(snapshot: Snapshot) -> str:
    percent = "" if snapshot.share is None else f"{share_text(snapshot.share):>4}"
    what = "" if snapshot.phase == "download" else f"{snapshot.phase}: "
    files, noun = files_of(snapshot), snapshot.unit if snapshot.files_total == 1 else f"{snapshot.unit}s"
    columns = [percent, *amounts(snapshot), clock(snapshot.elapsed_s), f"ETA {clock(snapshot.eta_s)}"]
    return what + "  ".join(filter(None, [*columns, f"{files} {noun}" if files else ""]))


@checks_arguments
class CallbackProgress:
    """Calls a function with each `Snapshot`, including the last one. An exception from it ends the work."""

    def __init__(self, function: Callable[[Snapshot], object]) -> None:
        self._function = function

    def update(self, snapshot: Snapshot) -> None:
        self._function(snapshot)

    finish = update


@checks_arguments
class JsonLines:
    """Prints one JSON object per line: `event`, which is `progress` or finally `finish`, and the fields of `Snapshot`.

    The states of files are the values of `State`: `active`, `retrying`, `verifying`, `done`, `failed`, `cancelled`.

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
            self._alive = write_text(self._stream, json.dumps(record, default=lambda state: state.value) + "\n")
