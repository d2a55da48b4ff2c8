"""Limits of time."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.support.kits import SOON_S


@pytest.fixture
def bounded_time() -> Iterator[None]:
    """Every misbehaving server is dealt with in bounded time."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 2 * SOON_S
