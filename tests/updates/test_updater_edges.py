"""What a sync finds in a tree: everything that changed is seen, nothing that is not its own is touched."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit import PerfkitError, StaleSourceError, SyncReport, Toolkit, UnsafePathError, UpdateError
from tests.support.sites import Origin
from tests.support.tools import need_root
from tests.support.trees import ONE, TWO, damage, edit, text, tree_of
from tests.support.warm import WarmPython

pytestmark = pytest.mark.once

MINE = {"mine": b"mine\n", "pkg/mine": b"mine too\n"}


@pytest.fixture
def edited_tree(tmp_path: Path, origin_v1: Origin, kit: Toolkit) -> Path:
    """A tree of version 1, with files of its owner's in it."""
    kit.sync(origin_v1.url, tmp_path / "tree")
    for name, data in MINE.items():
        edit(tmp_path / "tree" / name, data)
    return tmp_path / "tree"


def same_size_edit(path: Path) -> None:
    edit(path, b"X" * path.stat().st_size)


def in_place_old_mtime(path: Path) -> None:
    damage(path, b"X")


def within_a_tick(path: Path) -> None:
    """At once after others, so that the time may stay what it was."""
    for data in (b"V", b"W", b"X"):
        with path.open("r+b") as file:
            file.write(data)


def restored_backup(path: Path) -> None:
    """A file older than what it replaces, as `cp -p` brings it."""
    edit(path, b"of last year\n")
    os.utime(path, (1_600_000_000, 1_600_000_000))


def swapped_inode(path: Path) -> None:
    """Another file of the same size and time takes the name."""
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"X" * before.st_size)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def swapped_files(path: Path) -> None:
    """Two managed files change places."""
    other = path.with_name("b.py")
    path.rename(path.with_name("x"))
    other.rename(path)
    path.with_name("x").rename(other)


def cut_short(path: Path) -> None:
    os.truncate(path, 10)


def gone(path: Path) -> None:
    path.unlink()


