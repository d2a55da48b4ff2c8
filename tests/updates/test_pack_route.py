"""Large files that are there in part: only what they lack is fetched, and nothing is taken on trust."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfkit import Toolkit
from perfkit.server.server import Server
from perfkit.updates.sources.pack_route import Seeds
from tests.support.sites import publish
from tests.support.trees import lines, noise, tree_of

pytestmark = pytest.mark.once

LARGE = noise(1, 200_000) + lines(7, 20_000) + noise(2, 1_000_000)
FILES = {"large.bin": LARGE, "small.txt": b"small\n"}


@pytest.fixture
def pack_server(kit: Toolkit, tmp_path: Path) -> Iterator[Server]:
    with Server(publish(kit, tmp_path, FILES, "1")) as server:
        yield server


def damage(path: Path) -> None:
    """In two places, far from each other, with the size as it was."""
    with open(path, "r+b") as file:
        for place in (5_000, len(LARGE) - 5_000):
            os.pwrite(file.fileno(), b"damage", place)


def test_a_repair_fetches_only_the_damaged_parts(kit: Toolkit, tmp_path: Path, pack_server: Server) -> None:
    """Of a large file with two damaged places, the pieces around them are fetched."""
    kit.sync(pack_server.url, tmp_path / "tree")
    damage(tmp_path / "tree/large.bin")
    report = kit.verify(tmp_path / "tree", repair=True)
    assert report.changed == ("large.bin",)
    assert report.repaired is not None
    assert report.repaired.bytes_received < len(LARGE) / 4
    assert (tmp_path / "tree/large.bin").read_bytes() == LARGE


def test_a_tree_from_elsewhere_is_taken_over(kit: Toolkit, tmp_path: Path, pack_server: Server) -> None:
    """Pieces of an unmanaged file of the same name serve as well."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/large.bin").write_bytes(b"a line more\n" + LARGE[:-50_000])
    report = kit.sync(pack_server.url, tmp_path / "tree")
    assert report.bytes_received < len(LARGE) / 4
    assert tree_of(tmp_path / "tree").items() >= FILES.items()


def test_pieces_that_are_wrong_after_all_are_fetched(
    kit: Toolkit, tmp_path: Path, pack_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A false tag, or a file that changes during the sync, costs another round; no wrong byte reaches the tree."""
    kit.sync(pack_server.url, tmp_path / "tree")
    damage(tmp_path / "tree/large.bin")
    search = Seeds._search

    def wrongly(self: Seeds, path: str, wanted: dict[tuple[int, int], list[int]]) -> None:
        search(self, path, wanted)
        assert self._found
        self._found = dict.fromkeys(self._found, (path, 0))

    monkeypatch.setattr(Seeds, "_search", wrongly)
    assert kit.verify(tmp_path / "tree", repair=True).repaired is not None
    assert (tmp_path / "tree/large.bin").read_bytes() == LARGE
