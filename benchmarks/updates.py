"""Benchmark syncs and rollbacks against other update methods: `python benchmarks/updates.py`.

Bytes and requests are what nginx's log says of whole runs of `perfkit sync`: both directions, heads included. The peers
are charged no heads. Trees are made on the disk of --dir, and what is published is kept in --cache for the next run
with --reuse. See README.md next to this file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from corpora import (
    CORPORA,
    archive_bytes,
    block_bytes,
    make_tar,
    manifest_of,
    patch_bytes,
    rsync_bytes,
    sdist,
    unpack,
)
from measure import Bar, Bench, Contest, Contestant, Figure, Report, Run, RunFailedError, memory, note, versions
from origin import Nginx, Traffic
from sites import Site, edited, entries, large_file, small_files, spread

RSS_LIMIT = 50 * 10**6
FILES, MANY = 3_500, 100_000
CHANGED = 45  # files
TOOLS = {
    "nginx": "-v",
    "zstd": "--version",
    "zck": "--version",
    "zsync": "-V",
    "casync": "--version",
    "rsync": "--version",
    "aria2c": "--version",
}
_CLOCK = """\
import json, sys, time
from perfkit import Toolkit
with Toolkit() as kit:
    {before}
    began = time.perf_counter()
    {work}
    seconds = time.perf_counter() - began
print(json.dumps({{"seconds": seconds}}))
"""
_WALK = """\
import json, os, sys, time
def walk(directory):
    below = []
    with os.scandir(directory) as found:
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.path)
            else:
                entry.stat(follow_symlinks=False)
    for each in below:
        walk(each)
