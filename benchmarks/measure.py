"""Measures whole processes in alternating pairs, and reports a table, JSON and a plot.

Nothing in here knows what is measured. Walls are seconds, memory is bytes (MB is 10**6 of them), and a ratio is our
wall time divided by the peer's: below 1 we are ahead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import marshal
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

MB = 10**6


class RunFailedError(Exception):
    """A process failed, timed out, or had a wrong result: its time means nothing."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A command to measure.

    With `own_clock` the last line of its output is `{"seconds": S}`, and S is its time; CPU and memory are still those
    of the whole process.
    """

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)  # on top of the bench's environment
    own_clock: bool = False


@dataclass(frozen=True, kw_only=True)
class Run:
    """One process, measured from fork to wait."""

    wall_s: float
    cpu_s: float  # user and system, of the process and the children it waited for
    peak_rss: int  # bytes; of the process, or its largest child


@dataclass(frozen=True, kw_only=True)
class Bar:
    """The median ratio against the best of these peers must not exceed `limit`; None only shows the ratio."""

    limit: float | None
    peers: tuple[Contestant, ...]


@dataclass(frozen=True, kw_only=True)
class Contest:
    """A task, its contestants, and an action after each run, outside the measured time.

    `after` checks what the run made, raises RunFailedError if it is wrong, and clears it away.
    """

    name: str
    title: str
    ours: Contestant
    bars: tuple[Bar, ...]
    after: Callable[[], None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Ours against one peer. `limit` is None where there is no bar, or another peer of the same bar was better."""

    contest: str
    title: str
    peer: str
    limit: float | None
    runs: tuple[tuple[Run, Run], ...]  # (ours, theirs), a pair each
    error: str | None = None

    @property
    def ratios(self) -> list[float]:
        return [ours.wall_s / theirs.wall_s for ours, theirs in self.runs]

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    @property
    def holds(self) -> bool | None:
        """Whether the bar holds; None without a bar or without runs."""
        return None if self.limit is None or not self.runs else self.ratio <= self.limit


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of perfkit that is compared with a bar only."""

    contest: str
    title: str
    name: str
    value: float
    unit: str
    bar: str
    holds: bool | None
    details: Mapping[str, object] = field(default_factory=dict)
    beside: Mapping[str, float] = field(default_factory=dict)  # figures of others, in the same unit
    limit: float | None = None  # the bar as a number, if it is one: the plot shows the ratio to it


_LAUNCHER = """\
import marshal, os, sys, time
while True:
    command, env, out, err = marshal.load(sys.stdin.buffer)
    files = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    for fd, path in ((1, out), (2, err)):
        files.append((os.POSIX_SPAWN_OPEN, fd, path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
    began = time.perf_counter()
    try:
        pid = os.posix_spawnp(command[0], command, env, file_actions=files)
    except OSError as error:
        marshal.dump(str(error), sys.stdout.buffer)
    else:
        marshal.dump(pid, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        _, status, usage = os.wait4(pid, 0)
        wall_s = time.perf_counter() - began
        marshal.dump((os.waitstatus_to_exitcode(status), wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss),
                     sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""


class Bench:
    """The environment of the runs: an empty directory, clean variables, one command at a time; a context manager.

    Proxies, variables that begin with one of `without`, and the settings in a user's home would change what is
    measured; children see none of them. Python's bytecode is cached, for a source tree as for installed modules. The
    children are started by a small process, since on Linux a process inherits the peak RSS of the one that starts it.
    """

    def __init__(self, directory: Path, *, without: tuple[str, ...] = (), timeout_s: float = 600.0) -> None:
        self.directory = directory
        self._timeout_s = timeout_s
        self._out, self._err = directory / "stdout", directory / "stderr"
        home = directory / "home"
        home.mkdir()
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.lower().endswith("_proxy") and not name.startswith(("PYTHON", *without))
        }
        self._env = {**kept, "HOME": str(home), "PYTHONPYCACHEPREFIX": str(directory / "pycache")}

    def __enter__(self) -> Bench:
        self._launcher = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self.directory,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._launcher.terminate()
        self._launcher.communicate()

    def run(self, contestant: Contestant) -> Run:
        """Run it once.

        Raises:
            RunFailedError: it can't be started, ends with another exit code than 0, or takes longer than the timeout.
        """
        command, env = list(contestant.command), {**self._env, **contestant.env}
        self._tell((command, env, str(self._out), str(self._err)))
        pid = self._hear()
        if isinstance(pid, str):
            raise RunFailedError(f"{contestant.name} could not be started: {pid}")
        timer = threading.Timer(self._timeout_s, os.kill, (pid, signal.SIGKILL))
        timer.start()
        try:
            code, wall_s, cpu_s, peak_kib = self._hear()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            raise
        finally:
            timer.cancel()
        if code != 0:
            said = self._err.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
            raise RunFailedError(f"{contestant.name} ended with {code}: {' / '.join(said)}")
        if contestant.own_clock:
            wall_s = json.loads(self._out.read_text(encoding="utf-8").splitlines()[-1])["seconds"]
        return Run(wall_s=wall_s, cpu_s=cpu_s, peak_rss=peak_kib * 1024)

    def _tell(self, job: tuple[list[str], dict[str, str], str, str]) -> None:
        assert self._launcher.stdin is not None
        marshal.dump(job, self._launcher.stdin)
        self._launcher.stdin.flush()

    def _hear(self) -> Any:
        assert self._launcher.stdout is not None
        return marshal.load(self._launcher.stdout)

    def compare(self, contest: Contest, pairs: int) -> list[Comparison]:
        """Run perfkit and each peer alternately, `pairs` times, after one unmeasured run each.

        All peers take part in every round, so that a slow minute of the machine hits them alike; who goes first changes
        from round to round. A peer that fails is out, with the reason. If ours fails, the contest is lost.
        """
        peers = [peer for bar in contest.bars for peer in bar.peers]
        runs: dict[str, list[tuple[Run, Run]]] = {peer.name: [] for peer in peers}
        errors: dict[str, str] = {}

        def attempt(contestant: Contestant) -> Run | None:
            try:
                found = self.run(contestant)
                contest.after()
            except RunFailedError as error:
                with contextlib.suppress(RunFailedError):
                    contest.after()  # removes leftovers
                errors[contestant.name] = str(error)
                return None
            return found

        for number in range(pairs + 1):
            for peer in peers:
                if peer.name in errors or contest.ours.name in errors:
                    continue
                note(f"{contest.name}: {peer.name}, " + (f"pair {number} of {pairs}" if number else "warming up"))
                ours = attempt(contest.ours) if number % 2 else None
                theirs = attempt(peer)
                if not number % 2 and (number or peer is peers[0]):
                    ours = attempt(contest.ours)
                if number and ours and theirs:
                    runs[peer.name].append((ours, theirs))
        note("")
        if contest.ours.name in errors:
            errors = dict.fromkeys(runs, f"OURS FAILED: {errors[contest.ours.name]}")
        found = []
        for bar in contest.bars:
            best = _best(bar, runs, errors)
            found += [
                Comparison(
                    contest=contest.name,
                    title=contest.title,
                    peer=peer.name,
                    limit=bar.limit if peer.name == best else None,
                    runs=() if peer.name in errors else tuple(runs[peer.name]),
                    error=errors.get(peer.name),
                )
                for peer in bar.peers
            ]
        return found


def _best(bar: Bar, runs: Mapping[str, list[tuple[Run, Run]]], errors: Mapping[str, str]) -> str | None:
    """The peer with the lowest median wall time, of those that succeeded."""
    able = [peer.name for peer in bar.peers if peer.name not in errors]
    return min(able, key=lambda name: median(theirs.wall_s for _, theirs in runs[name]), default=None)


@dataclass
class Report:
    """The results, and their output formats."""

    benchmark: str
    settings: Mapping[str, object]
    versions: Mapping[str, str]
    comparisons: list[Comparison] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, comparisons: Sequence[Comparison], *, rss_limit: int) -> None:
        """Add comparisons, and check the memory of perfkit's runs in them."""
        self.comparisons += comparisons
        peaks = [ours.peak_rss for comparison in comparisons for ours, _ in comparison.runs]
        if peaks:
            self.figures.append(memory(comparisons[0].contest, comparisons[0].title, max(peaks), limit=rss_limit))

    @property
    def missed(self) -> list[str]:
        """The missed bars."""
        ratios = [
            f"{found.contest}: {found.peer}"
            for found in self.comparisons
            if found.holds is False or (found.error or "").startswith("OURS")
        ]
        return ratios + [f"{found.contest}: {found.name}" for found in self.figures if found.holds is False]

    def table(self) -> str:
        """The table, in at most 120 columns."""
        lines: list[str] = []
        head = ("against", "ratio (min..max)", "bar", "holds", "wall s", "CPU s", "peak MB")
        layout = "  {:<28} {:<20} {:<7} {:<6} {:>17} {:>17} {:>15}"
        titles = [found.title for found in self.comparisons] + [figure.title for figure in self.figures]
        for title in dict.fromkeys(titles):
            lines += ["", title]
            compared = [found for found in self.comparisons if found.title == title]
            if compared:
                lines.append(layout.format(*head))
            for found in compared:
                if not found.runs:
                    lines.append(f"  {found.peer:<28} {found.error}")
                    continue
                ours, theirs = zip(*found.runs, strict=True)
                both = [(_middle(ours, name), _middle(theirs, name)) for name in ("wall_s", "cpu_s", "peak_rss")]
                lines.append(
                    layout.format(
                        found.peer,
                        f"{found.ratio:.2f} ({min(found.ratios):.2f}..{max(found.ratios):.2f})",
                        "" if found.limit is None else f"<={found.limit:.2f}",
                        _verdict(found.holds),
                        *(f"{ours:.3f} : {theirs:.3f}" for ours, theirs in both[:2]),
                        f"{both[2][0] / MB:.0f} : {both[2][1] / MB:.0f}",
                    )
                )
            for figure in (found for found in self.figures if found.title == title):
                number = f"{_number(figure.value)} {figure.unit}"
                others = "".join(f"  {name} {_number(value)}" for name, value in figure.beside.items())
                lines.append(f"  {figure.name:<28} {number:<20} {figure.bar:<15} {_verdict(figure.holds):<4}{others}")
        lines += ["", *self.notes]
        lost = [found for found in self.comparisons if not found.runs]
        lines += ["without result:", *(f"  {found.contest}: {found.peer}" for found in lost)] if lost else []
        missed = self.missed
        lines += ["bars missed:", *(f"  {one}" for one in missed)] if missed else ["every bar that was measured holds"]
        return "\n".join(lines)

    def as_json(self) -> dict[str, object]:
        """All results, including each single run."""
        return {
            "benchmark": self.benchmark,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "settings": dict(self.settings),
            "machine": machine(),
            "versions": dict(self.versions),
            "comparisons": [
                {
                    **{name: getattr(found, name) for name in ("contest", "title", "peer", "limit", "holds", "error")},
                    "ratio": found.ratio if found.runs else None,
                    "ratios": found.ratios,
                    "runs": [{"ours": dataclasses.asdict(a), "peer": dataclasses.asdict(b)} for a, b in found.runs],
                }
                for found in self.comparisons
            ],
            "figures": [dataclasses.asdict(figure) for figure in self.figures],
            "missed": self.missed,
            "notes": self.notes,
        }

    def finish(self, directory: Path) -> int:
        """Print the table and write the files, named like the benchmark; returns the exit code, 1 if a bar was missed
        in a full run.
        """
        print(self.table())
        for path in self.write(directory, self.benchmark):
            print(f"written: {path}")
        return 1 if self.missed and not self.benchmark.endswith("-smoke") else 0

    def write(self, directory: Path, name: str) -> list[Path]:
        """`name`.json and, if matplotlib is installed, `name`.png; returns the paths."""
        directory.mkdir(parents=True, exist_ok=True)
        written = [directory / f"{name}.json"]
        written[0].write_text(json.dumps(self.as_json(), indent=1) + "\n", encoding="utf-8")
        shown = [
            _Bar(
                f"{found.contest} / {found.peer}",
                found.ratio,
                min(found.ratios),
                max(found.ratios),
                found.limit,
                found.holds,
            )
            for found in self.comparisons
            if found.runs
        ]
        for found in (figure for figure in self.figures if figure.limit):
            share = found.value / found.limit
            shown.append(_Bar(f"{found.contest} / {found.name}, of the bar", share, share, share, 1.0, found.holds))
        if shown:
            try:
                _plot(shown, f"{self.benchmark}: our wall time / theirs", directory / f"{name}.png")
                written.append(directory / f"{name}.png")
            except ImportError:
                note("no plot: matplotlib is not installed\n")
        return written


def _middle(runs: Sequence[Run], name: str) -> float:
    return float(median(getattr(run, name) for run in runs))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10_000 else f"{value:.2f}"


def _verdict(holds: bool | None) -> str:
    return {True: "yes", False: "NO", None: "-"}[holds]


@dataclass(frozen=True)
class _Bar:
    """A line of the plot."""

    label: str
    value: float
    least: float
    most: float
    limit: float | None
    holds: bool | None


def _plot(shown: Sequence[_Bar], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.27 * len(shown)), layout="constrained")
    places = range(len(shown))
    colours = {True: "#2a7f4f", False: "#b3362b", None: "#8a8f98"}
    middles = [found.value for found in shown]
    below = [found.value - found.least for found in shown]
    above = [found.most - found.value for found in shown]
    axes.barh(places, middles, xerr=[below, above], color=[colours[found.holds] for found in shown], ecolor="#333333")
    for place, found in zip(places, shown, strict=True):
        if found.limit is not None:
            axes.plot([found.limit] * 2, [place - 0.45, place + 0.45], color="black", linewidth=2)
    axes.set_yticks(places, [found.label for found in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.axvline(1, color="#999999", linewidth=0.8, linestyle=":")
    axes.set_xlabel("median of the pairs; whiskers: least and most; black mark: the bar")
    axes.set_title(title)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def memory(contest: str, title: str, peak: int, *, limit: int) -> Figure:
    """The peak memory of perfkit's runs, compared with the limit."""
    return Figure(
        contest=contest,
        title=title,
        name="peak RSS of ours, most",
        value=peak / MB,
        unit="MB",
        bar=f"< {limit / MB:.0f} MB",
        holds=peak < limit,
        limit=limit / MB,
    )


def machine() -> dict[str, object]:
    """The machine of the measurements."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "cpus": os.cpu_count(),
        "cpus_allowed": len(os.sched_getaffinity(0)),
        "cpu_model": model,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
    }


def _lines(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(path).read_text(encoding="utf-8").splitlines()
    return []


def versions(tools: Mapping[str, str], packages: Sequence[str]) -> dict[str, str]:
    """Versions of programs (name to option) and of Python packages; missing ones are omitted."""
    found = {}
    for tool, option in tools.items():
        if shutil.which(tool) is not None:
            said = subprocess.run([tool, option], capture_output=True, text=True, check=False)
            found[tool] = (said.stdout or said.stderr).strip().partition("\n")[0]
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def note(text: str) -> None:
    """Print the current step on standard error; on a terminal in one line."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text.rstrip("\n"), file=sys.stderr, flush=True)
