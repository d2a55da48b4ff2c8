"""A site, and settings for the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perfkit.server.server import Server
from tests.support.command import BODY


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Short waits, in a directory of the test's own."""
    monkeypatch.setenv("PERFKIT_BACKOFF_BASE_S", "0.01")
    monkeypatch.setenv("PERFKIT_MIN_SEGMENT_BYTES", "32K")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Server]:
    """Serves a.bin, b.bin, c.bin."""
    root = tmp_path / "site"
    root.mkdir()
    for name in "abc":
        (root / f"{name}.bin").write_bytes(BODY)
    with Server(root) as server:
        yield server
