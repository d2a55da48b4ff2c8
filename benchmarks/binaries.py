"""Benchmark deltas against zstd, xdelta3, bsdiff and HDiffPatch on the tars of the same trees.

    python benchmarks/binaries.py [--cache DIR] [--trees OLD NEW] [PAIR ...]

The pairs are those of `binary_pairs.py`. Prints a table: our delta object, the least bytes of any peer, and the ratio.
bsdiff4, hdiffpatch, numpy and pyarrow are Python packages (`pip install bsdiff4 numpy pyarrow 'perfkit[publish]'`);
zstd and xdelta3 are programs.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import bsdiff4
import hdiffpatch
from binary_pairs import MADE, PACKAGES, made_pair, package
from corpora import make_tar, patch_bytes, run

from perfkit.releases.format.pointer import Pointer
from perfkit.releases.publish.publisher import publish

CODERS = ("lzma2", "zstd", "bzip2")  # of HDiffPatch


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cache", type=Path, default=Path("/tmp/perfkit-bench"))
    options.add_argument("pairs", nargs="*", metavar="PAIR", help="default: all")
    options.add_argument("--trees", nargs=2, action="append", type=Path, metavar=("OLD", "NEW"), default=[])
    chosen = options.parse_args()
    pairs = {f"{old.name} → {new.name}": (old, new) for old, new in chosen.trees}
    for name in chosen.pairs or ([] if pairs else [*PACKAGES, *MADE]):
        pairs[name] = made_pair(chosen.cache, name) if name in MADE else packages(chosen.cache, name)
    columns = "pair", "perfkit", "best peer", "ratio", "second publish, s", "HDiffPatch, s"
    print("| " + " | ".join(columns) + " |" + "\n|" + " --- |" * len(columns))
    for name, (old, new) in pairs.items():
        ours, publish_s = delta_bytes(old, new, chosen.cache / "site")
        tars = [make_tar(tree, chosen.cache / f"binaries-{number}.tar") for number, tree in enumerate((old, new))]
        peers, hdiff_s = peer_bytes(tars)
        best = min(peers, key=peers.__getitem__)
        figures = f"{ours:,} | {best} {peers[best]:,} | {ours / peers[best]:.2f} | {publish_s:.1f} | {hdiff_s:.1f}"
        print(f"| {name} | {figures} |")


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
