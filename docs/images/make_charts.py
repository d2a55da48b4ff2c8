"""Draw peers.png and links.png from the tables in benchmarks/README.md, and from nothing else.

Needs matplotlib:  python docs/images/make_charts.py
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
LOOPBACK = {
    "http": "one file of 1 GiB",
    "https": "the same over TLS",
    "eight": "8 files of 256 MiB",
    "small": "2,000 small files",
    "limited": "256 MiB, 8 MiB/s for each connection",
}
LINKS = {
    "20ms": "100 MB, 20 ms",
    "80ms": "100 MB, 80 ms",
    "200ms-300mbit": "100 MB, 200 ms, 300 Mbit/s",
    "64x4mb-80ms-300mbit": "64 × 4 MB, 80 ms, 300 Mbit/s",
    "80ms-1mb": "1 MB, 80 ms",
    "80ms-4mb": "4 MB, 80 ms",
    "80ms-32mb": "32 MB, 80 ms",
    "20ms-0.5pct": "25 MB, 20 ms, 0.5 % loss",
    "80ms-0.5pct": "25 MB, 80 ms, 0.5 % loss",
    "200ms-0.5pct": "25 MB, 200 ms, 0.5 % loss",
    "20ms-2pct": "25 MB, 20 ms, 2 % loss",
    "80ms-2pct": "25 MB, 80 ms, 2 % loss",
    "200ms-2pct": "25 MB, 200 ms, 2 % loss",
    "80ms-bursts": "25 MB, 80 ms, bursts of loss",
    "80ms-jitter": "25 MB, 80 ms, 0.5 % loss, jitter",
    "80ms-8mbit-each": "25 MB, 80 ms, 8 Mbit/s for each connection",
    "80ms-503": "25 MB, 80 ms, 503 above four connections",
    "80ms-429": "25 MB, 80 ms, 429 above four connections",
    "80ms-outage-15s": "100 MB, 80 ms, nothing for 15 s",
    "80ms-outage-40s": "100 MB, 80 ms, nothing for 40 s",
    "small-20ms": "2,000 small files, 20 ms",
    "small-80ms": "2,000 small files, 80 ms",
    "small-200ms": "2,000 small files, 200 ms",
}
CHARTS = {"peers.png": ("Figures of downloads", LOOPBACK), "links.png": ("Figures over links", LINKS)}


def figures(table: str, work: Mapping[str, str]) -> list[tuple[str, float]]:
    """Work and peer, and the median ratio, as the table under this heading has them."""
    text = (HERE.parent.parent / "benchmarks/README.md").read_text(encoding="utf-8")
    section = text.partition(f"## {table}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\| `([\w.-]+)` \| ([^|]+) \| ([\d.]+) ", section, re.MULTILINE)
    rows = [(row, peer, float(ratio)) for row, peer, ratio in found if row in work]
    rows.sort(key=lambda each: (list(work).index(each[0]), each[2]))
    return [(f"{work[row]} · {peer}", ratio) for row, peer, ratio in rows]


def fingerprint(rows: Sequence[tuple[str, float]]) -> str:
    """What a chart of these rows says about itself, so that a test can tell whether it is up to date."""
    return "rows: " + hashlib.sha256(repr(rows).encode()).hexdigest()


def draw(chart: str, rows: Sequence[tuple[str, float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels, ratios = zip(*rows, strict=True)
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(rows) + 1.2), dpi=110)
    bars = axes.barh(labels, ratios, color=["#4c8c6b" if ratio <= 1 else "#c0773c" for ratio in ratios])
    axes.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=3, fontsize=8)
    axes.axvline(1, color="#333", linewidth=1)
    axes.margins(y=0.5 / len(rows))
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.set_xlim(0, max(1.2, *ratios) * 1.08)
    axes.set_xlabel("perfkit's wall time divided by the other's: left of the line perfkit is faster", fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(HERE / chart, metadata={"Software": None, "Description": fingerprint(rows)})


if __name__ == "__main__":
    for chart, (table, work) in CHARTS.items():
        draw(chart, figures(table, work))
