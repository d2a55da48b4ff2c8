"""Benchmark downloads against common tools: `python benchmarks/downloads.py`, from perfkit[bench].

nginx serves from tmpfs on loopback; whole processes are measured. See README.md next to this file.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import dataclasses
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path

import measure
from measure import MB, Bar, Bench, Contest, Contestant, Figure, Report, RunFailedError, note
from origin import CountingRelay, Nginx

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
RSS_LIMIT = 50 * MB
WORKERS = 8
TOOLS = {"nginx": "-v", "curl": "--version", "aria2c": "--version", "wget2": "--version", "openssl": "version"}
PACKAGES = ("perfkit", "requests", "urllib3", "aiohttp", "parfive", "pooch", "pypdl")
PROGRAMS = ("curl", "aria2c", "wget2")
SEGMENTING = ("pypdl", "parfive")
LIBRARIES = (*SEGMENTING, "pooch", "requests")  # clients in clients.py, named like the package they need


@dataclass(frozen=True)
class Served:
    """A file on the server."""

    path: str  # below the site
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return os.path.basename(self.path)


class Site:
    """The files to download, created on demand, and the directory for the downloads."""

    def __init__(self, directory: Path, scale: float) -> None:
        self.root = directory / "site"
        self.root.mkdir()
        self.out = directory / "out"
        self.out.mkdir()
        self.scale = scale
        self._made: dict[str, Served] = {}
        self._checked = 0

    def file(self, path: str, size: int) -> Served:
        """A file of `size` random bytes, which can't be compressed."""
        if path not in self._made:
            full = self.root / path
            full.parent.mkdir(exist_ok=True)
            digest = hashlib.sha256()
            with full.open("wb") as out:
                for start in range(0, size, MIB):
                    block = os.urandom(min(MIB, size - start))
                    out.write(block)
                    digest.update(block)
            os.utime(full, (0, 0))  # what changed in this second has no validator yet that proves its version
            self._made[path] = Served(path, size, digest.hexdigest())
        return self._made[path]

    def one(self) -> Served:
        return self.file("one.bin", self.scaled(1024 * MIB))

    def eight(self) -> list[Served]:
        return [self.file(f"part-{number}.bin", self.scaled(256 * MIB)) for number in range(8)]

    def small(self) -> list[Served]:
        sizes = random.Random(2)
        return [self.file(f"small/{number:04}.bin", sizes.randint(512, 8192)) for number in range(self.scaled(2000))]

    def scaled(self, number: int) -> int:
        return max(8, int(number * self.scale))

    def check_and_clear(self, files: Sequence[Served]) -> Callable[[], None]:
        """After a run: check all sizes and the bytes of one file, another one each time; then remove the files."""

        def after() -> None:
            try:
                for file in files:
                    with contextlib.suppress(FileNotFoundError):
                        if (self.out / file.name).stat().st_size == file.size:
                            continue
                    raise RunFailedError(f"{file.name} is missing or has not its {file.size} bytes")
                self._checked += 1
                sample = files[self._checked % len(files)]
                with (self.out / sample.name).open("rb") as fetched:
                    if hashlib.file_digest(fetched, "sha256").hexdigest() != sample.sha256:
                        raise RunFailedError(f"{sample.name} has other bytes than the server's")
            finally:
                self.clear()

        return after

    def clear(self) -> None:
        shutil.rmtree(self.out)
        self.out.mkdir()


