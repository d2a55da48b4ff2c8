"""A plugin, `pytest -p tests.support.repeat`: runs each test PERFKIT_TEST_REPEAT times, 200 by default."""

from __future__ import annotations

import os

import pytest

_TIMES = int(os.environ.pop("PERFKIT_TEST_REPEAT", "200"))  # popped, since perfkit complains of settings it has not


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.fixturenames.append("run_number")
    metafunc.parametrize("run_number", range(_TIMES))
