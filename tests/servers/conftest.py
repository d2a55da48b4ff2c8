"""Servers for the checks, and which of them run.

The normal suite runs those that are `in_suite`; `tox -e servers` sets PERFKIT_TEST_SERVERS=all, and runs all. With
PERFKIT_TEST_SERVERS_TABLE, the results are written to the file that it names, unless `-k` selects some of them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import table
from tests.servers.bench import Ability, Bench, ability_of, running
from tests.servers.catalogue import ALL
from tests.support.warm import WarmPython

_RESULTS = table.Results()


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest, warm_python: WarmPython) -> Iterator[Bench]:
    """A running server; the test's parameter says which."""
    with tempfile.TemporaryDirectory(prefix="perfkit-servers-") as name:
        home = Path(name)
        home.chmod(0o755)  # some servers refuse to run as root
        with running(request.param, warm_python, home) as bench:
            yield bench


@pytest.fixture(scope="module")
def able(bench: Bench) -> Ability:
    return ability_of(bench)


def pytest_report_collectionfinish() -> str | None:
    return None if ALL else "tests/servers: four servers; `tox -e servers` runs the checks with all that it installs"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _RESULTS.add(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = os.environ.get("PERFKIT_TEST_SERVERS_TABLE")
    if path and "PYTEST_XDIST_WORKER" not in os.environ and not session.config.option.keyword:
        _RESULTS.write(Path(path))