class Downloads:
    """The rows, by name. Each adds its results to the report."""

    def __init__(
        self,
        directory: Path,
        bench: Bench,
        nginx: Nginx,
        site: Site,
        report: Report,
        pairs: int,
        against: Sequence[str],
        before: Path | None,
    ) -> None:
        self.against = against  # only these peers, or all
        self.before = before  # the source tree of an earlier build
        self.directory = directory
        self.nginx = nginx
        self.site = site
        self.report = report
        self.pairs = pairs
        self.bench = bench
        self.rows: dict[str, Callable[[str], None]] = {
            "http": self.http,
            "sha256": self.sha256,
            "https": self.https,
            "eight": self.eight,
            "small": self.small,
            "cpu": self.cpu,
            "one": self.one_small,
            "limited": self.limited,
            "throttle": self.throttle,
            "six": self.six,
            "list": self.long_list,
            "import": self.imports,
        }

    def http(self, name: str) -> None:
        file = self.site.one()
        url = f"{self.nginx.http}/{file.path}"
        curl = self.tool("curl", "-s", "-o", self.out(file), url)
        bars = [Bar(limit=0.70, peers=curl), *self.libraries([file], (1, WORKERS))]
        self.contest(name, f"one file of {shown(file.size)}, http", self.get(url, "-o", self.out(file)), bars, [file])

    def sha256(self, name: str) -> None:
        file = self.site.one()
        url = f"{self.nginx.http}/{file.path}"
        ours = self.get(url, "-o", self.out(file), "--checksum", f"sha256:{file.sha256}")
        curl = self.tool("curl", "-s", "-o", self.out(file), url, name="curl, unchecked")
        bars = [Bar(limit=1.2, peers=curl), *self.libraries([file], (WORKERS,), checked=True)]
        self.contest(name, f"one file of {shown(file.size)}, http, SHA-256 verified", ours, bars, [file])

    def https(self, name: str) -> None:
        file = self.site.one()
        url = f"{self.nginx.https}/{file.path}"
        ca = str(self.nginx.ca)
        trust = {"SSL_CERT_FILE": ca, "REQUESTS_CA_BUNDLE": ca}
        ours = self.get(url, "-o", self.out(file), env=trust)
        curl = self.tool("curl", "-s", "--cacert", ca, "-o", self.out(file), url)
        bars = [Bar(limit=0.95, peers=curl), *self.libraries([file], (1, WORKERS), base=self.nginx.https, env=trust)]
        self.contest(name, f"one file of {shown(file.size)}, https", ours, bars, [file])

    def eight(self, name: str) -> None:
        files = self.site.eight()
        urls = [f"{self.nginx.http}/{file.path}" for file in files]
        listed = self.write("eight.txt", "".join(f"{url}\n" for url in urls))
        into = str(self.site.out)
        aria_arguments = ("-q", f"-j{WORKERS}", "-d", into, "-i", listed)
        each = [part for url, file in zip(urls, files, strict=True) for part in ("-o", self.out(file), url)]
        aria = self.tool("aria2c", *aria_arguments, name="aria2c -j8")
        curl = self.tool("curl", "-s", "-Z", "--parallel-max", str(WORKERS), *each, name="curl -Z")
        wget = self.tool("wget2", "-q", f"--max-threads={WORKERS}", "-P", into, "-i", listed)
        title = f"{len(files)} files of {shown(files[0].size)}, http"
        bars = [
            Bar(limit=0.40, peers=aria),
            Bar(limit=0.50, peers=curl),
            Bar(limit=1.15, peers=wget),
            *self.libraries(files),
        ]
        self.contest(name, title, self.get("-i", listed, "-d", into), bars, files)

    def small(self, name: str) -> None:
        files = self.site.small()
        threads = self.client("requests-threads", files, name="8 threads, one Session", own_clock=True)
        ours = self.client("perfkit", files, own_clock=True)
        bars = [Bar(limit=0.55, peers=(threads,)), *self.libraries(files, own_clock=True)]
        self.contest(name, f"{len(files)} files of 0.5 to 8 KiB, http, in process", ours, bars, files)

    def cpu(self, name: str) -> None:
        """Processor time: everything that perfkit does for a file, against what requests alone takes."""
        files = self.site.small()
        env = {"BENCH_CPU": "1"}
        loop = self.client("requests-content", files, name="loop of Session.get", own_clock=True, env=env)
        ours = self.client("perfkit", files, own_clock=True, env=env)
        contest = Contest(
            name=name,
            title=f"processor time of {len(files)} files of 0.5 to 8 KiB",
            ours=ours,
            bars=(Bar(limit=0.9, peers=(loop,)), *self.earlier(ours)),
            after=self.site.clear,
        )
        self.report.add(self.bench.compare(contest, self.pairs), rss_limit=RSS_LIMIT)

    def one_small(self, name: str) -> None:
        """The shortest command: it is all start-up."""
        file = self.site.file("one-small.bin", 1024)
        url = f"{self.nginx.http}/{file.path}"
        code = f"import requests; requests.get({url!r})"
        other = Contestant(name="python -c requests.get", command=(sys.executable, "-c", code))
        ours = self.get(url, "-o", self.out(file))
        contest = Contest(
            name=name,
            title="one file of 1 KiB, whole process",
            ours=ours,
            after=self.site.clear,
            bars=(Bar(limit=1.25, peers=(other,)), *self.earlier(ours)),
        )
        self.report.add(self.bench.compare(contest, 3 * self.pairs), rss_limit=RSS_LIMIT)

    def limited(self, name: str) -> None:
        file = self.site.eight()[0]
        url = f"{self.nginx.limited}/{file.path}"
        aria = ("-q", "-x8", "-s8", "-d", str(self.site.out), "-o", file.name, url)
        finer = ("--min-split-size=1M", "-k1M", "--file-allocation=none")
        tools = (
            *self.tool("aria2c", *aria, name="aria2c -x8 -s8"),
            *self.tool("aria2c", *finer, *aria, name="aria2c -x8 -s8 -k1M"),
        )
        bars = [Bar(limit=1.10, peers=tools), *self.libraries([file], (WORKERS,), base=self.nginx.limited)]
        title = f"one file of {shown(file.size)}, each connection gets 8 MiB/s"
        self.contest(name, title, self.get(url, "-o", self.out(file)), bars, [file])

    def throttle(self, name: str) -> None:
        seconds = max(3.0, 10 * self.site.scale)
        peaks = []
        title = f"--limit-rate, {WORKERS} workers, 16 files, {seconds:.0f} s each, seen from the wire"
        for rate in (1, 10, 50):
            note(f"{name}: {rate} MiB/s\n")
            size = int(rate * MIB * seconds / 16)
            files = [self.site.file(f"throttle-{rate}-{number}.bin", size) for number in range(16)]
            with CountingRelay(self.nginx.http_port) as relay:
                listed = self.write("throttle.txt", "".join(f"{relay.url}/{file.path}\n" for file in files))
                ours = self.get("-j", str(WORKERS), "--limit-rate", f"{rate}M", "-i", listed, "-d", str(self.site.out))
                try:
                    peaks.append(self.bench.run(ours).peak_rss)
                    self.site.check_and_clear(files)()
                    mean, window = flow(relay.samples)
                except RunFailedError as error:
                    self.report.notes.append(f"{name} at {rate} MiB/s: {error}")
                    self.report.figures.append(
                        Figure(
                            contest=name,
                            title=title,
                            name=f"{rate} MiB/s: failed",
                            value=0,
                            unit="bytes",
                            bar="",
                            holds=False,
                        )
                    )
                    continue
            off, above = mean / (rate * MIB) - 1, window / (rate * MIB) - 1
            curve = [(round(at - relay.samples[0][0], 3), count) for at, count in relay.samples[::20]]
            self.report.figures += [
                Figure(
                    contest=name,
                    title=title,
                    name=f"{rate} MiB/s: mean",
                    value=100 * off,
                    unit="% off",
                    bar="within +-2 %",
                    holds=abs(off) <= 0.02,
                    details={"bytes_at_s": curve},
                ),
                Figure(
                    contest=name,
                    title=title,
                    name=f"{rate} MiB/s: fullest second",
                    value=100 * above,
                    unit="% off",
                    bar="<= +10 %",
                    holds=above <= 0.10,
                ),
            ]
        if peaks:
            self.report.figures.append(measure.memory(name, title, max(peaks), limit=RSS_LIMIT))

    def six(self, name: str) -> None:
        """Small files beside large ones: over a shared line of 6 MB/s, and with a limit as high."""
        sizes = [self.site.scaled(30 * MB), self.site.scaled(20 * MB), *[20_000] * 4]
        files = [self.site.file(f"six-{number}.bin", size) for number, size in enumerate(sizes)]
        title = "30 MB, 20 MB and four of 20 KB"
        into = str(self.site.out)
        limit_s = sum(sizes) / (6 * MIB)
        self.bench.run(self.get(f"{self.nginx.http}/{files[-1].path}", "-o", self.out(files[-1])))  # compiles bytecode
        self.site.clear()
        with CountingRelay(self.nginx.http_port, rate=6 * MB) as relay:
            listed = self.write("six-line.txt", "".join(f"{relay.url}/{file.path}\n" for file in files))
            aria = self.tool("aria2c", "-q", "--file-allocation=none", f"-j{WORKERS}", "-d", into, "-i", listed)
            for contestant in (self.get("-i", listed, "-d", into), *aria):
                small_s, _ = self.small_and_all(contestant, files)
                bar = 1.5 if contestant not in aria else None
                self.add(name, title, f"{contestant.name}, line of 6 MB/s: the small ones done", small_s, bar)
        listed = self.write("six-limit.txt", "".join(f"{self.nginx.http}/{file.path}\n" for file in files))
        ours = self.get("--limit-rate", "6M", "-i", listed, "-d", into)
        fixed = dataclasses.replace(ours, name="perfkit, not adaptive", env={**ours.env, "PERFKIT_ADAPTIVE": "0"})
        for contestant in (ours, fixed):
            small_s, all_s = self.small_and_all(contestant, files)
            self.add(name, title, f"{contestant.name}, --limit-rate 6M: the small ones done", small_s, 1.5)
            self.add(name, title, f"{contestant.name}, --limit-rate 6M: all done", all_s, 1.05 * limit_s)

    def small_and_all(self, contestant: Contestant, files: Sequence[Served]) -> tuple[float, float]:
        """Seconds until all but the first two files were complete, and until the process had ended."""
        small = files[2:]
        done: list[float] = []
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.01) and not done:
                paths = [self.site.out / file.name for file in small]
                if all(path.exists() and path.stat().st_size == 20_000 for path in paths):
                    done.append(time.monotonic())

        thread = threading.Thread(target=watch)
        began_s = time.monotonic()
        thread.start()
        try:
            run = self.bench.run(contestant)
        finally:
            over.set()
            thread.join()
        self.site.check_and_clear(files)()
        return (done[0] if done else time.monotonic()) - began_s, run.wall_s

    def add(self, name: str, title: str, what: str, seconds: float, limit: float | None) -> None:
        bar = "" if limit is None else f"<= {limit:.2f} s"
        holds = limit is None or seconds <= limit
        self.report.figures.append(
            Figure(contest=name, title=title, name=what, value=seconds, unit="s", bar=bar, holds=holds)
        )

    def long_list(self, name: str) -> None:
        """A list of 50,000 URLs: what is kept for each while the others are fetched."""
        file, count = self.site.file("listed.bin", 100), self.site.scaled(50_000)
        url = f"{self.nginx.http}/{file.path}"
        listed = self.write("list.txt", "".join(f"{url}?{number}\t{number}.bin\n" for number in range(count)))
        into = str(self.site.out)
        self.bench.run(self.get(url, "-o", self.out(file)))  # compiles bytecode, which takes memory
        self.site.clear()
        code = (
            "import sys; from perfkit import Toolkit\n"
            "lines = (line.split() for line in open(sys.argv[1]))\n"
            "with Toolkit() as kit: kit.download_many(map(tuple, lines), sys.argv[2])"
        )
        command = (sys.executable, "-c", code, listed, into)
        in_process = Contestant(name="download_many, with its list of results", command=command)
        for contestant, limit in ((self.get("-i", listed, "-d", into), RSS_LIMIT), (in_process, None)):
            run = self.bench.run(contestant)
            got = len(os.listdir(self.site.out))
            self.site.clear()
            title = f"a list of {count:,} files of 100 bytes"
            self.report.figures.append(
                Figure(
                    contest=name,
                    title=title,
                    name=f"{contestant.name}: peak RSS",
                    value=run.peak_rss / MB,
                    unit="MB",
                    bar="" if limit is None else f"< {limit / MB:.0f} MB",
                    holds=got == count and (limit is None or run.peak_rss < limit),
                    details={"seconds": run.wall_s, "files": got},
                )
            )

    def imports(self, name: str) -> None:
        def importing(what: str) -> Contestant:
            code = (
                "import time, json; began = time.perf_counter(); " + what + "; "
                "print(json.dumps({'seconds': time.perf_counter() - began}))"
            )
            return Contestant(name=what, command=(sys.executable, "-c", code), own_clock=True)

        times = max(3, int(8 * self.pairs * self.site.scale))
        other = importing("import requests")
        for ours, limit in ((importing("import perfkit"), 0.2), (importing("from perfkit import Toolkit"), None)):
            contest = Contest(
                name=name,
                title=f"{ours.name}, fresh processes, {times} times",
                ours=ours,
                bars=(Bar(limit=limit, peers=(other,)),),
            )
            self.report.add(self.bench.compare(contest, times), rss_limit=RSS_LIMIT)

    def contest(self, name: str, title: str, ours: Contestant, bars: Sequence[Bar], files: Sequence[Served]) -> None:
        bars = [*(bar for bar in bars if bar.peers), *self.earlier(ours)]
        contest = Contest(name=name, title=title, ours=ours, bars=tuple(bars), after=self.site.check_and_clear(files))
        self.report.add(self.bench.compare(contest, self.pairs), rss_limit=RSS_LIMIT)

    def earlier(self, ours: Contestant) -> Iterator[Bar]:
        """The same work by the earlier build, where one is given; without a bar."""
        if self.before is not None:
            env = {**ours.env, "PYTHONPATH": str(self.before)}
            yield Bar(limit=None, peers=(dataclasses.replace(ours, name="perfkit before", env=env),))

    def get(self, *arguments: str, env: dict[str, str] | None = None) -> Contestant:
        return Contestant(
            name="perfkit", command=(sys.executable, "-m", "perfkit", "get", "--quiet", *arguments), env=env or {}
        )

    def tool(self, program: str, *arguments: str, name: str = "") -> tuple[Contestant, ...]:
        """The contestant; none if it was not selected, or if it is not installed, which is noted."""
        if self.against and program not in self.against:
            return ()
        if shutil.which(program) is None:
            self.missing(program)
            return ()
        return (Contestant(name=name or program, command=(program, *arguments)),)

    def libraries(
        self,
        files: Sequence[Served],
        segments: Sequence[int] = (1,),
        *,
        base: str = "",
        checked: bool = False,
        own_clock: bool = False,
        env: dict[str, str] | None = None,
    ) -> Iterator[Bar]:
        """The other Python libraries: perfkit should beat each, with its best number of segments."""
        for library in LIBRARIES:
            if self.against and library not in self.against:
                continue
            if util.find_spec(library) is None:
                self.missing(library)
                continue
            yield Bar(
                limit=1.0,
                peers=tuple(
                    self.client(
                        library,
                        files,
                        name=f"{library}, {count} segments" if count > 1 else library,
                        base=base,
                        segments=count,
                        checked=checked,
                        own_clock=own_clock,
                        env=env,
                    )
                    for count in (segments if library in SEGMENTING else (1,))
                ),
            )

    def client(
        self,
        client: str,
        files: Iterable[Served],
        *,
        name: str = "",
        base: str = "",
        segments: int = 1,
        checked: bool = False,
        own_clock: bool = False,
        env: dict[str, str] | None = None,
    ) -> Contestant:
        base = base or self.nginx.http
        asked = [
            {"url": f"{base}/{file.path}", "name": file.name, "sha256": file.sha256 if checked else None}
            for file in files
        ]
        job = json.dumps({"files": asked, "dest": str(self.site.out), "segments": segments})
        command = (sys.executable, str(HERE / "clients.py"), client, self.write(f"{client}-{segments}.json", job))
        return Contestant(name=name or client, command=command, env=env or {}, own_clock=own_clock)

    def missing(self, what: str) -> None:
        text = f"{what} is not installed: not compared"
        if text not in self.report.notes:
            self.report.notes.append(text)

    def out(self, file: Served) -> str:
        return str(self.site.out / file.name)

    def write(self, name: str, text: str) -> str:
        path = self.directory / name
        path.write_text(text, encoding="utf-8")
        return str(path)


