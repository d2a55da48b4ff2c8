"""Live bars, on a real terminal (a pty), read back as a person would see them."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from perfkit import Bars, PlainLines, Toolkit
from perfkit.progress.bars import for_stream
from perfkit.progress.meter import FileMeter, FileProgress, Meter, Snapshot, State
from perfkit.progress.text import display_width
from perfkit.server.server import Server
from tests.support.clock import Clock
from tests.support.terminal import Terminal
from tests.support.tools import need

MIB = 1 << 20


@pytest.fixture(autouse=True)
def ordinary_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the machine that runs the tests is, is not part of a test."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("CI", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    before = Bars._shown
    yield
    Bars._shown = before


def a_file(name: str, received: int = 25 * MIB, total: int | None = 100 * MIB, state: State = State.ACTIVE,
           speed: float = 5 * MIB, eta: float | None = 15.0, **changes: object) -> FileProgress:  # fmt: skip
    share = min(0.9999, received / max(1, total)) if total is not None else None
    file = FileProgress(name, state, received, total, 0, speed, eta, share, elapsed_s=5.0)
    return replace(file, **changes)  # type: ignore[arg-type]


def a_run(*active: FileProgress, **changes: object) -> Snapshot:
    snapshot = Snapshot("download", 8, 3, 0, 50 * MIB, 200 * MIB, 200 * MIB, 0, 10 * MIB, 65.0, 5.0, active, (),
                        share=0.25)  # fmt: skip
    return replace(snapshot, **changes)  # type: ignore[arg-type]


def test_a_line_for_each_file_and_a_total() -> None:
    """Name, share, bar, sizes, speed and time left; counts, sums and the time so far in the last line."""
    with Terminal(100, 24) as terminal:
        Bars(terminal.stream).update(a_run(a_file("one.bin"), a_file("two.bin", 50 * MIB, eta=10.0)))
        one, two, total = terminal.read()
    assert re.fullmatch(r"one\.bin +25% ▕█+ +▏ +25\.0/100\.0 MiB +5\.0 MiB/s +0:15", one)
    assert re.fullmatch(r"two\.bin +50% ▕█+ +▏ +50\.0/100\.0 MiB +5\.0 MiB/s +0:10", two)
    assert re.fullmatch(r"total 3/8 +25% ▕█+ +▏ +50\.0/200\.0 MiB +10\.0 MiB/s +0:05  ETA 1:05", total)
    assert two.count("█") == pytest.approx(2 * one.count("█"), abs=1)
    assert len({line.index("▕") for line in (one, two, total)}) == len({len(line) for line in (one, two, total)}) == 1


@pytest.mark.parametrize(("columns", "shown"), [
    (80, ["25% ", "/999.0 MiB", "5.0 MiB/s", "ETA 1:05"]), (60, ["25% ", "MiB", "1:05"]), (40, ["25% ", "1:05"]),
])  # fmt: skip
def test_what_matters_most_stays(columns: int, shown: list[str]) -> None:
    """A bar has twelve cells at least; a name loses its middle, and keeps its extension."""
    name = "a-name-that-is-much-too-long-for-this-screen.tar.gz"
    with Terminal(columns, 24) as terminal:
        Bars(terminal.stream).update(a_run(a_file(name, 123 * MIB, 999 * MIB), files_failed=1))
        file, total = terminal.read()
    assert all(file.index("▏") - file.index("▕") - 1 >= 12 for file in (file, total))
    assert re.match(r"a-na\S*…\S*r\.gz +12%", file)
    assert total.startswith("total 3/8, 1")
    assert all(each in f"{file}{total}" for each in shown)
    assert len(total) == columns - 1


def test_an_estimated_total_is_marked() -> None:
    """As long as sizes are missing."""
    with Terminal(80, 24) as terminal:
        Bars(terminal.stream).update(a_run(total_estimated=True))
        assert " 50.0/200.0+ MiB " in terminal.read()[0]


def test_finished_files_leave_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they went, their size and mean speed; or unchanged, resumed, or why they failed."""
    monkeypatch.chdir(tmp_path)
    ended = [
        a_file("a.iso", 30 * MIB, 30 * MIB, State.DONE, path=str(tmp_path / "out/a.iso")),
        a_file("b.zip", 20 * MIB, 20 * MIB, State.DONE, path="/srv/b.zip", resumed_bytes=12 * MIB),
        a_file("c.txt", 0, 0, State.DONE, path=str(tmp_path / "c.txt"), unchanged=True, elapsed_s=0.1),
        a_file("d.bin", 0, 0, State.FAILED, path=str(tmp_path / "d.bin"), reason="HTTP status 404"),
        a_file("e.bin", 5, 9, State.CANCELLED),
    ]
    lines = ["out/a.iso  30.0 MiB  5.0 MiB/s", "/srv/b.zip  20.0 MiB  5.0 MiB/s, resumed from 12.0 MiB",
             "c.txt  unchanged", "d.bin  failed: HTTP status 404"]  # fmt: skip
    with Terminal(80, 10) as terminal:
        bars = Bars(terminal.stream)
        bars.update(a_run(a_file("f")))
        bars.update(a_run(a_file("f"), finished=tuple(ended)))
        assert terminal.read()[:4] == lines
        assert len(terminal.read()) == 6
        bars.update(a_run(finished=(a_file("x" * 99 + ".tar.gz", state=State.DONE),)))
        assert re.fullmatch(r"x+…x+\.tar\.gz  25\.0 MiB  5\.0 MiB/s", terminal.read()[4])
        bars.finish(a_run())
    with Terminal(80, 10) as terminal:  # of very many, those that took time or failed; a caller may report failures
        bars = Bars(terminal.stream)
        bars.update(a_run(finished=tuple(ended), files_total=5000))
        assert terminal.read()[:-1] == [lines[0], lines[1], lines[3]]
        bars.finish(a_run())
        Bars(terminal.stream, failures=False).finish(a_run(finished=tuple(ended), files_done=8))
        assert terminal.read()[4:-1] == lines[:3]


