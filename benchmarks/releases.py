"""Releases against other ways to bring a tree up to date: bytes to fetch, requests, and what publishing takes.

    python benchmarks/releases.py [--only django lxml ansible] [--cache DIR] [--out DIR]

Trees are source distributions from PyPI, downloaded by pip into the cache. Our bytes are those of the objects and
ranges that a client of `docs/format.md` fetches, plus HEADERS for each request; what a server counted is another
benchmark's. The peers are charged no headers.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from measure import MB, machine, note, versions
from origin import Nginx

from perfkit.errors import UnsafePathError
from perfkit.filesystem.paths import check_name
from perfkit.incremental.codec import expand
from perfkit.incremental.index import Index
from perfkit.incremental.manifest import Manifest
from perfkit.incremental.release import PackedRef, Pointer
from perfkit.incremental.routes.blocks import CUT_ABOVE_BYTES, cut, tag

HEADERS = 600  # bytes of one request and the head of its response, nginx and our client
CORPORA = {  # the releases, oldest first; the last pair is the update
    "django": ("django", [f"4.2.{number}" for number in range(6, 17)], "text, thousands of files, point releases"),
    "lxml": ("lxml", ["5.2.2", "5.3.0", "5.3.1"], "a few large generated files"),
    "ansible": ("ansible", ["2.9.27", "2.10.7"], "most files new or moved"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One figure of ours beside those of others, in bytes unless the name says otherwise."""

    corpus: str
    work: str
    ours: float
    bar: float | None
    others: dict[str, float]
    requests: int | None = None

    @property
    def holds(self) -> bool | None:
        return None if self.bar is None else self.ours <= self.bar


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CORPORA, default=list(CORPORA))
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/perfkit-benchmarks")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for name in arguments.only:
        found = corpus_rows(name, arguments.cache)
        note("\n".join(table(found)))
        rows += found
    arguments.out.mkdir(parents=True, exist_ok=True)
    tools = versions({"zstd": "--version", "zck": "--version", "zsync": "-V", "casync": "--version",
                      "rsync": "--version"}, ["perfkit", "backports.zstd"])  # fmt: skip
    record = {"machine": machine(), "versions": tools,
              "rows": [{**dataclasses.asdict(row), "holds": row.holds} for row in rows]}  # fmt: skip
    (arguments.out / "releases.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(rows)))
    return 0 if all(row.holds is not False for row in rows) else 1


def table(rows: list[Row]) -> list[str]:
    lines = [f"{'corpus':<9}{'work':<26}{'ours':>12}{'bar':>12}  {'holds':<6}{'req':>4}  others"]
    for row in rows:
        others = "  ".join(f"{name} {value:,.{0 if value > 1000 else 2}f}" for name, value in row.others.items())
        digits = 0 if row.ours > 1000 else 2
        bar = "" if row.bar is None else f"{row.bar:,.{digits}f}"
        verdict = {True: "yes", False: "NO", None: "-"}[row.holds]
        lines.append(f"{row.corpus:<9}{row.work:<26}{row.ours:>12,.{digits}f}{bar:>12}  {verdict:<6}"
                     f"{row.requests or '':>4}  {others}")  # fmt: skip
    return lines


def corpus_rows(name: str, cache: Path) -> list[Row]:
    project, releases, _ = CORPORA[name]
    work = cache / "work" / name
    shutil.rmtree(work, ignore_errors=True)
    trees = [unpack(sdist(cache, project, release), work / "trees" / release) for release in releases]
    note(f"{name}: unpacked")
    site = work / "site"
    rows = [*publish_rows(name, trees, site)]
    tars = [make_tar(tree, work / f"{tree.name}.tar") for tree in (trees[-2], trees[-1])]
    client = SiteClient(site)
    rows.append(update_row(name, client, trees[-2], tars))
    rows += [from_row(name, client, tree, trees[-1]) for tree in trees[:-1]]
    rows.append(adopted_row(name, client, trees[-2], tars, work))
    fresh = work / "fresh"
    run([sys.executable, "-m", "perfkit", "publish", str(trees[-1]), str(fresh), "--version", "1", "--quiet"])
    for title, place in (("first install", fresh), ("first install, grown site", site)):
        rows.append(install_row(name, title, SiteClient(place), tars[1]))
    return rows


def sdist(cache: Path, project: str, release: str) -> Path:
    directory = cache / "sdists"
    directory.mkdir(parents=True, exist_ok=True)
    pattern = re.compile(rf"{project}-{re.escape(release)}\.tar\.gz", re.IGNORECASE)

    def found() -> Path | None:
        return next((path for path in directory.iterdir() if pattern.fullmatch(path.name)), None)

    if found() is None:
        note(f"downloading {project} {release}")
        run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(directory),
             f"{project}=={release}"])  # fmt: skip
    path = found()
    assert path is not None, f"pip did not bring {project} {release}"
    return path


