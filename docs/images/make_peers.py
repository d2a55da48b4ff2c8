"""Draw peers.png from the table "Figures of downloads" in benchmarks/README.md, and from nothing else.

Needs matplotlib:  python docs/images/make_peers.py
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
WORK = {
    "http": "one file of 1 GiB",
    "https": "the same over TLS",
    "eight": "8 files of 256 MiB",
    "small": "2,000 small files",
    "limited": "256 MiB, 8 MiB/s for each connection",
}


def figures() -> list[tuple[str, float]]:
    """Work and peer, and the median ratio, as the table has them."""
    text = (HERE.parent.parent / "benchmarks/README.md").read_text(encoding="utf-8")
    section = text.partition("## Figures of downloads\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([\d.]+) ", section, re.MULTILINE)
    rows = [(row, peer, float(ratio)) for row, peer, ratio in found if row in WORK]
    rows.sort(key=lambda each: (list(WORK).index(each[0]), each[2]))
    return [(f"{WORK[row]} · {peer}", ratio) for row, peer, ratio in rows]


def fingerprint(rows: Sequence[tuple[str, float]]) -> str:
    """What a chart of these rows says about itself, so that a test can tell whether it is up to date."""
    return "rows: " + hashlib.sha256(repr(rows).encode()).hexdigest()


def draw(rows: Sequence[tuple[str, float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels, ratios = zip(*rows, strict=True)
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(rows) + 1.2), dpi=110)
    bars = axes.barh(labels, ratios, color=["#4c8c6b" if ratio <= 1 else "#c0773c" for ratio in ratios])
    axes.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=3, fontsize=8)
    axes.axvline(1, color="#333", linewidth=1)
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.set_xlim(0, max(1.2, *ratios) * 1.08)
    axes.set_xlabel("perfkit's wall time divided by the other's: left of the line perfkit is faster", fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(HERE / "peers.png", metadata={"Software": None, "Description": fingerprint(rows)})


if __name__ == "__main__":
    draw(figures())