def test_a_single_file_has_a_single_line() -> None:
    """There is nothing to add up."""
    with Terminal(80, 10) as terminal:
        Bars(terminal.stream).update(a_run(a_file("f.iso"), files_total=1, files_done=0))
        (line,) = terminal.read()
        assert re.fullmatch(r"f\.iso +25% ▕█+ +▏ 50\.0/200\.0 MiB +10\.0 MiB/s +0:05  ETA 1:05", line)


def test_a_file_has_a_bar_when_it_has_lasted() -> None:
    """Half a second: what is over sooner would only flicker."""
    with Terminal(80, 10) as terminal:
        Bars(terminal.stream).update(a_run(a_file("old"), a_file("young", elapsed_s=0.4)))
        assert [line.split()[0] for line in terminal.read()] == ["old", "total"]


def test_what_delays_a_file_is_said() -> None:
    """A retry says why, which try, and when; a host that does not answer is named."""
    with Terminal(80, 10) as terminal:
        Bars(terminal.stream).update(a_run(
            a_file("a.bin", state=State.RETRYING, reason="HTTP status 503", retries=2, retry_in_s=5.0),
            a_file("b.bin", 0, None, host="203.0.113.1:443"),
        ))  # fmt: skip
        again, waiting, _ = terminal.read()
    assert re.fullmatch(r"a\.bin +25% try 3 in 0:05: HTTP status 503", again)
    assert re.fullmatch(r"b\.bin +waiting for 203\.0\.113\.1:443", waiting)


def test_bars_move_in_place_and_leave_a_summary() -> None:
    """Many frames take no more of the screen than one; in the end there is a line."""
    with Terminal(90, 10) as terminal:
        bars = Bars(terminal.stream)
        for step in range(100):
            bars.update(a_run(a_file("f", step * MIB)))
            if step % 10 == 0:
                assert len(terminal.read()) == 2
        assert " 99% " in terminal.read()[0]
        bars.finish(a_run(files_done=8, received_bytes=200 * MIB, elapsed_s=20.0))
        assert terminal.read() == ["8 files, 200.0 MiB in 0:20, 10.0 MiB/s"]
        assert terminal.scrolled_away == 0


def test_what_others_print_stays() -> None:
    """A line printed between two frames stays, whole, above the bars."""
    with Terminal(80, 20) as terminal:
        bars = Bars(terminal.stream)
        for number in range(3):
            bars.update(a_run(a_file("f")))
            print(f"note {number}", file=terminal.stream, flush=True)
        bars.update(a_run(a_file("f")))
        lines = terminal.read()
        assert lines[:3] == ["note 0", "note 1", "note 2"]
        assert len(lines) == 5


