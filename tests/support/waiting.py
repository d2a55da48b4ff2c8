"""Waits for a condition, never for a fixed time."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any


def wait_until(
    holds: Callable[[], object], process: subprocess.Popen[Any] | None = None, timeout_s: float = 100.0
) -> None:
    """Wait until `holds` returns something true.

    Fails after `timeout_s`, and as soon as `process` ends, if that is what makes it true.
    """
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert process is None or process.poll() is None, "the process ended too early"
        assert time.monotonic() < deadline_s, f"it did not happen within {timeout_s:g} s"
        time.sleep(0.01)
