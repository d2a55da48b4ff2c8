"""Live bars on a terminal: a line for each active file, and a total. The only module that imports progressbar2.

progressbar2 lays out and draws the lines; their numbers come from the meter, since its own speed and ETA are averages
over the whole run. Its MultiBar is not used: it draws from its own thread and does not check for a terminal.
"""

from __future__ import annotations

import io
import os
import sys
import time
from dataclasses import dataclass
from typing import Any, TextIO

import progressbar
from progressbar.widgets import WidgetBase

from perfkit.progress.lines import PlainLines, terminal_size, write_text
from perfkit.progress.meter import FileProgress, Progress, Snapshot, State
from perfkit.progress.text import amount, clip, clock, display_width, fit, summary

__all__ = ["Bars", "for_stream"]

_CLEAR_BELOW = "\x1b[J"
_MOST_BARS = 16
_ABANDONED_S = 2.0  # bars are drawn about ten times a second
_WIDE = 70  # columns from which all fields are shown
_NARROW = 34  # columns below which there is no bar


def for_stream(stream: TextIO | None = None) -> Progress:
    """`Bars` if the stream (standard error by default) is a terminal that can show them, else `PlainLines`.

    With `CI` set, as continuous integration services do, a terminal is treated as a log.
    """
    stream = stream or sys.stderr
    logged = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return PlainLines(stream) if logged or terminal_size(stream) is None else Bars(stream)


