"""The first connection is made while requests is imported, but never past a proxy."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfkit import Config
from perfkit.downloads.http import dial

WAIT_S = 60

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


def test_one_that_was_idle_for_long_is_not_used(origin: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "_MOST_IDLE_S", -1.0)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with monkeypatch.context() as without:
        for name in ("urllib3", "perfkit.testing"):
            without.delitem(sys.modules, name, raising=False)
        dial.connect_early(url_of(origin), Config())
    early, _ = origin.accept()
    options = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)
    with dial.dial(*origin.getsockname(), timeout_s=WAIT_S, aborted=lambda: False, options=options) as used:
        assert ended(early)
        with origin.accept()[0] as peer:
            assert peer.getpeername() == used.getsockname()


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
