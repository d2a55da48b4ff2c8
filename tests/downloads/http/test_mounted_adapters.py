"""Adapters that the caller mounted on a session of theirs: used as they are, and left behind when they hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter

from perfkit import CallbackProgress, CancelledError, TransferError
from tests.support.fakes import Exchange, Start
from tests.support.kits import SOON_S, MakeKit, fetch
from tests.support.network import BODY

Give = Callable[[requests.Session], Any]


class Counting(HTTPAdapter):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sent: list[str | None] = []

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        self.sent.append(request.url)
        return super().send(request, *args, **options)


@pytest.mark.parametrize("where", ["http://", "http://127.0.0.1"])
def test_a_mounted_adapter_is_used_as_it_is(
    make_kit: MakeKit, misbehaving: Start, give: Give, tmp_path: Path, where: str
) -> None:
    adapter = Counting(pool_maxsize=4)
    session = requests.Session()
    session.mount(where, adapter)
    server = misbehaving(lambda x: x.serve(BODY, pause=lambda: x.server.wait_for(3)))
    assert fetch(make_kit(give(session)), f"{server.url}/f", tmp_path) == BODY
    assert adapter.sent == [f"{server.url}/f"] * len(server.requests)
    assert len(adapter.sent) >= 3
    adapter.close()


def test_an_adapter_with_settings_of_its_own(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """requests' own class, but told to retry: that is what is asked for, and not perfkit's."""
    session = requests.Session()
    adapter = HTTPAdapter(max_retries=3)
    session.mount("http://", adapter)
    server = misbehaving(lambda x: x.serve(BODY))
    assert fetch(make_kit(session), f"{server.url}/f", tmp_path) == BODY
    assert adapter.poolmanager.pools
    adapter.close()


def test_errors_of_a_mounted_adapter(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """A connection that breaks in the body is taken up again where it broke."""

    def handler(x: Exchange) -> None:
        if x.number == 1:
            x.head(
                "200 OK" if x.asked.range is None else "206 Partial Content",
                Content_Length=str(len(BODY)),
                ETag='"v1"',
                **({} if x.asked.range is None else {"Content_Range": f"bytes 0-{len(BODY) - 1}/{len(BODY)}"}),
            )
            x.send(BODY[: len(BODY) // 2])
            return x.hang_up()
        x.serve(BODY)

    session = requests.Session()
    adapter = Counting()
    session.mount("http://", adapter)
    server = misbehaving(handler)
    download = make_kit(session, segments=1).download(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY
    assert download.retries == 1
    assert server.requests[1].range is not None
    assert server.requests[1].range[0] >= len(BODY) // 4
    adapter.close()


@pytest.mark.parametrize("phase", ["headers", "body"])
def test_close_with_a_mounted_adapter(
    make_kit: MakeKit, misbehaving: Start, give: Give, tmp_path: Path, phase: str
) -> None:
    """Ends within a second also what a foreign adapter waits for."""
    session = requests.Session()
    adapter = Counting()
    session.mount("http://", adapter)
    server = misbehaving(lambda x: x.stall() if phase == "headers" else x.serve(BODY, pause=x.stall))
    arrived = threading.Event()
    shown = CallbackProgress(lambda now: arrived.set() if now.received_bytes else None)
    kit = make_kit(give(session), progress=shown)
    failed: list[TransferError] = []

    def caller() -> None:
        try:
            kit.download(f"{server.url}/f", tmp_path / "f")
        except TransferError as error:
            failed.append(error)

    thread = threading.Thread(target=caller)
    thread.start()
    assert server.wait_for(1)
    assert phase == "headers" or arrived.wait(100)
    began_s = time.monotonic()
    kit.close()
    thread.join(100)
    assert time.monotonic() - began_s < SOON_S
    assert [type(error) for error in failed] == [CancelledError]
    adapter.close()


def test_a_mounted_adapter_is_called_by_few_threads(make_kit: MakeKit, misbehaving: Start, tmp_path: Path) -> None:
    """One beside each worker, so that what an auth object keeps for each thread lasts; none is left in the end."""
    idents = set()

    class Noting(Counting):
        def send(self, *args: Any, **options: Any) -> requests.Response:
            idents.add(threading.get_ident())
            return super().send(*args, **options)

    session = requests.Session()
    session.mount("http://", Noting())
    server = misbehaving(lambda x: x.serve(b"short"))
    make_kit(session, workers=2, segments=1).download_many([(f"{server.url}/{n}", str(n)) for n in range(30)], tmp_path)
    assert len(server.requests) == 30
    assert len(idents) <= 2
    session.close()
