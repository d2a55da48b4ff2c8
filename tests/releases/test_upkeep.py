"""What a publisher can say and ask: links, serials, all bad names at once; a site that is checked, and pruned."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
import time
from pathlib import Path

import pytest

from perfkit import ConfigError, LockedError, Toolkit, UnsafePathError, UpdateError
from perfkit.releases.publish.options import GRACE_S
from perfkit.releases.publish.site import Site
from perfkit.transactions.tree import Tree
from tests.support.signing import OLD, publish_signed, signature_file
from tests.support.sites import publish
from tests.support.trees import ONE, TWO, write_tree

pytestmark = pytest.mark.once


@pytest.fixture
def site(kit: Toolkit, tmp_path: Path) -> Path:
    """With two releases."""
    publish(kit, tmp_path, ONE, "1")
    return publish(kit, tmp_path, TWO, "2")


# -- names and links --------------------------------------------------------------------------------------------------


def test_all_bad_names_at_once(kit: Toolkit, tmp_path: Path) -> None:
    """Characters, links, special files, collisions; many are counted."""
    src = write_tree(tmp_path / "src", {"a:b": b"1", "dir/nul.txt": b"2", "x": b"3", "X": b"4"})
    (src / "link").symlink_to("x")
    os.mkfifo(src / "fifo")
    with pytest.raises(UnsafePathError) as caught:
        kit.publish(src, tmp_path / "site", version="1")
    told = str(caught.value)
    assert "5 in all" in told
    for part in ("'a:b': the character", "'dir/nul.txt': 'nul.txt' is a device", "'link': it is a symbolic link",
                 "'fifo': it is a special file", "'x': it collides with 'X'"):  # fmt: skip
        assert part in told
    assert not (tmp_path / "site").exists()
    write_tree(tmp_path / "many", {f"{number}:": b"" for number in range(30)})
    with pytest.raises(UnsafePathError, match=r"30 in all.*; and 10 more"):
        kit.publish(tmp_path / "many", tmp_path / "site", version="1")


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A tree with links to a file and to a directory."""
    src = write_tree(tmp_path / "src", {"real": b"1", "dir/file": b"2"})
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/far").write_bytes(b"3")
    (src / "near").symlink_to("real")
    (src / "far").symlink_to(tmp_path / "outside")
    return src


@pytest.mark.parametrize(("links", "files"), [("skip", 2), ("follow", 4)])
def test_links_are_published_as_asked(links: str, files: int, kit: Toolkit, linked: Path, tmp_path: Path) -> None:
    release = kit.publish(linked, tmp_path / "site", version="1", links=links)  # type: ignore[arg-type]
    assert release.files == release.bytes == files  # each has one byte
    assert kit.publish(linked, tmp_path / "site", version="1", links=links).unchanged  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ["missing", "file/x", "loop", ".", "dir"])
def test_links_that_lead_nowhere(target: str, kit: Toolkit, tmp_path: Path) -> None:
    """Dangling ones, and those that lead back to a directory that they lie in."""
    src = write_tree(tmp_path / "src", {"dir/file": b"2"})
    (src / "dir/loop").symlink_to(target if target != "dir" else "../dir")
    with pytest.raises(UnsafePathError, match="'dir/loop': it is a symbolic link that points to nothing"):
        kit.publish(src, tmp_path / "site", version="1", links="follow")
    with pytest.raises(ConfigError, match="links must be one of refuse, skip, follow"):
        kit.publish(src, tmp_path / "site", version="1", links="keep")  # type: ignore[arg-type]


# -- serials ----------------------------------------------------------------------------------------------------------


def test_a_serial_has_to_be_higher_than_the_last(kit: Toolkit, tmp_path: Path) -> None:
    src, site = write_tree(tmp_path / "src", ONE), tmp_path / "site"
    assert kit.publish(src, site, version="1", serial=7).serial == 7
    assert kit.publish(src, site, version="2", serial=8).serial == 8
    with pytest.raises(ConfigError, match="serial 8 is too low: the last release of the site has 8"):
        kit.publish(src, site, version="3", serial=8)
    with pytest.raises(ConfigError, match="serial must be from 1 to"):
        kit.publish(src, site, version="3", serial=0)
    with pytest.raises(ConfigError, match="too high"):
        kit.publish(src, site, version="3", serial=int(time.time() * 1000) + 2 * 86_400_000)
    assert kit.publish(src, site, version="3").serial > 8


