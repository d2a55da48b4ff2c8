"""How often a sync waits for an answer before it can go on, which is what takes time where the server is far away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from perfkit import Config, StaleSourceError, SyncReport, Toolkit
from perfkit.downloads import manager
from perfkit.downloads.http.transport import HttpTransport
from perfkit.downloads.manager import DownloadManager
from perfkit.downloads.request import Request
from perfkit.downloads.transfer import Transfer
from perfkit.releases.format import POINTER_NAME
from perfkit.releases.format.pointer import Pointer
from perfkit.transactions import layout
from perfkit.updates.sources.site_client import SiteClient
from perfkit.updates.staging import Fetcher
from tests.support.kits import MakeKit
from tests.support.sites import Origin
from tests.support.trees import Tree, lines, noise, tree_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.once

OLD: Tree = {f"part-{number}.bin": noise(number, 30_000) for number in range(9)}
NEW: Tree = {**OLD, "part-1.bin": noise(11, 30_000)}
NEWER: Tree = {**NEW, "part-2.bin": noise(12, 30_000)}


@pytest.fixture
def kit(make_kit: MakeKit) -> Toolkit:
    return make_kit(segments=1, read_timeout_s=120.0, stall_window_s=120.0)  # longer than answers are held back


class RoundTrips:
    """Holds back the answers of each round until all of its requests have come: none waits for another's answer.

    Args:
        sizes: how many requests each round has.
    """

    def __init__(self, *sizes: int) -> None:
        self._sizes = sizes
        self._changed = threading.Condition()
        self.count = 0  # of requests
        self.late = False  # some came only when others had been answered

    def __call__(self, path: str) -> None:
        with self._changed:
            self.count += 1
            ends = [sum(self._sizes[: number + 1]) for number in range(len(self._sizes))]
            end = next((end for end in ends if self.count <= end), self.count)
            self._changed.notify_all()
            self.late |= not self._changed.wait_for(lambda: self.count >= end, 100)

    def of(self, origin: Origin, work: Callable[[], SyncReport]) -> SyncReport:
        """Do the work, and see that it made its requests in these rounds."""
        origin.before = self
        report = work()
        assert not self.late
        assert self.count == sum(self._sizes)
        return report


def test_nothing_to_do_takes_one(kit: Toolkit, tmp_path: Path, origin_v1: Origin) -> None:
    """The pointer is asked for, conditionally, on the connection that is there already."""
    kit.sync(origin_v1.url, tmp_path / "tree")
    before = set(origin_v1.connections)
    report = RoundTrips(1).of(origin_v1, lambda: kit.sync(origin_v1.url, tmp_path / "tree"))
    assert report.route == "none"
    assert origin_v1.connections == before


def test_a_delta_takes_two(kit: Toolkit, tmp_path: Path, origin: Origin) -> None:
    """The pointer, and what it points to."""
    origin.publish(OLD, "1")
    kit.sync(origin.url, tmp_path / "tree")
    origin.publish(NEW, "2")
    report = RoundTrips(1, 1).of(origin, lambda: kit.sync(origin.url, tmp_path / "tree"))
    assert report.route == "delta"
    assert tree_of(tmp_path / "tree") == NEW


def test_several_deltas_take_three(kit: Toolkit, tmp_path: Path, origin: Origin) -> None:
    """The list of files and the index come together, where they show whether deltas are best."""
    origin.publish(OLD, "1")
    kit.sync(origin.url, tmp_path / "tree")
    origin.publish(NEW, "2")
    origin.publish(NEWER, "3", keep_deltas=1)
    report = RoundTrips(1, 2, 2).of(origin, lambda: kit.sync(origin.url, tmp_path / "tree"))
    assert report.route == "delta"
    assert tree_of(tmp_path / "tree") == NEWER


def test_blocks_take_three(kit: Toolkit, tmp_path: Path, origin: Origin) -> None:
    """A dictionary comes together with the range that needs it."""
    small = {f"small-{number}.py": lines(number, 200) for number in range(60)}
    origin.publish(small, "1", keep_deltas=0)
    kit.sync(origin.url, tmp_path / "tree")
    changed = {**small, "small-7.py": lines(999, 200)}
    origin.publish(changed, "2", keep_deltas=0)
    report = RoundTrips(1, 2, 2).of(origin, lambda: kit.sync(origin.url, tmp_path / "tree"))
    assert report.route == "blocks"
    assert tree_of(tmp_path / "tree") == changed


def test_a_first_install_takes_three(kit: Toolkit, tmp_path: Path, origin: Origin) -> None:
    """All packs are asked for at once, as soon as the list of files and the index are there."""
    origin.publish(OLD, "1")
    origin.publish(NEW, "2")  # a pack for each
    report = RoundTrips(1, 2, 2).of(origin, lambda: kit.sync(f"{origin.url}/", tmp_path / "tree"))
    assert report.route == "blocks"
    assert tree_of(tmp_path / "tree") == NEW


def publish_with_dictionary(origin: Origin) -> None:
    """Three packs, of which two share a dictionary."""
    small = {f"small-{number}.py": lines(number, 200) for number in range(60)}
    for number in range(3):
        small[f"small-{number}.py"] = lines(100 + number, 200)
        origin.publish(small, f"{number}")


def test_a_dictionary_of_two_packs_is_asked_for_once(
    kit: Toolkit, tmp_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second download to the same file would fail, and its failure be taken for that of the first."""
    publish_with_dictionary(origin)
    begun: list[str | None] = []
    begin = Fetcher.begin

    def noted(self: Fetcher, requests: Sequence[Request]) -> None:
        begun.extend(request.name for request in requests)
        begin(self, requests)

    monkeypatch.setattr(Fetcher, "begin", noted)
    kit.sync(f"{origin.url}/", tmp_path / "tree")
    assert len(begun) == len(set(begun)) == 6, "the list of files, the index, three packs and the dictionary"


