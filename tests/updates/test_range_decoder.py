"""Frames are decoded while they arrive, from servers that behave and from those that don't."""

from __future__ import annotations

import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from perfkit import Toolkit
from perfkit.releases.format import POINTER_NAME
from perfkit.releases.format.index import Index
from perfkit.releases.format.pointer import Pointer
from perfkit.releases.format.zstd import decompress
from perfkit.transactions import layout
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.kits import MakeKit
from tests.support.sites import publish
from tests.support.trees import Tree, noise, tree_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.once

FILES: Tree = {f"{number:02}.bin": noise(number, 40_000) for number in range(24)}  # one frame of 960 KB

Answer = Callable[[Exchange, bytes], None]


@pytest.fixture
def kit(make_kit: MakeKit) -> Toolkit:
    return make_kit(read_timeout_s=120.0, stall_window_s=120.0)


@pytest.fixture
def site(kit: Toolkit, tmp_path: Path) -> Path:
    return publish(kit, tmp_path, FILES, "1")


def serving(site: Path, answer: Answer) -> MisbehavingServer:
    """A server that answers requests for the pack in this way, and all others rightly."""
    objects = {each.name: each.read_bytes() for each in (site / "objects").iterdir()}
    solid = Pointer.parse((site / POINTER_NAME).read_bytes()).solid
    index = Index.without_pieces(decompress(objects[solid.object.sha256], solid.size))
    (pack,) = (each.object.sha256 for each in index.packs)

    def respond(exchange: Exchange) -> None:
        name = exchange.asked.path.rpartition("/")[2]
        body = (site / POINTER_NAME).read_bytes() if name == POINTER_NAME else objects[name]
        if name == pack:
            answer(exchange, body)
        else:
            exchange.serve(body)

    return MisbehavingServer(respond)


def staged(tree: Path) -> list[Path]:
    """The contents that are whole and have been verified, before they are in the tree."""
    return [each for each in tree.glob(f"{layout.FETCHED_OBJECT}*") if not each.name.endswith("~")]


def install(kit: Toolkit, server: MisbehavingServer, tree: Path) -> list[str]:
    """Install the release, and see that all is there; returns the ranges that were asked for of the pack."""
    with server:
        report = kit.sync(f"{server.url}/", tree)
    assert report.route == "blocks"
    assert tree_of(tree) == FILES
    return [asked.headers.get("range", "all") for asked in server.requests]


def test_contents_are_verified_while_the_rest_of_their_frame_is_on_its_way(
    kit: Toolkit, tmp_path: Path, site: Path
) -> None:
    """When half of a frame has come, the files in it are staged; none is in the tree yet."""
    tree = tmp_path / "tree"

    def pause() -> None:
        wait_until(lambda: len(staged(tree)) >= 10)
        assert tree_of(tree) == {}

    install(kit, serving(site, lambda exchange, body: exchange.serve(body, pause=pause)), tree)


def test_a_frame_that_is_cut_off_is_continued(kit: Toolkit, tmp_path: Path, site: Path) -> None:
    """What came before counts: the rest is asked for, and decoded after it."""
    tree = tmp_path / "tree"

    def cut_once(exchange: Exchange, body: bytes) -> None:
        if exchange.asked.range is not None:
            return exchange.serve(body)
        exchange.head("200 OK", Content_Length=str(len(body)), ETag='"v1"')
        exchange.send(body[: len(body) // 2])
        wait_until(lambda: len(staged(tree)) >= 10)
        return exchange.hang_up()

    first, *more = filter(lambda each: each != "all", install(kit, serving(site, cut_once), tree))
    assert not more
    assert int(first.removeprefix("bytes=").partition("-")[0]) > 400_000


def test_a_frame_in_tiny_pieces_is_put_together(kit: Toolkit, tmp_path: Path, site: Path) -> None:
    def in_pieces(exchange: Exchange, body: bytes) -> None:
        exchange.head("200 OK", Content_Length=str(len(body)), ETag='"v1"')
        for at in range(0, len(body), 997):
            exchange.send(body[at : at + 997])

    install(kit, serving(site, in_pieces), tmp_path / "tree")


@pytest.mark.parametrize("place", [0.1, 0.6])
def test_wrong_bytes_reach_no_file_and_are_fetched_again(
    kit: Toolkit, tmp_path: Path, site: Path, place: float
) -> None:
    """The first answer has wrong bytes, in what is decoded before the rest comes or after it; the second is right."""
    tree = tmp_path / "tree"
    answers: list[Exchange] = []

    def wrong_once(exchange: Exchange, body: bytes) -> None:
        answers.append(exchange)
        if len(answers) > 1:
            return exchange.serve(body)
        at = int(place * len(body))
        wrong = body[:at] + bytes(each ^ 0xFF for each in body[at : at + 100_000]) + body[at + 100_000 :]
        return exchange.serve(wrong, pause=lambda: wait_until(lambda: bool(staged(tree))))

    install(kit, serving(site, wrong_once), tree)
    assert len(answers) > 1


def test_a_file_of_several_frames_is_whole_after_wrong_bytes(kit: Toolkit, tmp_path: Path) -> None:
    """Parts that were written from wrong bytes don't count when the range is decoded again."""
    large = {"large.bin": noise(1, 3_000_000)}
    site, tree = publish(kit, tmp_path, large, "1"), tmp_path / "tree"
    answers: list[Exchange] = []

    def wrong_once(exchange: Exchange, body: bytes) -> None:
        answers.append(exchange)
        half = len(body) // 2
        exchange.serve(body if len(answers) > 1 else body[:half] + bytes(len(body) - half))

    with serving(site, wrong_once) as server:
        kit.sync(f"{server.url}/", tree)
    assert tree_of(tree) == large


def test_where_no_thread_can_be_started_all_is_decoded_at_the_end(
    kit: Toolkit, tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = ThreadPoolExecutor.submit

    def refuse(self: ThreadPoolExecutor, *arguments: Any, **options: Any) -> Any:
        if self._thread_name_prefix == "perfkit-decode":
            raise RuntimeError("can't start new thread")
        return submit(self, *arguments, **options)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refuse)
    install(kit, serving(site, lambda exchange, body: exchange.serve(body)), tmp_path / "tree")


def test_a_failed_write_ends_the_fetching(
    kit: Toolkit, tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the decoder is the sync's, and nothing is in the tree."""
    from perfkit.updates.staging import StagingArea

    def full(self: StagingArea, digest: bytes, data: memoryview) -> None:
        raise OSError(errno.EIO, "the disk failed")

    monkeypatch.setattr(StagingArea, "_write_whole", full)
    with (
        serving(site, lambda exchange, body: exchange.serve(body)) as server,
        pytest.raises(OSError, match="the disk failed"),
    ):
        kit.sync(f"{server.url}/", tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == {}
