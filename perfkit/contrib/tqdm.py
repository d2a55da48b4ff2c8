"""Progress as a tqdm bar, in terminals and in Jupyter notebooks."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm

from perfkit.progress.meter import Snapshot
from perfkit.progress.summary import files_of
from perfkit.progress.text import amount, clock, sizes

_PARTS = 10_000  # of a whole bar
_FORMAT = "{desc} {percentage:3.0f}%|{bar}| "


class TqdmProgress:
    """One bar for each run, with perfkit's own numbers: `Toolkit(progress=TqdmProgress())`.

    Args:
        options: passed to `tqdm`, such as `file`, `colour`, `ncols` or `leave`.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._bar: Any = None

    def update(self, snapshot: Snapshot) -> None:
        if self._bar is None:
            self._bar = tqdm(total=_PARTS, bar_format=_FORMAT, **self._options)
        amounts = sizes(snapshot.received_bytes, snapshot.total_bytes, estimated=snapshot.total_estimated)
        pace = f"{amount(snapshot.speed_bytes_per_s)}/s {clock(snapshot.elapsed_s)} ETA {clock(snapshot.eta_s)}"
        self._bar.desc = f"{snapshot.phase} {files_of(snapshot)}"
        self._bar.bar_format = f"{_FORMAT}{amounts} {pace}"
        self._bar.n = int(_PARTS * (snapshot.share or 0.0))
        self._bar.refresh()

    def finish(self, snapshot: Snapshot) -> None:
        self.update(snapshot)
        self._bar.close()
        self._bar = None