CHANGES = [
    same_size_edit,
    in_place_old_mtime,
    within_a_tick,
    restored_backup,
    swapped_inode,
    swapped_files,
    cut_short,
    gone,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_change_is_seen(
    make_kit: Callable[..., Toolkit], origin_v1: Origin, edited_tree: Path, change: Callable[[Path], None]
) -> None:
    """With nothing new at the origin, the release's file comes back; what is not the release's stays."""
    kit = make_kit(local_changes="overwrite")
    change(edited_tree / "pkg/a.py")
    assert kit.verify(edited_tree).changed + kit.verify(edited_tree).missing
    report = kit.sync(origin_v1.url, edited_tree)
    assert report.generation == 1
    assert tree_of(edited_tree) == {**ONE, **MINE}
    assert kit.verify(edited_tree).intact


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_change_is_seen_by_an_update(
    kit: Toolkit, origin_v1: Origin, edited_tree: Path, change: Callable[[Path], None]
) -> None:
    """An update from there is right too, and keeps what it finds."""
    change(edited_tree / "pkg/a.py")
    found = tree_of(edited_tree)
    origin_v1.publish(TWO, "2")
    report = kit.sync(origin_v1.url, edited_tree)
    kept = {fresh: found[name] for name, fresh in report.saved_as.items()}
    assert tree_of(edited_tree) == {**TWO, **MINE, **kept}
    assert ("pkg/a.py" in report.saved_as) == (change is not gone)


def test_changed_metadata_alone_is_not_an_edit(kit: Toolkit, origin_v1: Origin, edited_tree: Path) -> None:
    """After touch and chmod -R nothing is fetched or kept aside; the executable bit is part of a release."""
    for path in edited_tree.rglob("*"):
        if ".perfkit" not in path.parts and path.is_file():
            path.touch()
            path.chmod(0o600)
    report, cost = origin_v1.counted(lambda: kit.sync(origin_v1.url, edited_tree))
    assert (report.route, report.changed, cost) == ("none", 0, 0)
    for path in (edited_tree / "pkg").iterdir():
        path.chmod(0o777)
    report, cost = origin_v1.counted(lambda: kit.sync(origin_v1.url, edited_tree))
    assert (report.changed, dict(report.saved_as), cost) == (4, {}, 0)
    assert not os.access(edited_tree / "pkg/a.py", os.X_OK)
    assert os.access(edited_tree / "pkg/mine", os.X_OK)


def test_moves_cost_no_content(kit: Toolkit, origin_v1: Origin, edited_tree: Path) -> None:
    """A hundred files that only moved cost the delta's few bytes, whatever the local tree looked like."""
    many = {f"old/{number}": os.urandom(2000) for number in range(100)}
    origin_v1.publish({**ONE, **many}, "2")
    kit.sync(origin_v1.url, edited_tree)
    origin_v1.publish({**ONE, **{name.replace("old/", "new/deep/"): data for name, data in many.items()}}, "3")
    report, cost = origin_v1.counted(lambda: kit.sync(origin_v1.url, edited_tree))
    assert report.bytes_written == 0
    assert cost < 3000
    assert not (edited_tree / "old").exists()
    copied = shutil.copytree(edited_tree, edited_tree.with_name("adopted"), ignore=shutil.ignore_patterns(".perfkit"))
    report, cost = origin_v1.counted(lambda: kit.sync(origin_v1.url, copied))
    assert (report.added, report.changed, report.unchanged) == (0, 0, 107)
    assert cost < 10_000  # its manifest, with a hundred digests


def test_unmanaged_files_in_the_way(make_kit: Callable[..., Toolkit], origin_v1: Origin, edited_tree: Path) -> None:
    """A name that the release takes: refused, kept, or replaced, and back again."""
    edit(edited_tree / "pkg/new.py", b"mine\n")
    origin_v1.publish(TWO, "2")
    with pytest.raises(UpdateError, match=r"pkg/new\.py"):
        make_kit(local_changes="refuse").sync(origin_v1.url, edited_tree)
    for policy, kept in (("overwrite", {}), ("keep", {"pkg/new.py.perfkit-local": b"mine\n"})):
        kit = make_kit(local_changes=policy)
        kit.sync(origin_v1.url, edited_tree)
        assert tree_of(edited_tree) == {**TWO, **MINE, **kept}
        kit.rollback(edited_tree, hold=False)
        assert tree_of(edited_tree) == {**ONE, **MINE, **kept, "pkg/new.py": b"mine\n"}


def at_two(kit: Toolkit, origin: Origin, dest: Path) -> SyncReport:
    origin.publish(TWO, "2")
    return kit.sync(origin.url, dest)


def test_a_newer_tree_is_not_taken_back(kit: Toolkit, origin_v1: Origin, edited_tree: Path) -> None:
    """A mirror that lags behind is refused; the tree that it lags behind is left alone."""
    shutil.copytree(origin_v1.site, origin_v1.site.with_name("old"))
    at_two(kit, origin_v1, edited_tree)
    shutil.rmtree(origin_v1.site)
    origin_v1.site.with_name("old").rename(origin_v1.site)
    with pytest.raises(StaleSourceError, match="older release"):
        kit.sync(origin_v1.url, edited_tree)
    assert tree_of(edited_tree) == {**TWO, **MINE}


@pytest.fixture
def travelled(kit: Toolkit, origin_v1: Origin, edited_tree: Path) -> Path:
    """A tree that has been at version 2 and is back at version 1: it has every file of perfkit's own."""
    at_two(kit, origin_v1, edited_tree)
    kit.rollback(edited_tree, hold=False)
    return edited_tree


@pytest.mark.parametrize("lost", ["manifest", "release", "statcache", "serials", "state", "history", "objects", ""])
def test_own_files_lost(kit: Toolkit, origin_v1: Origin, travelled: Path, lost: str) -> None:
    """Whatever of `.perfkit` is gone, all of it too: the next sync is right, and keeps what it can't know."""
    path = travelled / ".perfkit" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    kit.sync(origin_v1.url, travelled)
    found = {name: data for name, data in tree_of(travelled).items() if not name.endswith(".perfkit-local")}
    extra = {name: ONE[name] for name in ("pkg/b.py", "pkg/going.py")}  # of a release that nothing is known of
    assert found in ({**TWO, **MINE}, {**TWO, **MINE, **extra})
    assert kit.sync(origin_v1.url, travelled).route == "none"


@pytest.mark.parametrize("name", ["manifest", "release", "statcache", "serials", "state", "history/1", "history/2"])
@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_own_files_damaged(kit: Toolkit, origin_v1: Origin, travelled: Path, name: str, how: str) -> None:
    """A damaged record is either an error that names the file to remove, or rebuilt; the tree is never wrong."""
    path = travelled / ".perfkit" / name
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(
        {"cut": data[:middle], "empty": b"", "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]}[
            how
        ]
    )
    before = tree_of(travelled)
    told = ""
    try:
        kit.sync(origin_v1.url, travelled)
    except PerfkitError as error:
        told = str(error)
    if told:
        assert name.partition("/")[0] in told
        assert tree_of(travelled) == before
        path.unlink()
        kit.sync(origin_v1.url, travelled)
    found = {name: data for name, data in tree_of(travelled).items() if not name.endswith(".perfkit-local")}
    assert found.items() >= {**TWO, **MINE}.items()


def test_half_updated_by_hand(kit: Toolkit, origin_v1: Origin, edited_tree: Path) -> None:
    """Some files of the next release are there already, some of the old are gone: only the rest is fetched."""
    found = {**ONE, "README": TWO["README"], "moved/b.py": TWO["moved/b.py"]}
    edit(edited_tree / "README", TWO["README"])
    edit(edited_tree / "moved/b.py", TWO["moved/b.py"])
    (edited_tree / "pkg/going.py").unlink()
    report = at_two(kit, origin_v1, edited_tree)
    assert dict(report.saved_as) == {}
    assert tree_of(edited_tree) == {**TWO, **MINE}
    back = kit.rollback(edited_tree, hold=False)
    assert (back.version, back.restored_with_edits) == ("1", ("README", "pkg/going.py"))  # never kept
    del found["pkg/going.py"]
    assert tree_of(edited_tree) == {**found, **MINE}


def link_for_file(dest: Path) -> None:
    (dest / "README").unlink()
    (dest / "README").symlink_to(dest.parent / "outside/file")


def link_for_directory(dest: Path) -> None:
    (dest / "pkg").rename(dest.parent / "moved-away")
    (dest / "pkg").symlink_to(dest.parent / "outside")


def link_for_a_new_directory(dest: Path) -> None:
    (dest / "moved").symlink_to(dest.parent / "outside")


@pytest.mark.parametrize("policy", ["keep", "overwrite", "refuse"])
@pytest.mark.parametrize("place", [link_for_file, link_for_directory, link_for_a_new_directory])
def test_links_are_not_followed(
    make_kit: Callable[..., Toolkit], origin_v1: Origin, edited_tree: Path, place: Callable[[Path], None], policy: str
) -> None:
    """A symbolic link in the place of a file or directory: an error that names it, and nothing beyond it is touched."""
    outside = edited_tree.parent / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"outside\n")
    place(edited_tree)
    origin_v1.publish(TWO, "2")
    before = tree_of(edited_tree)
    kit = make_kit(local_changes=policy)
    with pytest.raises((UpdateError, UnsafePathError), match=r"README|pkg|moved"):
        kit.sync(origin_v1.url, edited_tree)
    assert tree_of(edited_tree) == before
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"file": b"outside\n"}


