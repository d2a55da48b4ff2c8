"""A site, and settings for the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perfkit.server.server import Server
from tests.support.command import BODY
from tests.support.sites import Origin
from tests.support.trees import ONE


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Short waits, in a directory of the test's own."""
    monkeypatch.setenv("PERFKIT_BACKOFF_BASE_S", "0.01")
    monkeypatch.setenv("PERFKIT_MIN_SEGMENT_BYTES", "32K")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def file_server(tmp_path: Path) -> Iterator[Server]:
    """Serves a.bin, b.bin, c.bin."""
    root = tmp_path / "site"
    root.mkdir()
    for name in "abc":
        (root / f"{name}.bin").write_bytes(BODY)
    with Server(root) as server:
        yield server


@pytest.fixture
def cli_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    """A site that has version 1; the working directory is beside it."""
    monkeypatch.setenv("PERFKIT_BACKOFF_BASE_S", "0.01")
    monkeypatch.setenv("PERFKIT_RETRIES", "1")
    monkeypatch.chdir(tmp_path)
    with Origin(tmp_path) as origin:
        origin.publish(ONE, "1")
        yield origin