def test_resize_in_the_middle() -> None:
    """The next frame fits the new size, wider or narrower, and nobody's SIGWINCH handler is touched."""
    before = signal.getsignal(signal.SIGWINCH)
    with Terminal(100, 24) as terminal:
        bars = Bars(terminal.stream)
        for columns in (100, 60, 30, 140):
            terminal.resize(columns, 24)
            bars.update(a_run(a_file("a-name-that-is-rather-long.tar.gz")))
            lines = terminal.read()
            assert len(lines) == 2
            assert all(len(line) < columns for line in lines)
            assert ("▕" in lines[0]) == (columns > 34)
        assert len(lines[0]) == 139
        assert signal.getsignal(signal.SIGWINCH) is before


@pytest.mark.parametrize(("columns", "lines"), [(1, 24), (2, 2), (80, 1), (80, 2), (80, 3), (5, 5), (34, 4), (0, 0)])
def test_tiny_terminals(columns: int, lines: int) -> None:
    """Whatever the size, nothing wraps and nothing scrolls away, frame after frame."""
    with Terminal(columns, lines) as terminal:
        if columns == 0:  # a pty whose size nobody set
            terminal.screen.resize(24, 80)
        bars = Bars(terminal.stream)
        for step in range(5):
            bars.update(a_run(*(a_file(f"file-{number}", step * MIB) for number in range(6))))
            shown = terminal.read()
        assert terminal.scrolled_away == 0
        assert len(shown) <= max(0, (lines or 24) - 1)
        if lines >= 2 and columns >= 20:
            assert "total" in shown[-1]
        bars.finish(a_run())


def test_more_files_than_lines() -> None:
    """As many as fit, then how many more; those that wait for a retry give way to those that move."""
    waiting = [a_file(f"waiting-{number}", state=State.RETRYING) for number in range(20)]
    moving = [a_file(f"moving-{number}") for number in range(4)]
    with Terminal(100, 18) as terminal:
        Bars(terminal.stream).update(a_run(*waiting, *moving))
        lines = terminal.read()
    assert len(lines) == 8
    assert [line.split()[0] for line in lines] == [
        "moving-0", "moving-1", "moving-2", "moving-3", "waiting-0", "waiting-1", "and", "total"]  # fmt: skip
    assert lines[-2] == "and 18 more"


def test_names_that_are_wide_or_hostile() -> None:
    """Wide characters take two columns; what could move the cursor or recolour the screen is not sent."""
    names = ["日本語のファイル名がとても長い.zip", "e\u0301te\u0301.txt", "\x1b[2J\x1b[31mred\n\r\t\x07",
             "\u202egpj.exe", "\udcff.bin"]  # fmt: skip
    with Terminal(80, 24) as terminal:
        Bars(terminal.stream).update(a_run(*(a_file(name) for name in names)))
        lines = terminal.read()
        raw = terminal.raw.decode()
    assert len(lines) == 6
    frame = [re.sub(r"\x1b\[\d*[AJK]|\x1b\[\?7[lh]|\r", "", line) for line in raw.split("\n")[1:]]
    assert {display_width(line) for line in frame} == {0, 79}  # empty lines, until others are above the bars
    assert set(re.findall(r"\x1b[^A-Za-z]*[A-Za-z]", raw)) == {"\x1b[K", "\x1b[J", "\x1b[11A", "\x1b[?7l", "\x1b[?7h"}
    assert "\u202e" not in raw


def test_states_and_what_is_not_known() -> None:
    """Checks are named; a file of unknown size has a marker that bounces, and no share."""
    with Terminal(100, 24) as terminal:
        bars = Bars(terminal.stream)
        bars.update(a_run(
            a_file("unknown", total=None, eta=None), a_file("check", 100 * MIB, state=State.VERIFYING),
            a_file("over", 101 * MIB), total_bytes=None, files_total=None, eta_s=None, files_failed=2, share=None,
        ))  # fmt: skip
        unknown, check, over, total = terminal.read()
    assert "%" not in unknown
    assert unknown.count("█") == 1
    assert unknown.endswith("-:--")
    assert "verifying" in check
    assert " 99% " in over  # whole when it is verified and in its place
    assert total.startswith("total 3, 2 failed")
    assert "%" not in total