walk(sys.argv[2])
began = time.perf_counter()
walk(sys.argv[2])
print(json.dumps({"seconds": time.perf_counter() - began}))
"""
_LAST = "to = max(each.number for each in kit.history(sys.argv[1]))"
_OTHER = "to = max(each.number for each in kit.history(sys.argv[1]) if not each.current)"  # of the last two


class Updates:
    """The rows, by name. Each adds its results to the report."""

    def __init__(self, bench: Bench, nginx: Nginx, cache: Path, scratch: Path, report: Report, pairs: int) -> None:
        self.bench = bench
        self.nginx = nginx
        self.cache = cache
        self.scratch = scratch
        self.report = report
        self.pairs = pairs
        self.rows: dict[str, Callable[[], None]] = {
            **{name: partial(self.corpus, name) for name in CORPORA},
            "small": self.small,
            "nothing": self.nothing,
            "change": self.change,
            "check": self.check,
            "back": self.back,
            "large": self.large,
            "entries": self.entries,
        }

    def corpus(self, name: str) -> None:
        """Bytes: from every earlier release, without a delta, and for a first install."""
        project, releases, kind = CORPORA[name]
        site, fresh = self.site(name), self.site(f"{name}-fresh")
        clients = self.scratch / name
        sources = {release: partial(_unpacked, self.cache, project, release) for release in releases}
        peaks = []
        for release in releases:
            site.grow(release, sources[release])
        for release in releases[:-1]:
            site.offer(release)
            peaks.append(self.sync(site, clients / release, release)[1].peak_rss)
        last, previous = releases[-1], releases[-2]
        site.offer(last)
        fresh.grow(last, sources[last])
        peers = self.peers(site, releases)
        title = f"{name}, {kind}: bytes by nginx's log"

        def figure(work: str, used: Traffic, bar: float, beside: dict[str, float]) -> None:
            self.report.figures.append(
                Figure(
                    contest=name,
                    title=title,
                    name=work,
                    value=used.bytes,
                    unit="B",
                    bar=f"<={bar:,.0f}",
                    limit=bar,
                    holds=used.bytes <= bar,
                    beside={"requests": used.requests, **beside},
                )
            )

        for release in reversed(releases[:-1]):
            used, run = self.sync(site, clients / release, last)
            peaks.append(run.peak_rss)
            if release == previous:
                patch = peers["patch"]
                figure(f"from {release}, patch", used, 1.4 * patch + 4096, {"zstd --patch-from": patch})
            figure(f"from {release}", used, peers[f"rsync {release}"], {"rsync -rcz": peers[f"rsync {release}"]})
        shutil.copytree(site.tree(previous), clients / "adopted")
        used, run = self.sync(site, clients / "adopted", last, exactly=False)
        peaks.append(run.peak_rss)
        blocks = {peer: peers[peer] for peer in ("zchunk", "zsync", "casync") if peer in peers}
        figure("without a delta", used, peers["zchunk"], blocks)
        for work, place in (("first install", fresh), ("the same, grown site", site)):
            used, run = self.sync(place, clients / place.root.name, last)
            peaks.append(run.peak_rss)
            archives = {peer: peers[peer] for peer in ("tar.gz", "tar.zst")}
            bars = [1.15 * archives["tar.zst"], *([0.75 * archives["tar.gz"]] if kind.startswith("text") else [])]
            figure(work, used, min(bars), archives)
            self.judge(name, title, f"{work}, requests", used.requests, "", 40)
        self.report.figures.append(memory(name, title, max(peaks), limit=RSS_LIMIT))
        shutil.rmtree(clients)

    def small(self) -> None:
        """Time: many small files, against fetching them one by one."""
        site = self.site("small")
        site.grow("1", partial(small_files, count=2000, least=512, most=8192))
        tree, dest = site.tree("1"), self.scratch / "small"
        listed = self.scratch / "small.txt"
        listed.write_text("".join(f"{self.url(tree)}/{path.name}\n" for path in sorted(tree.iterdir())))
        aria = Contestant(name="aria2c -j8", command=("aria2c", "-q", "-j8", "-d", str(dest), "-i", str(listed)))

        def after() -> None:
            _check(dest, tree)
            shutil.rmtree(dest)

        contest = Contest(
            name="small",
            title="first install of 2,000 files of 0.5 to 8 KiB, wall time",
            ours=self.cli("sync", self.url(site.path), dest),
            bars=(Bar(limit=1.0, peers=(aria,)),),
            after=after,
        )
        self.report.add(self.bench.compare(contest, self.pairs), rss_limit=RSS_LIMIT)

    def nothing(self) -> None:
        """Time: a sync with nothing to do."""
        site, dest = self.botocore(), self.scratch / "nothing"
        site.offer("1")
        self.sync(site, dest, "1")
        where = (self.url(site.path), str(dest))
        again = _timed("again", "kit.sync(*sys.argv[1:])", *where, before="kit.sync(*sys.argv[1:])")
        first = _timed("first", "kit.sync(*sys.argv[1:])", *where)
        walk = Contestant(name="scandir and stat", command=(sys.executable, "-c", _WALK, *where), own_clock=True)
        title = "sync with nothing to do, botocore (3,433 files)"
        for ours, limit in ((again, 3.0), (first, None)):
            contest = Contest(
                name=f"nothing, {ours.name}", title=title, ours=ours, bars=(Bar(limit=limit, peers=(walk,)),)
            )
            found = self.bench.compare(contest, self.pairs)
            self.report.add(found, rss_limit=RSS_LIMIT)
            walls = [mine.wall_s * 1000 for one in found for mine, _ in one.runs]
            if walls:
                self.judge(contest.name, title, f"in process, {ours.name} call", median(walls), "ms", 100)
        shutil.rmtree(dest)

    def change(self) -> None:
        """Time: an update of few files, each to another release, and a rollback."""
        site, dest = self.botocore(), self.scratch / "change"
        site.offer("1")
        self.sync(site, dest, "1")
        update = _timed("update", "kit.sync(*sys.argv[1:])", self.url(site.path), str(dest))
        back = _timed("back", "kit.rollback(sys.argv[1])", str(dest))
        forward = _timed("forward", "kit.rollback(sys.argv[1], to=to)", str(dest), before=_LAST)
        runs: dict[str, list[Run]] = {each.name: [] for each in (update, back, forward)}
        for number in range(2, self.pairs + 3):
            note(f"change: release {number} of {self.pairs + 2}")
            site.offer(str(number))
            for each, release in ((update, number), (back, number - 1), (forward, number)):
                runs[each.name].append(self.bench.run(each))
                _check(dest, site.tree(str(release)))
        title = f"update that changes {CHANGED} of 3,433 files (botocore), in process, loopback included"
        for name, limit in (("update", 250), ("back", 100), ("forward", 100)):
            wall_ms = median(run.wall_s * 1000 for run in runs[name][1:])
            self.judge("change", title, f"{name}, wall, median", wall_ms, "ms", limit)
        peak = max(run.peak_rss for each in runs.values() for run in each)
        self.report.figures.append(memory("change", title, peak, limit=RSS_LIMIT))
        shutil.rmtree(dest)

    def check(self) -> None:
        """Time: what a check adds to an update: between two releases of botocore, and with changes evenly spread."""
        real = self.site("botocore-releases")
        for release in ("1.43.0", "1.43.4"):
            real.grow(release, partial(_unpacked, self.cache, "botocore", release))
        title = f"check that does nothing, of {CHANGED} changed files in 3,433 (botocore), in process"
        for name, site, old, new in (
            ("1.43.0 to 1.43.4", real, "1.43.0", "1.43.4"),
            ("evenly spread", self.botocore(), "1", "2"),
        ):
            url, dest = self.url(site.path), self.scratch / "check"
            site.offer(new)
            earlier = f"kit.sync(*sys.argv[1:], release={old!r})"
            plain = _timed("plain", "kit.sync(*sys.argv[1:])", url, str(dest), before=earlier)
            checked = _timed(
                "checked", "kit.sync(*sys.argv[1:], check=lambda staged: None)", url, str(dest), before=earlier
            )
            added_ms = []
            for number in range(self.pairs + 1):
                note(f"check: {name}, {number + 1} of {self.pairs + 1}")
                without, with_check = self.bench.run(plain), self.bench.run(checked)
                _check(dest, site.tree(new))
                added_ms.append((with_check.wall_s - without.wall_s) * 1000)
            self.judge("check", title, f"additional time, {name}, median", median(added_ms[1:]), "ms", 60)
            shutil.rmtree(dest)

    def back(self) -> None:
        """Time: a rollback of the same files in a small tree and in a large one."""
        trees = {}
        for count in (MANY, FILES):
            site = self.listing(count)
            trees[count] = self.scratch / f"back-{count}"
            for release in ("1", "2"):
                site.offer(release)
                self.sync(site, trees[count], release)
        ours, peer = (
            _timed(f"{count} files", "kit.rollback(sys.argv[1], to=to)", str(tree), before=_OTHER)
            for count, tree in trees.items()
        )
        title = f"back and forth by {CHANGED} files in a tree of {MANY}"
        contest = Contest(name="back", title=title, ours=ours, bars=(Bar(limit=1.2, peers=(peer,)),))
        found = self.bench.compare(contest, self.pairs)
        self.report.add(found, rss_limit=RSS_LIMIT)
        walls = [theirs.wall_s * 1000 for one in found for _, theirs in one.runs]
        if walls:
            self.judge("back", title, f"wall, {FILES} files, median", median(walls), "ms", 100)
        for tree in trees.values():
            shutil.rmtree(tree)

    def large(self) -> None:
        """Memory: one file of 2 GiB."""
        site = self.site("large")
        for version, edits in (("1", 0), ("2", 20)):
            site.grow(version, lambda tree, edits=edits: large_file(tree / "large.bin", 2 << 30, edits=edits))
        self.peaks("large", "one file of 2 GiB: peak RSS", site)

    def entries(self) -> None:
        """Memory: many files."""
        for count in (25_000, MANY):
            self.peaks(f"entries {count}", f"{count:,} files: peak RSS", self.listing(count))

    def peaks(self, name: str, title: str, site: Site) -> None:
        """The memory of each kind of run on a site of two releases, 1 and 2."""
        dest = self.scratch / "peaks"
        rollback = self.cli("rollback", dest)
        works: list[tuple[str, str, Callable[[], Run]]] = [
            (work, release, lambda release=release: self.sync(site, dest, release)[1])  # type: ignore[misc]
            for work, release in (("install", "1"), ("nothing to do", "1"), ("update", "2"))
        ]
        for work, release, measured in [*works, ("rollback", "1", lambda: self.bench.run(rollback))]:
            note(f"{name}: {work}")
            site.offer(release)
            run = measured()
            _check(dest, site.tree(release))
            self.judge(name, title, work, run.peak_rss / 10**6, "MB", 50, {"wall s": run.wall_s})
        shutil.rmtree(dest)

    def judge(
        self,
        contest: str,
        title: str,
        name: str,
        value: float,
        unit: str,
        limit: float,
        beside: dict[str, float] | None = None,
    ) -> None:
        self.report.figures.append(
            Figure(
                contest=contest,
                title=title,
                name=name,
                value=value,
                unit=unit,
                bar=f"<={limit} {unit}".strip(),
                limit=limit,
                holds=value <= limit,
                beside=beside or {},
            )
        )

    def sync(self, site: Site, dest: Path, release: str, *, exactly: bool = True) -> tuple[Traffic, Run]:
        """Run a whole process; returns its traffic, after checking that it installed the release."""
        self.nginx.traffic()
        run = self.bench.run(self.cli("sync", self.url(site.path), dest))
        used = self.nginx.traffic()
        _check(dest, site.tree(release), exactly=exactly)
        return used, run

    def cli(self, command: str, *arguments: object) -> Contestant:
        line = (sys.executable, "-m", "perfkit", command, *map(str, arguments), "--quiet")
        return Contestant(name=f"perfkit {command}", command=line)

    def url(self, path: Path) -> str:
        return f"{self.nginx.http}/{path.relative_to(self.cache)}"

    def site(self, name: str) -> Site:
        return Site(self.cache / "updates" / name)

    def botocore(self) -> Site:
        """Publish a release, and for each measured update another one with few changes."""
        site = self.site("botocore")
        site.grow("1", partial(_unpacked, self.cache, "botocore", "1.43.0"))
        names = spread(site.tree("1"), CHANGED)
        for number in range(2, self.pairs + 3):
            site.grow(str(number), partial(edited, old=site.tree(str(number - 1)), names=names, change=str(number)))
        return site

    def listing(self, count: int) -> Site:
        """Publish small files, and a release with few changes."""
        site = self.site(f"entries-{count}")
        site.grow("1", partial(entries, count=count))
        site.grow("2", partial(edited, old=site.tree("1"), names=spread(site.tree("1"), CHANGED), change="2"))
        return site

    def peers(self, site: Site, releases: Sequence[str]) -> dict[str, float]:
        """The costs of other tools, measured once per site."""
        record = site.root / "peers.json"
        found: dict[str, float] = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        trees = [site.tree(release) for release in releases]
        tars = [make_tar(tree, site.root / f"{tree.name}.tar") for tree in trees[-2:]]
        measures: dict[str, Callable[[], dict[str, float]]] = {
            "patch": lambda: {"patch": patch_bytes(tars)},
            "zchunk": lambda: block_bytes(tars, site.root),
            "tar.gz": lambda: dict(archive_bytes(tars[1])),
            **{f"rsync {tree.name}": partial(_rsync, tree, trees[-1]) for tree in trees[:-1]},
        }
        for name, measured in measures.items():
            if name not in found:
                note(f"{site.root.name}: {name}")
                found |= measured()
                record.write_text(json.dumps(found), encoding="utf-8")
        return found


def _rsync(old: Path, new: Path) -> dict[str, float]:
    return {f"rsync {old.name}": rsync_bytes(old, new)}


def _unpacked(cache: Path, project: str, release: str, root: Path) -> None:
    unpack(sdist(cache, project, release), root)


def _timed(name: str, work: str, *arguments: str, before: str = "pass") -> Contestant:
    """perfkit, timed without start-up."""
    code = _CLOCK.format(before=before, work=work)
    return Contestant(name=name, command=(sys.executable, "-c", code, *arguments), own_clock=True)


def _check(dest: Path, tree: Path, *, exactly: bool = True) -> None:
    """Check that every file exists with its content, and with `exactly` that there are no others."""
    found, wanted = manifest_of(dest), manifest_of(tree)
    if found.sha256 != wanted.sha256 and (exactly or not set(found) >= set(wanted)):
        raise RunFailedError(f"{dest} is not what {tree} is")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", metavar="ROW", help="of: django lxml ansible small nothing change check back large entries"
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/perfkit-benchmarks")
    parser.add_argument("--reuse", action="store_true", help="what an earlier run published")
    parser.add_argument("--dir", type=Path, help="where trees are made, on the disk to measure (default: --cache)")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    options = parser.parse_args()
    cache = options.cache.resolve()
    if not options.reuse:
        shutil.rmtree(cache / "updates", ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    report = Report("updates", {"pairs": options.pairs}, versions(TOOLS, ("perfkit", "backports.zstd")))
    with tempfile.TemporaryDirectory(prefix="perfkit-bench-", dir=options.dir or cache) as home:
        scratch = Path(home)
        (scratch / "bench").mkdir()
        with Bench(scratch / "bench") as bench, Nginx(cache, scratch / "nginx", counted=True) as nginx:
            updates = Updates(bench, nginx, cache, scratch, report, options.pairs)
            for name in options.only or updates.rows:
                updates.rows[name]()
        written = report.write(options.out, "updates")
    print(report.table())
    for path in written:
        note(f"written: {path}")
    return 1 if report.missed else 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
