"""Updating: a tree and a site, with a real server; whatever goes wrong, the tree is right or as it was."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from perfkit import ManifestError, StaleSourceError, Toolkit, TransferError, UpdateError
from perfkit.filesystem.hashing.hash_file import FileHash
from perfkit.filesystem.hashing.hash_tree import hash_many
from perfkit.filesystem.scan import ScanEntry
from perfkit.server.server import Server
from tests.support.sites import publish, replace
from tests.support.trees import FIRST, edited, tree_of, write_tree

pytestmark = pytest.mark.once

SECOND = edited(FIRST, 1)


@pytest.fixture(params=["in memory", "in files"])
def manifests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Manifests are kept in memory, or in files as those of very many files are."""
    if request.param == "in files":
        monkeypatch.setattr("perfkit.filesystem.spilled._IN_MEMORY", 1)
        monkeypatch.setattr("perfkit.filesystem.spilled._CHUNK_BYTES", 50)


@pytest.mark.usefixtures("manifests")
def test_install_update_and_nothing_to_do(kit: Toolkit, tmp_path: Path) -> None:
    """An empty tree, an older one by its delta, and then one request that brings nothing."""
    with Server(publish(kit, tmp_path, FIRST, "1")) as server:
        assert kit.sync(server.url, tmp_path / "tree").route == "blocks"
        assert tree_of(tmp_path / "tree") == FIRST
        publish(kit, tmp_path, SECOND, "2")
        report = kit.sync(server.url, tmp_path / "tree")
        assert (report.route, report.version, report.previous_version) == ("delta", "2", "1")
        assert tree_of(tmp_path / "tree") == SECOND
        report = kit.sync(server.url, tmp_path / "tree")
        assert (report.route, report.requests, report.bytes_received) == ("none", 1, 0)


