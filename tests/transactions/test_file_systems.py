"""Trees on file systems of many kinds: real ones, of the kernel or by FUSE. docs/operations.md has the table."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perfkit import BatchError, Toolkit
from perfkit.errors import UpdateError
from perfkit.testing import FakeOrigin
from perfkit.transactions import commit
from perfkit.transactions.tree import Tree
from tests.support import crash_server
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.faults import Crash, dying
from tests.support.files import make
from tests.support.sites import Origin
from tests.support.tools import mounted, mounted_image, need, need_root
from tests.support.trees import tree_of

pytestmark = pytest.mark.once

Mount = Callable[[Path], contextlib.AbstractContextManager[Path]]


def fuse(*commands: str, tools: tuple[str, ...]) -> Mount:
    """What these commands mount at {at}, of {image}, a file of 64 MiB, {device}, a loop device of it, or {below}."""

    @contextlib.contextmanager
    def mount(place: Path) -> Iterator[Path]:
        need(*tools)
        need_root("to mount")
        words = {each: str(place / each) for each in ("image", "below", "at")}
        (place / "below").mkdir()
        (place / "at").mkdir()
        with (place / "image").open("wb") as file:
            file.truncate(64 << 20)
        if "{device}" in commands[-1]:
            found = subprocess.run(["losetup", "-f", "--show", words["image"]], check=True, stdout=subprocess.PIPE)
            words["device"] = found.stdout.decode().strip()
        try:
            for command in commands:
                subprocess.run(command.format(**words).split(), check=True, capture_output=True)
            try:
                yield place / "at"
            finally:
                subprocess.run(["umount", "--lazy", words["at"]], check=True)
        finally:
            if "device" in words:
                subprocess.run(["losetup", "-d", words["device"]], check=True)

    return mount


def bind(*options: str) -> Mount:
    """A directory seen by bindfs with these options."""
    return fuse(" ".join(["bindfs", *options, "{below} {at}"]), tools=("bindfs",))


def image(kind: str, *options: str) -> Mount:
    """A file system of the kernel."""

    @contextlib.contextmanager
    def mount(place: Path) -> Iterator[Path]:
        with mounted_image(kind, place, *options, size=320 << 20) as path:
            yield path

    return mount


@contextlib.contextmanager
def tmpfs(place: Path) -> Iterator[Path]:
    (place / "at").mkdir()
    with mounted(place / "at", "-t", "tmpfs", "tmpfs") as path:
        yield path


@contextlib.contextmanager
def overlay(place: Path) -> Iterator[Path]:
    """Two layers on one tmpfs, since a layer may not be an overlay itself."""
    with tmpfs(place) as at:
        for name in ("lower", "upper", "work", "merged"):
            (at / name).mkdir()
        options = f"lowerdir={at}/lower,upperdir={at}/upper,workdir={at}/work"
        with mounted(at / "merged", "-t", "overlay", "-o", options, "overlay") as path:
            yield path


exfat = fuse(
    "mkfs.exfat {image}", "mount.exfat-fuse {device} {at}", tools=("mkfs.exfat", "mount.exfat-fuse", "losetup")
)

KINDS: dict[str, Mount] = {
    "exfat": exfat,
    "chmod refused": bind("--chmod-deny"),
    "chmod ignored": bind("--chmod-ignore", "--perms=0644:ud+X"),
    "everything executable": bind("--chmod-ignore", "--perms=0777"),
    "owned by another": bind("--force-user=65534", "--force-group=65534", "--chmod-deny", "--chown-deny"),
    "no xattrs": bind("--xattr-none"),
    "FAT": fuse("mkfs.vfat {image}", "fusefat -o rw+ {image} {at}", tools=("mkfs.vfat", "fusefat")),
    "NTFS": fuse("mkfs.ntfs -q -F -Q {image}", "ntfs-3g {image} {at}", tools=("mkfs.ntfs", "ntfs-3g")),
    "tmpfs": tmpfs,
    "overlayfs": overlay,
    "xfs": image("xfs"),
    "btrfs": image("btrfs"),
    "ext4 with times of 1 s": image("ext4", "-I", "128"),
}


@pytest.fixture(params=KINDS)
def there(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with KINDS[request.param](tmp_path) as path:
        yield path


@pytest.fixture
def fat(tmp_path: Path) -> Iterator[Path]:
    with exfat(tmp_path) as path:
        yield path


def test_follow_a_release(kit: Toolkit, origin: Origin, there: Path) -> None:
    """Only what differs is written, the earlier release stays in reach, and nothing is taken for an edit."""
    root = there / "tree"
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


def test_publish_there(kit: Toolkit, there: Path, tmp_path: Path) -> None:
    """A site."""
    make(tmp_path / "src", {"d/f": b"f" * 3000})
    kit.publish(tmp_path / "src", there / "site", version="1")
    make(tmp_path / "src", {"d/g": b"g"})
    assert kit.publish(tmp_path / "src", there / "site", version="2").number == 2


RENAMES_DIRECTORIES = [kind for kind in KINDS if kind != "FAT"]  # by fusefat


@pytest.mark.parametrize("there", RENAMES_DIRECTORIES, indirect=True)
def test_copy_there(kit: Toolkit, there: Path, tmp_path: Path) -> None:
    """A copy of a tree."""
    make(tmp_path / "src", {"d/f": b"f" * 3000})
    assert kit.copy_tree(tmp_path / "src", there / "copy").files == 1
    assert (there / "copy/d/f").read_bytes() == b"f" * 3000


def respell(root: Path) -> None:
    """Names that change in case, of files and of directories."""
    with Tree(root) as tree, tree.transaction() as tx:
        tx.move("Readme", "README")
        tx.remove("License")
        tx.write("LICENSE", b"new")
        tx.move("Docs/a", "docs/a")
        tx.remove("Docs/old")
        tx.write("docs/new", b"1")
        tx.remove("file")
        tx.write("File/a", b"2")
        tx.remove("Dir/a")
        tx.write("dir", b"3")


def test_case_changes(fat: Path, tmp_path: Path) -> None:
    """A name gets another spelling and back, also where a directory replaces a file or the other way round, and no
    crash in between loses the file.
    """
    old = {"Readme": b"r", "License": b"old", "Docs/a": b"a", "Docs/old": b"o", "z": b"z", "file": b"f", "Dir/a": b"d"}
    new = {"README": b"r", "LICENSE": b"new", "docs/a": b"a", "docs/new": b"1", "z": b"z", "File/a": b"2", "dir": b"3"}
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


def test_downloads_whose_names_differ_only_in_case(fat: Path, tmp_path: Path) -> None:
    """On a disk that ignores case, two of them would write into one file."""
    fake = FakeOrigin()
    names = ("x", "d/Sub/a", "X", "d/sub/A", "y")
    for name in names:
        fake.add(f"https://example.org/{name}", name * 20_000)
    requests = [(f"https://example.org/{name}", name) for name in names]
    with Toolkit(transport=fake) as kit:
        with pytest.raises(BatchError) as caught:
            kit.download_many(requests, fat / "get")
        kit.download_many(requests, tmp_path / "get")
    assert [each.error is None for each in caught.value.results] == [True, True, False, False, True]
    assert "differs only in case" in str(caught.value.results[2].error)
    assert tree_of(fat / "get") == {name: (name * 20_000).encode() for name in ("x", "d/Sub/a", "y")}
    assert tree_of(tmp_path / "get") == {name: (name * 20_000).encode() for name in names}


def test_a_download_that_its_server_names(
    kit: Toolkit, fat: Path, misbehaving: Callable[..., MisbehavingServer]
) -> None:
    """It may replace no file, where neither renameat2 nor a hard link can make sure of that."""

    def handler(x: Exchange) -> None:
        x.respond("200 OK", b"new", Content_Disposition="attachment; filename=named.txt")

    assert kit.download(f"{misbehaving(handler).url}/d?1", f"{fat}/").path == f"{fat}/named.txt"
    assert tree_of(fat) == {"named.txt": b"new"}
