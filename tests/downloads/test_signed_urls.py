"""A signed URL that changes is the same file: it is resumed, and asked about by its validator."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit import ConfigError, Request, Toolkit, TransferError
from perfkit.server.server import Server
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.trees import noise, tree_of

BODY = noise(1, 600_000)


def signed(number: int) -> str:
    return f"?X-Amz-Date=2026112{number}T000000Z&X-Amz-Expires=60&X-Amz-Signature=s3cret{number}"


@pytest.mark.parametrize(
    ("query", "key"), [(signed, None), (lambda number: f"?token={number}", "release/model.onnx")], ids=["s3", "key"]
)
def test_resumed_and_revalidated(
    kit: Toolkit,
    misbehaving: Callable[..., MisbehavingServer],
    out: Path,
    query: Callable[[int], str],
    key: str | None,
) -> None:
    """Each run has a new URL; the server breaks the first one off, and refuses it from then on."""

    def answer(exchange: Exchange) -> None:
        if exchange.asked.headers.get("if-none-match") == '"v1"':
            exchange.respond("304 Not Modified", ETag='"v1"')
        elif query(1) in exchange.asked.path and exchange.number > 1:
            exchange.respond("403 Forbidden")
        elif exchange.number == 1:
            exchange.head("200 OK", Content_Length=str(len(BODY)), ETag='"v1"')
            exchange.send(BODY[:300_000])
            exchange.hang_up()
        else:
            exchange.serve(BODY)

    server = misbehaving(answer)

    def get(number: int, **options: str | None) -> Request:
        return Request(f"{server.url}/model{query(number)}", segments=1, **options)  # type: ignore[arg-type]

    with pytest.raises(TransferError):
        kit.download(get(1, key=key), out / "model")
    resumed = kit.download(get(2, key=key), out / "model")
    assert (resumed.resumed_from > 100_000, (out / "model").read_bytes()) == (True, BODY)
    again = kit.download(get(3, key=key), out / "model")
    assert (again.unchanged, again.bytes_received) == (True, 0)
    assert not kit.download(f"{server.url}/model?other={query(4)[1:5]}", out / "model").unchanged


def test_a_signed_source_of_sync(kit: Toolkit, site: Path, tmp_path: Path) -> None:
    """It is the same source, and its signature is not on disk."""
    (site / "model.onnx").write_bytes(BODY)
    with Server(site) as server:
        url = f"{server.url}model.onnx"
        kit.sync(url + signed(1), tmp_path / "tree")
        again = kit.sync(url + signed(2), tmp_path / "tree")
    assert (again.requests, again.route, tree_of(tmp_path / "tree")) == (1, "none", {"model.onnx": BODY})
    for path in (tmp_path / "tree/.perfkit").rglob("*"):
        assert not path.is_file() or b"s3cret" not in path.read_bytes()
    assert kit.status(tmp_path / "tree").source == url


def test_a_key_is_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="key"):
        Request("https://h/a", key=5)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []
