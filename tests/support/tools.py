"""What a test needs of the machine it runs on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}  # of processes that run code of these tests


def need(*tools: str) -> None:
    """Skip without these programs, with a reason; in CI, where all are installed, their absence is a failure."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs {', '.join(missing)}")
