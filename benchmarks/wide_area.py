"""Benchmark downloads over links with delay, loss, limits and outages: `python benchmarks/wide_area.py`, as root.

Whole processes over the emulated link of `link.py`, perfkit and the peers alternately. See README.md next to this file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from statistics import median

import measure
from downloads import Served, Site
from link import SERVER, Lab, Link, missing
from measure import MB, Bench, Comparison, Contestant, Figure, Report, Run, RunFailedError, note

HERE = Path(__file__).resolve().parent
RSS_LIMIT = 50 * MB
MOST = 16  # connections of each peer
FAR_BEHIND = 1.5  # times the best of the first round: such a peer is run once
VERSIONS = {"curl": "--version", "aria2c": "--version", "wget2": "--version", "axel": "--version"}
VERSIONS |= {"lftp": "--version", "rclone": "version", "nginx": "-v"}
PACKAGES = ("perfkit", "requests", "urllib3", "parfive", "pypdl")
ONE = ("curl", "aria2c", "axel", "lftp", "wget2", "rclone", "pypdl", "parfive")
MANY = ("curl", "aria2c", "lftp", "wget2", "rclone", "pypdl", "parfive")


@dataclass(frozen=True)
class Cell:
    """A link, what is fetched over it, and what is asked of perfkit."""

    link: Link
    count: int  # of files
    size: int  # of each; 0: 0.5 to 8 KiB
    bar: float  # the most that our time may be of the best peer's
    port: int = 80
    options: tuple[str, ...] = ()  # of perfkit
    peers: tuple[str, ...] = ()  # only these
    most: int = MOST  # connections of each peer
    at: dict[float, str] = field(default_factory=dict)  # commands for the link, by seconds after the start

    @property
    def lossy(self) -> bool:
        return bool(self.link.loss_permille or self.link.burst)


def _small(rtt_ms: float, most: int) -> Cell:
    """2,000 small files: against aria2 with 16 at once by default, against curl with 64 when as many are asked for."""
    options = ("-j", str(most)) if most > MOST else ()
    peers = ("curl",) if most > MOST else ("aria2c",)
    return Cell(Link(rtt_ms), 2000, 0, 1.0, options=options, peers=peers, most=most)


CELLS: dict[str, Cell] = {
    "20ms": Cell(Link(20), 1, 100 * MB, 1.0),
    "80ms": Cell(Link(80), 1, 100 * MB, 1.0),
    "200ms-300mbit": Cell(Link(200, 300), 1, 100 * MB, 1.0),
    "64x4mb-80ms-300mbit": Cell(Link(80, 300), 64, 4 * MB, 1.0),
    "20ms-0.5pct": Cell(Link(20, loss_permille=5), 1, 25 * MB, 0.95),
    "80ms-0.5pct": Cell(Link(80, loss_permille=5), 1, 25 * MB, 0.6),
    "200ms-0.5pct": Cell(Link(200, loss_permille=5), 1, 25 * MB, 0.6),
    "20ms-2pct": Cell(Link(20, loss_permille=20), 1, 25 * MB, 0.75),
    "80ms-2pct": Cell(Link(80, loss_permille=20), 1, 25 * MB, 0.75),
    "200ms-2pct": Cell(Link(200, loss_permille=20), 1, 25 * MB, 0.75),
    "80ms-bursts": Cell(Link(80, burst="0.001 0.1 0.5"), 1, 25 * MB, 0.7),
    "80ms-jitter": Cell(Link(80, loss_permille=5, jitter_ms=10), 1, 25 * MB, 0.7),
    "80ms-8mbit-each": Cell(Link(80), 1, 25 * MB, 1.0, port=8080),
    "80ms-503": Cell(Link(80), 1, 25 * MB, 1.1, port=8081),
    "80ms-429": Cell(Link(80), 1, 25 * MB, 1.1, port=8082),
    "80ms-outage-15s": Cell(Link(80), 1, 100 * MB, 0.9, at={4.0: "outage 15"}),
    "80ms-outage-40s": Cell(Link(80), 1, 100 * MB, 0.9, at={4.0: "outage 40"}),
    **{f"80ms-{size}mb": Cell(Link(80), 1, size * MB, 1.05) for size in (1, 4, 32)},
    **{f"small-{rtt_ms}ms": _small(rtt_ms, MOST) for rtt_ms in (20, 80, 200)},
    **{f"small-{rtt_ms}ms-j64": _small(rtt_ms, 64) for rtt_ms in (20, 80, 200)},
}


def random_cells(count: int, seed: int) -> dict[str, Cell]:
    """Links drawn at random, and files that take a few seconds over them; the same for the same seed."""
    chance = random.Random(seed)

    def between(least: float, most: float) -> float:
        return round(math.exp(chance.uniform(math.log(least), math.log(most))), 1)

    cells = {}
    for number in range(count):
        rtt_ms, rate_mbit, queue_ms = between(5, 400), between(5, 500), between(10, 300)
        loss = between(0.1, 5) / 100 if chance.random() < 0.6 else 0.0
        link = Link(rtt_ms, rate_mbit, loss_permille=1000 * loss, queue_ms=queue_ms, seed=number)
        # What 16 streams bring (M. Mathis et al., The Macroscopic Behavior of the TCP Congestion Avoidance Algorithm).
        lossy_rate = 16 * 1.2 * 1448 / (rtt_ms / 1000 * math.sqrt(loss)) if loss else math.inf
        size = int(max(MB, min(50 * MB, 3 * min(rate_mbit * 1e6 / 8, lossy_rate))))
        cells[f"random-{seed}-{number}"] = Cell(link, 1, size, 1.1, peers=("curl", "aria2c", "axel"))
    return cells


class Peers:
    """The commands of the contestants for one cell."""

    def __init__(self, cell: Cell, files: Sequence[Served], directory: Path, out: Path) -> None:
        self._cell = cell
        self._files = files
        self._directory = directory
        self._out = out
        self._base = f"http://{SERVER}:{cell.port}"
        self._list = self._write("list.txt", "".join(f"{self._base}/{file.path}\n" for file in files))
        self._many = len(files) > 1

    def ours(self) -> Contestant:
        command = (sys.executable, "-m", "perfkit", "get", "--quiet", *self._cell.options)
        files = ("-i", self._list) if self._many else (f"{self._base}/{self._files[0].path}",)
        command = (*command, *files, "-d", str(self._out))
        return Contestant(name="perfkit", command=command, env={"PYTHONPATH": str(HERE.parent)})

    def others(self, against: Sequence[str] | None) -> Iterator[Contestant]:
        for name in self._cell.peers or (MANY if self._many else ONE):
            if against is not None and name not in against:
                continue
            if shutil.which(name) is None and util.find_spec(name) is None:
                note(f"{name} is not installed: not compared\n")
                continue
            most = self._cell.most
            counts = (most,) if self._many or self._cell.lossy else (1, 4, most)
            for count in (1, most) if len(counts) > 1 and self._cell.peers else counts:
                if command := self._command(name, count):
                    yield Contestant(name=f"{name}, {count}", command=command)

    def _command(self, name: str, count: int) -> tuple[str, ...] | None:
        """How it fetches the files over `count` connections; None if it can't."""
        match name:
            case "parfive" | "pypdl":
                return self._library(name, count) if count == self._cell.most else None
            case "curl" if self._many:
                outputs = [
                    f'url = "{self._base}/{file.path}"\noutput = "{self._out}/{file.name}"\n' for file in self._files
                ]
                config = self._write("curl.txt", "".join(outputs))
                return ("curl", "-s", "-Z", "--parallel-max", str(count), "-K", config)
            case "curl":
                return ("curl", "-s", "-o", f"{self._out}/{self._files[0].name}", self._url) if count == 1 else None
            case "aria2c":
                once = ("-q", "--file-allocation=none", "-d", str(self._out), "-i", self._list)
                shared = (f"-j{count}",) if self._many else (f"-x{count}", f"-s{count}", "-k1M")
                return ("aria2c", *once, *shared)
            case "wget2":
                shared = () if self._many or count == 1 else ("--chunk-size=1M",)
                return ("wget2", "-q", f"--max-threads={count}", *shared, "-P", str(self._out), "-i", self._list)
            case "axel":
                return ("axel", "-q", "-n", str(count), "-o", f"{self._out}/{self._files[0].name}", self._url)
            case "lftp":
                return ("lftp", "-c", f"lcd {self._out}; {self._lftp(count)}")
            case "rclone":
                return self._rclone(count)
        raise ValueError(name)

    @property
    def _url(self) -> str:
        return f"{self._base}/{self._files[0].path}"

    def _lftp(self, count: int) -> str:
        if not self._many:
            return f"pget -n {count} {self._url}" if count > 1 else f"get {self._url}"
        names = " ".join(f"{self._base}/{file.path}" for file in self._files)
        return f"set net:connection-limit {count}; set cmd:parallel {count}; mget -P {count} {names}"

    def _rclone(self, count: int) -> tuple[str, ...]:
        names = self._write("rclone.txt", "".join(f"{file.path}\n" for file in self._files))
        several = (f"--multi-thread-streams={count}", "--multi-thread-cutoff=1M", f"--transfers={count}")
        source = f":http,url='{self._base}/':"
        return ("rclone", "copy", "-q", "--no-traverse", "--files-from", names, *several, source, str(self._out))

    def _library(self, name: str, count: int) -> tuple[str, ...]:
        asked = [{"url": f"{self._base}/{file.path}", "name": file.name, "sha256": None} for file in self._files]
        job = json.dumps({"files": asked, "dest": str(self._out), "segments": 1 if self._many else count})
        return (sys.executable, str(HERE / "clients.py"), name, self._write(f"{name}.json", job))

    def _write(self, name: str, text: str) -> str:
        path = self._directory / name
        path.write_text(text, encoding="utf-8")
        return str(path)


