"""Benchmark releases against other update methods: bytes to fetch, requests, and the cost of publishing.

    python benchmarks/releases.py [--only django lxml ansible again behind minified] [--cache DIR] [--out DIR]

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
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import sites
from corpora import (
    CORPORA,
    archive_bytes,
    block_bytes,
    make_tar,
    manifest_of,
    patch_bytes,
    rsync_bytes,
    run,
    sdist,
    timed,
    unpack,
)
from measure import MB, machine, note, versions
from scale import serve

from perfkit import Toolkit
from perfkit.releases.format.frames import CUT_ABOVE_BYTES, split_pieces, tag
from perfkit.releases.format.index import Index
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.format.pointer import PackedRef, Pointer
from perfkit.releases.format.zstd import decompress
from perfkit.releases.publish.publisher import publish

AGAIN = "again"  # synthetic trees of which little changes
BEHIND = "behind"  # a client that has missed a hundred releases
MINIFIED = "minified"  # JSON without line feeds
HEADERS = 600  # bytes of a request and its response headers, with nginx and perfkit


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A figure of perfkit with those of others, in bytes unless the name says otherwise."""

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
    parser.add_argument("--only", nargs="+", choices=[*CORPORA, *SYNTHETIC], default=[*CORPORA, *SYNTHETIC])
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/perfkit-benchmarks")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for name in arguments.only:
        found = SYNTHETIC[name](arguments.cache) if name in SYNTHETIC else corpus_rows(name, arguments.cache)
        note("\n".join(table(found)))
        rows += found
    arguments.out.mkdir(parents=True, exist_ok=True)
    tools = versions(
        {"zstd": "--version", "zck": "--version", "zsync": "-V", "casync": "--version", "rsync": "--version"},
        ["perfkit", "backports.zstd"],
    )
    record = {
        "machine": machine(),
        "versions": tools,
        "rows": [{**dataclasses.asdict(row), "holds": row.holds} for row in rows],
    }
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
        lines.append(
            f"{row.corpus:<9}{row.work:<26}{row.ours:>12,.{digits}f}{bar:>12}  {verdict:<6}"
            f"{row.requests or '':>4}  {others}"
        )
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


def again_rows(cache: Path) -> list[Row]:
    """What a further release costs: seconds to publish, and the growth of the site."""
    work = cache / "work" / AGAIN
    shutil.rmtree(work, ignore_errors=True)
    rows = []

    def second(title: str, tree: Path, change: Callable[[], object], bar: float) -> None:
        command = [sys.executable, "-m", "perfkit", "publish", str(tree), str(tree.with_suffix(".site")), "--quiet"]
        first_s, first_rss = timed([*command, "--version", "1"])
        change()
        again_s, rss = timed([*command, "--version", "2"])
        others = {"first publish": first_s, "first, peak MB": first_rss / MB, "peak MB": rss / MB}
        rows.append(Row(AGAIN, title, again_s, bar * first_s, others))

    many, large, growing = (work / name for name in ("many", "large", "growing"))
    many.mkdir(parents=True)
    sites.entries(many, 100_000)
    name = sites.spread(many, 3)[1]
    second("1 of 100,000 files, s", many, lambda: (many / name).write_text("changed\n"), 0.15)
    large.mkdir()
    sites.large_file(large / "file", 1 << 30, edits=0)
    second("2 KB of 1 GiB, s", large, lambda: overwrite(large / "file", 500 * MB, 2000), 0.3)
    growing.mkdir()
    sites.small_files(growing, 60, least=MB, most=MB)
    for release in range(21):
        publish(str(growing), f"{growing}.site", version=str(release))
        overwrite(growing / f"{release:04}.bin", 1000 * release, 100_000)
    size = sum(path.stat().st_size for path in Path(f"{growing}.site").rglob("*"))
    rows.append(Row(AGAIN, "20 × 0.1 of 60 MB, site", size, 1.6 * 60 * MB, {}))
    return rows


def behind_rows(cache: Path) -> list[Row]:
    """What a client fetches that is 100 releases behind, without deltas: each has 33 KB more in 3 of 600 files."""
    work = cache / "work" / BEHIND
    shutil.rmtree(work, ignore_errors=True)
    tree, old, site, chance = work / "tree", work / "old", work / "site", random.Random(1)
    tree.mkdir(parents=True)
    names = [f"{number:03}.rules" for number in range(600)]
    for name in names:
        (tree / name).write_bytes(rules(chance, 95_000))
    shutil.copytree(tree, old)
    with Toolkit() as kit, serve(str(work)) as url:
        kit.publish(tree, site, version="0")
        kit.sync(f"{url}/site", work / "client")
        for release in range(1, 101):
            for name in chance.sample(names, 3):
                data = (tree / name).read_bytes()
                at = data.find(b"\n", chance.randrange(len(data) - 200)) + 1
                (tree / name).write_bytes(data[:at] + rules(chance, 33_333) + data[at:])
            kit.publish(tree, site, version=str(release), keep_deltas=0)
        report = kit.sync(f"{url}/site", work / "client")
    moved = rsync_bytes(old, tree)
    received = report.bytes_received + report.requests * HEADERS
    return [Row(BEHIND, "100 releases", received, 1.2 * moved, {"rsync -rcz": moved}, report.requests)]


def rules(chance: random.Random, size: int) -> bytes:
    """Lines of text that differ in numbers."""
    found = bytearray()
    while len(found) < size:
        ports = chance.randrange(1 << 16), chance.randrange(1 << 16)
        numbers = (*ports, chance.randrange(1 << 30), chance.randrange(1 << 20))
        found += b'alert tcp %d any -> any %d (msg:"x%d"; sid:%d;)\n' % numbers
    return bytes(found)


