"""Benchmark deltas of binaries against zstd, xdelta3, bsdiff and HDiffPatch on the tars of the same trees.

    python benchmarks/binaries.py [--cache DIR] [--wheel PROJECT OLD NEW ...] [--trees OLD NEW ...]

Wheels come from PyPI by pip. Prints a table: our delta object, the least bytes of any peer, and the ratio. bsdiff4 and
hdiffpatch are Python packages (`pip install bsdiff4 'perfkit[publish]'`); zstd and xdelta3 are programs.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import bsdiff4
import hdiffpatch
from corpora import make_tar, patch_bytes, run
from measure import note

from perfkit.releases.format.pointer import Pointer
from perfkit.releases.publish.publisher import publish

WHEELS = [["numpy", "2.4.5", "2.4.6"], ["cryptography", "46.0.6", "46.0.7"], ["lxml", "6.0.1", "6.0.2"]]
CODERS = ("lzma2", "zstd", "bzip2")  # of HDiffPatch


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cache", type=Path, default=Path("/tmp/perfkit-bench"))
    options.add_argument("--wheel", nargs=3, action="append", metavar=("PROJECT", "OLD", "NEW"))
    options.add_argument("--trees", nargs=2, action="append", type=Path, metavar=("OLD", "NEW"), default=[])
    chosen = options.parse_args()
    pairs = {f"{old.name} → {new.name}": (old, new) for old, new in chosen.trees}
    for project, *releases in chosen.wheel or ([] if pairs else WHEELS):
        pairs[f"{project} {' → '.join(releases)}"] = tuple(wheel(chosen.cache, project, each) for each in releases)
    columns = "pair", "perfkit", "best peer", "ratio", "second publish, s", "HDiffPatch, s"
    print("| " + " | ".join(columns) + " |" + "\n|" + " --- |" * len(columns))
    for name, (old, new) in pairs.items():
        ours, publish_s = delta_bytes(old, new, chosen.cache / "site")
        tars = [make_tar(tree, chosen.cache / f"binaries-{number}.tar") for number, tree in enumerate((old, new))]
        peers, hdiff_s = peer_bytes(tars)
        best = min(peers, key=peers.__getitem__)
        figures = f"{ours:,} | {best} {peers[best]:,} | {ours / peers[best]:.2f} | {publish_s:.1f} | {hdiff_s:.1f}"
        print(f"| {name} | {figures} |")


def wheel(cache: Path, project: str, release: str) -> Path:
    """The unpacked files of a wheel for this interpreter."""
    tree = cache / "wheels" / f"{project}-{release}"
    if not tree.is_dir():
        note(f"downloading {project} {release}")
        archives = cache / "wheels" / "archives" / tree.name
        run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(archives), f"{project}=={release}"])
        with zipfile.ZipFile(next(archives.glob("*.whl"))) as archive:
            archive.extractall(tree)
    return tree


def delta_bytes(old: Path, new: Path, site: Path) -> tuple[int, float]:
    """The size of the delta that a site offers, and how long the second publish took."""
    shutil.rmtree(site, ignore_errors=True)
    publish(str(old), str(site), version="1")
    began = time.monotonic()
    publish(str(new), str(site), version="2")
    (delta,) = Pointer.parse((site / "perfkit.json").read_bytes()).deltas
    return delta.object.bytes, time.monotonic() - began


def peer_bytes(tars: list[Path]) -> tuple[dict[str, int], float]:
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
    return len(hdiffpatch.diff(before, after, compression=coder))


def xdelta_bytes(tars: list[Path]) -> int:
    patch = tars[1].with_suffix(".xdelta")
    run(["xdelta3", "-f", "-e", "-9", "-S", "djw", "-B", str(1 << 27), "-s", str(tars[0]), str(tars[1]), str(patch)])
    return patch.stat().st_size


if __name__ == "__main__":
    main()