@dataclass(frozen=True)
class Course:
    """One cell, being measured."""

    name: str
    cell: Cell
    bench: Bench
    lab: Lab
    site: Site
    files: Sequence[Served]

    def title(self) -> str:
        link = self.cell.link
        loss = (
            f", {link.loss_permille / 10:g} % loss" if link.loss_permille else ", bursts of loss" if link.burst else ""
        )
        jitter = f", jitter {link.jitter_ms:g} ms" if link.jitter_ms else ""
        queue = "" if link.queue_ms == Link().queue_ms else f", queue {link.queue_ms:g} ms"
        what = f"{self.cell.size / MB:g} MB" if self.cell.size else "0.5 to 8 KiB"
        events = "".join(f", {text} s" for text in self.cell.at.values())
        count = f"{self.cell.count:,} × " if self.cell.count > 1 else ""
        return f"{self.name}: {count}{what}, {link.rtt_ms:g} ms, {link.rate_mbit:g} Mbit/s{queue}{loss}{jitter}{events}"

    def measure(
        self, ours: Contestant, peers: Sequence[Contestant], runs: int
    ) -> tuple[list[Comparison], list[Figure]]:
        """Each contestant once a round, in an order that turns by one each time; those far behind only in the first."""
        order = [ours, *peers]
        behind: set[str] = set()
        done: dict[str, list[Run]] = {each.name: [] for each in order}
        errors: dict[str, str] = {}
        beyond: list[float] = []
        for number in range(runs):
            for each in order[number % len(order) :] + order[: number % len(order)]:
                if each.name in errors or each.name in behind:
                    continue
                try:
                    run, received = self._run(each)
                except RunFailedError as error:
                    errors[each.name] = str(error)
                    continue
                done[each.name].append(run)
                note(f"{self.name}: {each.name}: {run.wall_s:.2f} s, {run.cpu_s:.2f} s of processor time\n")
                if each is ours:
                    beyond.append(received / sum(file.size for file in self.files) - 1)
            first = {each.name: done[each.name][0].wall_s for each in peers if done[each.name]}
            behind = {name for name, wall_s in first.items() if wall_s > FAR_BEHIND * min(first.values())}
        return self._compared(ours, peers, done, errors), self._figures(ours, done, beyond)

    def warm_up(self, ours: Contestant) -> None:
        """Have Python compile the modules of a run that does not count."""
        self._run(ours)

    def _run(self, contestant: Contestant) -> tuple[Run, int]:
        """One run, and what came over the link for it."""
        self.lab.tell("reset")
        timers = [threading.Timer(after_s, self.lab.tell, [text]) for after_s, text in self.cell.at.items()]
        for timer in timers:
            timer.start()
        try:
            inside = dataclasses.replace(contestant, command=self.lab.inside(*contestant.command))
            run = self.bench.run(inside)
            self.site.check_and_clear(self.files)()
        finally:
            for timer in timers:
                timer.cancel()
            self.site.clear()
            self.lab.tell("outage 0")
        return run, self.lab.received()

    def _compared(
        self, ours: Contestant, peers: Sequence[Contestant], done: dict[str, list[Run]], errors: dict[str, str]
    ) -> list[Comparison]:
        able = [each.name for each in peers if each.name not in errors]
        best = min(able, key=lambda name: median(run.wall_s for run in done[name]), default="")
        found = [
            Comparison(
                contest=self.name,
                title=self.title(),
                peer=each.name,
                limit=self.cell.bar if each.name == best else None,
                runs=() if errors.keys() & {each.name, ours.name} else _paired(done[ours.name], done[each.name]),
                error=f"OURS: {errors[ours.name]}" if ours.name in errors else errors.get(each.name),
            )
            for each in peers
        ]
        return sorted(found, key=lambda each: each.ratio if each.runs else 0.0, reverse=True)

    def _figures(self, ours: Contestant, done: dict[str, list[Run]], beyond: Sequence[float]) -> list[Figure]:
        """The bytes beyond the files: headers of packets are 4 % of them, and acknowledgements go the other way."""
        if not beyond:
            return []
        figures = [
            measure.memory(self.name, self.title(), max(run.peak_rss for run in done[ours.name]), limit=RSS_LIMIT)
        ]
        curl = done.get("curl, 1")
        if self.cell.size:
            limit = 7.0 if self.cell.lossy else 5.0
            figures.append(
                Figure(
                    contest=self.name,
                    title=self.title(),
                    name="traffic beyond the files",
                    value=100 * median(beyond),
                    unit="%",
                    bar=f"<= {limit:g} %",
                    holds=100 * median(beyond) <= limit,
                    limit=limit,
                )
            )
        if curl:
            ratio = median(run.cpu_s for run in done[ours.name]) / median(run.cpu_s for run in curl)
            figures.append(
                Figure(
                    contest=self.name,
                    title=self.title(),
                    name="processor time, of curl's",
                    value=ratio,
                    unit="",
                    bar="<= 2",
                    holds=ratio <= 2,
                    limit=2.0,
                )
            )
        return figures