def unpack(archive: Path, root: Path) -> Path:
    """Regular files without the top directory; links as copies of what they lead to; unsafe names left out."""
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.partition("/")[2]
            with contextlib.suppress(UnsafePathError, KeyError):
                source = None if member.isdir() else tar.extractfile(member)
                if source is not None:
                    path = root / check_name(name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(source.read())
                    path.chmod(0o755 if member.mode & 0o100 else 0o644)
    return root


def make_tar(tree: Path, path: Path) -> Path:
    run(["tar", "-C", str(tree), "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "-cf", str(path), "."])
    return path


def run(command: list[str], **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr[-2000:]}")
    return str(done.stdout + done.stderr)


def timed(command: list[str]) -> tuple[float, int]:
    """Wall seconds and peak bytes of a process."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command}: exit code {process.returncode}")
    return time.monotonic() - began, usage.ru_maxrss * 1024


def publish_rows(name: str, trees: list[Path], site: Path) -> list[Row]:
    """The first release against zstd -19 of its tar; the last one for itself."""
    tar = make_tar(trees[0], site.parent / "first.tar")
    zstd_s, _ = timed(["zstd", "-q", "-f", "-19", "-T2", str(tar), "-o", f"{tar}.zst"])
    walls, peaks = [], []
    for tree in trees:
        command = [sys.executable, "-m", "perfkit", "publish", str(tree), str(site), "--version", tree.name]
        wall, peak = timed([*command, "--quiet"])
        walls.append(wall)
        peaks.append(peak)
        note(f"{name}: published {tree.name} in {wall:.1f} s, {peak / MB:.0f} MB")
    return [
        Row(name, "publish first, s", walls[0], 1.5 * zstd_s, {"zstd -19 -T2": zstd_s}),
        Row(name, "publish first, peak MB", peaks[0] / MB, 400, {}),
        Row(name, "publish last, s", walls[-1], None, {"peak MB": peaks[-1] / MB}),
    ]


class SiteClient:
    """Counts what a client would fetch."""

    def __init__(self, site: Path) -> None:
        self.site = site
        self.pointer_bytes = (site / "perfkit.json").stat().st_size
        self.pointer = Pointer.parse((site / "perfkit.json").read_bytes())
        self.manifest = Manifest.parse(self.packed(self.pointer.manifest))

    def packed(self, ref: PackedRef) -> bytes:
        return expand((self.site / ref.object.path).read_bytes(), ref.size)

    def deltas(self, tree: Path) -> tuple[int, int] | None:
        """Bytes and requests by deltas from a tree."""
        hops = self.pointer.chain(manifest_of(tree).sha256.hex())
        requests = 1 + len(hops)
        total = self.pointer_bytes + sum(hop.object.bytes for hop in hops) + requests * HEADERS
        return (total, requests) if hops else None

    def blocks(self, ref: PackedRef, tree: Path | None) -> tuple[int, int]:
        """Bytes and requests by blocks, for a client that has a tree of unknown origin, or none."""
        index = Index.parse(self.packed(ref), self.manifest)
        have = {entry.sha256 for entry in manifest_of(tree)} if tree else set()
        wanted = [number for number, entry in enumerate(self.manifest) if entry.size and entry.sha256 not in have]
        pieces = index.pieces(wanted)
        if tree is not None:
            large = {e for e in wanted if self.manifest.size(e) > CUT_ABOVE_BYTES}
            tags: set[int] = set()
            for name in {self.manifest.name(entry) for entry in large}:
                with contextlib.suppress(FileNotFoundError), open(tree / name, "rb") as file:
                    tags.update(map(tag, cut(file)))
            pieces = [number for number in pieces if not (index.piece(number).tag in tags and index.piece(number).tag)]
        ranges = index.ranges(pieces)
        parts = [end for fetched in ranges for end in [fetched.end - fetched.start]]
        objects = [self.pointer.manifest.object.bytes, ref.object.bytes]
        shared = {index.packs[fetched.pack].dictionary for fetched in ranges}
        objects += [packed.object.bytes for packed in shared if packed]
        requests = 1 + len(objects) + len(parts)
        return self.pointer_bytes + sum(objects) + sum(parts) + requests * HEADERS, requests


def manifest_of(tree: Path) -> Manifest:
    from perfkit.incremental.publish import hashed

    return Manifest.of(hashed(str(tree)))


def update_row(name: str, client: SiteClient, old: Path, tars: list[Path]) -> Row:
    """From the previous release, against one patch between the whole tars."""
    patch = tars[1].with_suffix(".patch")
    run(["zstd", "-q", "-f", "-19", "--long=27", f"--patch-from={tars[0]}", str(tars[1]), "-o", str(patch)])
    size = patch.stat().st_size
    ours = client.deltas(old) or client.blocks(client.pointer.fine, old)
    return Row(name, "update from previous", ours[0], 1.4 * size + 4096, {"zstd --patch-from": size}, ours[1])


def from_row(name: str, client: SiteClient, old: Path, new: Path) -> Row:
    """From any release, against rsync."""
    target = old.with_name("rsync-target")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(old, target)
    said = run(["rsync", "-rcz", "--no-whole-file", "--delete", "--stats", f"{new}/", f"{target}/"])
    moved = sum(int(number.replace(",", "")) for number in re.findall(r"Total bytes (?:sent|received): ([\d,]+)", said))
    shutil.rmtree(target)
    ours = client.deltas(old) or client.blocks(client.pointer.fine, old)
    return Row(name, f"update from {old.name}", ours[0], moved, {"rsync -rcz": moved}, ours[1])


def adopted_row(name: str, client: SiteClient, old: Path, tars: list[Path], work: Path) -> Row:
    """Without a delta, against zchunk, zsync and casync on the same pair."""
    others: dict[str, float] = {}
    peers: dict[str, Callable[[], float]] = {
        "zchunk": lambda: zchunk(tars), "zsync": lambda: zsync(tars, work), "casync": lambda: casync(tars, work)
    }  # fmt: skip
    for peer, measured in peers.items():
        if shutil.which("zck" if peer == "zchunk" else peer):
            others[peer] = measured()
    ours = client.blocks(client.pointer.fine, old)
    return Row(name, "update without delta", ours[0], others.get("zchunk"), others, ours[1])


def zchunk(tars: list[Path]) -> float:
    for tar in tars:
        run(["zck", "-o", f"{tar}.zck", str(tar)])
    said = run(["zck_delta_size", f"{tars[0]}.zck", f"{tars[1]}.zck"])
    return float(re.findall(r"(\d+) of \d+ bytes", said)[-1]) if " of " in said else float(re.findall(r"\d+", said)[0])


def zsync(tars: list[Path], work: Path) -> float:
    run(["zsyncmake", "-z", "-u", f"{tars[1].name}.gz", "-f", tars[1].name, "-o", f"{tars[1]}.zsync", str(tars[1])],
        cwd=work)  # fmt: skip
    with Nginx(work, work / "nginx", limit="1m") as server:  # zsync asks for several ranges at once
        said = run(["zsync", "-i", str(tars[0]), "-o", str(work / "zsynced"), f"{server.http}/{tars[1].name}.zsync"])
    fetched = re.findall(r"fetched (\d+)", said)
    return Path(f"{tars[1]}.zsync").stat().st_size + float(fetched[-1])


def casync(tars: list[Path], work: Path) -> float:
    chunks = []
    for number, tar in enumerate(tars):
        store = work / f"castr{number}"
        run(["casync", "make", f"--store={store}", f"{tar}.caibx", str(tar)])
        chunks.append({path.name: path.stat().st_size for path in store.rglob("*.cacnk")})
    fresh = sum(size for name, size in chunks[1].items() if name not in chunks[0])
    return fresh + Path(f"{tars[1]}.caibx").stat().st_size


def install_row(name: str, title: str, client: SiteClient, tar: Path) -> Row:
    """An empty destination, against the plain archives."""
    run(["gzip", "-kf9", str(tar)])
    run(["zstd", "-q", "-f", "-19", "-T2", str(tar), "-o", f"{tar}.zst"])
    gz, zst = (Path(f"{tar}.{suffix}").stat().st_size for suffix in ("gz", "zst"))
    total, requests = client.blocks(client.pointer.solid, None)
    return Row(name, title, total, min(0.75 * gz, 1.15 * zst), {"tar.gz": gz, "tar.zst": zst}, requests)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
