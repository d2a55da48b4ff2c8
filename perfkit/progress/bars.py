"""Live bars on a terminal: a line for each active file, and a total. The only module that imports progressbar2.

progressbar2 lays out and draws the lines; their numbers come from the meter, since its own speed and ETA are averages
over the whole run. Its MultiBar is not used: it draws from its own thread and does not check for a terminal.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TextIO

import progressbar

from perfkit.config import checks_arguments
from perfkit.progress.lines import PlainLines
from perfkit.progress.meter import WAITING, FileProgress, Progress, Snapshot, State
from perfkit.progress.stream import terminal_size, write_text
from perfkit.progress.summary import amounts, delay, files_of, outcome, summary
from perfkit.progress.text import amount, clip, clock, display_width, fit, printable, share_text, shorten, sizes

_CLEAR_BELOW, _CLEAR_REST = "\x1b[J", "\x1b[K"
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"  # for a terminal that becomes narrower while a frame is written
_MOST_BARS = 16
_LASTED_S = 0.5  # a file that is done sooner has no bar
_FEW_FILES = 50  # in a run of at most this many, every file leaves a line
_ABANDONED_S = 2.0  # bars are drawn about ten times a second
_PERCENT = 5  # columns of the percentage, and the space before it
_BAR = 15  # columns of a bar at least: twelve cells, two edges, and the space before it
_NAME = 12  # columns of a name at least, if it is that long
_NOTEBOOK_COLUMNS = 100
_PARTS = 10_000  # of a whole bar


def for_stream(stream: TextIO | None = None, *, failures: bool = True) -> Progress:
    """`Bars` if the stream (standard error by default) is a terminal that can show them, else `PlainLines`.

    With `CI` set, as continuous integration services do, a terminal is treated as a log.
    """
    stream = stream or sys.stderr
    logged = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return PlainLines(stream) if logged or terminal_size(stream) is None else Bars(stream, failures=failures)


@checks_arguments
class Bars:
    """Draws a bar for each active file, as many as fit, and one for the total.

    Between two updates the cursor stays on an empty line above the bars, so that other output there remains readable
    and the bars move down. If the stream is not a terminal, it prints what `PlainLines` prints. It uses no colours,
    with or without NO_COLOR. If a process uses several, the first one draws until its run ends; the others print only
    their summaries.

    Args:
        stream: by default standard error.
        failures: whether failed files leave a line on the screen, as others do; False where the caller reports them.
    """

    _shown: Bars | None = None  # whose bars are on the screen
    _shown_s = 0.0  # when they were drawn last

    def __init__(self, stream: TextIO | None = None, *, failures: bool = True) -> None:
        self._stream = stream or sys.stderr
        self._ends = {State.DONE, State.FAILED} if failures else {State.DONE}
        self._alive = True
        self._above = 0  # lines that this run has left above the bars
        self._plain = PlainLines(self._stream)
        encoding = (getattr(self._stream, "encoding", None) or "").lower()
        self._ascii_only = not encoding.startswith("utf")
        marker, left, right, fill = "#[]." if self._ascii_only else "█▕▏ "
        edges = {"marker": marker, "left": left, "right": right}
        known, unknown = progressbar.Bar(**edges, fill=fill), progressbar.BouncingBar(**edges)  # type: ignore[no-untyped-call]
        self._known, self._unknown = _Cells(known, _PARTS), _Cells(unknown, progressbar.UnknownLength)

    def update(self, snapshot: Snapshot) -> None:
        size = terminal_size(self._stream)
        if size is None:
            self._without_terminal(snapshot)
        elif self._alive and self._takes_screen():
            # The last column stays empty, since some terminals wrap when it is written.
            width, rows = (size.columns or 80) - 1, size.lines or 24
            # A terminal that becomes half as wide shows each line on two, and none may scroll away.
            height = max(1, min(4, rows - 2), (rows - 1) // 2)
            lines = self._draw(snapshot, max(1, width), height) if rows > 1 else []
            above = self._finished(snapshot, width)
            self._above += len(above)
            # When tmux becomes half as wide, it breaks each line in two, and moves as many from the top of the screen
            # into its history: the empty lines here, until there are finished ones above.
            empty = min(len(lines) - 1 - self._above, rows - 2 - len(lines))
            self._show(above, [""] * empty + lines)

    def finish(self, snapshot: Snapshot) -> None:
        size = terminal_size(self._stream)
        if size is None:
            self._without_terminal(snapshot, ended=True)
        elif self._alive:
            width = (size.columns or 80) - 1
            last = summary(snapshot)
            self._show([*self._finished(snapshot, width), *([printable(last)] if last else [])], [""])
        if Bars._shown is self:
            Bars._shown = None
        self._above = 0

    def _show(self, above: list[str], lines: list[str]) -> None:
        """Write the lines `above`, which stay, and the frame below the cursor.

        Old text is cleared after each line and below the last one: tmux would keep in its history what is cleared from
        the top of the screen.
        """
        kept = "".join(f"{line}{_CLEAR_REST}\n" for line in above)
        frame = "".join(f"{_CLEAR_REST}\n{line}" for line in lines)
        back = f"{_CLEAR_BELOW}\x1b[{len(lines)}A\r" if lines else ""
        self._write(f"\r{kept}{_NO_WRAP}{frame}{back}{_WRAP}")

    def _write(self, text: str) -> None:
        self._alive = write_text(self._stream, text.replace("…", "~") if self._ascii_only else text)

    def _without_terminal(self, snapshot: Snapshot, *, ended: bool = False) -> None:
        """Plain lines; in a Jupyter notebook, whose cells have no cursor to move up, a line for the total."""
        if not type(self._stream).__module__.startswith("ipykernel"):
            (self._plain.finish if ended else self._plain.update)(snapshot)
            return
        text = summary(snapshot) if ended else self._draw(replace(snapshot, active=()), _NOTEBOOK_COLUMNS, 1)[0]
        self._write(f"\r{text:{_NOTEBOOK_COLUMNS}}" + "\n" * ended)

    def _takes_screen(self) -> bool:
        """Whether these bars may draw: no others do, or those were abandoned without `finish`."""
        now = time.monotonic()
        if Bars._shown not in (None, self) and now - Bars._shown_s < _ABANDONED_S:
            return False
        Bars._shown, Bars._shown_s = self, now
        return True

    def _draw(self, snapshot: Snapshot, width: int, height: int) -> list[str]:
        """At most `height` lines, the total last; for a single file, one."""
        if snapshot.files_total == 1 and snapshot.phase == "download" and snapshot.active:
            file = snapshot.active[0]
            row = _total_row(snapshot)._replace(name=file.name, delay=delay(file), cut=fit)
            return [self._line(row, _Layout.of([row], width))]
        shown = [each for each in snapshot.active if each.elapsed_s >= _LASTED_S]
        most, more = min(_MOST_BARS, height - 1), 0
        if len(shown) > most:
            # Files that wait for a retry give way to active ones.
            more = len(shown) - max(0, most - 1)
            shown = sorted(shown, key=lambda each: each.state is State.RETRYING)[: max(0, most - 1)]
        rows = [*map(_file_row, shown), _total_row(snapshot)]
        layout = _Layout.of(rows, width)
        lines = [self._line(row, layout) for row in rows]
        if more and most > 0:
            lines.insert(-1, clip(f"and {more} more", width))
        return lines

    def _finished(self, snapshot: Snapshot, width: int) -> list[str]:
        """A line for each download that ended; of very many, for those that took time or failed."""
        few = snapshot.files_total is not None and snapshot.files_total <= _FEW_FILES
        lines = []
        for each in snapshot.finished if snapshot.phase == "download" else ():
            if each.state in self._ends and (few or each.elapsed_s >= _LASTED_S or each.state is State.FAILED):
                what = outcome(each)
                place = _place(each.path) if each.path else each.name
                lines.append(clip(f"{shorten(place, max(20, width - 2 - display_width(what)))}  {what}", width))
        return lines

    def _line(self, row: _Row, layout: _Layout) -> str:
        percent = share_text(row.share)
        if layout.names == 0:
            return clip(f"{percent or row.sizes} {row.delay or row.name}", layout.width)
        left = f"{row.cut(row.name, layout.names)} {percent:>4} "
        if row.delay:
            return clip(left + row.delay, layout.width)
        tail = "".join(f" {getattr(row, column):>{width}}" for column, width in layout.columns.items())
        bar = self._unknown if row.share is None else self._known
        room = layout.width - display_width(left) - display_width(tail)
        return clip(left + bar.render(room, row.share) + tail, layout.width)


def _place(path: str) -> str:
    """A path as a person would write it: from the current directory, where it is below that."""
    try:
        here = os.path.join(os.getcwd(), "")
    except OSError:  # it was removed
        return path
    return path.removeprefix(here)


class _Row(NamedTuple):
    """The content of a line: a bar, which bounces if the share is unknown, or what delays the file instead."""

    name: str
    share: float | None
    sizes: str
    speed: str
    eta: str
    times: str  # the ETA, and before it the time so far
    delay: str = ""
    cut: Callable[[str, int], str] = fit  # makes the name fit its column


class _Layout(NamedTuple):
    """How a line is divided: the name, the percentage, the bar, and the columns behind it with their widths."""

    width: int
    names: int  # columns for the name; 0: there is no room for bars
    columns: dict[str, int]

    @classmethod
    def of(cls, rows: list[_Row], width: int) -> _Layout:
        """The layout with as many columns as leave room for names and bars."""
        longest = max(display_width(row.name) for row in rows)
        for shown in (("sizes", "speed", "times"), ("sizes", "times"), ("sizes", "eta"), ("eta",), ()):
            columns = {each: max(len(getattr(row, each)) for row in rows) for each in shown}
            room = width - _PERCENT - _BAR - sum(columns.values()) - len(columns)
            if room >= min(longest, _NAME):
                return cls(width, min(longest, room, max(_NAME, width // 3)), columns)
        return cls(width, 0, {})


def _file_row(file: FileProgress) -> _Row:
    done = file.state is State.VERIFYING
    speed = "verifying" if done else f"{amount(file.speed_bytes_per_s)}/s"
    eta = "" if done else clock(file.eta_s)
    return _Row(file.name, file.share, sizes(file.received_bytes, file.total_bytes), speed, eta, eta, delay(file))


def _total_row(snapshot: Snapshot) -> _Row:
    if snapshot.phase == WAITING:
        return _Row("", None, "", "", "", "", " ".join(map(delay, snapshot.active)) or WAITING)
    name = "total" if snapshot.phase == "download" else snapshot.phase
    eta = clock(snapshot.eta_s)
    times = f"{clock(snapshot.elapsed_s)}  ETA {eta}"
    return _Row(f"{name} {files_of(snapshot)}".rstrip(), snapshot.share, *amounts(snapshot), eta, times, cut=_fit_start)


def _fit_start(text: str, width: int) -> str:
    return f"{clip(text, width):{width}}"


class _Cells:
    """A bar of progressbar2, without its line around it."""

    def __init__(self, widget: Any, max_value: Any) -> None:
        self._widget = widget
        # An explicit width keeps it from installing a SIGWINCH handler.
        self._progress: Any = progressbar.ProgressBar(
            max_value=max_value, fd=io.StringIO(), term_width=80, custom_len=display_width, enable_colors=False
        )
        self._began_s = time.monotonic()

    def render(self, width: int, share: float | None) -> str:
        self._progress.value = int(_PARTS * (share or 0.0))
        data = {"total_seconds_elapsed": time.monotonic() - self._began_s}
        return str(self._widget(self._progress, data, width, color=False))
