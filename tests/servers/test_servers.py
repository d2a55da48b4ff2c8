"""perfkit with the servers and caches that people have: each check with each of them; and for comparison, what other
clients do. docs/servers.md has the results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.servers import checks, clients
from tests.servers.bench import Ability, Bench, package_version
from tests.servers.catalogue import ALL, CACHES, SERVERS, Server

Record = Callable[[str, object], None]


def each(servers: Iterable[Server]) -> pytest.MarkDecorator:
    """Parameters: those in the suite, or all."""
    parameters = []
    for server in filter(lambda server: ALL or server.in_suite, servers):
        marks = [pytest.mark.xdist_group(server.name)]  # one process starts it, for all of its tests
        marks += [] if server.package.startswith("python:") else [pytest.mark.once]
        parameters.append(pytest.param(server, id=server.name, marks=marks))
    return pytest.mark.parametrize("bench", parameters, indirect=True, scope="module")


@each(SERVERS)
@pytest.mark.parametrize("check", checks.OF_SERVERS)
def test_server(bench: Bench, able: Ability, out: Path, check: str, record_property: Record) -> None:
    record_property("row", ["servers", bench.server.name, package_version(bench.server.package), check])
    record_property("cell", checks.OF_SERVERS[check](bench, able, out))


@each(CACHES)
@pytest.mark.parametrize("check", checks.OF_CACHES)
def test_cache(bench: Bench, able: Ability, out: Path, check: str, record_property: Record) -> None:
    record_property("row", ["caches", bench.server.name, package_version(bench.server.package), check])
    record_property("cell", checks.OF_CACHES[check](bench, able, out))


if ALL:

    @each(server for server in SERVERS if not server.prefix)
    @pytest.mark.parametrize("check", clients.CHECKS)
    @pytest.mark.parametrize("client", clients.CLIENTS)
    def test_other_client(bench: Bench, out: Path, client: str, check: str, record_property: Record) -> None:
        """There is no right result: it is for comparison."""
        record_property("row", [check, bench.server.name, package_version(bench.server.package), client])
        record_property("cell", clients.CHECKS[check](clients.CLIENTS[client], bench, out))
