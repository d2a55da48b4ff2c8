"""Several addresses of a name are raced (RFC 8305): one that is dead costs a moment, once."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from perfkit import Toolkit, TransferError, TransferTimeoutError
from perfkit.downloads.http import dial
from tests.support.fakes import MisbehavingServer
from tests.support.kits import SOON_S
from tests.support.network import BODY, unheard

Start = Callable[..., MisbehavingServer]
MakeKit = Callable[..., Toolkit]

HOST = "files.example.org"


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """No host's last address is known, before and after."""
    dial._answered.clear()
    yield
    dial._answered.clear()


@pytest.fixture
def dead() -> Iterator[tuple[str, int]]:
    """An address that answers nothing: its backlog is full, and Linux then drops what comes."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(64):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
            if not select.select([], [filler], [], 0.2)[1]:
                break
        else:
            pytest.skip("the backlog of a listener has no end here")
        yield address


@pytest.fixture
def refusing() -> Iterator[tuple[str, int]]:
    with unheard() as address:
        yield address


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets HOST have these addresses."""
    real = socket.getaddrinfo

    def give(*addresses: tuple[str, int]) -> None:
        def getaddrinfo(host: Any, port: Any, *args: Any, **options: Any) -> Any:
            if host not in (HOST, HOST.encode()):
                return real(host, port, *args, **options)
            if options.get("flags", 0) & socket.AI_NUMERICHOST:
                raise socket.gaierror(socket.EAI_NONAME, "not an address")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", each) for each in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return give


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Each address that a connection is tried to."""
    found: list[tuple[str, int]] = []
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        found.append(address)
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    return found


def address_of(server: MisbehavingServer) -> tuple[str, int]:
    host, _, port = server.url.removeprefix("http://").partition(":")
    return host, int(port)


@pytest.mark.parametrize("way", ["own", "session", "factory"])
def test_a_dead_first_address(
    make_kit: MakeKit,
    misbehaving: Start,
    dead: tuple[str, int],
    resolve: Callable[..., None],
    tried: list[tuple[str, int]],
    tmp_path: Path,
    way: str,
) -> None:
    """The second is tried within half a second; later connections, other Toolkits' too, try the live one first."""
    came_s: list[float] = []
    server = misbehaving(lambda x: (came_s.append(time.monotonic()), x.serve(b"short"))[1])
    live = address_of(server)
    resolve(dead, live)
    given = {"own": None, "session": requests.Session(), "factory": requests.Session}[way]
    began_s = time.monotonic()
    make_kit(given, workers=1).download(f"http://{HOST}:{live[1]}/f", tmp_path / "f", resume=False)
    assert tried == [dead, live]
    assert came_s[0] - began_s < SOON_S
    assert dial._ATTEMPT_DELAY_S < 0.5
    tried.clear()
    make_kit(given, workers=1).download(f"http://{HOST}:{live[1]}/f", tmp_path / "f", resume=False)
    assert tried == [live]


def test_segments_know_it_too(
    make_kit: MakeKit,
    misbehaving: Start,
    dead: tuple[str, int],
    resolve: Callable[..., None],
    tried: list[tuple[str, int]],
    tmp_path: Path,
) -> None:
    """The dead address is tried once for the whole file."""
    server = misbehaving(lambda x: x.serve(BODY, pause=lambda: x.server.wait_for(4), pause_at=0))
    live = address_of(server)
    resolve(dead, live)
    download = make_kit(workers=4).download(f"http://{HOST}:{live[1]}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY
    assert download.segments == 4
    assert tried.count(dead) == 1
    assert tried.count(live) >= 4


def test_a_first_address_that_refuses(
    monkeypatch: pytest.MonkeyPatch,
    make_kit: MakeKit,
    misbehaving: Start,
    refusing: tuple[str, int],
    resolve: Callable[..., None],
    tried: list[tuple[str, int]],
    tmp_path: Path,
) -> None:
    """The next one is tried at once, not after a moment."""
    server = misbehaving(lambda x: x.serve(b"short"))
    live = address_of(server)
    resolve(refusing, live)
    monkeypatch.setattr(dial, "_ATTEMPT_DELAY_S", 60.0)
    dial.dial(HOST, live[1], timeout_s=20, aborted=lambda: False).close()
    assert tried == [refusing, live]
    make_kit().download(f"http://{HOST}:{live[1]}/f", tmp_path / "f")


def test_the_address_that_answered_dies(
    make_kit: MakeKit,
    misbehaving: Start,
    refusing: tuple[str, int],
    resolve: Callable[..., None],
    tried: list[tuple[str, int]],
    tmp_path: Path,
) -> None:
    """Others are tried again, and the one that answers then comes first."""
    server = misbehaving(lambda x: x.serve(b"short"))
    live = address_of(server)
    dial._answered[HOST, live[1]] = refusing
    resolve(live, refusing)
    for _ in range(2):
        with make_kit() as kit:
            kit.download(f"http://{HOST}:{live[1]}/f", tmp_path / "f", resume=False)
    assert tried == [refusing, live, live]


def test_all_addresses_are_dead(
    make_kit: MakeKit,
    dead: tuple[str, int],
    resolve: Callable[..., None],
    tried: list[tuple[str, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Together they have the time of one connection."""
    resolve(dead, dead, dead, dead)
    clock = itertools.count(0.0, 0.1)  # time passes from one look to the next
    monkeypatch.setattr(dial, "time", SimpleNamespace(monotonic=clock.__next__))
    with pytest.raises(TransferTimeoutError) as caught:
        make_kit(connect_timeout_s=2.0, retries=0).download(f"http://{HOST}:1/f", tmp_path / "f")
    assert 2.0 <= next(clock) < 3.0
    assert caught.value.transient
    assert tried == [dead] * 4


def test_all_addresses_refuse(
    make_kit: MakeKit, refusing: tuple[str, int], resolve: Callable[..., None], tmp_path: Path
) -> None:
    resolve(refusing, refusing)
    with pytest.raises(TransferError, match=rf"{HOST} port 1: Connection refused"):
        make_kit(retries=0).download(f"http://{HOST}:1/f", tmp_path / "f")


def test_close_while_connecting(
    make_kit: MakeKit, dead: tuple[str, int], resolve: Callable[..., None], tried: list[tuple[str, int]], tmp_path: Path
) -> None:
    """Within a second, whatever the time-out."""
    resolve(dead)
    kit = make_kit(connect_timeout_s=60.0)
    failed: list[TransferError] = []

    def caller() -> None:
        try:
            kit.download(f"http://{HOST}:1/f", tmp_path / "f")
        except TransferError as error:
            failed.append(error)

    thread = threading.Thread(target=caller)
    thread.start()
    deadline_s = time.monotonic() + 100
    while not tried:
        assert time.monotonic() < deadline_s
        thread.join(0.01)
    began_s = time.monotonic()
    kit.close()
    thread.join(100)
    assert time.monotonic() - began_s < SOON_S
    assert len(failed) == 1


def test_families_take_turns() -> None:
    """RFC 8305 section 4; the one that answered last goes before all."""
    six = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", (f"::{n}", 80, 0, 0)) for n in range(3)]
    four = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"10.0.0.{n}", 80)) for n in range(2)]
    assert dial._in_order([*six, *four], None) == [six[0], four[0], six[1], four[1], six[2]]
    assert dial._in_order([*six, *four], four[1][4]) == [four[1], six[0], four[0], six[1], six[2]]