def test_kinds_change(kit: Toolkit, origin_v1: Origin, edited_tree: Path) -> None:
    """In a release a file may become a directory, and a directory a file; and back."""
    (edited_tree / "pkg/mine").unlink()
    other = {"README/in": b"a directory now\n", "pkg": b"a file now\n", "data/noise/deep/in": text(9)}
    origin_v1.publish(other, "2")
    kit.sync(origin_v1.url, edited_tree)
    assert tree_of(edited_tree) == {**other, "mine": MINE["mine"]}
    kit.rollback(edited_tree, hold=False)
    assert tree_of(edited_tree) == {**ONE, "mine": MINE["mine"]}
    kit.sync(origin_v1.url, edited_tree)
    assert tree_of(edited_tree) == {**other, "mine": MINE["mine"]}


def test_a_directory_with_others_files_is_not_replaced(kit: Toolkit, origin_v1: Origin, edited_tree: Path) -> None:
    """The release wants a file where a directory has somebody's files, or a directory where somebody's file is."""
    origin_v1.publish({"pkg": b"a file now\n"}, "2")
    with pytest.raises(UpdateError, match="pkg/mine must be removed before"):
        kit.sync(origin_v1.url, edited_tree)
    assert tree_of(edited_tree) == {**ONE, **MINE}
    origin_v1.publish({**ONE, "mine/new": b"below\n"}, "3")
    with pytest.raises(UpdateError, match="mine is a file; it must be removed before"):
        kit.sync(origin_v1.url, edited_tree)
    assert tree_of(edited_tree) == {**ONE, **MINE}


def test_a_tree_without_write_permission(origin_v1: Origin, edited_tree: Path, warm_python: WarmPython) -> None:
    """Permission denied is an OSError that names the path; nothing is changed."""
    need_root("to become a user who may not write")
    origin_v1.publish(TWO, "2")
    for path in [edited_tree, *edited_tree.rglob("*")]:
        os.chown(path, 65534, 65534)
    (edited_tree / "pkg").chmod(0o555)
    program = (
        "import os, sys; from perfkit import Toolkit; kit = Toolkit(); kit.sync(sys.argv[1], sys.argv[3]);"
        "os.setgid(65534); os.setuid(65534); kit.sync(*sys.argv[1:3])"
    )
    command = warm_python.python("-c", program, origin_v1.url, edited_tree, edited_tree.with_name("imports-everything"))
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "PermissionError" in ended.stderr
    assert tree_of(edited_tree) == {**ONE, **MINE}
