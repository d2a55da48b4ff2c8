"""Certificates, a server that uses them, and a proxy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme

from perfkit import Toolkit
from tests.support.fakes import MisbehavingServer
from tests.support.network import BODY, Proxy, server_context


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


@pytest.fixture
def secure(misbehaving: Callable[..., MisbehavingServer], authority: trustme.CA) -> MisbehavingServer:
    """Serves BODY over TLS."""
    return misbehaving(lambda x: x.serve(BODY), tls=server_context(authority))


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.close()


@pytest.fixture(params=["own", "session", "factory"])
def make(request: pytest.FixtureRequest, make_kit: Callable[..., Toolkit]) -> Callable[..., Toolkit]:
    """Kits with perfkit's own sessions, a caller's, and those of a factory."""
    given = {"own": None, "session": requests.Session(), "factory": requests.Session}[request.param]
    return lambda **options: make_kit(given, **options)


@pytest.fixture(params=["session", "factory"])
def give(request: pytest.FixtureRequest) -> Callable[[requests.Session], Any]:
    """A session as `Toolkit` takes it: itself, or by a callable that makes one for each thread."""
    return (lambda session: session) if request.param == "session" else (lambda session: lambda: copy.copy(session))