def test_a_run_with_resume_and_retry_as_it_goes() -> None:
    """Numbers from a real meter: resumed bytes fill the bar but not the speed; a retry is named."""
    clock = Clock()
    meter = Meter(clock=clock)
    meter.expect(1)
    file = meter.file("f")
    with Terminal(100, 24) as terminal:
        bars = Bars(terminal.stream)
        file.start(100 * MIB)
        file.resumed(60 * MIB)
        clock.now += 1.0
        file.advance(10 * MIB)
        bars.update(meter.snapshot())
        assert " 70% " in terminal.read()[0]
        assert re.search(r"10\.0 MiB/s +0:01  ETA 0:03$", terminal.read()[0])
        file.retrying("connection reset", 1.0)
        file.reset()
        bars.update(meter.snapshot())
        assert terminal.read()[0].endswith(" 70% try 2 in 0:01: connection reset")  # it never falls
        file.start(100 * MIB)
        file.advance(100 * MIB)
        file.done()
        bars.finish(meter.snapshot())
        assert terminal.read() == ["f  100.0 MiB  110.0 MiB/s", "1 file, 100.0 MiB in 0:01, 100.0 MiB/s"]


def test_five_thousand_files_cost_little() -> None:
    """A frame of 5,000 files under way draws sixteen lines at most, and is one write."""
    meter = Meter(clock=(clock := Clock()))
    meter.expect(5000)
    files: list[FileMeter] = [meter.file(f"{number}.rules") for number in range(5000)]
    for file in files:
        file.start(1000)
    clock.now += 1.0
    writes: list[str] = []

    with Terminal(100, 60) as terminal:
        stream = terminal.stream
        write = stream.write

        class Counting:
            encoding = "utf-8"
            isatty, fileno, flush = stream.isatty, stream.fileno, stream.flush

            def write(self, text: str) -> int:
                writes.append(text)
                return write(text)

        bars = Bars(Counting())  # type: ignore[arg-type]
        for _ in range(3):
            bars.update(meter.snapshot())
        lines = terminal.read()
        assert len(writes) == 3
        assert len(lines) == 17
        assert lines[-2] == "and 4985 more"
        for file in files:
            file.advance(1000)
            file.done()
        bars.finish(meter.snapshot())
        assert terminal.read()[-1].startswith("5000 files, 4.8 MiB in ")


@pytest.mark.parametrize("name", ["NO_COLOR", "FORCE_COLOR"])
def test_no_colours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are none to begin with, so NO_COLOR holds; nor does progressbar2 bring its own."""
    monkeypatch.setenv(name, "1")
    with Terminal() as terminal:
        Bars(terminal.stream).update(a_run(a_file("f")))
        terminal.read()
        assert not re.search(rb"\x1b\[[\d;]*m", terminal.raw)


def test_ascii_terminal() -> None:
    """A terminal that knows no more than ASCII gets bars of # and dots, and ? for the rest."""
    with Terminal(encoding="ascii") as terminal:
        Bars(terminal.stream).update(a_run(a_file("naïve.bin"), a_file("x", total=None)))
        lines = terminal.read()
        assert re.search(r"na\?ve\.bin +25% \[#+\.+\]", lines[0])
        terminal.raw.decode("ascii")


