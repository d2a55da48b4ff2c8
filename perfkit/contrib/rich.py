"""Progress by rich, in terminals and in Jupyter notebooks: a bar for the run, and one for each file in progress."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from perfkit.progress.meter import FileProgress, Snapshot
from perfkit.progress.summary import delay, files_of, summary
from perfkit.progress.text import amount, clock, printable, sizes

_LASTED_S = 0.5  # a file that is done sooner has no bar


class RichProgress:
    """Bars with perfkit's own numbers, and a summary: `Toolkit(progress=RichProgress())`.

    Args:
        console: by default rich's own, on standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._display: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def update(self, snapshot: Snapshot) -> None:
        if self._display is None:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), "{task.percentage:>3.0f}%")
            self._display = Progress(*columns, TextColumn("{task.fields[numbers]}"), console=self._console)
            self._display.start()
        shown = {each.path or each.name: each for each in snapshot.active if each.elapsed_s >= _LASTED_S}
        for key in self._tasks.keys() - shown.keys() - {""}:
            self._display.remove_task(self._tasks.pop(key))
        for key, file in shown.items():
            self._show(self._display, key, file.name, file)
        self._show(self._display, "", f"{snapshot.phase} {files_of(snapshot)}", snapshot)

    def finish(self, snapshot: Snapshot) -> None:
        self.update(snapshot)
        assert self._display is not None
        self._display.stop()
        self._display.console.print(printable(summary(snapshot)), markup=False, highlight=False)
        self._display = None
        self._tasks.clear()

    def _show(self, display: Progress, key: str, name: str, what: Snapshot | FileProgress) -> None:
        amounts = sizes(what.received_bytes, what.total_bytes)
        numbers = f"{amounts} {amount(what.speed_bytes_per_s)}/s {clock(what.eta_s)}"
        if isinstance(what, FileProgress):
            numbers = delay(what) or numbers
        if key not in self._tasks:
            self._tasks[key] = display.add_task("", total=None, numbers="")
        total = None if what.share is None else 1.0
        display.update(
            self._tasks[key], description=printable(name), total=total, completed=what.share or 0.0, numbers=numbers
        )
