"""Sources that name URLs on other origins: what is secret stays at home, and a redirected zsync file is understood."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from perfkit import Toolkit
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.tools import need
from tests.support.trees import tree_of

pytestmark = pytest.mark.once

Start = Callable[..., MisbehavingServer]
OLD = hashlib.shake_128(b"old").digest(200_000)
NEW = OLD[:90_000] + b"new" * 500 + OLD[90_000:]


def with_settings() -> tuple[Any, dict[str, Any]]:
    return None, {"auth": ("me", "s3cret"), "headers": {"X-Key": "s3cret"}}


def with_session() -> tuple[Any, dict[str, Any]]:
    session = requests.Session()
    session.auth = ("me", "s3cret")
    session.headers["X-Key"] = "s3cret"
    session.params = {"key": "s3cret"}
    return session, {}


@pytest.fixture(params=[with_settings, with_session])
def kit_with_credentials(request: pytest.FixtureRequest, make_kit: Callable[..., Toolkit]) -> Toolkit:
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


def control(tmp_path: Path, url: str) -> bytes:
    need("zsyncmake")
    (tmp_path / "x.bin").write_bytes(NEW)
    subprocess.run(["zsyncmake", "-b", "2048", "-u", url, "-o", "c.zsync", "x.bin"], cwd=tmp_path, check=True)
    return (tmp_path / "c.zsync").read_bytes()


def test_a_list_of_urls(kit_with_credentials: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Entries at the list's own origin get the secrets, others do not; a local list is the user's own word."""
    other = misbehaving(serving({"/b": b"b"}))
    files: dict[str, bytes] = {"/a": b"a"}
    home = misbehaving(serving(files))
    files["/list"] = f"{home.url}/a\n{other.url}/b\n".encode()
    kit_with_credentials.sync(f"{home.url}/list", tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == {"a": b"a", "b": b"b"}
    assert (got_secrets(home), got_secrets(other)) == ({True}, {False})
    (tmp_path / "urls.txt").write_bytes(files["/list"])
    other.requests.clear()
    kit_with_credentials.sync(tmp_path / "urls.txt", tmp_path / "of-a-file")
    assert got_secrets(other) == {True}


def test_a_metalink(kit_with_credentials: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """The first URL of a file is no more at home than its mirrors are; a mirror at home is."""
    other = misbehaving(serving({"/b": b"b"}))
    files: dict[str, bytes] = {"/c": b"c"}
    home = misbehaving(serving(files))
    files["/list.meta4"] = f"""<metalink xmlns="urn:ietf:params:xml:ns:metalink">
        <file name="b"><url>{other.url}/b</url></file>
        <file name="c"><url priority="1">{other.url}/missing</url><url priority="2">{home.url}/c</url></file>
        </metalink>""".encode()
    kit_with_credentials.sync(f"{home.url}/list.meta4", tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == {"b": b"b", "c": b"c"}
    assert (got_secrets(home), got_secrets(other)) == ({True}, {False})
    assert [each.path for each in home.requests if each.path.startswith("/c")]


def test_a_control_file(kit_with_credentials: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """The file it names, whole and in ranges, is at another origin."""
    pytest.importorskip("numpy")
    other = misbehaving(serving({"/x.bin": NEW}))
    home = misbehaving(serving({"/c.zsync": control(tmp_path, f"{other.url}/x.bin")}))
    for tree, before in ((tmp_path / "new", None), (tmp_path / "seeded", OLD)):
        if before is not None:
            tree.mkdir()
            (tree / "x.bin").write_bytes(before)
        kit_with_credentials.sync(f"{home.url}/c.zsync", tree)
        assert tree_of(tree)["x.bin"] == NEW
    assert (got_secrets(home), got_secrets(other)) == ({True}, {False})


def seeded(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "x.bin").write_bytes(OLD)
    return tree


def test_a_control_file_behind_a_signed_redirect(
    make_kit: Callable[..., Toolkit], misbehaving: Start, tmp_path: Path
) -> None:
    """As at GitHub: control file and file are each behind a redirect to a link on another host, for it alone."""
    pytest.importorskip("numpy")
    redirects: dict[str, str] = {}
    store = misbehaving(serving({"/assets/1": control(tmp_path, "x.bin"), "/assets/2": NEW}))
    front = misbehaving(serving({}, redirects))
    redirects["/v2/x.bin.zsync"] = f"{store.url}/assets/1?signature=1"
    redirects["/v2/x.bin"] = f"{store.url}/assets/2?signature=2"
    kit = make_kit(auth=("me", "s3cret"))
    report = kit.sync(f"{front.url}/v2/x.bin.zsync", seeded(tmp_path))
    assert (report.route, tree_of(tmp_path / "tree")["x.bin"]) == ("zsync", NEW)
    assert report.bytes_received < 20_000
    assert (got_secrets(front), got_secrets(store)) == ({True}, {False})
    assert {each.path for each in front.requests} == set(redirects)
    assert {each.path for each in store.requests} == {"/assets/1?signature=1", "/assets/2?signature=2"}


@pytest.mark.parametrize("same_host", [False, True])
def test_a_control_file_behind_a_moved_page(kit: Toolkit, misbehaving: Start, tmp_path: Path, same_host: bool) -> None:
    """The file is beside where the redirect led; the other reading of its URL is asked at most once."""
    pytest.importorskip("numpy")
    redirects: dict[str, str] = {}
    files = {"/v2/x.bin.zsync": control(tmp_path, "x.bin"), "/v2/x.bin": NEW}
    front = misbehaving(serving(files if same_host else {}, redirects))
    there = front if same_host else misbehaving(serving(files))
    redirects["/latest.zsync"] = f"{there.url}/v2/x.bin.zsync"
    report = kit.sync(f"{front.url}/latest.zsync", seeded(tmp_path))
    assert (report.route, tree_of(tmp_path / "tree")["x.bin"]) == ("zsync", NEW)
    assert [each.path for each in front.requests].count("/x.bin") == (0 if same_host else 1)


def test_the_wrong_file_at_one_reading(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """A page that says "not found" with status 200 is not the file: its size tells, or in the end the SHA-1."""
    pytest.importorskip("numpy")
    redirects: dict[str, str] = {}
    wrong = {"/x.bin": b"<html>not found</html>"}
    files = {"/v2/x.bin.zsync": control(tmp_path, "x.bin"), "/v2/x.bin": NEW}
    front, there = misbehaving(serving(wrong, redirects)), misbehaving(serving(files))
    redirects["/latest.zsync"] = f"{there.url}/v2/x.bin.zsync"
    assert kit.sync(f"{front.url}/latest.zsync", seeded(tmp_path)).route == "zsync"
    wrong["/x.bin"] = b"x" * len(NEW)
    kit.sync(f"{front.url}/latest.zsync", tmp_path / "fresh")
    assert tree_of(tmp_path / "fresh") == {"x.bin": NEW}


def test_a_control_file_of_windows(kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Header lines may end in CR LF; the checksums after them are taken as they are."""
    pytest.importorskip("numpy")
    header, _, sums = control(tmp_path, "x.bin").partition(b"\n\n")
    data = header.replace(b"\n", b"\r\n") + b"\r\n\r\n" + sums
    server = misbehaving(serving({"/c.zsync": data, "/x.bin": NEW}))
    assert kit.sync(f"{server.url}/c.zsync", seeded(tmp_path)).route == "zsync"
    assert tree_of(tmp_path / "tree")["x.bin"] == NEW
