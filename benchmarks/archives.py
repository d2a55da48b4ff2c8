"""How updates from archives and `.zsync` fare: `python benchmarks/archives.py`, from perfkit[bench,zsync].

zip: two adjacent releases of a real wheel (from PyPI, by pip), bytes by ranges. tar: a tar.gz of 150 MB against
`tar xzf`. zsync: tars of 20 and 150 MB against the reference client, nginx on loopback. Whole processes are measured.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

HERE = Path(__file__).resolve().parent
WHEEL = ("django", "5.1.3", "5.1.4")
FILES, CHANGED = 3500, 45
GAP = 4096  # bytes; loopback


# The clients: what a process does whose time counts. They import nothing of the bench.


def client_tar(archive: str, dest: str) -> None:
    """Take from the archive what differs from the files in `dest`, as an update does before it commits."""
    from perfkit.incremental.routes.members import refresh
    from perfkit.incremental.routes.tar import read_members

    stage = Path(dest) / ".stage"
    stage.mkdir()
    staged = []
    with open(archive, "rb", buffering=0) as source:
        for member, content in read_members(source):
            path = os.path.join(dest, member.name)
            place = stage / str(len(staged))
            try:
                old = open(path, "rb", buffering=0)  # noqa: SIM115
            except FileNotFoundError:
                old = None
            result = refresh(member, content, old, lambda place=place: place.open("wb"))
            if old is not None:
                old.close()
            if result.changed:
                staged.append((place, path))
    for place, path in staged:
        os.replace(place, path)
    stage.rmdir()
    print(len(staged))


def client_zsync(url: str, old: str, out: str) -> None:
    """Read the control file, fetch what `old` doesn't have, and make the file."""
    from perfkit.incremental.routes.zsync import Fetch, assemble, make_recipe, parse_control

    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)

    def get(path: str, headers: dict[str, str]) -> bytes:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().read()

    data = get(parts.path, {})
    control = parse_control(data, url=url)
    path = urlsplit(control.urls[0]).path

    def fetched(step: Fetch) -> io.BytesIO:
        return io.BytesIO(get(path, {"Range": f"bytes={step.start}-{step.end - 1}"}))

    with open(old, "rb", buffering=0) as seed, open(out, "wb") as made:
        recipe = make_recipe(control, seed, gap=GAP)
        assemble(control, recipe, seed, fetched, made)
    connection.close()
    print(recipe.fetched_bytes, len(recipe.fetches))


# The bench


def zip_figures(directory: Path, report: object) -> None:
    from measure import Figure, note

    from perfkit.incremental.routes.zip import is_current, plan_ranges, read_directory, read_members

    name, old, new = WHEEL
    note(f"zip: {name} {old} to {new}")
    wheels = {}
    for version in (old, new):
        place = directory / version
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(place), f"{name}=={version}"]
        subprocess.run(command, check=True)
        [wheels[version]] = place.glob("*.whl")
    tree = directory / "tree"
    shutil.unpack_archive(wheels[old], tree, "zip")
    data = wheels[new].read_bytes()
    fetched_bytes = requests = 0

    def read_range(start: int, end: int) -> bytes:
        nonlocal fetched_bytes, requests
        fetched_bytes += end - start
        requests += 1
        return data[start:end]

    members = read_directory(read_range, len(data))
    wanted = []
    for member in members:
        path = tree / member.name
        if path.is_file():
            with path.open("rb") as file:
                if is_current(member, file):
                    continue
        wanted.append(member)
    for each in plan_ranges(wanted, gap=64 << 10):
        for member, content in read_members(each, io.BytesIO(read_range(each.start, each.end))):
            (tree / member.name).parent.mkdir(parents=True, exist_ok=True)
            (tree / member.name).write_bytes(b"".join(content))
    central = len(data) - max(member.end for member in members)
    allowed = sum(member.packed for member in wanted) + central + (64 << 10)
    title = f"zip by ranges: {name} {old} to {new}, {len(wanted)} of {len(members)} members, wheel of {len(data)} bytes"
    report.figures.append(  # type: ignore[attr-defined]
        Figure(contest="zip", title=title, name="bytes / (changed + directory + 64 KiB)", value=fetched_bytes / allowed,
               unit="", bar="<= 1.10", holds=fetched_bytes <= 1.1 * allowed,
               details={"bytes": fetched_bytes, "requests": requests, "allowed": allowed})
    )  # fmt: skip


def make_tree(rng: random.Random, directory: Path, total: int, count: int) -> list[Path]:
    """Files of a text-like kind: words, which compress about 3 to 1, in sizes that vary."""
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


