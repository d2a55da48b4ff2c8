"""Trees on file systems without permissions, hard links or a sense of case: real ones, mounted by FUSE."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perfkit import Toolkit
from perfkit.errors import UpdateError
from perfkit.transactions import commit
from perfkit.transactions.tree import Tree
from tests.support import crash_server
from tests.support.faults import Crash, dying
from tests.support.sites import Origin
from tests.support.tools import need
from tests.support.trees import tree_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")


@contextlib.contextmanager
def exfat(place: Path) -> Iterator[Path]:
    """No permissions, no hard links, no attributes, and case is ignored."""
    need("mkfs.exfat", "mount.exfat-fuse", "losetup")
    image, mounted = place / "image", place / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.exfat", image], check=True, capture_output=True)
    found = subprocess.run(["losetup", "-f", "--show", image], check=True, capture_output=True, text=True)
    device = found.stdout.strip()
    try:
        subprocess.run(["mount.exfat-fuse", device, mounted], check=True, capture_output=True)
        try:
            yield mounted
        finally:
            subprocess.run(["umount", "--lazy", mounted], check=True)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def bind(*options: str) -> Callable[[Path], contextlib.AbstractContextManager[Path]]:
    """A directory seen by bindfs with these options."""

    @contextlib.contextmanager
    def mount(place: Path) -> Iterator[Path]:
        need("bindfs")
        (place / "below").mkdir()
        (place / "mounted").mkdir()
        subprocess.run(["bindfs", *options, place / "below", place / "mounted"], check=True)
        try:
            yield place / "mounted"
        finally:
            subprocess.run(["umount", "--lazy", place / "mounted"], check=True)

    return mount


KINDS = {
    "exfat": exfat,
    "chmod refused": bind("--chmod-deny"),
    "chmod ignored": bind("--chmod-ignore", "--perms=0644:ud+X"),
    "everything executable": bind("--chmod-ignore", "--perms=0777"),
    "owned by another": bind("--force-user=65534", "--force-group=65534", "--chmod-deny", "--chown-deny"),
    "no xattrs": bind("--xattr-none"),
}


@pytest.fixture(params=KINDS)
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with KINDS[request.param](tmp_path) as path:
        yield path


@pytest.fixture
def fat(tmp_path: Path) -> Iterator[Path]:
    with exfat(tmp_path) as path:
        yield path


def test_follow_a_release(kit: Toolkit, origin: Origin, mounted: Path) -> None:
    """Only what differs is written, the earlier release stays in reach, and nothing is taken for an edit."""
    root = mounted / "tree"
    one = {"run.sh": b"#!/bin/sh\n", "a": b"1", "d/x": b"x" * 5000, "d/y": b"", "gone": b"g"}
    two = {"run.sh": b"#!/bin/sh\n", "a": b"2", "d/x": b"x" * 5000, "d/y": b"", "e/new": b"n"}
    origin.publish(one, "1", executable=("run.sh",))
    kit.sync(origin.url, root)
    assert kit.sync(origin.url, root).route == "none"
    assert kit.verify(root).intact
    origin.publish(two, "2", executable=("run.sh",))
    report = kit.sync(origin.url, root)
    assert (report.added, report.changed, report.removed, report.saved_as) == (1, 1, 1, {})
    assert tree_of(root) == two
    for _ in range(2):
        assert kit.sync(origin.url, root).route == "none"
    assert [each.number for each in kit.history(root)] == [0, 1, 2]
    kit.rollback(root)
    assert tree_of(root) == one
    assert kit.verify(root).intact
    with kit.transaction(root) as tx:
        tx.write("a", b"1", mode=0o755)
        tx.move("d/x", "moved")
    assert (root / "moved").read_bytes() == b"x" * 5000


def test_publish_and_copy_there(kit: Toolkit, mounted: Path, tmp_path: Path) -> None:
    """A site, and a copy of a tree."""
    (tmp_path / "src/d").mkdir(parents=True)
    (tmp_path / "src/d/f").write_bytes(b"f" * 3000)
    kit.publish(tmp_path / "src", mounted / "site", version="1")
    assert kit.copy_tree(tmp_path / "src", mounted / "copy").files == 1
    assert (mounted / "copy/d/f").read_bytes() == b"f" * 3000


def respell(root: Path) -> None:
    """Names that change in case only, of files and of a directory."""
    with Tree(root) as tree, tree.transaction() as tx:
        tx.move("Readme", "README")
        tx.remove("License")
        tx.write("LICENSE", b"new")
        tx.move("Docs/a", "docs/a")
        tx.remove("Docs/old")
        tx.write("docs/new", b"1")


def test_case_changes(fat: Path, tmp_path: Path) -> None:
    """A name gets another spelling and back, and no crash in between loses the file."""
    old = {"Readme": b"r", "License": b"old", "Docs/a": b"a", "Docs/old": b"o", "z": b"z"}
    new = {"README": b"r", "LICENSE": b"new", "docs/a": b"a", "docs/new": b"1", "z": b"z"}
    ends = []
    for at in range(0, 1000, 3):
        root = fat / f"tree-{at}"
        with Tree(root) as tree, tree.transaction() as tx:
            for name, data in old.items():
                tx.write(name, data)
        try:
            with dying(at):
                respell(root)
        except Crash:
            (root / ".perfkit/owner").unlink(missing_ok=True)
            with Tree(root):
                found = tree_of(root)
            assert found in (old, new), at
            ends.append(found == new)
            shutil.rmtree(root)
        else:
            break
    assert tree_of(root) == new
    assert ends == sorted(ends)
    assert set(ends) == {True, False}
    with Tree(root) as tree:
        tree.rollback()
        assert tree_of(root) == old
        tree.rollback(2)
    assert tree_of(root) == new


def test_undo_without_hard_links(fat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that is refused in the middle, and a crash while it is undone from copies."""
    monkeypatch.setattr(commit, "syncfs", lambda fd: True)  # FUSE takes its time, and this is about order
    start = fat / "start"
    crash_server.begin(str(start))
    old = tree_of(start)
    goal = fat / "goal"
    shutil.copytree(start, goal)
    with pytest.raises(UpdateError, match=crash_server.REFUSED):
        crash_server.refused(str(goal))
    assert tree_of(goal) == old
    crash_server.change(str(goal))
    new = tree_of(goal)
    for at in range(0, 2000, 23):
        root = fat / "case"
        shutil.copytree(start, root)
        try:
            with dying(at):
                crash_server.refused(str(root))
        except Crash:
            (root / ".perfkit/owner").unlink(missing_ok=True)
            with Tree(root):
                assert tree_of(root) in (old, new), at
        except UpdateError:
            assert tree_of(root) == old
            break
        shutil.rmtree(root)
