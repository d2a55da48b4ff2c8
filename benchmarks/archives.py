"""Benchmark updates from archives and `.zsync` files: `python benchmarks/archives.py`, from perfkit[bench,zsync].

All through the command line, from nginx on loopback, whole processes. zip: two adjacent releases of a real wheel (from
PyPI, by pip), bytes by nginx's log. tar: a tar.gz of 150 MB against `tar xzf`. zsync: tars of 20 and 150 MB against the
reference client. Each run of ours brings the tree from one version to the other; the next one brings it back.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

from measure import MB, Bar, Bench, Contest, Contestant, Figure, Report, RunFailedError, note, versions
from origin import Nginx

HERE = Path(__file__).resolve().parent
WHEEL = ("django", "5.1.3", "5.1.4")
FILES, CHANGED = 3500, 45
SYNC = (sys.executable, "-m", "perfkit", "sync", "--quiet")


class Offer:
    """Two versions of some files; the site offers one: its NAME is a copy of NAME.0 or NAME.1 in `store`."""

    def __init__(self, store: Path, site: Path, names: Sequence[str]) -> None:
        self.store = store
        self.current = 0
        self._site = site
        self._began_s = int(time.time()) - 1000
        self._names = names
        self.put(0)

    def put(self, version: int) -> None:
        """Offer this version."""
        self.current = version
        for name in self._names:
            shutil.copy(self.store / f"{name}.{version}", self._site / f"{name}~")
            os.utime(self._site / f"{name}~", (self._began_s, self._began_s + version))  # the ETag
            os.replace(self._site / f"{name}~", self._site / name)


def sync(url: str, tree: Path) -> dict[str, object]:
    """One unmeasured run; returns its report."""
    env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    run = subprocess.run([*SYNC, "--json", url, str(tree)], capture_output=True, text=True, env=env, check=False)
    if run.returncode:
        raise RunFailedError(f"perfkit sync ended with {run.returncode}: {run.stderr[-500:]}")
    synced: dict[str, object] = json.loads(run.stdout)
    return synced


def zip_figures(report: Report, directory: Path, site: Path, server: Nginx) -> None:
    name, *releases = WHEEL
    note(f"zip: {name} {releases[0]} to {releases[1]}")
    for number, release in enumerate(releases):
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
        command = [*pip, "-d", str(directory), f"{name}=={release}"]
        subprocess.run(command, check=True)
        [wheel] = directory.glob("*.whl")
        wheel.rename(directory / f"pack.whl.{number}")
    offer = Offer(directory, site, ["pack.whl"])
    url, tree = f"{server.http}/pack.whl", directory / "wheel"
    sync(url, tree)
    server.traffic()
    offer.put(1)
    synced = sync(url, tree)
    seen = server.traffic()
    sync(url, tree)
    idle = server.traffic()
    archives = [zipfile.ZipFile(directory / f"pack.whl.{number}") for number in range(2)]
    before = {each.filename: (each.CRC, each.file_size) for each in archives[0].infolist()}
    changed = [each for each in archives[1].infolist() if before.get(each.filename) != (each.CRC, each.file_size)]
    size = (directory / "pack.whl.1").stat().st_size
    allowed = sum(each.compress_size for each in changed) + size - archives[1].start_dir + (64 << 10)
    for each in archives[1].infolist():
        if (tree / each.filename).read_bytes() != archives[1].read(each):
            raise RunFailedError(f"{each.filename} differs from the archive")
    title = (
        f"zip: {name} {' to '.join(releases)}, {len(changed)} of {len(archives[1].infolist())} members, "
        f"wheel of {size} bytes"
    )
    details = {
        "bytes": seen.bytes,
        "requests": seen.requests,
        "bodies": synced["bytes_received"],
        "allowed": allowed,
        "seconds": synced["seconds"],
        "idle_requests": idle.requests,
        "idle_bytes": idle.bytes,
    }
    report.figures.append(
        Figure(
            contest="zip",
            title=title,
            name="bytes on the wire / (changed + directory + 64 KiB)",
            value=seen.bytes / allowed,
            unit="",
            bar="<= 1.10",
            holds=seen.bytes <= 1.1 * allowed,
            details=details,
        )
    )


def make_tree(rng: random.Random, directory: Path, total: int, count: int) -> list[Path]:
    """Text-like files of varying size, which compress about 3 to 1."""
    words = [bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz_", k=rng.randrange(2, 12))) for _ in range(4000)]
    paths = []
    for number in range(count):
        path = directory / f"d{number % 97}" / f"f{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = int(total / count * rng.uniform(0.2, 1.8))
        path.write_bytes(b" ".join(rng.choices(words, k=size // 8 + 1))[:size])
        paths.append(path)
    return paths


def edit(rng: random.Random, paths: Sequence[Path]) -> None:
    for path in paths:
        data = bytearray(path.read_bytes())
        at = rng.randrange(len(data))
        data[at : at + 10] = rng.randbytes(rng.randrange(1, 200))
        path.write_bytes(data)


def pack(tree: Path, archive: Path, mode: str) -> None:
    with tarfile.open(archive, mode) as tar:
        tar.add(tree, arcname="")


def tar_contest(
    bench: Bench, report: Report, directory: Path, site: Path, server: Nginx, pairs: int, scale: float
) -> None:
    rng = random.Random(7)
    note("tar: making the tree")
    source, tree, empty = directory / "source", directory / "tree", directory / "empty"
    paths = make_tree(rng, source, int(150e6 * scale), FILES)
    changed = rng.sample(paths, CHANGED)
    contents: list[dict[Path, bytes]] = []
    for number in range(2):
        pack(source, directory / f"pack.tar.gz.{number}", "w:gz")
        contents.append({path.relative_to(source): path.read_bytes() for path in changed})
        edit(rng, changed)
    shutil.rmtree(source)
    offer = Offer(directory, site, ["pack.tar.gz"])
    url = f"{server.http}/pack.tar.gz"
    sync(url, tree)
    offer.put(1)
    empty.mkdir()

    def has(root: Path) -> bool:
        return all((root / name).read_bytes() == data for name, data in contents[offer.current].items())

    def after() -> None:
        """Check the tree and offer the other version; empty the directory of the peer."""
        if os.listdir(empty):
            if not has(empty):
                raise RunFailedError("tar unpacked something else")
            shutil.rmtree(empty)
            empty.mkdir()
        elif has(tree):
            offer.put(1 - offer.current)
        else:
            raise RunFailedError("the tree is not as it should be")

    unpack = ("tar", "xzf", str(site / "pack.tar.gz"), "-C", str(empty))
    contest = Contest(
        name="tar",
        title=f"tar.gz of {150 * scale:.0f} MB, {CHANGED} of {FILES} members changed",
        ours=Contestant(name="perfkit", command=(*SYNC, url, str(tree))),
        bars=(Bar(limit=1.3, peers=(Contestant(name="tar xzf, to an empty directory", command=unpack),)),),
        after=after,
    )
    report.add(bench.compare(contest, pairs), rss_limit=50 * MB)
    synced = sync(url, tree)
    after()
    if synced["changed"] != CHANGED or synced["added"] or synced["removed"]:
        raise RunFailedError(f"not {CHANGED} files were written: {synced}")


def zsync_contest(
    bench: Bench, report: Report, directory: Path, site: Path, server: Nginx, pairs: int, size: int
) -> None:
    rng = random.Random(size)
    name = f"zsync{size}.tar"
    note(f"{name}: making the tars")
    source, tree = directory / f"{name}.source", directory / f"{name}.tree"
    paths = make_tree(rng, source, size * MB, 40 * size)
    changed = rng.sample(paths, max(4, len(paths) // 25))
    for number in range(2):
        pack(source, directory / f"{name}.{number}", "w")
        command = ["zsyncmake", "-f", name, "-u", name, "-o", f"{name}.zsync.{number}", f"{name}.{number}"]
        subprocess.run(command, check=True, capture_output=True, cwd=directory)
        edit(rng, changed)
    shutil.rmtree(source)
    offer = Offer(directory, site, [name, f"{name}.zsync"])
    url, made, seed = f"{server.http}/{name}.zsync", directory / f"{name}.made", directory / f"{name}.seed"
    sync(url, tree)

    def other() -> None:
        os.replace(shutil.copy2(directory / f"{name}.{offer.current}", f"{seed}~"), seed)
        offer.put(1 - offer.current)

    def after() -> None:
        theirs, wanted = made.exists(), site / name
        same = filecmp.cmp(made if theirs else tree / name, wanted, shallow=False)
        for left in directory.glob(f"{made.name}*"):
            left.unlink()
        if not same:
            raise RunFailedError("the file that was made differs from the archive")
        if not theirs:
            other()

    other()
    ours, theirs = (*SYNC, url, str(tree)), ("zsync", "-q", "-i", str(seed), "-o", str(made), url)
    title = f"zsync: a tar of {size} MB, 1 file in 25 changed"
    bar = Bar(limit=3.0, peers=(Contestant(name="zsync", command=theirs),))
    contest = Contest(
        name=f"zsync{size}", title=title, ours=Contestant(name="perfkit", command=ours), bars=(bar,), after=after
    )
    report.add(bench.compare(contest, pairs), rss_limit=120 * MB)
    server.traffic()
    loud = tuple(word for word in theirs if word != "-q")
    run = subprocess.run(loud, check=True, capture_output=True, text=True, cwd=directory)
    theirs_seen = server.traffic()
    after()
    synced = sync(url, tree)
    seen = server.traffic()
    control = (site / f"{name}.zsync").stat().st_size
    reference = control + int((run.stdout + run.stderr).rpartition("fetched ")[2].split()[0])
    received = int(str(synced["bytes_received"]))
    details = {
        "bytes": received,
        "zsync": reference,
        "control": control,
        "wire": seen.bytes,
        "requests": seen.requests,
        "zsync_wire": theirs_seen.bytes,
        "zsync_requests": theirs_seen.requests,
    }
    report.figures.append(
        Figure(
            contest=f"zsync{size}",
            title=title,
            name="bytes fetched / zsync's",
            unit="",
            bar="<= 1.10",
            value=received / reference,
            holds=received <= 1.1 * reference,
            details=details,
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", action="append", choices=["zip", "tar", "zsync20", "zsync150"])
    parser.add_argument("--scale", type=float, default=1.0, help="of the tar.gz")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    only = arguments.only or ["zip", "tar", "zsync20", "zsync150"]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        directory = Path(name)
        site = directory / "site"
        site.mkdir()
        (directory / "bench").mkdir()
        report = Report(
            benchmark="archives",
            settings={"pairs": arguments.pairs, "scale": arguments.scale},
            versions=versions({"nginx": "-v", "tar": "--version", "zsync": "-V"}, ("perfkit", "numpy")),
        )
        with Bench(directory / "bench") as bench, Nginx(site, directory / "nginx", counted=True) as server:
            if "zip" in only:
                zip_figures(report, directory, site, server)
            if "tar" in only:
                tar_contest(bench, report, directory, site, server, arguments.pairs, arguments.scale)
            for size in (20, 150):
                if f"zsync{size}" in only:
                    zsync_contest(bench, report, directory, site, server, arguments.pairs, size)
        print(report.table())
        report.write(arguments.out, "archives")
        note(f"{time.strftime('%F %T')}: {json.dumps(report.missed)}\n")
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