@pytest.mark.parametrize(("variable", "value", "kind"), [
    ("TERM", "dumb", PlainLines), ("CI", "true", PlainLines), ("CI", "false", Bars), ("TERM", "linux", Bars),
])  # fmt: skip
def test_what_a_terminal_is_shown(variable: str, value: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dumb terminals and CI logs get plain lines."""
    monkeypatch.setenv(variable, value)
    with Terminal() as terminal:
        assert type(for_stream(terminal.stream)) is kind


class Jupyter(io.StringIO):
    """Says it is a terminal, and has no file behind it."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Jupyter])
def test_no_terminal_no_bars(stream: type[io.StringIO]) -> None:
    """Pipes, files and notebooks: plain lines, from `for_stream` and from Bars itself."""
    assert type(for_stream(stream())) is PlainLines
    out = stream()
    bars = Bars(out)
    bars.update(a_run(a_file("f")))
    bars.finish(a_run())
    assert out.getvalue().splitlines() == [
        " 25%  50.0/200.0 MiB  10.0 MiB/s  0:05  ETA 1:05  3/8 files",
        "3 of 8 files, 50.0 MiB in 0:05, 10.0 MiB/s",
    ]


def test_one_line_in_a_notebook() -> None:
    """A Jupyter cell has no cursor to move up: the total is drawn over itself, and the summary is last."""
    kind = type("OutStream", (Jupyter,), {"__module__": "ipykernel.iostream"})  # as ipykernel calls its own
    out = kind()
    bars = Bars(out)
    for _ in range(3):
        bars.update(a_run(a_file("f")))
    bars.finish(a_run(files_done=8))
    *frames, last = out.getvalue().split("\r")[1:]
    assert all(re.match(r"total 3/8 +25% \S+", frame) for frame in frames)
    assert {len(frame) for frame in frames} == {100}
    assert last.split("  ")[0] == "8 files, 50.0 MiB in 0:05, 10.0 MiB/s"
    assert last.endswith("\n")


def test_no_standard_error_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon without one has silent progress."""
    monkeypatch.setattr(sys, "stderr", None)
    progress = for_stream()
    progress.update(a_run(received_bytes=100 * MIB))
    progress.finish(a_run())


def test_a_terminal_that_is_closed(tmp_path: Path) -> None:
    """The window is closed in the middle: the download goes on, unseen."""
    (tmp_path / "f").write_bytes(b"x" * MIB)
    master, slave = os.openpty()
    stream = open(slave, "w", encoding="utf-8")  # noqa: SIM115
    with Server(tmp_path, bytes_per_s=4 * MIB) as server:
        bars = Bars(stream)
        bars.update(a_run(a_file("f")))
        os.close(master)
        with Toolkit(progress=bars) as kit:
            assert kit.download(f"{server.url}f", tmp_path / "out").bytes == MIB
        with pytest.raises(OSError, match="Input/output error"):
            os.write(slave, b"x")
    with contextlib.suppress(OSError):
        stream.close()  # flushes what could not be written


def test_two_toolkits_share_a_screen() -> None:
    """One set of bars is drawn at a time; the other has its last word, and its turn when the first has ended."""
    with Terminal(80, 20) as terminal:
        first, second = Bars(terminal.stream), Bars(terminal.stream)
        first.update(a_run(a_file("first")))
        second.update(a_run(a_file("second")))
        assert [line.split()[0] for line in terminal.read()] == ["first", "total"]
        second.finish(a_run(files_done=1))
        first.update(a_run(a_file("first")))
        assert [line.split()[0] for line in terminal.read()] == ["1", "first", "total"]
        first.finish(a_run(files_done=2))
        second.update(a_run(a_file("second")))
        assert [line.split()[0] for line in terminal.read()] == ["1", "2", "second", "total"]
        second.finish(a_run())


def test_perfkit_get_in_tmux(tmp_path: Path) -> None:
    """The real command, against the real server, in a terminal that someone sits at."""
    need("tmux")
    site, out = tmp_path / "site", tmp_path / "out"
    site.mkdir()
    for name in ("a.bin", "b.bin"):
        (site / name).write_bytes(os.urandom(5 * MIB))  # large enough for both to come at once
    socket = str(tmp_path / "tmux.sock")

    def tmux(*arguments: str) -> str:
        run = subprocess.run(["tmux", "-f", "/dev/null", "-S", socket, *arguments], capture_output=True, timeout=100,
                             check=True, env={**os.environ, "LC_ALL": "C.UTF-8"})  # fmt: skip
        return run.stdout.decode()

    def screen_with(pattern: str) -> str:
        deadline = time.monotonic() + 100
        while not re.search(pattern, shown := tmux("capture-pane", "-p"), re.MULTILINE):
            assert time.monotonic() < deadline, shown
            time.sleep(0.05)
        return shown

    with Server(site) as server:
        get = [sys.executable, "-m", "perfkit", "get", "-d", str(out), "--limit-rate", "4M",
               f"{server.url}a.bin", f"{server.url}b.bin"]  # fmt: skip
        tmux("new-session", "-d", "-x", "110", "-y", "20", f"env -u CI {shlex.join(get)}; echo code $?; cat")
        try:
            screen_with(r"^[ab]\.bin +\d+% ▕.* MiB/s(.*\n)+total 0/2 +\d+% ▕.* MiB/s")
            for columns in ("55", "110", "80"):  # narrower: what was drawn is broken into two lines
                tmux("resize-window", "-x", columns, "-y", "12")
                time.sleep(0.25)
            screen_with("code 0")
            lines = [line for line in tmux("capture-pane", "-p", "-S", "-").splitlines() if line]
            assert len(lines) == 4, lines
            assert all(re.search(r"[ab]\.bin  5\.0 MiB  \d\.\d MiB/s$", line) for line in lines[:2])
            assert re.match(r"2 files, 10\.0 MiB in 0:\d\d, \d", lines[2])
        finally:
            tmux("kill-server")
    assert (out / "a.bin").read_bytes() == (site / "a.bin").read_bytes()
