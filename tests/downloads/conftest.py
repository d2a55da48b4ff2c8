"""Limits of time."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest


@pytest.fixture
def bounded_time() -> Iterator[None]:
    """Every misbehaving server is dealt with in bounded time."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 15


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, a response may take two seconds. Idle connections are closed then, and tests count them."""
    monkeypatch.setattr("perfkit.downloads.http.transport._PATIENCE_S", 60.0)
