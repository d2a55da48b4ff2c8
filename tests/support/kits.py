"""How the Toolkits of tests are configured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from perfkit import Toolkit

MakeKit = Callable[..., Toolkit]  # the fixture `make_kit`

# Retries come fast, and small files are segmented. Time-outs are long: on a busy machine, what a test waits for takes
# seconds.
QUICK: dict[str, Any] = {
    "workers": 4,
    "retries": 2,
    "backoff_base_s": 0.01,
    "connect_timeout_s": 60.0,
    "read_timeout_s": 60.0,
    "stall_bytes_per_s": 1000,
    "stall_window_s": 60.0,
    "min_segment_bytes": 64 << 10,
    "buffer_bytes": 16 << 10,
    "adaptive": False,
}

SOON_S = 20.0  # "within a second", on a machine that is busy, or stops for seconds: far less than the time-outs above

# For tests of time-outs.
SHORT_TIMEOUTS: dict[str, Any] = {"connect_timeout_s": 2.0, "read_timeout_s": 1.0, "stall_window_s": 1.0}


def fetch(kit: Toolkit, url: str, out: Path) -> bytes:
    """What a download gives, from its first byte on."""
    kit.download(url, out / "file", resume=False)
    return (out / "file").read_bytes()