def tar_contest(bench: object, report: object, directory: Path, pairs: int, scale: float) -> None:
    from measure import MB, Bar, Contest, Contestant, RunFailedError, note

    rng = random.Random(7)
    note("tar: making the tree")
    new, old = directory / "new", directory / "old"
    paths = make_tree(rng, new, int(150e6 * scale), FILES)
    shutil.copytree(new, old)
    changed = rng.sample(paths, CHANGED)
    edit(rng, changed)
    pack(new, directory / "new.tar.gz", "w:gz")
    empty = directory / "empty"
    empty.mkdir()

    def after() -> None:
        for path in changed:
            made, theirs = old / path.relative_to(new), empty / path.relative_to(new)
            if made.read_bytes() != path.read_bytes() and not theirs.exists():
                raise RunFailedError("a changed file was not updated")
        shutil.rmtree(empty)
        empty.mkdir()
        edit(rng, [old / path.relative_to(new) for path in changed])  # so that the next run has something to do

    contest = Contest(
        name="tar",
        title=f"tar.gz of {150 * scale:.0f} MB, {CHANGED} of {FILES} members changed",
        ours=Contestant(name="perfkit", command=(sys.executable, str(HERE / "archives.py"), "--client", "tar",
                                                 str(directory / "new.tar.gz"), str(old))),
        bars=(Bar(limit=1.3, peers=(Contestant(name="tar xzf, to an empty directory", command=(
            "tar", "xzf", str(directory / "new.tar.gz"), "-C", str(empty))),)),),
        after=after,
    )  # fmt: skip
    report.add(bench.compare(contest, pairs), rss_limit=50 * MB)  # type: ignore[attr-defined]


def zsync_contest(bench: object, report: object, directory: Path, site: Path, url: str, pairs: int, size: int) -> None:
    from measure import MB, Bar, Contest, Contestant, Figure, RunFailedError, note

    rng = random.Random(size)
    name = f"zsync{size}"
    note(f"{name}: making the tars")
    tree = directory / name
    paths = make_tree(rng, tree, size * MB, 40 * size)
    seed, new, made = directory / f"{name}.old.tar", site / f"{name}.tar", directory / f"{name}.made"
    pack(tree, seed, "w")
    edit(rng, rng.sample(paths, max(4, len(paths) // 25)))
    pack(tree, new, "w")
    shutil.rmtree(tree)
    control = site / f"{name}.zsync"
    subprocess.run(["zsyncmake", "-u", f"{name}.tar", "-o", str(control), str(new)], check=True, capture_output=True)
    where = f"{url}/{control.name}"
    ours = (sys.executable, str(HERE / "archives.py"), "--client", "zsync", where, str(seed), str(made))
    theirs = ("zsync", "-i", str(seed), "-o", str(made), where)

    def after() -> None:
        same = subprocess.run(["cmp", "-s", made, new], check=False).returncode == 0
        for left in directory.glob(f"{name}.made*"):
            left.unlink()
        if not same:
            raise RunFailedError("the file that was made is another one")

    title = f"zsync: a tar of {size} MB, 1 file in 25 changed"
    bar = Bar(limit=3.0, peers=(Contestant(name="zsync", command=theirs),))
    contest = Contest(name=name, title=title, ours=Contestant(name="perfkit", command=ours), bars=(bar,), after=after)
    report.add(bench.compare(contest, pairs), rss_limit=120 * MB)  # type: ignore[attr-defined]
    env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    told = []
    for command in (ours, theirs):
        run = subprocess.run(command, check=False, capture_output=True, text=True, env=env, cwd=directory)
        told.append(run)
        if told[-1].returncode:
            raise RunFailedError(f"{command[0]} ended with {told[-1].returncode}: {told[-1].stderr[-500:]}")
        after()
    fetched, ranges = map(int, told[0].stdout.split())
    reference = int((told[1].stdout + told[1].stderr).rpartition("fetched ")[2].split()[0])
    report.figures.append(  # type: ignore[attr-defined]
        Figure(contest=name, title=title, name="bytes fetched / zsync's", value=fetched / reference, unit="",
               bar="<= 1.10", holds=fetched <= 1.1 * reference,
               details={"bytes": fetched, "ranges": ranges, "zsync": reference, "control": control.stat().st_size})
    )  # fmt: skip


def main() -> int:
    from measure import Bench, Report, note, versions
    from origin import Nginx

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
            benchmark="archives", settings={"pairs": arguments.pairs, "scale": arguments.scale},
            versions=versions({"nginx": "-v", "tar": "--version", "zsync": "-V"}, ("perfkit", "numpy")),
        )  # fmt: skip
        if "zip" in only:
            zip_figures(directory, report)
        with Bench(directory / "bench") as bench, Nginx(site, directory / "nginx", limit="8m") as server:
            if "tar" in only:
                tar_contest(bench, report, directory, arguments.pairs, arguments.scale)
            for size in (20, 150):
                if f"zsync{size}" in only:
                    zsync_contest(bench, report, directory, site, server.http, arguments.pairs, size)
        print(report.table())
        report.write(arguments.out, "archives")
        note(f"{time.strftime('%F %T')}: {json.dumps(report.missed)}\n")
    return 1 if report.missed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        {"tar": client_tar, "zsync": client_zsync}[sys.argv[2]](*sys.argv[3:])
    else:
        sys.exit(main())
