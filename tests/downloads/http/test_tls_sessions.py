"""A further connection to a server resumes the TLS session of an earlier one, if that is safe."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from tests.support.fakes import MisbehavingServer
from tests.support.kits import MakeKit, fetch
from tests.support.network import BODY, server_context

Serving = Callable[..., MisbehavingServer]
VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


def closing(misbehaving: Serving, context: ssl.SSLContext) -> MisbehavingServer:
    """A server that takes one request for each connection."""
    return misbehaving(lambda x: x.serve(BODY, Connection="close"), tls=context)


def resumed(context: ssl.SSLContext) -> int:
    return context.session_stats()["hits"]


@VERSIONS
def test_a_session_is_resumed(
    make: MakeKit, misbehaving: Serving, authority: trustme.CA, ca_file: str, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    context = server_context(authority)
    context.minimum_version = context.maximum_version = version
    server, kit = closing(misbehaving, context), make(ca_bundle=ca_file, segments=1)
    for before in range(3):
        assert resumed(context) == max(0, before - 1)
        assert fetch(kit, f"{server.url}/f", tmp_path) == BODY


@VERSIONS
def test_a_session_that_the_server_forgot_is_not_needed(
    make: MakeKit, misbehaving: Serving, authority: trustme.CA, ca_file: str, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    server, kit = closing(misbehaving, server_context(authority)), make(ca_bundle=ca_file, segments=1)
    for _ in range(3):
        server.tls = server_context(authority)
        server.tls.minimum_version = server.tls.maximum_version = version
        assert fetch(kit, f"{server.url}/f", tmp_path) == BODY
        assert resumed(server.tls) == 0


def test_another_name_of_the_server_is_verified(
    make: MakeKit, misbehaving: Serving, authority: trustme.CA, ca_file: str, tmp_path: Path
) -> None:
    context = server_context(authority, "localhost")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    server, kit = closing(misbehaving, context), make(ca_bundle=ca_file, segments=1, retries=0)
    url = server.url.replace("127.0.0.1", "localhost")
    assert fetch(kit, f"{url}/f", tmp_path) == fetch(kit, f"{url}/f", tmp_path) == BODY
    with pytest.raises(Exception, match="certificate"):
        fetch(kit, f"{server.url}/f", tmp_path)
    assert resumed(context) == 1


def test_a_server_that_asks_for_a_certificate_gets_it_each_time(
    make: MakeKit, misbehaving: Serving, authority: trustme.CA, ca_file: str, tmp_path: Path
) -> None:
    context = server_context(authority, clients=True)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    authority.issue_cert("client.example").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "client.pem"))
    server = closing(misbehaving, context)
    kit = make(ca_bundle=ca_file, client_cert=str(tmp_path / "client.pem"), segments=1)
    for _ in range(2):
        assert fetch(kit, f"{server.url}/f", tmp_path) == BODY
    assert resumed(context) == 0
