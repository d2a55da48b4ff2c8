"""The first connection is made while requests is imported, but never past a proxy."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perfkit import Config, Request, Toolkit
from perfkit.downloads.http import dial, transport
from tests.support.waiting import wait_until

WAIT_S = 60
OPTIONS = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)

# Its import of urllib3 waits for a line from standard input.
COMMAND = """
import sys

class Held:
    def find_spec(self, name, *_):
        if name == "urllib3":
            sys.stdin.readline()

sys.meta_path.insert(0, Held())
from perfkit.cli import main
from perfkit.downloads.http import dial

dial._MOST_IDLE_S = 600.0  # on a slow machine, the imports take longer than usual
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def origin() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WAIT_S)
        yield listener


def url_of(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if requests were still to be imported, and without a proxy."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name in ("urllib3", "perfkit.testing"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(dial, "_begun", {})
    monkeypatch.setattr(dial, "_shared", set())


@contextlib.contextmanager
def started(*words: str, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A perfkit command that cannot import urllib3 yet."""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    command = [sys.executable, "-c", COMMAND, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env={**environment, **more}) as process:
        try:
            yield process
        finally:
            process.kill()


def go_on(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.close()


def respond(peer: socket.socket) -> None:
    peer.settimeout(WAIT_S)
    with peer, peer.makefile("rwb") as stream:
        assert stream.readline().startswith(b"GET ")
        while stream.readline() != b"\r\n":
            pass
        stream.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody")
        stream.flush()


def ended(peer: socket.socket) -> bool:
    peer.settimeout(WAIT_S)
    with peer:
        return peer.recv(1) == b""


def has_no_connection(listener: socket.socket) -> None:
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_get_uses_the_connection(origin: socket.socket, tmp_path: Path) -> None:
    with started("get", "-q", "-o", str(tmp_path / "file"), f"{url_of(origin)}/file") as process:
        peer, _ = origin.accept()  # though urllib3 is not imported yet
        go_on(process)
        respond(peer)
        assert process.wait(WAIT_S) == 0
    assert (tmp_path / "file").read_bytes() == b"body"
    has_no_connection(origin)


def test_sync_connects(origin: socket.socket, tmp_path: Path) -> None:
    with started("sync", "-q", url_of(origin), str(tmp_path / "tree")):
        origin.accept()[0].close()


def test_a_listed_file(origin: socket.socket, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"{url_of(origin)}/file\n")
    with started("get", "-q", "-i", str(tmp_path / "list"), "-d", str(tmp_path)):
        origin.accept()[0].close()


def test_a_proxy(origin: socket.socket, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(WAIT_S)
        words = ("get", "-q", "-o", str(tmp_path / "file"), f"{url_of(origin)}/file")
        with started(*words, http_proxy=url_of(proxy)) as process:
            go_on(process)
            respond(proxy.accept()[0])
            assert process.wait(WAIT_S) == 0
    assert (tmp_path / "file").read_bytes() == b"body"
    has_no_connection(origin)


def test_one_that_the_server_has_closed_is_made_again(origin: socket.socket, tmp_path: Path) -> None:
    with started("get", "-q", "--retries", "0", "-o", str(tmp_path / "file"), f"{url_of(origin)}/file") as process:
        origin.accept()[0].close()
        go_on(process)
        respond(origin.accept()[0])
        assert process.wait(WAIT_S) == 0


def test_one_that_a_slow_download_cannot_use_is_closed(origin: socket.socket, tmp_path: Path) -> None:
    """A server that serves one connection at a time would else wait for it."""
    words = ("get", "-q", "--limit-rate", "1M", "-o", str(tmp_path / "file"), f"{url_of(origin)}/file")
    with started(*words) as process:
        early, _ = origin.accept()
        go_on(process)
        assert ended(early)
        respond(origin.accept()[0])
        assert process.wait(WAIT_S) == 0


def test_one_that_was_idle_for_long_is_not_used(
    origin: socket.socket, monkeypatch: pytest.MonkeyPatch, not_loaded: None
) -> None:
    monkeypatch.setattr(dial, "_MOST_IDLE_S", -1.0)
    dial.connect_early([url_of(origin)], Config())
    early, _ = origin.accept()
    with dial.dial(*origin.getsockname(), timeout_s=WAIT_S, aborted=lambda: False, options=OPTIONS) as used:
        assert ended(early)
        with origin.accept()[0] as peer:
            assert peer.getpeername() == used.getsockname()


@pytest.fixture
def connecting(monkeypatch: pytest.MonkeyPatch, not_loaded: None) -> list[threading.Event]:
    """For each connection that is being made, what lets it be made."""
    connect, begun = dial._connect, []

    def held(*args: Any) -> socket.socket:
        begun.append(go_on := threading.Event())
        assert go_on.wait(WAIT_S)
        return connect(*args)

    monkeypatch.setattr(dial, "_connect", held)
    return begun


def test_a_distant_server_gets_as_many_as_requests_will_be_made_at_once(
    origin: socket.socket, connecting: list[threading.Event]
) -> None:
    """Those of the first requests that go to it; they are not connected to twice."""
    url = url_of(origin)
    for _ in range(2):
        dial.connect_early([f"{url}/1", f"{url}/2", "http://127.0.0.2/", f"{url}/3", f"{url}/4"], Config(workers=4))
    wait_until(lambda: len(connecting) == 3)
    for each in connecting:
        each.set()
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(dial.dial(*origin.getsockname(), timeout_s=WAIT_S, aborted=bool, options=OPTIONS))
            stack.enter_context(origin.accept()[0])
        has_no_connection(origin)
    assert len(connecting) == 3


@pytest.mark.parametrize("why", ["near", "slow", "few descriptors"])
def test_one_is_enough(
    origin: socket.socket, connecting: list[threading.Event], monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """For a near server, under a rate limit, and where the imports need the descriptors."""
    before = set(threading.enumerate())
    monkeypatch.setattr(dial, "_NEAR_S", WAIT_S if why == "near" else 0.0)
    if why == "few descriptors":
        monkeypatch.setattr("resource.getrlimit", lambda kind: (12, 12))
    urls = [f"{url_of(origin)}/{n}" for n in range(9)]
    dial.connect_early(urls, Config(rate_limit=1 << 20 if why == "slow" else None))
    wait_until(lambda: connecting)
    connecting[0].set()
    with dial.dial(*origin.getsockname(), timeout_s=WAIT_S, aborted=bool, options=OPTIONS):
        wait_until(lambda: before.issuperset(threading.enumerate()))
    assert len(connecting) == 1


def test_what_is_connected_for(make_kit: Callable[..., Toolkit], monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
    """The first files, but for those with checksums: they may be there already."""
    asked: list[list[str]] = []
    monkeypatch.setattr(transport, "connect_early", lambda urls, config: asked.append(list(urls)))
    files = [Request(f"http://127.0.0.1:9/{n}", checksum=f"sha256:{'0' * 64}" if n == 1 else None) for n in range(3)]
    assert len(dict(make_kit(retries=0).iter_downloads(files, out))) == 3
    assert asked[0] == ["http://127.0.0.1:9/0", "http://127.0.0.1:9/2"]


def test_a_fake_origin_is_not_looked_for_on_the_network(origin: socket.socket, tmp_path: Path) -> None:
    url, path = f"{url_of(origin)}/file", str(tmp_path / "file")
    program = f"""
from perfkit.cli import main
from perfkit.testing import FakeOrigin

with FakeOrigin() as fake, fake.installed():
    fake.add({url!r}, "body")
    assert main(["get", "-q", "-o", {path!r}, {url!r}]) == 0
"""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=WAIT_S, env=environment)
    assert (tmp_path / "file").read_bytes() == b"body"
    has_no_connection(origin)
