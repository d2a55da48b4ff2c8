"""Fixtures of the chaos tests, and the summary of their cases."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter

from perfkit.server.server import Server
from tests.chaos.seeds import Cases
from tests.chaos.sources import Sources


@pytest.fixture
def cases(request: pytest.FixtureRequest) -> Cases:
    return Cases(request)


@pytest.fixture(scope="module")
def module_place() -> Iterator[Path]:
    """In memory if possible, as `place`."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def sources(module_place: Path) -> Iterator[Sources]:
    """A site that nothing is on yet, served by perfkit's own server."""
    with Server(module_place) as server:
        made = Sources(module_place / "site", f"{server.url}site/")
        yield made


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A test ends with the report of its cases."""
    result = yield
    if isinstance(cases := pyfuncitem.funcargs.get("cases"), Cases):
        cases.report()
    return result


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """How many cases there were, and how they ended."""
    reports = [each for found in ("passed", "failed") for each in terminalreporter.getreports(found)]
    told = [text for each in reports for name, text in each.user_properties if name == "chaos"]
    if told:
        terminalreporter.section("chaos")
        terminalreporter.write("".join(f"{text}\n" for text in told))
