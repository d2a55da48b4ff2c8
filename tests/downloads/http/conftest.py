"""What tests of the HTTP stack share: kits with a caller's session, certificates, and a proxy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from perfkit import Config, Toolkit
from tests.conftest import QUICK
from tests.downloads.test_transport import Proxy, server_context
from tests.support.fakes import MisbehavingServer

BODY = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def make_kit() -> Iterator[Callable[..., Toolkit]]:
    """Toolkits with short patience, also with a session of the caller's; closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(session: Any = None, progress: Any = None, **changes: Any) -> Toolkit:
            return stack.enter_context(Toolkit(Config(**{**QUICK, **changes}), session=session, progress=progress))

        yield make


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