def minified_rows(cache: Path) -> list[Row]:
    """What a client fetches without a delta after a record was inserted in the middle of 9.6 MB of JSON."""
    work, chance = cache / "work" / MINIFIED, random.Random(1)
    shutil.rmtree(work, ignore_errors=True)
    trees = work / "old", work / "new"
    records = [json_record(chance) for _ in range(73_000)]
    for tree in trees:
        tree.mkdir(parents=True)
        (tree / "records.json").write_text(json.dumps(records, separators=(",", ":")), encoding="ascii")
        records.insert(36_500, json_record(chance))
    with Toolkit() as kit, serve(str(work)) as url:
        for version, tree in enumerate(trees):
            kit.publish(tree, work / "site", version=str(version), keep_deltas=0)
            report = kit.sync(f"{url}/site", work / "client")
    moved = rsync_bytes(*trees)
    received = report.bytes_received + report.requests * HEADERS
    return [Row(MINIFIED, "one record more", received, 2 * moved, {"rsync -rcz": moved}, report.requests)]


def json_record(chance: random.Random) -> dict[str, object]:
    """A record of about 131 bytes."""
    numbers = {"id": chance.randrange(1 << 40), "price": round(chance.uniform(1, 1000), 2)}
    return {**numbers, "name": f"item {chance.randrange(1 << 30):x}", "hash": f"{chance.getrandbits(256):064x}"}


SYNTHETIC = {AGAIN: again_rows, BEHIND: behind_rows, MINIFIED: minified_rows}


def overwrite(path: Path, offset: int, size: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(os.urandom(size))


def publish_rows(name: str, trees: list[Path], site: Path) -> list[Row]:
    """The first release against zstd -19 of its tar; the last one by itself."""
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
    """Counts the bytes that a client would fetch."""

    def __init__(self, site: Path) -> None:
        self.site = site
        self.pointer_bytes = (site / "perfkit.json").stat().st_size
        self.pointer = Pointer.parse((site / "perfkit.json").read_bytes())
        self.manifest = Manifest.parse(self.packed(self.pointer.manifest))

    def packed(self, ref: PackedRef) -> bytes:
        return decompress((self.site / ref.object.path).read_bytes(), ref.size)

    def deltas(self, tree: Path) -> tuple[int, int] | None:
        """Bytes and requests by deltas from a tree."""
        deltas = self.pointer.chain(manifest_of(tree).sha256.hex())
        requests = 1 + len(deltas)
        total = self.pointer_bytes + sum(delta.object.bytes for delta in deltas) + requests * HEADERS
        return (total, requests) if deltas else None

    def blocks(self, ref: PackedRef, tree: Path | None) -> tuple[int, int]:
        """Bytes and requests by blocks, for a client that has a tree of unknown origin, or none."""
        index = Index.parse(self.packed(ref), self.manifest)
        have = {entry.sha256 for entry in manifest_of(tree)} if tree else set()
        wanted = {number for number, entry in enumerate(self.manifest) if entry.size and entry.sha256 not in have}
        pieces = index.pieces(wanted.__contains__)
        if tree is not None:
            large = {e for e in wanted if self.manifest.size(e) > CUT_ABOVE_BYTES}
            tags: set[int] = set()
            for name in {self.manifest.name(entry) for entry in large}:
                with contextlib.suppress(FileNotFoundError), open(tree / name, "rb") as file:
                    tags.update(map(tag, split_pieces(file)))
            pieces = [number for number in pieces if not (index.piece(number).tag in tags and index.piece(number).tag)]
        ranges = index.ranges(pieces)
        parts = [end for fetched in ranges for end in [fetched.end - fetched.start]]
        objects = [self.pointer.manifest.object.bytes, ref.object.bytes]
        shared = {index.packs[fetched.pack].dictionary for fetched in ranges}
        objects += [packed.object.bytes for packed in shared if packed]
        requests = 1 + len(objects) + len(parts)
        return self.pointer_bytes + sum(objects) + sum(parts) + requests * HEADERS, requests


def update_row(name: str, client: SiteClient, old: Path, tars: list[Path]) -> Row:
    """From the previous release, against one patch between the whole tars."""
    size = patch_bytes(tars)
    ours = client.deltas(old) or client.blocks(client.pointer.fine, old)
    return Row(name, "update from previous", ours[0], 1.4 * size + 4096, {"zstd --patch-from": size}, ours[1])


def from_row(name: str, client: SiteClient, old: Path, new: Path) -> Row:
    """From any release, against rsync."""
    moved = rsync_bytes(old, new)
    ours = client.deltas(old) or client.blocks(client.pointer.fine, old)
    return Row(name, f"update from {old.name}", ours[0], moved, {"rsync -rcz": moved}, ours[1])


def adopted_row(name: str, client: SiteClient, old: Path, tars: list[Path], work: Path) -> Row:
    """Without a delta, against zchunk, zsync and casync on the same pair."""
    others = block_bytes(tars, work)
    ours = client.blocks(client.pointer.fine, old)
    return Row(name, "update without delta", ours[0], others.get("zchunk"), others, ours[1])


def install_row(name: str, title: str, client: SiteClient, tar: Path) -> Row:
    """An empty destination, against the plain archives."""
    others = archive_bytes(tar)
    total, requests = client.blocks(client.pointer.solid, None)
    return Row(name, title, total, min(0.75 * others["tar.gz"], 1.15 * others["tar.zst"]), dict(others), requests)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
