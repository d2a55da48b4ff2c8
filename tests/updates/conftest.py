"""A site with a release."""

from __future__ import annotations

import pytest

from tests.support.sites import Origin
from tests.support.trees import ONE


@pytest.fixture
def origin_v1(origin: Origin) -> Origin:
    """A site that offers version 1."""
    origin.publish(ONE, "1")
    return origin