def test_a_dictionary_is_used_when_its_download_has_ended(
    kit: Toolkit, tmp_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not as soon as its file is there: it was asked for again while its path was still taken, and the route failed."""
    publish_with_dictionary(origin)
    there, fetching = threading.Event(), threading.Event()

    def ended(self: DownloadManager, batch: Any, transfer: Transfer, download: Any) -> None:
        if transfer.request.label == "a dictionary":
            there.set()
            assert fetching.wait(100)
            time.sleep(0.2)
        _ended(self, batch, transfer, download)

    def fetch_ranges(self: SiteClient, *args: Any, **options: Any) -> Iterator[Any]:
        assert there.wait(100)
        fetching.set()
        yield from _fetch_ranges(self, *args, **options)

    _ended, _fetch_ranges = DownloadManager._ended, SiteClient.fetch_ranges
    monkeypatch.setattr(DownloadManager, "_ended", ended)
    monkeypatch.setattr(SiteClient, "fetch_ranges", fetch_ranges)
    assert kit.sync(f"{origin.url}/", tmp_path / "tree").route == "blocks"
    assert not [message for message in caplog.messages if "route" in message]


def read_pointer(origin: Origin) -> Pointer:
    return Pointer.parse((origin.site / POINTER_NAME).read_bytes())


def test_packs_come_while_the_list_of_files_does(kit: Toolkit, tmp_path: Path, origin: Origin) -> None:
    """The list of files, which may be long, is sent when all else of a first install has been."""
    origin.publish(OLD, "1")
    origin.publish(NEW, "2")
    files = read_pointer(origin).manifest.object.path

    def hold_back(path: str) -> None:
        if path == files:
            wait_until(lambda: len(origin.sent) == 4)  # pointer, index, and two packs

    origin.before = hold_back
    report = kit.sync(f"{origin.url}/", tmp_path / "tree")
    assert (report.requests, report.bytes_received) == (5, origin.bytes)
    assert tree_of(tmp_path / "tree") == NEW


def test_packs_are_cancelled_with_the_sync(kit: Toolkit, tmp_path: Path, origin: Origin) -> None:
    """Nobody waits for packs that are under way when the list of files turns out to be missing."""
    origin.publish(OLD, "1")
    pointer, ended = read_pointer(origin), threading.Event()
    (origin.site / pointer.manifest.object.path).unlink()
    asked: list[str] = []

    def hold_back(path: str) -> None:
        asked.append(path)
        if path == pointer.manifest.object.path:
            wait_until(lambda: len(asked) == 4)  # pointer, index, this and the pack
        elif len(asked) > 2 and path.startswith("objects/") and path != pointer.solid.object.path:
            ended.wait(60)

    origin.before = hold_back
    with pytest.raises(StaleSourceError, match="lacks a file of it"):
        kit.sync(f"{origin.url}/", tmp_path / "tree")
    ended.set()


def test_what_has_come_is_decoded_while_more_comes(kit: Toolkit, tmp_path: Path, origin: Origin) -> None:
    """The last pack is sent when files of another one are in the staging area."""
    origin.publish(OLD, "1")
    origin.publish(NEW, "2")
    packs: list[str] = []
    pointer = read_pointer(origin)
    others = {POINTER_NAME, pointer.manifest.object.path, pointer.solid.object.path}

    def hold_back(path: str) -> None:
        if path not in others:
            packs.append(path)
        if len(packs) == 2 and path == packs[1]:
            wait_until(lambda: list(tmp_path.glob(f"tree/{layout.FETCHED_OBJECT}*[0-9a-f]")))

    origin.before = hold_back
    kit.sync(f"{origin.url}/", tmp_path / "tree")
    assert len(packs) == 2
    assert tree_of(tmp_path / "tree") == NEW


def test_a_first_install_opens_connections_ahead(
    kit: Toolkit, tmp_path: Path, origin_v1: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it asks for the pointer, if the server is not this machine; nothing else does."""
    asked: list[str] = []
    monkeypatch.setattr(HttpTransport, "warm", lambda self, url, cancel: asked.append(url))
    kit.sync(origin_v1.url, tmp_path / "near")
    assert asked == []
    monkeypatch.setattr(manager, "is_loopback", lambda host: False)
    kit.sync(origin_v1.url, tmp_path / "tree")
    wait_until(lambda: asked == [f"{origin_v1.url}/"] * 3)
    kit.sync(origin_v1.url, tmp_path / "tree")
    assert len(asked) == 3


@pytest.mark.parametrize(("scheme", "count"), [("http", 3), ("https", 5)])
def test_more_connections_are_opened_ahead_where_each_takes_longer(
    scheme: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over TLS, a range that has to wait for a connection would come long after the others."""
    opened: list[tuple[str, int]] = []
    monkeypatch.setattr(Fetcher, "warm", lambda self, url, connections: opened.append((url, connections)))
    downloads = manager.DownloadManager(Config())
    try:
        SiteClient(Fetcher(downloads, "/nowhere", max_files=1), f"{scheme}://host/").expect_much()
    finally:
        downloads.close()
    assert opened == [(f"{scheme}://host/", count)]
