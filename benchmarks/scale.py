"""What every command costs as the number of files grows: processor time and peak memory of whole processes.

    python benchmarks/scale.py                              # 10,000 to 400,000 files: an hour
    python benchmarks/scale.py --files 25000 --only sync    # one size, and rows whose names begin like that
    python benchmarks/scale.py --files 10000 100000 --only sync peer    # ours beside `cp -r` and `tar -x`
    python benchmarks/scale.py --publisher                  # further releases of a site, without clients
    mount -t tmpfs -o size=20g,nr_inodes=8m none /mnt; python benchmarks/scale.py --files 1000000 --directory /mnt

Trees of files of some ten bytes in directories of a hundred, in memory. The second release changes one file in a
hundred, the third one every file, which is the most that an update and a rollback can have to do. The last columns are
the growth exponents between the least and the greatest size: 1 is linear. Processor time, since wall time depends on
what else the machine does. The rows of peers show how the system's own part of it grows, since `cp -r` and `tar -x` of
the same tree do little else.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from measure import MB, Bench, Contestant, Run, note

_PER_DIRECTORY = 100
_TIMEOUT_S = 3600.0  # of a command
_PYTHON = {
    "scan": "sum(1 for _ in kit.scan(tree))",
    "hash_tree": "sum(1 for _ in kit.hash_tree(tree))",
    "copy_tree": "kit.copy_tree(tree, copy)",
    "remove_tree": "kit.remove_tree(copy)",
}


def write_tree(root: Path, count: int, release: int, *, step: int = 1) -> None:
    """Files whose content differs from file to file and from release to release; only every `step`-th is written."""
    for number in range(0, count, step):
        path = root / f"part-{number // 10_000:03}" / f"d{number // _PER_DIRECTORY:05}" / f"file-{number:07}.txt"
        if number % _PER_DIRECTORY == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d of %d\n" % (number, release))


class Commands:
    """The measured commands, in the order in which they must run; each is a row of the table."""

    def __init__(self, root: Path, count: int, url: str, *, lists: bool) -> None:
        self._root, self._count, self._url, self._with_lists = root, count, url, lists
        self._site, self._dest = root / "site", root / "dest"

    def rows(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Name and command line; the work that prepares a row is done just before it is yielded."""
        tree, copy = self._root / "tree", self._root / "copy"
        write_tree(tree, self._count, 1)
        for name, code in _PYTHON.items():
            yield name, self._python(code, tree=str(tree), copy=str(copy))
        yield from self._peers(tree)
        yield "publish", self._perfkit("publish", tree, self._site, "--version", "1")
        yield "sync, install", self._sync()
        yield "sync, nothing to do", self._sync()
        yield "sync --check-contents", self._sync("--check-contents")
        write_tree(tree, self._count, 2, step=100)
        yield "publish, 1 % changed", self._perfkit("publish", tree, self._site, "--version", "2")
        yield "sync, 1 % changed", self._sync()
        write_tree(tree, self._count, 3)
        yield "publish, all changed", self._perfkit("publish", tree, self._site, "--version", "3", "--keep-deltas=0")
        yield "sync --dry-run", self._sync("--dry-run")
        yield "sync, all changed", self._sync()
        for command in ("verify", "history", "status", "rollback", "verify --repair", "pin", "unhold"):
            yield command, self._perfkit(*command.split(), self._dest)
        yield "sync, after rollback", self._sync()
        yield "rollback --to 0", self._perfkit("rollback", self._dest, "--to", "0")
        yield "sync --release", self._sync("--release", "2")
        yield "sync --release, newer", self._sync("--release", "3")
        for options in ("--dry-run", ""):
            yield f"prune {options}".strip(), self._perfkit("prune", self._dest, "--keep", "0", *options.split())
        for command, place in (("releases", f"{self._url}/site"), ("check", self._site), ("prune", self._site)):
            yield f"{command} of a site", self._perfkit(command, place)
        if self._with_lists:
            yield from self._lists(tree)

    def _peers(self, tree: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
        copy, archive = self._root / "peer", self._root / "peer.tar"
        yield "peer: cp -r", ("cp", "-r", str(tree), str(copy))
        shutil.rmtree(copy)
        yield "peer: tar -c", ("tar", "-cf", str(archive), "-C", str(tree), ".")
        copy.mkdir()
        yield "peer: tar -x", ("tar", "-xf", str(archive), "-C", str(copy))
        archive.unlink()
        shutil.rmtree(copy)

    def _lists(self, tree: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
        listed = self._root / "list"
        names = (path.relative_to(tree) for path in tree.rglob("*.txt"))
        listed.write_text("".join(f"{self._url}/{tree.name}/{name}\t{name}\n" for name in names))
        for name, directory in (("get", "got"), ("download_many", "many")):
            command = self._perfkit("get", "-i", listed, "-d", self._root / directory)
            many = "kit.download_many((tuple(line.rstrip().split('\\t')) for line in open(listed)), dest)"
            code = self._python(many, listed=str(listed), dest=str(self._root / directory))
            yield f"{name} of URLs", command if name == "get" else code
            shutil.rmtree(self._root / directory)
        yield "sync of URLs", self._perfkit("sync", "--type", "urls", listed, self._root / "listed")
        yield "sync of URLs, again", self._perfkit("sync", "--type", "urls", listed, self._root / "listed")

    def publisher_rows(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """As `rows`, for a site without clients, of which more and more files change from release to release."""
        tree = self._root / "tree"
        changes = {"nothing": 0, "1 file": self._count, "1 %": 100, "all": 1}
        write_tree(tree, self._count, 1)
        yield "publish", self._perfkit("publish", tree, self._site, "--version", "1")
        for version, (what, step) in enumerate(changes.items(), 2):
            if step:
                write_tree(tree, self._count, version, step=step)
            deltas = ("--keep-deltas=0",) if step == 1 else ()
            yield f"publish, {what} changed", self._perfkit("publish", tree, self._site, "--version", version, *deltas)
        for command in ("check", "prune"):
            yield f"{command} of a site", self._perfkit(command, self._site)

    def _sync(self, *options: str) -> tuple[str, ...]:
        return self._perfkit("sync", f"{self._url}/site", self._dest, *options)

    def _perfkit(self, *arguments: object) -> tuple[str, ...]:
        return (sys.executable, "-m", "perfkit", *map(str, arguments), *(() if "status" in arguments else ("--quiet",)))

    def _python(self, code: str, **names: str) -> tuple[str, ...]:
        setup = "".join(f"{name} = {value!r}; " for name, value in names.items())
        return (sys.executable, "-c", f"from perfkit import Toolkit; {setup}kit = Toolkit(); {code}")


@contextlib.contextmanager
def serve(root: str) -> Iterator[str]:
    """perfkit's own server, for a directory; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "perfkit", "serve", root, "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while server.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def measure(place: str, count: int, wanted: Callable[[str], bool], *, lists: bool, publisher: bool) -> dict[str, Run]:
    """Every row with so many files. Those that are not wanted run too, since later ones need what they leave.

    Args:
        place: the directory for the files.
        publisher: whether to run `publisher_rows` instead.
    """
    found = {}
    with (
        tempfile.TemporaryDirectory(dir=place) as directory,
        Bench(Path(directory), timeout_s=_TIMEOUT_S) as bench,
        serve(directory) as url,
    ):
        for part, files in (("warm-up", 10), ("measured", count)):  # compiling modules takes 6 MB, the first time
            root = Path(directory) / part
            root.mkdir()
            commands = Commands(root, files, f"{url}/{part}", lists=lists)
            for name, command in commands.publisher_rows() if publisher else commands.rows():
                run = bench.run(Contestant(name=name, command=command, env={"PERFKIT_MAX_FILES": "1000000"}))
                if wanted(name) and files == count:
                    note(f"{count:>9,}  {name:<24} {run.cpu_s:8.2f} s {run.peak_rss / MB:7.1f} MB\n")
                    found[name] = run
    return found


def table(results: dict[int, dict[str, Run]]) -> str:
    """A row for each command: seconds and megabytes for each size, and how both grow."""
    sizes = sorted(results)
    lines = [f"{'':<24}" + "".join(f"{size:>20,}" for size in sizes) + "   growth of time, memory"]
    for name in results[sizes[0]]:
        runs = [(size, results[size][name]) for size in sizes if name in results[size]]
        line = f"{name:<24}" + "".join(f"{run.cpu_s:>10.2f} s{run.peak_rss / MB:>5.0f} MB" for _, run in runs)
        line += " " * 20 * (len(sizes) - len(runs))
        (least, first), (most, last) = runs[0], runs[-1]
        if most > least:
            time_growth, rss_growth = (
                math.log(after / before) / math.log(most / least)
                for before, after in ((first.cpu_s, last.cpu_s), (first.peak_rss, last.peak_rss))
            )
            line += f"{time_growth:>10.2f}{rss_growth:>8.2f}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, nargs="+", default=[10_000, 25_000, 100_000, 400_000])
    parser.add_argument("--only", nargs="*", default=[""], help="rows whose names begin with one of these")
    parser.add_argument("--lists", type=int, default=50_000, metavar="N", help="lists of URLs up to so many files")
    where = "on a file system in memory, with five inodes for each file"
    parser.add_argument("--directory", default="/dev/shm", help=where)
    parser.add_argument("--publisher", action="store_true", help="only what a publisher runs")
    options = parser.parse_args()
    only = tuple(options.only)
    results = {
        count: measure(
            options.directory,
            count,
            lambda name: name.startswith(only),
            lists=count <= options.lists,
            publisher=options.publisher,
        )
        for count in options.files
    }
    print(table(results))


if __name__ == "__main__":
    main()
