"""Progress without a terminal: plain lines, a callback, JSON lines."""

from __future__ import annotations

import io
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from perfkit import CallbackProgress, FileProgress, JsonLines, PlainLines, Snapshot, Toolkit, TransferError
from perfkit.progress.meter import Meter, State
from perfkit.progress.stream import print_line
from perfkit.server.server import Server
from tests.support.clock import Clock
from tests.support.terminal import Terminal

MIB = 1 << 20


def a_run(percent: float = 0.0, elapsed_s: float = 1.0, **changes: Any) -> Snapshot:
    received = int(percent * MIB)
    snapshot = Snapshot(
        "download", 8, 3, 0, received, 100 * MIB, 100 * MIB, 0, 10 * MIB, 65.0, elapsed_s, (), (), share=percent / 100
    )
    return replace(snapshot, **changes)


class Broken(io.StringIO):
    """A stream whose reader goes after so many writes."""

    def __init__(self, writes: int, error: Exception) -> None:
        super().__init__()
        self.left = writes
        self.tries = 0
        self.error = error

    def write(self, text: str) -> int:
        self.tries += 1
        if self.left == 0:
            raise self.error
        self.left -= 1
        return super().write(text)


def shares(out: io.StringIO) -> list[int]:
    return [int(line.split("%")[0]) for line in out.getvalue().splitlines() if "%" in line]


# -- plain lines ------------------------------------------------------------------------------------------------------