def test_a_clock_that_was_ahead_is_told(
    kit: Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Clients refuse the next releases, too, whose serials go on from there."""
    src, site = write_tree(tmp_path / "src", ONE), tmp_path / "site"
    with monkeypatch.context() as ahead:
        ahead.setattr(time, "time_ns", lambda now_ns=time.time_ns: now_ns() + 365 * 86_400 * 10**9)
        kit.publish(src, site, version="1")
    assert caplog.text == ""
    release = kit.publish(src, site, version="2")
    assert f"{site}: serial {release.serial} is too high: clients refuse" in caplog.text
    assert "publish to a new site directory" in caplog.text


def test_anew_from_a_kept_pointer(kit: Toolkit, tmp_path: Path) -> None:
    """A directory with nothing but the old pointer goes on counting, also where the clock is behind it."""
    src = write_tree(tmp_path / "src", ONE)
    ahead = int(time.time() * 1000) + 3_600_000
    kit.publish(src, tmp_path / "old", version="1", serial=ahead)
    (tmp_path / "new").mkdir()
    shutil.copy(tmp_path / "old/perfkit.json", tmp_path / "new")
    release = kit.publish(src, tmp_path / "new", version="1")
    assert (release.serial, release.number, release.unchanged) == (ahead + 1, 1, False)
    assert kit.check_site(tmp_path / "new").intact
    assert kit.publish(src, tmp_path / "new", version="1").unchanged


# -- check and prune --------------------------------------------------------------------------------------------------


def test_check_finds_damage_of_any_object(kit: Toolkit, site: Path) -> None:
    """Each object that is needed; damage of any of them is found, a pack, an index or the history."""
    report = kit.check_site(site)
    assert report.intact
    assert (report.version, report.releases) == ("2", 2)
    paths = {path.name: path for path in (site / "objects").iterdir()}
    assert report.objects <= len(paths)
    found: set[str] = set()
    for name, path in paths.items():
        kept = path.read_bytes()
        path.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        damaged = kit.check_site(site).damaged
        path.unlink()
        missing = kit.check_site(site).missing
        assert missing == damaged
        assert set(missing) <= {f"objects/{name}"}
        found.update(missing)
        path.write_bytes(kept)
    assert len(found) == report.objects


def test_no_site(kit: Toolkit, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a site"):
        kit.check_site(tmp_path)
    with pytest.raises(UpdateError, match="not managed by perfkit"):
        kit.prune(tmp_path)
    assert not list(tmp_path.iterdir())


def test_prune_a_site(kit: Toolkit, site: Path) -> None:
    """What nothing has needed for a day; a dry run tells the same and removes nothing."""
    stray = site / "objects" / ("0" * 64)
    stray.write_bytes(b"x" * 100)
    assert kit.prune(site).objects == 0
    with pytest.raises(ConfigError, match=f"{site} is a site, not a tree"):
        kit.prune(site, keep=1)
    foreign = [site / "objects" / name for name in ("notes.txt", "0" * 63, "x" + "0" * 64)]
    for path in (stray, *foreign):
        path.touch()
        os.utime(path, (time.time() - GRACE_S - 60,) * 2)
    for dry_run in (True, False):
        assert stray.exists()
        with Site(str(site)) if dry_run else contextlib.nullcontext():  # a dry run only reads
            pruned = kit.prune(site, dry_run=dry_run)
        assert (pruned.objects, pruned.bytes) == (1, 100)
    assert not stray.exists()
    assert all(path.exists() for path in foreign)
    assert kit.check_site(site).intact


def test_the_grace_of_prune(kit: Toolkit, site: Path, tmp_path: Path) -> None:
    """As that of publish; trees have none."""
    stray = site / "objects" / ("0" * 64)
    stray.write_bytes(b"x")
    os.utime(stray, (time.time() - 7200,) * 2)
    assert [kit.prune(site, grace_s=grace_s).objects for grace_s in (3 * 3600, 3600)] == [0, 1]
    with pytest.raises(ConfigError, match="grace_s must be 0 or more"):
        kit.prune(site, grace_s=-1)
    with kit.transaction(tmp_path / "tree") as tx:
        tx.write("a", b"a")
    with pytest.raises(ConfigError, match="tree is not a site"):
        kit.prune(tmp_path / "tree", grace_s=3600)


def test_prune_a_signed_site(kit: Toolkit, tmp_path: Path) -> None:
    """The signature of the current pointer stays, however old it is; those of earlier ones go after a day."""
    publish_signed(site := tmp_path / "site", ONE, "1", OLD)
    before = signature_file(site, OLD)
    publish_signed(site, ONE, "1", OLD, expires_s=3600)
    for path in (before, current := signature_file(site, OLD)):
        os.utime(path, (1, 1))
    assert kit.check_site(site).intact
    size = before.stat().st_size
    assert (kit.prune(site, dry_run=True).objects, kit.prune(site).bytes) == (1, size)
    assert (before.exists(), current.exists()) == (False, True)


def test_prune_a_tree(kit: Toolkit, tmp_path: Path) -> None:
    """Bytes as the disk has them; a dry run tells the same."""
    for number in range(4):
        with kit.transaction(tmp_path / "tree") as tx:
            tx.write("a", b"%d" % number * 1000)
    objects = tmp_path / "tree/.perfkit/objects"
    for dry_run in (True, False):
        assert len(list(objects.iterdir())) == 3
        with Tree(tmp_path / "tree") if dry_run else contextlib.nullcontext():
            pruned = kit.prune(tmp_path / "tree", dry_run=dry_run)
        assert (pruned.generations, pruned.objects, pruned.bytes) == (3, 2, 2000)
    assert len(list(objects.iterdir())) == 1
    assert [each.number for each in kit.history(tmp_path / "tree")] == [3, 4]
    assert kit.prune(tmp_path / "tree").generations == 0


def test_waiting_for_another_publisher(kit: Toolkit, site: Path, tmp_path: Path) -> None:
    with Site(str(site)):
        with pytest.raises(LockedError, match="another process is publishing"):
            kit.prune(site)
        waiting = threading.Thread(target=kit.publish, args=(tmp_path / "src", site), kwargs={
            "version": "3", "wait_s": 60})  # fmt: skip
        waiting.start()
    waiting.join(60)
    assert re.search('"version": ?"3"', (site / "perfkit.json").read_text())