@pytest.mark.usefixtures("manifests")
def test_back_without_network_and_forward_again(kit: Toolkit, tmp_path: Path) -> None:
    """Rollback needs no server; the next sync goes on to the newest."""
    with Server(publish(kit, tmp_path, FIRST, "1")) as server:
        kit.sync(server.url, tmp_path / "tree")
        publish(kit, tmp_path, SECOND, "2")
        kit.sync(server.url, tmp_path / "tree")
    assert kit.rollback(tmp_path / "tree", hold=False).version == "1"
    assert tree_of(tmp_path / "tree") == FIRST
    assert kit.rollback(tmp_path / "tree", to=2, hold=False).version == "2"
    assert tree_of(tmp_path / "tree") == SECOND
    kit.rollback(tmp_path / "tree", hold=False)
    with Server(tmp_path / "site") as server:
        kit.sync(server.url, tmp_path / "tree")
    assert tree_of(tmp_path / "tree") == SECOND


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that a sync reads to find out what they hold."""
    names: list[str] = []

    def hash_and_record(root: str, entries: Iterable[ScanEntry]) -> Iterator[FileHash]:
        for found in hash_many(root, entries):
            names.append(found.name)
            yield found

    monkeypatch.setattr("perfkit.updates.local_tree.hash_many", hash_and_record)
    return names


def test_no_file_is_read_twice(kit: Toolkit, tmp_path: Path, hashed: list[str]) -> None:
    """What perfkit wrote, moved, or brought back is known at once: only what others touched is read."""
    moved = {**FIRST, "elsewhere/README": FIRST["README"]}
    del moved["README"]
    with Server(publish(kit, tmp_path, FIRST, "1")) as server:
        for tree in (FIRST, SECOND, moved):
            publish(kit, tmp_path, tree, "next")
            kit.sync(server.url, tmp_path / "tree")
            assert kit.sync(server.url, tmp_path / "tree").route == "none"
        kit.rollback(tmp_path / "tree", hold=False)
        assert tree_of(tmp_path / "tree") == SECOND
        kit.sync(server.url, tmp_path / "tree")
        assert tree_of(tmp_path / "tree") == moved
        assert hashed == []
        (tmp_path / "tree/pkg/a.py").touch()
        kit.sync(server.url, tmp_path / "tree")
        assert hashed == ["pkg/a.py"]


def test_an_edit_at_once_after_a_sync_is_seen(kit: Toolkit, tmp_path: Path) -> None:
    """In place, of the same size, in the very tick of the commit or of the rollback."""
    readme = tmp_path / "tree/README"
    trees = [FIRST, {**FIRST, "README": FIRST["README"].swapcase()}]
    with Server(publish(kit, tmp_path, FIRST, "0")) as server:
        kit.sync(server.url, tmp_path / "tree")
        for number in range(1, 11):
            wanted = trees[number % 2]["README"]
            publish(kit, tmp_path, trees[number % 2], str(number))
            kit.sync(server.url, tmp_path / "tree")
            if number % 3 == 0:
                kit.rollback(tmp_path / "tree", hold=False)
            with open(readme, "r+b") as file:
                file.write(b"x" * len(wanted))
            kit.sync(server.url, tmp_path / "tree")
            assert readme.read_bytes() == wanted, number


def test_an_old_pointer_is_refused(kit: Toolkit, tmp_path: Path) -> None:
    """After a rollback too: the highest serial counts."""
    with Server(publish(kit, tmp_path, FIRST, "1")) as server:
        old = (tmp_path / "site/perfkit.json").read_bytes()
        kit.sync(server.url, tmp_path / "tree")
        publish(kit, tmp_path, SECOND, "2")
        kit.sync(server.url, tmp_path / "tree")
        (tmp_path / "site/perfkit.json").write_bytes(old)
        for _ in range(2):
            with pytest.raises(StaleSourceError, match="older release"):
                kit.sync(server.url, tmp_path / "tree")
            kit.rollback(tmp_path / "tree", to=1, hold=False)


def test_serials_are_kept_without_secrets(kit: Toolkit, tmp_path: Path) -> None:
    """By a digest of the source, with or without a password. Older ones had URLs."""
    with Server(publish(kit, tmp_path, FIRST, "1")) as server:
        url = server.url.replace("//", "//me:s3cret@")
        kit.sync(url, tmp_path / "tree")
        publish(kit, tmp_path, SECOND, "2")
        kit.sync(url, tmp_path / "tree")
        records = [each for each in (tmp_path / "tree/.perfkit").rglob("*") if each.is_file()]
        assert not [each for each in records if b"s3cret" in each.read_bytes()]
        assert (kit.sync(url, tmp_path / "tree").route, kit.sync(server.url, tmp_path / "tree").requests) == ("none", 1)
        serials = tmp_path / "tree/.perfkit/serials"
        assert server.url not in serials.read_text()
        (serial,) = json.loads(serials.read_text()).values()
        serials.write_text(json.dumps({url: serial + 10_000}))
        (tmp_path / "tree/.perfkit/release").unlink()
        for source in (server.url, url):
            with pytest.raises(UpdateError, match="older release"):
                kit.sync(source, tmp_path / "tree")


def test_serials_are_on_disk(kit: Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut must not leave an empty file, with which the tree could not be used."""
    synced: list[str] = []

    def note(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr("perfkit.filesystem.own_files.sync_file", note)
    with Server(publish(kit, tmp_path, FIRST, "1")) as server:
        kit.sync(server.url, tmp_path / "tree")
        publish(kit, tmp_path, SECOND, "2")
        kit.sync(server.url, tmp_path / "tree")
    assert synced.count(f"{tmp_path}/tree/.perfkit/serials~") == 1


def test_a_site_that_is_made_anew(kit: Toolkit, tmp_path: Path) -> None:
    """It goes on, since its first serial is the time, however many releases the old one had."""
    with Server(publish(kit, tmp_path, FIRST, "1")) as server:
        publish(kit, tmp_path, SECOND, "2")
        kit.sync(server.url, tmp_path / "tree")
        shutil.rmtree(tmp_path / "site")
        publish(kit, tmp_path, FIRST, "3")
        kit.sync(server.url, tmp_path / "tree")
        assert tree_of(tmp_path / "tree") == FIRST


def test_an_absurd_serial(kit: Toolkit, tmp_path: Path) -> None:
    """It would be the highest for ever, and lock the honest site out: it is refused."""
    site = publish(kit, tmp_path, FIRST, "1")
    with Server(site) as server:
        kit.sync(server.url, tmp_path / "tree")
        honest = (site / "perfkit.json").read_bytes()
        day_ms = 86_400_000
        for serial in ((1 << 53) - 1, time.time_ns() // 1_000_000 + 2 * day_ms):
            record = {**json.loads(honest), "serial": serial}
            replace(site / "perfkit.json", json.dumps(record).encode())
            for command in (kit.sync, kit.plan):
                with pytest.raises(UpdateError, match="more than a day ahead"):
                    command(server.url, tmp_path / "tree")
        replace(site / "perfkit.json", honest)
        assert kit.sync(server.url, tmp_path / "tree").route == "none"


def test_serials_follow_the_clock(kit: Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever serial somebody else published, at most a day ahead, the honest site goes on when that day is over."""
    now_ns = time.time_ns()
    for number, day in enumerate((0, 2, 2)):
        monkeypatch.setattr(time, "time_ns", lambda day=day: now_ns + day * 86_400 * 10**9)
        release = kit.publish(
            write_tree(tmp_path / "src", {"a": b"%d" % number}), tmp_path / "site", version=f"{number}"
        )
        assert release.number == number + 1
        assert release.serial == now_ns // 10**6 + day * 86_400_000 + (number == 2)


def test_an_older_release_is_accepted_on_purpose(make_kit: Callable[..., Toolkit], tmp_path: Path) -> None:
    """As docs/operations.md says, where a site was restored from a backup."""
    kit = make_kit(local_changes="overwrite")
    with Server(publish(kit, tmp_path, FIRST, "1")) as server:
        shutil.copytree(tmp_path / "site", tmp_path / "backup")
        publish(kit, tmp_path, SECOND, "2")
        kit.sync(server.url, tmp_path / "tree")
        shutil.rmtree(tmp_path / "site")
        (tmp_path / "backup").rename(tmp_path / "site")
        with pytest.raises(StaleSourceError, match="--allow-older"):
            kit.sync(server.url, tmp_path / "tree")
        for _ in range(2):
            assert kit.sync(server.url, tmp_path / "tree", allow_older=True).version == "1"
        assert kit.sync(server.url, tmp_path / "tree").version == "1"
        assert tree_of(tmp_path / "tree") == FIRST


@pytest.mark.parametrize("policy", ["keep", "overwrite", "refuse"])
def test_local_edits(make_kit: Callable[..., Toolkit], tmp_path: Path, policy: str) -> None:
    """Edited files go by the policy, with nothing new at the origin too; unmanaged ones stay."""
    kit = make_kit(local_changes=policy)
    with Server(publish(kit, tmp_path, FIRST, "1")) as server:
        kit.sync(server.url, tmp_path / "tree")
        (tmp_path / "tree/README").write_bytes(b"mine\n")
        (tmp_path / "tree/notes").write_bytes(b"unmanaged\n")
        before = tree_of(tmp_path / "tree")
        if policy == "refuse":
            with pytest.raises(UpdateError, match="README"):
                kit.sync(server.url, tmp_path / "tree")
            assert tree_of(tmp_path / "tree") == before
            return
        kit.sync(server.url, tmp_path / "tree")
    kept = {"README.perfkit-local": b"mine\n"} if policy == "keep" else {}
    assert tree_of(tmp_path / "tree") == {**FIRST, "notes": b"unmanaged\n", **kept}


def test_every_object_corrupted_in_turn(make_kit: Callable[..., Toolkit], tmp_path: Path) -> None:
    """Either the right tree, by another route, or a typed error and the old tree."""
    kit = make_kit()
    site = publish(kit, tmp_path, FIRST, "1")
    with Server(site) as server:
        kit.sync(server.url, tmp_path / "base")
        publish(kit, tmp_path, SECOND, "2")
        for number, path in enumerate(sorted((site / "objects").iterdir())):
            for start in (FIRST, {}):
                good, dest = path.read_bytes(), tmp_path / f"tree{number}{len(start)}"
                if start:
                    kit.copy_tree(tmp_path / "base", dest)
                middle = len(good) // 2
                path.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
                try:
                    kit.sync(server.url, dest)
                    assert tree_of(dest) == SECOND
                except (ManifestError, TransferError):
                    assert tree_of(dest) == start
                path.write_bytes(good)
                kit.sync(server.url, dest)
                assert tree_of(dest) == SECOND


def test_verify_and_repair(kit: Toolkit, tmp_path: Path) -> None:
    """All kinds of damage are reported, and only what is damaged is fetched."""
    with Server(publish(kit, tmp_path, FIRST, "1")) as server:
        kit.sync(server.url, tmp_path / "tree")
        (tmp_path / "tree/README").unlink()
        (tmp_path / "tree/pkg/a.py").write_bytes(b"x")
        (tmp_path / "tree/extra").write_bytes(b"x")
        report = kit.verify(tmp_path / "tree")
        assert (report.missing, report.changed, report.extra) == (("README",), ("pkg/a.py",), ("extra",))
        assert not report.intact
        repaired = kit.verify(tmp_path / "tree", repair=True).repaired
        assert repaired is not None
        assert repaired.bytes_received < 20_000
        assert kit.verify(tmp_path / "tree").intact


@pytest.mark.usefixtures("manifests")
def test_a_dry_run_writes_nothing(kit: Toolkit, tmp_path: Path) -> None:
    """Not even the directory. A content that two files have counts once."""
    with Server(publish(kit, tmp_path, FIRST, "1")) as server:
        plan = kit.plan(server.url, tmp_path / "tree")
    assert set(plan.added) == set(FIRST)
    assert plan.missing_bytes == sum(map(len, set(FIRST.values())))
    assert not (tmp_path / "tree").exists()
