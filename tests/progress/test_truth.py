"""What is drawn of each kind of work on a link of steady speed, held against what happened."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perfkit import Request, Toolkit, TransferError
from perfkit.cli import get, main
from perfkit.server.server import Server
from perfkit.updates import updater
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.sites import publish
from tests.support.steady import SteadyLink, Watched, paced
from tests.support.terminal import Terminal
from tests.support.trees import Tree, noise, write_tree

pytestmark = pytest.mark.once

REAL_BYTES_PER_S = 4e6
MB = 1_000_000
WIDE: dict[str, Any] = {"workers": 8, "connections_per_host": 8, "min_segment_bytes": 100 * MB}

Start = Callable[..., MisbehavingServer]


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> SteadyLink:
    """40,000 bytes a second: a megabyte takes 25 s of its clock."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("CI", raising=False)
    link = SteadyLink(40_000)
    link.install(monkeypatch)
    return link


@pytest.fixture
def watched(link: SteadyLink) -> Iterator[Watched]:
    with Terminal(80, 24) as terminal:
        yield Watched(link, terminal)


def bodies(sizes: dict[str, int]) -> dict[str, bytes]:
    return {name: noise(size, size) for name, size in sizes.items()}


SIX = {"a.iso": 18 * MB // 10, "b.tar": 12 * MB // 10, **{f"{number}.txt": 1200 for number in range(4)}}
TEN = {f"{number}.bin": 250_000 + 15_000 * (7 * number % 10) for number in range(10)}


@pytest.mark.parametrize(
    ("sizes", "chunked"),
    [({"one.iso": 2 * MB}, ()), (SIX, ()), (TEN, ("2.bin", "5.bin", "8.bin"))],
    ids=["one", "six", "three unknown lengths among ten"],
)
def test_progress_of_downloads_is_true(
    sizes: dict[str, int],
    chunked: tuple[str, ...],
    watched: Watched,
    misbehaving: Start,
    make_kit: Callable[..., Toolkit],
    tmp_path: Path,
) -> None:
    """One file; small files beside large ones; files whose length is known at their end."""
    serve = paced(bodies(sizes), REAL_BYTES_PER_S, chunked=chunked)

    def when_all_are_asked_for(x: Exchange) -> None:
        x.server.wait_for(min(len(sizes), WIDE["workers"]), 60.0)
        serve(x)

    server = misbehaving(when_all_are_asked_for)
    make_kit(progress=watched, **WIDE).download_many([f"{server.url}/{name}" for name in sizes], tmp_path / "out")
    frames = watched.check()
    total = f"/{sum(sizes.values()) / (1 << 20):.1f} MiB"
    sized = [each.line for each in frames if each.percent is not None]
    if chunked:
        assert any("+ MiB" in line for line in sized)
    else:  # from when all have been answered
        known = [total in line for line in sized]
        assert known == sorted(known)
        assert known[-1]


def test_sizes_that_the_caller_knows(
    watched: Watched, misbehaving: Start, make_kit: Callable[..., Toolkit], tmp_path: Path
) -> None:
    """One file after another: the total is exact from the first frame on."""
    server = misbehaving(paced(bodies(TEN), 2 * REAL_BYTES_PER_S))
    requests = [Request(f"{server.url}/{name}", size=size) for name, size in TEN.items()]
    make_kit(progress=watched, workers=1).download_many(requests, tmp_path / "out")
    assert all("/3.0 MiB" in each.line for each in watched.check())


def test_a_list_of_many_small_files(watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary file is counted before its first request; the sizes of the rest are estimated."""
    chance = random.Random(15)
    site = write_tree(tmp_path / "site", {f"{number}.txt": bytes(chance.randrange(300, 900)) for number in range(800)})
    monkeypatch.setattr(get, "progress_for", lambda arguments: watched)
    with Server(site) as server:
        (tmp_path / "list").write_text("# all\n\n" + "".join(f"{server.url}{number}.txt\n" for number in range(800)))
        assert main(["get", "-i", str(tmp_path / "list"), "-d", str(tmp_path / "out"), "-j", "8"]) == 0
    frames = watched.check()
    assert all("/800 " in each.line for each in frames)
    assert any("+ " in each.line for each in frames)


def test_a_resume_at_half(
    watched: Watched, misbehaving: Start, make_kit: Callable[..., Toolkit], tmp_path: Path
) -> None:
    """What is there counts as done, and not as fast."""
    sizes = {"f.iso": 3 * MB}
    serve = paced(bodies(sizes), REAL_BYTES_PER_S)

    def cut(x: Exchange) -> None:
        x.head("200 OK", Content_Length=str(sizes["f.iso"]), ETag='"v1"')
        x.send(bodies(sizes)["f.iso"][: sizes["f.iso"] // 2])
        x.hang_up()

    whole = threading.Event()
    server = misbehaving(lambda x: serve(x) if whole.is_set() else cut(x) if x.number == 1 else x.hang_up())
    with pytest.raises(TransferError) as caught:
        make_kit(retries=0, segments=1).download(f"{server.url}/f.iso", tmp_path / "f.iso")
    assert caught.value.download.bytes_received == sizes["f.iso"] // 2  # type: ignore[attr-defined]
    whole.set()
    result = make_kit(progress=watched, **WIDE).download(f"{server.url}/f.iso", tmp_path / "f.iso")
    assert result.resumed_from > sizes["f.iso"] * 0.4
    assert min(each.percent for each in watched.check() if each.percent is not None) >= 40


def test_a_rate_limit(watched: Watched, kit_with_limit: Toolkit, misbehaving: Start, tmp_path: Path) -> None:
    """The limit is the speed, whatever the server could do."""
    server = misbehaving(paced(bodies(SIX), 1e9))
    kit_with_limit.download_many([f"{server.url}/{name}" for name in SIX], tmp_path / "out")
    watched.check()


@pytest.fixture
def kit_with_limit(make_kit: Callable[..., Toolkit], watched: Watched) -> Toolkit:
    return make_kit(progress=watched, rate_limit=3 * MB, **WIDE)


def test_a_first_sync_and_an_update_by_delta(
    watched: Watched, make_kit: Callable[..., Toolkit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All stages have one percentage and one time left, and each has a name that says what is done."""
    watched.link.disk = 50
    monkeypatch.setattr(updater, "_UNPACKED_BYTES_PER_S", 2e6)  # as on this link's clock
    monkeypatch.setattr(updater, "_APPLIED_FILES_PER_S", 2e6 / 60_000)
    tree: Tree = {f"data/{number}.bin": noise(number, 60_000) for number in range(20)}
    kit, publisher = make_kit(progress=watched, **WIDE), make_kit()
    with Server(publish(publisher, tmp_path, tree, "1"), bytes_per_s=600_000) as server:
        kit.sync(server.url, tmp_path / "tree")
        frames = watched.check(None)
        assert any(line.startswith(("data/", "fetching")) for line in (each.line for each in frames))
        words = {
            "checking files",
            "reading the release",
            "reading the list of files",
            "reading the index",
            "reading a dictionary",
            "fetching",
            "unpacking",
            "applying",
        }
        assert {each.phase for each in watched.frames} <= words
        watched.frames.clear()
        publish(
            publisher,
            tmp_path,
            {**tree, **{f"data/{number}.bin": noise(99 + number, 60_000) for number in range(9)}},
            "2",
        )
        report = kit.sync(server.url, tmp_path / "tree")
        assert report.route == "delta"
        watched.check(None)


def test_verify_publish_and_hash_tree(watched: Watched, make_kit: Callable[..., Toolkit], tmp_path: Path) -> None:
    """What is read is known before it is read."""
    tree: Tree = {f"{number:02}.bin": noise(number, 10_000 + 1000 * number) for number in range(60)}
    kit = make_kit(progress=watched)
    with Server(publish(kit, tmp_path, tree, "1")) as server:
        watched.check("checking files")
        watched.check("packing")
        make_kit().sync(server.url, tmp_path / "tree")
    assert kit.verify(tmp_path / "tree").intact
    watched.check("verifying")
    assert len(list(kit.hash_tree(tmp_path / "src"))) == len(tree)
    watched.check("hashing")
