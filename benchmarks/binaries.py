"""Benchmark deltas against zstd, xdelta3, bsdiff and HDiffPatch on the tars of the same trees.

    python benchmarks/binaries.py [--cache DIR] [--trees OLD NEW] [PAIR ...]
    python benchmarks/binaries.py --applying [--rounds 5] [--cache DIR] [--trees OLD NEW] [PAIR ...]

The pairs are those of `binary_pairs.py`. Prints a table: our delta object, the least bytes of any peer, and the ratio.
bsdiff4, hdiffpatch, numpy and pyarrow are Python packages (`pip install bsdiff4 numpy pyarrow 'perfkit[publish]'`);
zstd and xdelta3 are programs.

With --applying, prints how long a sync by the delta takes instead, relative to other ways to get the new tree on the
same disk, that of --cache. All of them are durable when they end:

  applying  the part of the sync from when the delta is on disk, verified, to the end
  writing   the files in memory are written by Python, which needs each created, written and renamed; then each file
            and directory is fsynced, or if the files are more than eight, the file system is synced once, as fsyncs of
            many files would take longer
  tar       `tar -xf` and `sync -f`
  install   perfkit's own first install of the same release

The sync is a call in a process that has imported everything, and has a connection to the server, which is another
process. Unlike the others, it keeps the old release for a rollback, and writes only the files that differ.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

from binary_pairs import MADE, PACKAGES, made_pair, package
from corpora import make_tar, patch_bytes, run
from measure import MB, Bench, Contestant, note
from scale import serve

from perfkit import Toolkit
from perfkit.libc import sync_directory_at, syncfs
from perfkit.releases.format.pointer import Pointer
from perfkit.releases.publish.publisher import publish
from perfkit.updates.sources import delta_route

FEW = 8  # files that are fsynced one by one
CODERS = ("lzma2", "zstd", "bzip2")  # of HDiffPatch


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cache", type=Path, default=Path("/tmp/perfkit-bench"))
    options.add_argument("--applying", action="store_true", help="measure syncs, not deltas")
    options.add_argument("--rounds", type=int, default=5, help="of --applying")
    options.add_argument("pairs", nargs="*", metavar="PAIR", help="default: all")
    options.add_argument("--trees", nargs=2, action="append", type=Path, metavar=("OLD", "NEW"), default=[])
    chosen = options.parse_args()
    pairs = {f"{old.name} → {new.name}": (old, new) for old, new in chosen.trees}
    for name in chosen.pairs or ([] if pairs else [*PACKAGES, *MADE]):
        pairs[name] = made_pair(chosen.cache, name) if name in MADE else packages(chosen.cache, name)
    if chosen.applying:
        measure_applying(pairs, chosen.cache, chosen.rounds)
        return
    print_head("pair", "perfkit", "best peer", "ratio", "second publish, s", "HDiffPatch, s")
    for name, (old, new) in pairs.items():
        ours, publish_s = delta_bytes(old, new, chosen.cache / "site")
        tars = [make_tar(tree, chosen.cache / f"binaries-{number}.tar") for number, tree in enumerate((old, new))]
        peers, hdiff_s = peer_bytes(tars)
        best = min(peers, key=peers.__getitem__)
        figures = f"{ours:,} | {best} {peers[best]:,} | {ours / peers[best]:.2f} | {publish_s:.1f} | {hdiff_s:.1f}"
        print(f"| {name} | {figures} |")


def print_head(*columns: str) -> None:
    print("| " + " | ".join(columns) + " |" + "\n|" + " --- |" * len(columns), flush=True)


def packages(cache: Path, name: str) -> tuple[Path, Path]:
    """The trees of one of `PACKAGES`."""
    client, project, old, new = PACKAGES[name]
    return package(cache, client, project, old), package(cache, client, project, new)


def delta_bytes(old: Path, new: Path, site: Path) -> tuple[int, float]:
    """The size of the delta that a site offers, and how long the second publish took."""
    shutil.rmtree(site, ignore_errors=True)
    publish(str(old), str(site), version="1")
    began = time.monotonic()
    publish(str(new), str(site), version="2")
    (delta,) = Pointer.parse((site / "perfkit.json").read_bytes()).deltas
    return delta.object.bytes, time.monotonic() - began


def peer_bytes(tars: list[Path]) -> tuple[dict[str, int], float]:
    import bsdiff4  # only for this table
    import hdiffpatch

    before, after = (tar.read_bytes() for tar in tars)
    began = time.monotonic()
    hdiffpatch.diff(before, after, compression="lzma2")
    hdiff_s = time.monotonic() - began
    peers: dict[str, Callable[[], int]] = {
        "zstd": lambda: patch_bytes(tars),
        "xdelta3": lambda: xdelta_bytes(tars),
        "bsdiff": lambda: len(bsdiff4.diff(before, after)),
        **{f"hdiffpatch {coder}": lambda coder=coder: hdiff_bytes(before, after, coder) for coder in CODERS},
    }
    return {name: measured() for name, measured in peers.items()}, hdiff_s


def hdiff_bytes(before: bytes, after: bytes, coder: str) -> int:
    import hdiffpatch

    return len(hdiffpatch.diff(before, after, compression=coder))


def xdelta_bytes(tars: list[Path]) -> int:
    patch = tars[1].with_suffix(".xdelta")
    run(["xdelta3", "-f", "-e", "-9", "-S", "djw", "-B", str(1 << 27), "-s", str(tars[0]), str(tars[1]), str(patch)])
    return patch.stat().st_size


class Took(NamedTuple):
    wall_s: float
    cpu_s: float  # of this process, and of those that it waited for

    @classmethod
    def so_far(cls) -> Took:
        spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return cls(time.perf_counter(), sum(each.ru_utime + each.ru_stime for each in spent))

    def since(self, began: Took) -> Took:
        return Took(self.wall_s - began.wall_s, self.cpu_s - began.cpu_s)


def measure_applying(pairs: dict[str, tuple[Path, Path]], cache: Path, rounds: int) -> None:
    """Print the table of --applying; the sites stay in the cache for the next run."""
    against = ("applying ÷ writing", "sync ÷ writing", "÷ tar", "÷ install")
    print_head("pair", "MB", "changed", *against, "seconds of each", "CPU of each", "peak MB")
    for name, (old, new) in pairs.items():
        site = cache / "applying" / name
        if not site.exists() or Pointer.parse((site / "perfkit.json").read_bytes()).version != "2":
            note(f"publishing {name}")
            shutil.rmtree(site, ignore_errors=True)
            publish(str(old), str(site), version="1")
            publish(str(new), str(site), version="2")
        with (
            tempfile.TemporaryDirectory() as home,
            Bench(Path(home)) as bench,
            serve(str(site)) as url,
            Toolkit() as kit,
        ):
            columns = Applying(kit, url, new, cache).measure(rounds, bench)
        print(f"| {name} | {' | '.join(columns)} |", flush=True)


class Applying:
    """A sync by the delta, and other ways to get the new tree, each into a directory of its own."""

    def __init__(self, kit: Toolkit, url: str, new: Path, cache: Path) -> None:
        self.kit, self.url, self.directory = kit, url, cache / "applied"
        self.tar = make_tar(new, cache / "applying.tar")
        self.contents = {str(path.relative_to(new)): path.read_bytes() for path in new.rglob("*") if path.is_file()}
        self.written = 0  # bytes, by the sync
        self.fetched = self.applying = Took(0, 0)  # when the last sync had its delta; how long it took from then
        self.ways = self.sync, self.write, self.extract, self.install

    def measure(self, rounds: int, bench: Bench) -> list[str]:
        """The columns of the table."""
        found: dict[Callable[[], object], list[Took]] = {way: [] for way in self.ways}
        applying: list[Took] = []
        for number in range(rounds + 1):  # the first one warms up
            start = number % len(self.ways)
            for way in (*self.ways[start:], *self.ways[:start]):
                took = self.clock(way)
                if number:
                    found[way].append(took)
                    if way == self.sync:
                        applying.append(self.applying)
        command = (sys.executable, "-m", "perfkit", "sync", self.url, str(self.directory), "--quiet")
        for _ in range(2):  # the first one compiles modules, too
            self.clock(self.install_old)
            peak = bench.run(Contestant(name="sync", command=command)).peak_rss
        shutil.rmtree(self.directory)
        sizes = sum(map(len, self.contents.values())), self.written
        return [
            *(f"{size / MB:.1f}" for size in sizes),
            ratios(applying, found[self.write]),
            *(ratios(found[self.sync], found[other]) for other in self.ways[1:]),
            *(medians([applying, *found.values()], figure) for figure in Took._fields),
            f"{peak / MB:.0f}",
        ]

    def clock(self, way: Callable[[], object]) -> Took:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir()
        if way == self.sync:
            self.install_old()
        os.sync()
        began = Took.so_far()
        way()
        ended = Took.so_far()
        self.applying = ended.since(self.fetched)
        return ended.since(began)

    def install_old(self) -> None:
        self.kit.sync(self.url, self.directory, release="1")

    def sync(self) -> None:
        def apply_deltas(*arguments: Any, **options: Any) -> Any:
            self.fetched = Took.so_far()
            return usual(*arguments, **options)

        usual = delta_route.apply_deltas
        with patch.object(delta_route, "apply_deltas", apply_deltas):
            report = self.kit.sync(self.url, self.directory)
        assert report.route == "delta", report
        self.written = report.bytes_written

    def write(self) -> None:
        directories, few = {self.directory}, len(self.contents) <= FEW
        for name, content in self.contents.items():
            path = self.directory / name
            if path.parent not in directories:
                path.parent.mkdir(parents=True, exist_ok=True)
                directories.update(path.parents[: len(Path(name).parts) - 1])
            with open(f"{path}~", "xb", buffering=0) as file:
                file.write(content)
                if few:
                    os.fsync(file.fileno())
            os.rename(f"{path}~", path)
        if few:
            for directory in directories:
                sync_directory_at(str(directory))
        else:
            with open(path, "rb") as file:
                syncfs(file.fileno())

    def extract(self) -> None:
        run(["tar", "-C", str(self.directory), "-xf", str(self.tar)])
        run(["sync", "-f", str(self.directory)])

    def install(self) -> None:
        self.kit.sync(self.url, self.directory)


def ratios(ours: list[Took], theirs: list[Took]) -> str:
    """The median of the quotients of seconds, with the least and the most."""
    found = [mine.wall_s / other.wall_s for mine, other in zip(ours, theirs, strict=True)]
    return f"{median(found):.2f} ({min(found):.2f}..{max(found):.2f})"


def medians(ways: Iterable[list[Took]], figure: str) -> str:
    return " : ".join(f"{median(getattr(took, figure) for took in each):.3f}" for each in ways)


if __name__ == "__main__":
    main()