class Bars:
    """Draws a bar for each active file, as many as fit, and one for the total.

    Between two updates the cursor stays on an empty line above the bars, so that other output there remains readable
    and the bars move down. If the stream is not a terminal, it prints what `PlainLines` prints. It uses no colours,
    with or without NO_COLOR. If a process uses several, the first one draws until its run ends; the others print only
    their summaries.

    Args:
        stream: by default standard error.
    """

    _shown: Bars | None = None  # whose bars are on the screen
    _shown_s = 0.0  # when they were drawn last

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._alive = True
        self._plain = PlainLines(self._stream)
        ascii_only = not (getattr(self._stream, "encoding", None) or "").lower().replace("-", "").startswith("utf")
        self._known = _Line(_bar(ascii_only))
        self._unknown = _Line(_bouncing(ascii_only))

    def update(self, snapshot: Snapshot) -> None:
        size = terminal_size(self._stream)
        if size is None:
            self._plain.update(snapshot)
        elif self._alive and self._takes_screen():
            # The last column stays empty, since some terminals wrap when it is written. So do the line of the cursor
            # and, if there is room, one more.
            columns, rows = size.columns or 80, size.lines or 24
            lines = self._draw(snapshot, max(1, columns - 1), max(1, rows - 2)) if rows > 1 else []
            back = f"\x1b[{len(lines)}A\r" if lines else "\r"
            self._alive = write_text(self._stream, _CLEAR_BELOW + "".join(f"\n{line}" for line in lines) + back)

    def finish(self, snapshot: Snapshot) -> None:
        size = terminal_size(self._stream)
        if size is None:
            self._plain.finish(snapshot)
        elif self._alive:
            line = clip(summary(snapshot), (size.columns or 80) - 1)
            self._alive = write_text(self._stream, f"{_CLEAR_BELOW}{line}\n")
        if Bars._shown is self:
            Bars._shown = None
        self._known.close()
        self._unknown.close()

    def _takes_screen(self) -> bool:
        """Whether these bars may draw: no others do, or those were abandoned without `finish`."""
        now = time.monotonic()
        if Bars._shown not in (None, self) and now - Bars._shown_s < _ABANDONED_S:
            return False
        Bars._shown, Bars._shown_s = self, now
        return True

    def _draw(self, snapshot: Snapshot, width: int, height: int) -> list[str]:
        """At most `height` lines, the total last."""
        most, active = min(_MOST_BARS, height - 1), snapshot.active
        if len(active) > most:
            # Files that wait for a retry give way to active ones.
            active = tuple(sorted(active, key=lambda each: each.state is State.RETRYING))[: max(0, most - 1)]
        rows = [*(_file_row(each) for each in active), _total_row(snapshot)]
        column = min(max(display_width(row.name) for row in rows), max(8, width // 4))
        details = max(len(row.details) for row in rows)
        lines = [self._line(row, width, column, details) for row in rows]
        if len(active) < len(snapshot.active) and most > 0:
            lines.insert(-1, clip(f"and {len(snapshot.active) - len(active)} more", width))
        return lines

    def _line(self, row: _Row, width: int, column: int, details: int) -> str:
        percent = "" if row.total is None else f"{100 * min(row.value, row.total) // max(1, row.total):3}%"
        if width < _NARROW:
            return clip(f"{percent or row.details} {row.name}", width)
        left = f"{fit(row.name, column)} {percent:4} "
        tail = f" {row.details:>{details}}  {row.pace}" if width >= _WIDE else f" {row.pace}"
        if row.total is None:
            return clip(self._unknown.render(width, left, tail, 0, None), width)
        return clip(self._known.render(width, left, tail, row.value, row.total), width)


@dataclass(frozen=True, slots=True)
class _Row:
    """The content of a line: a bar of `value` of `total`, or a bouncing bar if `total` is None."""

    name: str
    value: int
    total: int | None
    details: str
    pace: str


def _file_row(file: FileProgress) -> _Row:
    pace = {State.RETRYING: "retrying", State.VERIFYING: "verifying"}.get(file.state)
    sizes = _sizes(file.received_bytes, file.total_bytes)
    return _Row(file.name, file.received_bytes, file.total_bytes, sizes, f"{pace or _pace(file):>20}")


def _total_row(snapshot: Snapshot) -> _Row:
    files = str(snapshot.files_done) + (f"/{snapshot.files_total}" if snapshot.files_total is not None else "")
    failed = f", {snapshot.files_failed} failed" if snapshot.files_failed else ""
    details = f"{files} files{failed}  {_sizes(snapshot.received_bytes, snapshot.total_bytes)}"
    value, total = snapshot.received_bytes, snapshot.total_bytes
    if total is None and snapshot.files_total:
        value, total = snapshot.files_done + snapshot.files_failed, snapshot.files_total
    return _Row(
        "total" if snapshot.phase == "download" else snapshot.phase, value, total, details, f"{_pace(snapshot):>20}"
    )


def _sizes(received_bytes: int, total_bytes: int | None) -> str:
    return amount(received_bytes) + (f"/{amount(total_bytes)}" if total_bytes is not None else "")


def _pace(what: FileProgress | Snapshot) -> str:
    return f"{amount(what.speed_bytes_per_s)}/s {clock(what.eta_s):>7}"


class _Field(WidgetBase):
    """A widget that shows a variable of the bar."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def __call__(self, progress: Any, data: Any) -> str:
        return str(data["variables"][self._name])


class _Line:
    """A progressbar2 bar that draws into memory, with a given width and given numbers."""

    def __init__(self, bar: Any) -> None:
        self._widgets = [_Field("left"), bar, _Field("tail")]
        self._buffer = io.StringIO()
        self._bar: progressbar.ProgressBar | None = None

    def render(self, width: int, left: str, tail: str, value: int, total: int | None) -> str:
        if self._bar is None:
            # An explicit width keeps it from installing a SIGWINCH handler.
            self._bar = progressbar.ProgressBar(
                widgets=self._widgets,
                fd=self._buffer,
                term_width=width,
                max_error=False,
                custom_len=display_width,
                is_terminal=False,
                line_breaks=False,
                enable_colors=False,
                variables={"left": left, "tail": tail},
            )
            self._bar.start()
        bar = self._bar
        bar.term_width = width
        bar.max_value = max(1, total) if total is not None else progressbar.UnknownLength
        if total == 0:
            value = 1
        self._buffer.seek(0)
        self._buffer.truncate()
        bar.update(value if total is None else min(value, max(1, total)), force=True, left=left, tail=tail)
        return self._buffer.getvalue().rpartition("\r")[2].rstrip()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.finish(dirty=True)
            self._bar = None


def _bar(ascii_only: bool) -> Any:
    marks = ("#", "[", "]", ".") if ascii_only else ("█", "▕", "▏", " ")
    marker, left, right, fill = marks
    return progressbar.Bar(marker=marker, left=left, right=right, fill=fill)  # type: ignore[no-untyped-call]


def _bouncing(ascii_only: bool) -> Any:
    marks = ("#", "[", "]") if ascii_only else ("█", "▕", "▏")
    marker, left, right = marks
    return progressbar.BouncingBar(marker=marker, left=left, right=right)  # type: ignore[no-untyped-call]
