"""Metalink documents with checksums of pieces only: each piece is checked, and damaged ones alone are fetched again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit import IntegrityError, Toolkit, TransferError
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.trees import tree_of

pytestmark = pytest.mark.once

Start = Callable[..., MisbehavingServer]
PIECE = 16 << 10
DATA = hashlib.shake_128(b"pieces").digest(20 * PIECE + 1000)
COUNT = 21


def damaged(*numbers: int) -> bytes:
    """The file, with a wrong byte in each of these pieces."""
    data = bytearray(DATA)
    for number in numbers:
        data[number * PIECE + 100] ^= 1
    return bytes(data)


def document(*urls: str, data: bytes = DATA, size: bool = True) -> str:
    hashes = "".join(
        f"<hash>{hashlib.sha256(data[at : at + PIECE]).hexdigest()}</hash>" for at in range(0, len(data), PIECE)
    )
    mirrors = "".join(f'<url priority="{at}">{url}</url>' for at, url in enumerate(urls, 1))
    return (
        f'<metalink xmlns="urn:ietf:params:xml:ns:metalink"><file name="f">{f"<size>{len(data)}</size>" * size}'
        f'<pieces length="{PIECE}" type="sha-256">{hashes}</pieces>{mirrors}</file></metalink>'
    )


@pytest.fixture
def whole_kit(make_kit: Callable[..., Toolkit]) -> Toolkit:
    """One that asks for a file of this size in one piece."""
    return make_kit(segments=1)


def ranges(server: MisbehavingServer) -> list[tuple[int, int | None] | None]:
    return [each.range for each in server.requests]


def sync(whole_kit: Toolkit, tmp_path: Path, *urls: str, size: bool = True) -> None:
    (tmp_path / "x.meta4").write_text(document(*urls, size=size))
    whole_kit.sync(tmp_path / "x.meta4", tmp_path / "tree")


@pytest.mark.parametrize("size", [False, True])
def test_an_intact_file_is_fetched_once(whole_kit: Toolkit, misbehaving: Start, tmp_path: Path, size: bool) -> None:
    server = misbehaving(lambda x: x.serve(DATA))
    sync(whole_kit, tmp_path, f"{server.url}/f", size=size)
    assert tree_of(tmp_path / "tree") == {"f": DATA}
    assert len(server.requests) == 1


def test_damaged_pieces_come_from_the_next_mirror(whole_kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """Neighbours in one range, and the short last piece; nothing else is fetched again."""
    first = misbehaving(lambda x: x.serve(damaged(3, 4, 9, 20)))
    second = misbehaving(lambda x: x.serve(DATA))
    sync(whole_kit, tmp_path, f"{first.url}/f", f"{second.url}/f")
    assert tree_of(tmp_path / "tree") == {"f": DATA}
    assert len(first.requests) == 1
    assert sorted(ranges(second)) == [  # type: ignore[type-var]
        (3 * PIECE, 5 * PIECE), (9 * PIECE, 10 * PIECE), (20 * PIECE, len(DATA))
    ]  # fmt: skip


def test_mirrors_that_are_damaged_elsewhere(whole_kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """No mirror has the whole file intact, and together they have."""
    first = misbehaving(lambda x: x.serve(damaged(1, 2)))
    second = misbehaving(lambda x: x.serve(damaged(2, 5)))
    third = misbehaving(lambda x: x.serve(damaged(1, 7)))
    sync(whole_kit, tmp_path, *(f"{each.url}/f" for each in (first, second, third)))
    assert tree_of(tmp_path / "tree") == {"f": DATA}
    assert ranges(third) == [(2 * PIECE, 3 * PIECE)]


def test_the_only_url_is_asked_again(whole_kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """What a bad wire or disk damaged once is right the second time."""
    server = misbehaving(lambda x: x.serve(damaged(7) if x.number == 1 else DATA))
    sync(whole_kit, tmp_path, f"{server.url}/f")
    assert tree_of(tmp_path / "tree") == {"f": DATA}
    assert ranges(server) == [None, (7 * PIECE, 8 * PIECE)]


@pytest.mark.parametrize("other", [DATA[:-2000], DATA + b"more", b""])
def test_a_mirror_with_another_length(whole_kit: Toolkit, misbehaving: Start, tmp_path: Path, other: bytes) -> None:
    """What the first one has is used as far as it is right."""
    first, second = misbehaving(lambda x: x.serve(other)), misbehaving(lambda x: x.serve(DATA))
    sync(whole_kit, tmp_path, f"{first.url}/f", f"{second.url}/f")
    assert tree_of(tmp_path / "tree") == {"f": DATA}


def test_a_piece_that_nobody_has(whole_kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """An error that names the piece, and nothing is published; mended at the origin, the next sync succeeds."""
    bad = [damaged(4)]
    first, second = misbehaving(lambda x: x.serve(bad[0])), misbehaving(lambda x: x.serve(damaged(4)))
    urls = (f"{first.url}/f", f"{second.url}/f")
    with pytest.raises(IntegrityError, match="piece 5 of 21"):
        sync(whole_kit, tmp_path, *urls)
    assert tree_of(tmp_path / "tree") == {}
    bad[0] = DATA
    sync(whole_kit, tmp_path, *urls)
    assert tree_of(tmp_path / "tree") == {"f": DATA}


@pytest.mark.parametrize("size", [False, True])
def test_a_server_without_ranges(whole_kit: Toolkit, misbehaving: Start, tmp_path: Path, size: bool) -> None:
    """The error is one of integrity; the next mirror may have ranges."""

    def whole(exchange: Exchange) -> None:
        exchange.respond("200 OK", damaged(4))

    first, second = misbehaving(whole), misbehaving(lambda x: x.serve(DATA))
    with pytest.raises(IntegrityError, match="piece 5 of 21"):
        sync(whole_kit, tmp_path, f"{first.url}/f", size=size)
    sync(whole_kit, tmp_path, f"{first.url}/f", f"{second.url}/f", size=size)
    assert tree_of(tmp_path / "tree") == {"f": DATA}


def test_mirrors_that_are_away_for_now(make_kit: Callable[..., Toolkit], misbehaving: Start, tmp_path: Path) -> None:
    """What was fetched stays, and the next sync fetches the damaged piece only."""
    first = misbehaving(lambda x: x.serve(damaged(4)))
    away = [True]
    second = misbehaving(lambda x: x.respond("503 Service Unavailable") if away[0] else x.serve(DATA))
    urls = (f"{first.url}/f", f"{second.url}/f")
    whole_kit = make_kit(segments=1, retries=0)
    with pytest.raises(TransferError):
        sync(whole_kit, tmp_path, *urls)
    away[0] = False
    sync(whole_kit, tmp_path, *urls)
    assert tree_of(tmp_path / "tree") == {"f": DATA}
    assert ranges(second)[-1] == (4 * PIECE, 5 * PIECE)


def test_other_pieces_are_another_file(whole_kit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """With the same URL, size and validators, only the list says that the file is another one."""
    data = [DATA]
    server = misbehaving(lambda x: x.serve(data[0]))
    sync(whole_kit, tmp_path, f"{server.url}/f")
    data[0] = DATA[::-1]
    (tmp_path / "x.meta4").write_text(document(f"{server.url}/f", data=data[0]))
    whole_kit.sync(tmp_path / "x.meta4", tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == {"f": data[0]}
    (tmp_path / "tree/f").write_bytes(b"damaged")
    assert whole_kit.verify(tmp_path / "tree", repair=True).intact
