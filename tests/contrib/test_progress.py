"""The tqdm and rich displays, with the real packages, and real downloads."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from tqdm.auto import tqdm

from perfkit import Snapshot, Toolkit
from perfkit.contrib.rich import RichProgress
from perfkit.contrib.tqdm import TqdmProgress
from perfkit.progress.meter import FileProgress, Progress, State
from perfkit.server.server import Server

MIB = 1 << 20
FILE = FileProgress("big.iso", State.ACTIVE, 25 * MIB, 100 * MIB, 0, 5.0 * MIB, 15.0, 0.25, 5.0)
SNAPSHOT = Snapshot(
    "download", 8, 3, 0, 50 * MIB, 200 * MIB, 200 * MIB, 0, 10.0 * MIB, 65.0, 5.0, (FILE,), (), share=0.25
)


@pytest.fixture(autouse=True)
def no_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    """tqdm's thread that redraws bars lives as long as the process."""
    monkeypatch.setattr(tqdm, "monitor_interval", 0)


def test_tqdm_shows_the_numbers_of_perfkit() -> None:
    """Not its own: its speed and time left are averages over the run."""
    out = io.StringIO()
    progress = TqdmProgress(file=out, ncols=100)
    progress.update(SNAPSHOT)
    line = out.getvalue().rpartition("\r")[2]
    assert re.fullmatch(r"download 3/8  25%\|.*\| 50\.0/200\.0 MiB 10\.0 MiB/s 0:05 ETA 1:05", line)


def test_rich_shows_the_numbers_of_perfkit() -> None:
    """A bar for the file, one for the run, and the summary."""
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    progress = RichProgress(console)
    progress.update(SNAPSHOT)
    progress.finish(SNAPSHOT)
    shown = re.sub(r"\x1b\[[?\d;]*\w", "", console.file.getvalue())  # type: ignore[attr-defined]
    assert re.search(r"big\.iso +.* 25% +25\.0/100\.0 MiB 5\.0 MiB/s 0:15", shown)
    assert re.search(r"download 3/8 .* 25% +50\.0/200\.0 MiB 10\.0 MiB/s 1:05", shown)
    assert "3 of 8 files, 50.0 MiB in 0:05, 10.0 MiB/s" in shown


@pytest.mark.parametrize(
    "make",
    [
        lambda out: TqdmProgress(file=out, ncols=100),
        lambda out: RichProgress(Console(file=out, width=100)),
    ],
    ids=["tqdm", "rich"],
)
def test_one_display_shows_two_runs(
    make: Callable[[io.StringIO], Progress], make_kit: Callable[..., Toolkit], tmp_path: Path
) -> None:
    """Two runs by one display, each whole at its end; a failed one as well."""
    site, out = tmp_path / "site", io.StringIO()
    site.mkdir()
    for name in "ab":
        (site / name).write_bytes(bytes(100_000))
    kit = make_kit(progress=make(out))
    with Server(site, bytes_per_s=400_000) as server:
        for _ in range(2):
            kit.download_many([f"{server.url}{name}" for name in "ab"], tmp_path / "out")
        list(kit.iter_downloads([f"{server.url}missing"], tmp_path / "out"))
    assert out.getvalue().count("195.3/195.3 KiB") >= 1
    assert "2/2" in out.getvalue()
    assert "1 failed" in out.getvalue()
