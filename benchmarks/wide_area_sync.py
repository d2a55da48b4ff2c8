"""Benchmark syncs over links with delay: `python benchmarks/wide_area_sync.py`, as root.

Whole processes over the emulated link of `link.py`: `perfkit sync` of two releases of Django, `rsync -az` from a daemon
at the far end, and `curl` piped into `tar`. See README.md next to this file.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import measure
from corpora import sdist, unpack
from link import SERVER, Lab, Link, missing
from measure import Bench, Comparison, Contestant, Report, Run, RunFailedError, note
from sites import Site

HERE = Path(__file__).resolve().parent
OLD, NEW = "4.2.15", "4.2.16"
DELAYS_MS = (20, 80, 200)
WORKS = ("first", "update", "nothing")
BARS = {  # the most that our time may be of the peer's
    ("first", "rsync"): 0.7,
    ("first", "curl and tar"): 1.1,
    ("update", "rsync"): 0.27,
    ("nothing", "rsync"): 0.24,
}
VERSIONS = {"rsync": "--version", "curl": "--version", "tar": "--version", "nginx": "-v"}
_RSYNCD = """\
uid = root
gid = root
use chroot = no
[new]
path = {new}
"""


@dataclass(frozen=True)
class Course:
    """Trees, and the ways to bring them up to date over one link."""

    bench: Bench
    lab: Lab
    site: Site
    scratch: Path

    def compare(self, name: str, scheme: str, work: str, runs: int) -> list[Comparison]:
        """Our runs and the peers', alternating, each from the same state."""
        ways: dict[str, Callable[[], Run]] = {
            "perfkit": lambda: self._perfkit(scheme, work),
            "rsync": lambda: self._rsync(work),
            "curl and tar": lambda: self._curl_and_tar(scheme),
        }
        done: dict[str, list[Run]] = {way: [] for way in ways if (work, way) in BARS or way == "perfkit"}
        errors: dict[str, str] = {}
        for _ in range(runs):
            for way in done:
                try:
                    done[way].append(ways[way]())
                    note(f"{name}: {way}: {done[way][-1].wall_s:.2f} s\n")
                except RunFailedError as error:
                    errors[way] = str(error)
        ours = errors.get("perfkit")
        return [
            Comparison(
                contest=name,
                title=f"{name}: from Django {OLD} to {NEW}, 100 Mbit/s",
                peer=way,
                limit=BARS[work, way],
                runs=() if ours or way in errors else tuple(zip(done["perfkit"], done[way], strict=True)),
                error=f"OURS: {ours}" if ours else errors.get(way),
            )
            for way in done
            if way != "perfkit"
        ]

    def _perfkit(self, scheme: str, work: str) -> Run:
        tree = self._empty("perfkit")
        sync = (sys.executable, "-m", "perfkit", "sync", f"{scheme}://{SERVER}/", str(tree), "--quiet")
        env = {"PYTHONPATH": str(HERE.parent), "PERFKIT_CA_BUNDLE": str(self.lab.ca)}
        contestant = Contestant(name="perfkit", command=self.lab.inside(*sync), env=env)
        if work != "first":
            self.site.offer(OLD if work == "update" else NEW)
            self.bench.run(contestant)
        self.site.offer(NEW)
        return self._checked(contestant, tree)

    def _rsync(self, work: str) -> Run:
        tree = self._empty("rsync")
        if work != "first":
            shutil.copytree(self.site.tree(OLD if work == "update" else NEW), tree, dirs_exist_ok=True)
        command = ("rsync", "-az", "--delete", f"rsync://{SERVER}/new/", f"{tree}/")
        return self._checked(Contestant(name="rsync", command=self.lab.inside(*command)), tree)

    def _curl_and_tar(self, scheme: str) -> Run:
        tree = self._empty("tar")
        pipe = f"curl -s --cacert {self.lab.ca} {scheme}://{SERVER}/all.tar.gz | tar -xzf - -C {tree}"
        return self._checked(Contestant(name="curl and tar", command=self.lab.inside("sh", "-c", pipe)), tree)

    def _empty(self, name: str) -> Path:
        tree = self.scratch / name
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir()
        return tree

    def _checked(self, contestant: Contestant, tree: Path) -> Run:
        run = self.bench.run(contestant)
        wanted = self.site.tree(NEW)
        for path in wanted.rglob("*"):
            if path.is_file() and path.read_bytes() != (tree / path.relative_to(wanted)).read_bytes():
                raise RunFailedError(f"{contestant.name}: {path} is not there as it was sent")
        return run


def main() -> int:
    """Measure, show and write; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="of each in each cell (default 5)")
    parser.add_argument("--delays", nargs="+", type=int, default=DELAYS_MS, metavar="MS", help="round trips")
    parser.add_argument("--schemes", nargs="+", choices=("http", "https"), default=("http", "https"))
    parser.add_argument("--works", nargs="+", choices=WORKS, default=WORKS, help="what to sync")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/perfkit-benchmarks")
    parser.add_argument("--out", type=Path, default=HERE / "results", metavar="DIR", help="for the JSON and the plot")
    arguments = parser.parse_args()
    if absent := missing() + [name for name in ("rsync", "tar") if shutil.which(name) is None]:
        parser.exit(1, f"this needs {', '.join(absent)}\n")
    cache = arguments.cache.resolve()
    site = Site(cache / "wide-area" / "django")
    for release in (OLD, NEW):
        site.grow(release, lambda root, release=release: unpack(sdist(cache, "django", release), root))
    subprocess.run(["tar", "-C", site.tree(NEW), "-czf", site.path / "all.tar.gz", "."], check=True)
    report = Report("wide_area_sync", {"runs": arguments.runs}, measure.versions(VERSIONS, ("perfkit",)))
    with tempfile.TemporaryDirectory(prefix="perfkit-wide-", dir="/dev/shm") as temporary:
        scratch = Path(temporary)
        daemon = scratch / "rsyncd.conf"
        daemon.write_text(_RSYNCD.format(new=site.tree(NEW)), encoding="utf-8")
        with Bench(scratch, without=("PERFKIT_",)) as bench:
            for delay_ms in arguments.delays:
                with Lab(Link(delay_ms), site.path) as lab:
                    lab.serve("rsync", "--daemon", "--no-detach", f"--config={daemon}", f"--address={SERVER}")
                    course = Course(bench, lab, site, scratch)
                    for scheme in arguments.schemes:
                        for work in arguments.works:
                            name = f"{work}-{delay_ms}ms-{scheme}"
                            report.comparisons += course.compare(name, scheme, work, arguments.runs)
    print(report.table())
    for path in report.write(arguments.out, report.benchmark):
        print(f"written: {path}")
    return 1 if report.missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
