"""Benchmark traversal, hashing and batches against common tools: `python benchmarks/filesystem.py`.

The tree is botocore's source archive from PyPI, about 3,400 files and 130 MB, fetched once into --cache.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from measure import MB, Bar, Bench, Contest, Contestant, Report, RunFailedError, versions

_MEMORY = Path("/dev/shm")
RSS_LIMIT = 50 * MB
SOURCE = "botocore==1.43.0"
_TIMED = """\
import json, os, sys, time
{setup}
root = sys.argv[1]
{work}
began = time.perf_counter()
{work}
print(json.dumps({{"seconds": time.perf_counter() - began}}))
"""
_SCAN = _TIMED.format(setup="from perfkit.filesystem.scan import scan", work="for entry in scan(root): pass")
_SCAN_ALL = _TIMED.format(
    setup="from perfkit.filesystem.scan import ScanOptions, scan",
    work="for entry in scan(root, ScanOptions(directories=True)): pass",
)
_WALK = _TIMED.format(setup="", work="for d, _, fs in os.walk(root):\n    for f in fs: os.stat(os.path.join(d, f))")
_WALK_ALL = _TIMED.format(
    setup="", work="for d, ds, fs in os.walk(root):\n    for f in fs + ds: os.stat(os.path.join(d, f))"
)
_CLOCK = """\
import json, time
began = time.perf_counter()
{}
print(json.dumps({{"seconds": time.perf_counter() - began}}))
"""


def fetch(cache: Path) -> Path:
    """The source archive, downloaded by pip, which builds its metadata to learn its name."""
    cache.mkdir(parents=True, exist_ok=True)
    name, _, version = SOURCE.partition("==")
    archive = cache / f"{name}-{version}.tar.gz"
    if not archive.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", name, "-d", cache, SOURCE]
        subprocess.run(command, check=True)
    return archive


def same(left: Path, right: Path) -> Callable[[], None]:
    """After a copy: check that it has the names and sizes of the source, and remove it."""

    def listing(root: Path) -> dict[str, int]:
        return {
            os.path.relpath(os.path.join(at, name), root): os.lstat(os.path.join(at, name)).st_size
            for at, _, names in os.walk(root)
            for name in names
        }

    expected = listing(left)

    def after() -> None:
        found = listing(right)
        shutil.rmtree(right, ignore_errors=True)
        if found != expected:
            raise RunFailedError(f"{right} has {len(found)} files of {len(expected)}, or of other sizes")

    return after


def python(name: str, code: str, *arguments: object, own_clock: bool = False) -> Contestant:
    return Contestant(name=name, command=(sys.executable, "-c", code, *map(str, arguments)), own_clock=own_clock)


def million(root: Path) -> Path:
    """A tree of a million empty files, a thousand in a directory."""
    for number in range(1000):
        directory = os.path.join(root, f"{number // 32}/{number}")
        os.makedirs(directory)
        for index in range(1000):
            os.mknod(f"{directory}/file-{index}", 0o100644)
    return root


def scans(name: str, title: str, tree: Path, limit: float | None) -> list[Contest]:
    return [
        Contest(
            name=name,
            title=f"{title}: files",
            ours=python("scan", _SCAN, tree, own_clock=True),
            bars=(Bar(limit=limit, peers=(python("os.walk + os.stat", _WALK, tree, own_clock=True),)),),
        ),
        Contest(
            name=f"{name}-all",
            title=f"{title}: files and directories",
            ours=python("scan", _SCAN_ALL, tree, own_clock=True),
            bars=(Bar(limit=limit, peers=(python("os.walk + os.stat", _WALK_ALL, tree, own_clock=True),)),),
        ),
    ]


def contests(tree: Path, big: Path, src: Path, out: Path) -> dict[str, list[Contest]]:
    """The rows, by name. All work is shorter than the start of Python with the Toolkit or not much longer, so bars are
    judged on ours timed inside the process; the whole process is shown beside. Scans are timed inside on both sides.

    Args:
        tree, big: what is read.
        src, out: what is copied, and where to.
    """
    kit = "import sys\nfrom perfkit import Toolkit\nwith Toolkit() as kit: "
    inside = "import sys\nfrom perfkit import Toolkit\nkit = Toolkit()\n"

    def both(
        name: str,
        title: str,
        call: str,
        arguments: tuple[object, ...],
        bars: tuple[Bar, ...],
        after: Callable[[], None] = lambda: None,
    ) -> list[Contest]:
        shown = tuple(Bar(limit=None, peers=bar.peers) for bar in bars)
        return [
            Contest(
                name=name,
                title=f"{title}, whole process",
                ours=python("perfkit", kit + call, *arguments),
                bars=shown,
                after=after,
            ),
            Contest(
                name=f"{name}-inside",
                title=f"{title}, ours without Python's start",
                ours=python("perfkit", inside + _CLOCK.format(call), *arguments, own_clock=True),
                bars=bars,
                after=after,
            ),
        ]

    find = f"find {tree} -type f -print0 | xargs -0 -P2 -n500 sha256sum"
    clear = same(src, out)
    return {
        "scan": scans("scan", "scan with stat", tree, 0.8),
        "hash-tree": both(
            "hash-tree",
            "SHA-256 of the tree",
            "[each for each in kit.hash_tree(sys.argv[1])]",
            (tree,),
            (Bar(limit=0.4, peers=(Contestant(name="find | xargs -P2 sha256sum", command=("sh", "-c", find)),)),),
        ),
        "hash-file": both(
            "hash-file",
            "SHA-256 of the chunks of 1 GiB",
            "kit.hash_file(sys.argv[1], chunk_bytes=1 << 20, whole=False)",
            (big,),
            (Bar(limit=0.2, peers=(Contestant(name="sha256sum", command=("sha256sum", str(big))),)),),
        ),
        "copy": both(
            "copy",
            "copy_tree",
            "kit.copy_tree(*sys.argv[1:])",
            (src, out),
            (
                Bar(limit=1.0, peers=(Contestant(name="cp -r", command=("cp", "-r", str(src), str(out))),)),
                Bar(
                    limit=0.8,
                    peers=(python("shutil.copytree", "import shutil, sys; shutil.copytree(*sys.argv[1:])", src, out),),
                ),
            ),
            clear,
        ),
        "link": both(
            "link",
            "link_tree",
            "kit.link_tree(*sys.argv[1:])",
            (src, out),
            (Bar(limit=1.3, peers=(Contestant(name="cp -rl", command=("cp", "-rl", str(src), str(out))),)),),
            clear,
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only",
        nargs="*",
        metavar="ROW",
        help="scan hash-tree hash-file copy link; and million, a "
        "scan of so many files, which takes place only if it is named",
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=Path("/var/tmp/perfkit-bench"), help="where the archive is kept")
    parser.add_argument(
        "--dir",
        type=Path,
        help="where the trees are made (default: in memory, /dev/shm, what is "
        "read, and in the temporary directory what is copied)",
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    options = parser.parse_args()
    archive = fetch(options.cache)
    memory = options.dir or (_MEMORY if _MEMORY.is_dir() else None)
    with (
        tempfile.TemporaryDirectory(prefix="perfkit-bench-", dir=memory) as home,
        tempfile.TemporaryDirectory(prefix="perfkit-bench-", dir=options.dir) as other,
    ):
        directory, disk = Path(home), Path(other)
        for place in (directory, disk):
            with tarfile.open(archive) as packed:
                packed.extractall(place / "tree", filter="data")
        big = directory / "big"
        with big.open("wb") as file:
            for _ in range(1024 if not options.only or "hash-file" in options.only else 1):
                file.write(os.urandom(1 << 20))
        os.sync()
        rows = contests(directory / "tree", big, disk / "tree", disk / "copy")
        if options.only and "million" in options.only:
            rows["million"] = scans("million", "scan of a million files", million(directory / "million"), None)
        settings = {"pairs": options.pairs, "tree": SOURCE, "read": home, "copied": other}
        report = Report("filesystem", settings, versions({"cp": "--version", "xargs": "--version"}, ("perfkit",)))
        with Bench(directory) as bench:
            for name, row in rows.items():
                if not options.only or name in options.only:
                    for contest in row:
                        report.add(bench.compare(contest, options.pairs), rss_limit=RSS_LIMIT)
        report.write(options.out, "filesystem")
    print(report.table())
    print(json.dumps({"missed": report.missed}))
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
