"""Durable transactions on a real disk, against writing the same files one by one with an fsync each.

    python benchmarks/transactions.py [--pairs 7] [--directory DIR] [--output DIR]

The tree is botocore's source archive from PyPI, as in filesystem.py; the large one has others besides, up to 100,000.
The directory should be on the disk to measure, not in memory. Times are taken in the process, around the work alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))
if __name__ == "__main__" and len(sys.argv) > 1 and sys.argv[1] == "--work":
    sys.path.insert(0, str(Path(__file__).parent.parent))
else:
    from filesystem import SOURCE, fetch
    from measure import Bar, Bench, Contest, Contestant, Figure, Report, note, versions

LARGE = 100_000  # files
CHANGED, BACK = 300, 45
SIZE = 4096
PER_DIRECTORY = 35
RSS_LIMIT = 50_000_000


def names(listing: str, count: int) -> list[str]:
    """Some of the names in this file, evenly spread."""
    lines = Path(listing).read_text(encoding="utf-8").splitlines()
    return [lines[index * len(lines) // count] for index in range(count)]


def build(scratch: Path, archive: Path) -> int:
    """Create the trees `small`, `plain` and `large`, and the file `names`; returns the number of names."""
    for tree in ("small", "plain", "large"):
        with tarfile.open(archive) as packed:
            packed.extractall(scratch / tree, filter="data")
    found = sorted(
        path.relative_to(scratch / "small").as_posix() for path in (scratch / "small").rglob("*") if path.is_file()
    )
    (scratch / "names").write_text("\n".join(found), encoding="utf-8")
    for index in range(LARGE - len(found)):
        path = scratch / f"large/more-{index // PER_DIRECTORY // 10}/d{index // PER_DIRECTORY}/file-{index}.bin"
        if index % PER_DIRECTORY == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(os.urandom(SIZE))
    os.sync()
    return len(found)


def work(kind: str, root: str, listing: str) -> float:
    """Run it, and return the seconds it took."""
    from perfkit.transactions.tree import Tree

    contents = {name: os.urandom(SIZE) for name in names(listing, BACK if kind == "back" else CHANGED)}
    if kind == "each":
        began = time.perf_counter()
        for name, data in contents.items():
            fd = os.open(os.path.join(root, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.write(fd, data)
            os.fsync(fd)
            os.close(fd)
        return time.perf_counter() - began
    if kind == "back":
        with Tree(root) as tree, tree.transaction() as tx:
            for name, data in contents.items():
                tx.write(name, data)
    began = time.perf_counter()
    with Tree(root) as tree:
        if kind == "back":
            tree.rollback()
        else:
            with tree.transaction() as tx:
                for name, data in contents.items():
                    tx.write(name, data)
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="on the disk to measure")
    parser.add_argument("--cache", type=Path, default=Path("/var/tmp/perfkit-bench"), help="where the archive is kept")
    parser.add_argument("--output", type=Path, default=Path("bench-results"))
    options = parser.parse_args()
    archive = fetch(options.cache)
    report = Report("transactions", {"pairs": options.pairs, "tree": SOURCE}, versions({}, ["perfkit"]))
    scratch = Path(tempfile.mkdtemp(prefix="perfkit-bench-", dir=options.directory))
    try:
        note("making the trees")
        files = build(scratch, archive)

        def run(label: str, kind: str, tree: str) -> Contestant:
            command = (sys.executable, Path(__file__).resolve(), "--work", kind, scratch / tree, scratch / "names")
            return Contestant(name=label, command=tuple(map(str, command)), own_clock=True)

        small = run("ours", "change", "small")
        contests = [
            Contest(
                name="change",
                title=f"change {CHANGED} files of 4 KiB in a tree of {files}",
                ours=small,
                bars=(Bar(limit=1.0, peers=(run("an fsync each", "each", "plain"),)),),
            ),
            Contest(
                name="large tree",
                title=f"the same in a tree of {LARGE}",
                ours=run("ours", "change", "large"),
                bars=(Bar(limit=1.2, peers=(run(f"ours, {files} files", "change", "small"),)),),
            ),
            Contest(
                name="back",
                title=f"back by {BACK} files in a tree of {files}",
                ours=run("ours", "back", "small"),
                bars=(Bar(limit=None, peers=(run(f"ours, {LARGE} files", "back", "large"),)),),
            ),
        ]
        (scratch / "bench").mkdir()
        with Bench(scratch / "bench") as bench:
            for contest in contests:
                found = bench.compare(contest, options.pairs)
                report.add(found, rss_limit=RSS_LIMIT)
                walls = [ours.wall_s * 1000 for one in found for ours, _ in one.runs]
                if contest.name != "large tree" and walls:
                    report.figures.append(
                        Figure(
                            contest=contest.name,
                            title=contest.title,
                            name="wall, median",
                            value=median(walls),
                            unit="ms",
                            bar="< 100 ms",
                            holds=median(walls) < 100,
                        )
                    )
    finally:
        shutil.rmtree(scratch)
    print(report.table())
    for path in report.write(options.output, "transactions"):
        note(f"written: {path}")
    return 1 if report.missed else 0


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--work":
        print(json.dumps({"seconds": work(*sys.argv[2:5])}))
    else:
        sys.exit(main())