def test_a_line_for_every_tenth() -> None:
    """Ten updates a second for as long as it takes make nine lines and a summary."""
    out = io.StringIO()
    plain = PlainLines(out)
    for step in range(1001):
        plain.update(a_run(step / 10, step / 50))
    plain.finish(a_run(100, 20.0, files_done=8))
    *lines, last = out.getvalue().splitlines()
    assert shares(out) == [10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert lines[0] == " 10%  10.0/100.0 MiB  10.0 MiB/s  0:02  ETA 1:05  3/8 files"
    assert last == "8 files, 100.0 MiB in 0:20, 5.0 MiB/s"


def test_a_leap_is_one_line() -> None:
    """Tenths that were passed between two updates are not printed later."""
    out = io.StringIO()
    plain = PlainLines(out)
    for percent in (0, 47, 48, 49.9, 50, 99, 100):
        plain.update(a_run(percent))
    assert shares(out) == [47, 50, 99]


def test_a_line_every_half_minute() -> None:
    """A slow run is not silent; a line for a tenth starts the half minute anew."""
    out = io.StringIO()
    plain = PlainLines(out)
    for second in range(101):
        plain.update(a_run(9 if second < 50 else 11, float(second)))
    assert shares(out) == [9, 11, 11]


def test_an_unknown_total() -> None:
    """By time alone while nobody knows how many files there are; an estimated total is marked."""
    out = io.StringIO()
    PlainLines(out).update(a_run(50, total_estimated=True))
    assert out.getvalue().startswith(" 50%  50.0/100.0+ MiB")
    out = io.StringIO()
    plain = PlainLines(out)
    for second in range(0, 65, 5):
        plain.update(a_run(second, float(second), total_bytes=None, files_total=None, eta_s=None, share=None))
    assert out.getvalue().splitlines() == [
        "30.0 MiB  10.0 MiB/s  0:30  ETA -:--  3 files",
        "60.0 MiB  10.0 MiB/s  1:00  ETA -:--  3 files",
    ]


def test_what_nothing_comes_from_is_named() -> None:
    """A host that does not answer, within a second, and once; so is the first retry of a file that never began."""
    out, clock = io.StringIO(), Clock()
    meter, plain = Meter(clock=clock), PlainLines(out)
    meter.expect(1)
    file = meter.file("f")
    file.start(None, host="203.0.113.1:443")
    for _ in range(20):
        clock.now += 0.1
        plain.update(meter.snapshot())
        if clock.now < 1000.65:
            assert out.getvalue() == ""
    assert out.getvalue() == "waiting for 203.0.113.1:443\n"


def test_summaries_alone() -> None:
    """No lines in between, and none about the stages of a sync."""
    out = io.StringIO()
    plain = PlainLines(out, updates=False)
    plain.update(a_run(50))
    plain.finish(a_run(50, phase="fetching"))
    plain.finish(a_run(100, files_done=8))
    assert out.getvalue() == "8 files, 100.0 MiB in 0:01, 100.0 MiB/s\n"


@pytest.mark.parametrize(("end", "text"), [
    ({"files_total": 1, "files_done": 1}, "1 file, 50.0 MiB in 0:10, 5.0 MiB/s"),
    ({"files_done": 2, "files_cancelled": 6, "kept_bytes": 3 * MIB},
     "2 of 8 files, 50.0 MiB in 0:10, 5.0 MiB/s; 6 not finished; 3.0 MiB kept in partial files"),
    ({"files_done": 5, "files_failed": 3, "failures": (("HTTP status 404", 2), ("timed out", 1))},
     "5 of 8 files, 50.0 MiB in 0:10, 5.0 MiB/s; 3 failed (2 times HTTP status 404, timed out)"),
    ({"phase": "removing", "files_total": 1, "files_done": 1, "received_bytes": 0}, "removing: 1 file in 0:10"),
])  # fmt: skip
def test_the_summary_says_what_failed_and_what_is_kept(end: dict[str, Any], text: str) -> None:
    """What was done, what was not and why, and what is kept."""
    out = io.StringIO()
    PlainLines(out).finish(a_run(50, 10.0, **end))
    assert out.getvalue() == f"{text}\n"


def test_a_stage_that_moves_no_bytes() -> None:
    """It shows neither sizes nor a speed."""
    out = io.StringIO()
    PlainLines(out).update(a_run(50, phase="removing", received_bytes=0, total_bytes=0, share=0.5))
    assert out.getvalue() == "removing:  50%  0:01  ETA 1:05  3/8 files\n"


def test_several_runs() -> None:
    """One object shows one run after another, each from its beginning."""
    out = io.StringIO()
    plain = PlainLines(out)
    for _ in range(2):
        for percent in (0, 50, 100):
            plain.update(a_run(percent, 31.0 if percent == 0 else 32.0))
        plain.finish(
            a_run(
                100,
                40.0,
                files_failed=1,
                resumed_bytes=20 * MIB,
                files_resumed=2,
                files_unchanged=1,
                failures=(("HTTP status 404", 1),),
            )
        )
    lines = out.getvalue().splitlines()
    assert lines[:3] == lines[3:]
    assert lines[2] == (
        "3 of 8 files, 100.0 MiB in 0:40, 2.0 MiB/s; 1 unchanged; 2 resumed from 20.0 MiB; 1 failed (HTTP status 404)"
    )


def test_nothing_to_do() -> None:
    """A run of no files, and one of empty files, divide by nothing."""
    out = io.StringIO()
    plain = PlainLines(out)
    for files in (0, 2):
        nothing = a_run(0, 0.0, files_total=files, files_done=files, total_bytes=0, known_bytes=0, eta_s=None)
        plain.update(nothing)
        plain.finish(nothing)
    assert out.getvalue().splitlines() == ["0 files, 0 B in 0:00, 0 B/s", "2 files, 0 B in 0:00, 0 B/s"]


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left on device"), ValueError("closed")])
@pytest.mark.parametrize("reporter", [PlainLines, JsonLines])
def test_a_broken_stream(reporter: type[PlainLines | JsonLines], error: Exception) -> None:
    """A log that can't be written does not end a download; it is not tried again."""
    out = Broken(1, error)
    progress = reporter(out)
    for percent in (10, 20, 30, 40):
        progress.update(a_run(percent))
    progress.finish(a_run(100))
    assert out.tries == 2
    assert len(out.getvalue().splitlines()) == 1


def test_a_stream_that_knows_few_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stream's encoding can't say becomes a question mark, in a log as anywhere."""
    stream = io.TextIOWrapper(raw := io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stderr", stream)
    print_line("naïve \udcff\nfile\x1b[2J")
    assert raw.getvalue() == b"na?ve ??file?[2J\n"


# -- callback ---------------------------------------------------------------------------------------------------------


def test_a_callback(tmp_path: Path) -> None:
    """It sees the run grow, each file's end once, and the last word."""
    site = tmp_path / "site"
    site.mkdir()
    for name in ("a", "b"):
        (site / name).write_bytes(b"x" * 200_000)
    seen: list[Snapshot] = []
    with Server(site, bytes_per_s=500_000) as server, Toolkit(progress=CallbackProgress(seen.append)) as kit:
        kit.download_many([f"{server.url}a", f"{server.url}b"], tmp_path / "out")
    received = [each.received_bytes for each in seen]
    assert received == sorted(received)
    assert any(0 < each < 400_000 for each in received)
    assert (seen[-1].received_bytes, seen[-1].files_done, seen[-1].active) == (400_000, 2, ())
    assert sorted(file.name for each in seen for file in each.finished) == ["a", "b"]
    assert {file.state for each in seen for file in each.finished} == {State.DONE}


def test_a_callback_that_raises(tmp_path: Path) -> None:
    """Its exception ends the work and reaches the caller; the Toolkit is as good as before."""
    (tmp_path / "f").write_bytes(b"x" * 300_000)
    raising = True

    def function(snapshot: Snapshot) -> None:
        if raising and snapshot.received_bytes:
            raise KeyError("mine")

    with Server(tmp_path, bytes_per_s=500_000) as server, Toolkit(progress=CallbackProgress(function)) as kit:
        with pytest.raises(KeyError, match="mine"):
            kit.download(f"{server.url}f", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        raising = False
        assert kit.download(f"{server.url}f", tmp_path / "out").bytes == 300_000


def test_a_callback_that_downloads(tmp_path: Path) -> None:
    """While another download runs, and after the last one."""
    (tmp_path / "f").write_bytes(b"x" * 300_000)
    fetched = []

    def function(snapshot: Snapshot) -> None:
        if (number := len(fetched)) < 2 and (snapshot.received_bytes if number == 0 else snapshot.files_done):
            fetched.append(None)
            kit.download(f"{server.url}f", tmp_path / f"{number}")

    with Server(tmp_path, bytes_per_s=500_000) as server, Toolkit(progress=CallbackProgress(function)) as kit:
        kit.download(f"{server.url}f", tmp_path / "out")
    assert [(tmp_path / name).stat().st_size for name in ("out", "0", "1")] == [300_000] * 3


# -- JSON lines -------------------------------------------------------------------------------------------------------


def test_json_lines() -> None:
    """An object a line, with the fields of Snapshot; states by their names, unknowns as null."""
    clock = Clock()
    meter = Meter(clock=clock)
    meter.expect(2)
    file, other = meter.file("ü\n\udcff"), meter.file("other")
    out = io.StringIO()
    progress = JsonLines(out)
    progress.update(meter.snapshot())
    file.start(None)
    other.start(5)
    clock.now += 1
    file.advance(10)
    progress.update(meter.snapshot())
    file.done()
    other.failed()
    progress.finish(meter.snapshot())
    first, second, last = map(json.loads, out.getvalue().splitlines())
    assert out.getvalue().isascii()
    for record, event in ((first, "progress"), (second, "progress"), (last, "finish")):
        assert record["event"] == event
        assert list(record) == ["event", *(field.name for field in fields(Snapshot))]
    assert first["eta_s"] is None
    assert second["active"][0] == {
        "name": "ü\n\udcff",
        "state": "active",
        "received_bytes": 10,
        "total_bytes": None,
        "resumed_bytes": 0,
        "speed_bytes_per_s": 10.0,
        "eta_s": None,
        "share": None,
        "elapsed_s": 1.0,
        "path": "",
        "host": "",
        "unchanged": False,
        "reason": "",
        "retries": 0,
        "retry_in_s": None,
    }
    assert set(second["active"][1]) == {field.name for field in fields(FileProgress)}
    assert [each["state"] for each in last["finished"]] == ["done", "failed"]
    assert (last["files_done"], last["files_failed"], last["active"]) == (1, 1, [])


# -- where they go ----------------------------------------------------------------------------------------------------


def test_standard_error_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output is for results."""
    PlainLines().finish(a_run(100))
    JsonLines().finish(a_run(100))
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 2


def test_silent_by_default(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A Toolkit without a progress writes nothing anywhere, not even when something fails."""
    (tmp_path / "f").write_bytes(b"x")
    with Server(tmp_path) as server, Toolkit() as kit:
        kit.download(f"{server.url}f", tmp_path / "out")
        with pytest.raises(TransferError):
            kit.download(f"{server.url}missing", tmp_path / "out2")
    assert capfd.readouterr() == ("", "")


def test_a_note_among_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the rest of a bar is cleared away behind it."""
    monkeypatch.setenv("TERM", "xterm")
    with Terminal(40, 5) as terminal:
        terminal.stream.write("#" * 30 + "\r")
        monkeypatch.setattr("sys.stderr", terminal.stream)
        print_line("a note")
        assert terminal.read() == ["a note"]
