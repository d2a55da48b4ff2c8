"""Sources that name URLs on other origins: what is secret stays at home."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from perfkit import Toolkit
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.trees import tree_of

Start = Callable[..., MisbehavingServer]


def with_settings() -> tuple[Any, dict[str, Any]]:
    return None, {"auth": ("me", "s3cret"), "headers": {"X-Key": "s3cret"}}


def with_session() -> tuple[Any, dict[str, Any]]:
    session = requests.Session()
    session.auth = ("me", "s3cret")
    session.headers["X-Key"] = "s3cret"
    session.params = {"key": "s3cret"}
    return session, {}


@pytest.fixture(params=[with_settings, with_session])
def kit_with_secret(request: pytest.FixtureRequest, make_kit: Callable[..., Toolkit]) -> Toolkit:
    session, options = request.param()
    return make_kit(session, **options)


def got_secrets(server: MisbehavingServer) -> set[bool]:
    return {"s3cret" in f"{each.path} {each.headers}" or "authorization" in each.headers for each in server.requests}


def serving(files: dict[str, bytes], redirects: dict[str, str] | None = None) -> Callable[[Exchange], None]:
    """Serves files by their paths, queries aside; `redirects` are filled in once the ports are known."""

    def handler(exchange: Exchange) -> None:
        path = exchange.asked.path.partition("?")[0]
        if redirects and path in redirects:
            return exchange.respond("302 Found", Location=redirects[path])
        return exchange.serve(files[path]) if path in files else exchange.respond("404 Not Found")

    return handler


def test_a_list_of_urls(kit_with_secret: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Entries at the list's own origin get the secrets, others do not; a local list is the user's own word."""
    other = misbehaving(serving({"/b": b"b"}))
    files: dict[str, bytes] = {"/a": b"a"}
    home = misbehaving(serving(files))
    files["/list"] = f"{home.url}/a\n{other.url}/b\n".encode()
    kit_with_secret.sync(f"{home.url}/list", tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == {"a": b"a", "b": b"b"}
    assert (got_secrets(home), got_secrets(other)) == ({True}, {False})
    (tmp_path / "urls.txt").write_bytes(files["/list"])
    other.requests.clear()
    kit_with_secret.sync(tmp_path / "urls.txt", tmp_path / "of-a-file")
    assert got_secrets(other) == {True}


def test_a_metalink(kit_with_secret: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """The first URL of a file is no more at home than its mirrors are; a mirror at home is."""
    other = misbehaving(serving({"/b": b"b"}))
    files: dict[str, bytes] = {"/c": b"c"}
    home = misbehaving(serving(files))
    files["/list.meta4"] = f"""<metalink xmlns="urn:ietf:params:xml:ns:metalink">
        <file name="b"><url>{other.url}/b</url></file>
        <file name="c"><url priority="1">{other.url}/missing</url><url priority="2">{home.url}/c</url></file>
        </metalink>""".encode()
    kit_with_secret.sync(f"{home.url}/list.meta4", tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == {"b": b"b", "c": b"c"}
    assert (got_secrets(home), got_secrets(other)) == ({True}, {False})
    assert [each.path for each in home.requests if each.path.startswith("/c")]
