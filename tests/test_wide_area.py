"""The benchmark over emulated links runs: three cells, small, without a bar."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tools import ENVIRONMENT, need, need_root, unavailable

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[1]
CELLS = ("20ms", "20ms-2pct", "80ms-503")


def test_three_cells_are_measured(tmp_path: Path) -> None:
    need("gcc", "nginx", "curl", "openssl", "ip", "nsenter", "chrt")
    need_root("to make network namespaces")
    made = subprocess.run(["unshare", "--net", "chrt", "-r", "1", "true"], capture_output=True, text=True, check=False)
    if made.returncode or not os.path.exists("/dev/net/tun"):
        unavailable(f"no link with a TUN device and a real-time priority can be made here: {made.stderr.strip()}")
    options = ("--runs", "1", "--scale", "0.01", "--against", "curl", "--out", tmp_path, "--cells", *CELLS)
    command = [sys.executable, ROOT / "benchmarks" / "wide_area.py", *options]
    ran = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=100)
    assert ran.returncode == 0, ran.stderr
    report = json.loads((tmp_path / "wide_area-smoke.json").read_text())
    assert {each["contest"] for each in report["figures"]} == set(CELLS)  # which it has if our run succeeded
    compared = [each for each in report["comparisons"] if each["contest"] != "20ms-2pct"]  # where curl would take long
    assert [each["contest"] for each in compared] == ["20ms", "80ms-503"]
    for each in compared:
        assert each["error"] is None
        (run,) = each["runs"]
        assert run["ours"]["wall_s"] > 0.04  # two round trips at the least
        assert run["peer"]["wall_s"] > 0.04