def flow(samples: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Bytes per second: the mean from the first byte to the last, and the fullest second."""
    total = samples[-1][1]
    first = max(0, next(index for index, (_, count) in enumerate(samples) if count > 0) - 1)
    last = next(index for index, (_, count) in enumerate(samples) if count == total)
    moments = [at for at, _ in samples[first : last + 1]]
    counts = [count for _, count in samples[first : last + 1]]

    def until(at: float) -> float:
        right = min(bisect.bisect_left(moments, at), len(moments) - 1)
        left = max(right - 1, 0)
        span = moments[right] - moments[left]
        share = (at - moments[left]) / span if span else 1.0
        return counts[left] + share * (counts[right] - counts[left])

    starts = [at for at in moments if at <= moments[-1] - 1]
    fullest = max((until(at + 1) - until(at) for at in starts), default=0.0)
    return total / (moments[-1] - moments[0]), fullest


def shown(size: int) -> str:
    return f"{size / (1 << 30):g} GiB" if size >= 1 << 30 else f"{size / MIB:.4g} MiB"


def main() -> int:
    """Measure, show and write; 1 if a bar is missed at full scale."""
    names = ("http", "sha256", "https", "eight", "small", "cpu", "one", "limited", "throttle", "six", "list", "import")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, metavar="N", help="pairs for each comparison (default 5)")
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="NAME", help=f"only these rows: {', '.join(names)}"
    )
    parser.add_argument(
        "--against",
        nargs="+",
        default=(),
        choices=(*PROGRAMS, *LIBRARIES),
        metavar="PEER",
        help=f"only these, where a row has them: {', '.join((*PROGRAMS, *LIBRARIES))}",
    )
    parser.add_argument("--before", type=Path, metavar="DIR", help="source tree of an earlier build, to compare with")
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes and counts; 0.01 is a smoke test")
    parser.add_argument("--out", type=Path, default=HERE / "results", metavar="DIR", help="for the JSON and the plot")
    arguments = parser.parse_args()
    if arguments.pairs < 1 or arguments.scale <= 0:
        parser.error("--pairs and --scale must be more than 0")
    full = arguments.scale == 1.0

    settings = {"pairs": arguments.pairs, "scale": arguments.scale, "rows": list(arguments.only)}
    report = Report("downloads" if full else "downloads-smoke", settings, measure.versions(TOOLS, PACKAGES))
    if not full:
        report.notes.append(f"scale {arguments.scale:g}: this shows that the benchmark works; its figures mean nothing")
    fast = Path("/dev/shm")
    if not fast.is_dir():
        report.notes.append("no /dev/shm: the files were on a disk, and the disk was measured")
    with tempfile.TemporaryDirectory(prefix="perfkit-bench-", dir=fast if fast.is_dir() else None) as temporary:
        directory = Path(temporary)
        need = int(6 * (1 << 30) * arguments.scale)
        if shutil.disk_usage(directory).free < need:
            parser.exit(1, f"{directory.parent} needs {shown(need)} free\n")
        site = Site(directory, arguments.scale)
        nginx = Nginx(site.root, directory / "nginx", limit="8m")
        bench = Bench(directory, without=("PERFKIT_", "PARFIVE_"))
        with nginx, bench:
            rows = Downloads(
                directory, bench, nginx, site, report, arguments.pairs, arguments.against, arguments.before
            )
            for name in arguments.only:
                rows.rows[name](name)
    return report.finish(arguments.out)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