def worst(comparisons: Sequence[Comparison], count: int) -> str:
    """The links on which the best peer is most ahead, or perfkit failed: one a line."""
    judged = [each for each in comparisons if each.limit is not None or (each.error or "").startswith("OURS")]
    judged.sort(key=lambda each: each.ratio if each.runs else math.inf, reverse=True)
    lines = [f"  {each.ratio if each.runs else math.inf:6.2f} of {each.peer}: {each.title}" for each in judged[:count]]
    return "\n".join(["worst links:", *lines])


def files_of(cell: Cell, site: Site) -> list[Served]:
    if cell.size == 0:
        return site.small()[: cell.count]
    size = site.scaled(cell.size)
    return [site.file(f"{size}-{number}.bin", size) for number in range(cell.count)]


def _paired(ours: Sequence[Run], theirs: Sequence[Run]) -> tuple[tuple[Run, Run], ...]:
    """Runs of the same round; a peer that was run once is compared with our median run."""
    if len(theirs) == len(ours):
        return tuple(zip(ours, theirs, strict=True))
    return ((sorted(ours, key=lambda run: run.wall_s)[len(ours) // 2], theirs[0]),)


def main() -> int:
    """Measure, show and write; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="of each contestant in each cell (default 5)")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), metavar="CELL", help=", ".join(CELLS))
    parser.add_argument(
        "--against", nargs="*", choices=ONE, metavar="PEER", help=f"only these, or none: {', '.join(ONE)}"
    )
    parser.add_argument(
        "--random", type=int, metavar="N", help="instead of the cells, N links at random, the worst 20 of them last"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="of these links (default 1)")
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes and counts; less than 1 is a smoke test")
    parser.add_argument("--out", type=Path, default=HERE / "results", metavar="DIR", help="for the JSON and the plot")
    arguments = parser.parse_args()
    if absent := missing():
        parser.exit(1, f"an emulated link needs {', '.join(absent)}\n")
    full = arguments.scale == 1.0
    cells = random_cells(arguments.random, arguments.seed) if arguments.random else CELLS
    names = list(cells) if arguments.random else arguments.cells
    settings = {"runs": arguments.runs, "scale": arguments.scale, "cells": names}
    kind = "-smoke" if not full else "-random" if arguments.random else ""
    report = Report(f"wide_area{kind}", settings, measure.versions(VERSIONS, PACKAGES))
    with tempfile.TemporaryDirectory(prefix="perfkit-wide-", dir="/dev/shm") as temporary:
        directory = Path(temporary)
        site = Site(directory, arguments.scale)
        with Bench(directory, without=("PERFKIT_", "PARFIVE_")) as bench:
            for name in names:
                cell = cells[name]
                files = files_of(cell, site)
                with Lab(cell.link, site.root) as lab:
                    contestants = Peers(cell, files, directory, site.out)
                    course = Course(name, cell, bench, lab, site, files)
                    peers = list(contestants.others(arguments.against))
                    if name == names[0]:
                        course.warm_up(contestants.ours())
                    comparisons, figures = course.measure(contestants.ours(), peers, arguments.runs)
                report.comparisons += comparisons
                report.figures += figures
    code = report.finish(arguments.out)
    if arguments.random:
        print(worst(report.comparisons, 20))
    best = dataclasses.replace(report, benchmark=f"{report.benchmark}-best", figures=[])  # for a plot that can be read
    best.comparisons = [each for each in report.comparisons if each.limit is not None]
    for path in best.write(arguments.out, best.benchmark):
        print(f"written: {path}")
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
