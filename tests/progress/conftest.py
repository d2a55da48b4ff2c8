"""A meter on a clock that the test moves."""

from __future__ import annotations

import pytest

from perfkit.progress.meter import Meter
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> Meter:
    return Meter(clock=clock)
