"""Sites with a release, and without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sites import Counting, Origin
from tests.support.trees import ONE


@pytest.fixture
def origin_v1(origin: Origin) -> Origin:
    """A site that offers version 1."""
    origin.publish(ONE, "1")
    return origin


@pytest.fixture
def counting(site: Path) -> Iterator[Counting]:
    """A server of `site` that remembers what it was asked."""
    with Counting(site) as running:
        yield running
