"""The pytest fixture `perfkit_origin`; see `perfkit.testing`. perfkit is imported only when a test uses it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from perfkit.testing import FakeOrigin


@pytest.fixture
def perfkit_origin() -> Iterator[FakeOrigin]:
    """A `perfkit.testing.FakeOrigin` that serves every Toolkit created during the test."""
    from perfkit.testing import FakeOrigin

    with FakeOrigin() as origin, origin.installed():
        yield origin
