"""Several at work on one tree, or one site: each sees complete trees only, and no edit is lost."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perfkit import Config, ConfigError, FileChangedError, LockedError, Toolkit, UpdateError
from perfkit.downloads.cancel import Cancel
from perfkit.downloads.http.transport import Get, HttpTransport, Response
from perfkit.releases.format.pointer import Pointer
from perfkit.transactions.tree import Tree
from perfkit.updates import apply
from perfkit.updates import verify as verify_module
from perfkit.updates.sources.release_source import ReleaseSource
from tests.support.kits import QUICK
from tests.support.sites import Origin
from tests.support.tools import mounted
from tests.support.trees import ONE, TWO, edit, text, tree_of, write_tree
from tests.support.warm import WarmPython

pytestmark = pytest.mark.once

THREE = {**TWO, "README": b"hello 3\n", "pkg/a.py": text(7), "more.py": text(8)}
SYNC = "import sys; from perfkit import Toolkit; Toolkit().sync(*sys.argv[1:])"


@pytest.fixture
def tree_v1(tmp_path: Path, origin_v1: Origin, kit: Toolkit) -> Path:
    """A tree of version 1; the site has version 2."""
    kit.sync(origin_v1.url, tmp_path / "tree")
    origin_v1.publish(TWO, "2")
    return tmp_path / "tree"


def during_sync(origin: Origin, work: Callable[[], object], *, at: int = 2) -> None:
    """Do this once, in the middle of a sync: before its request of this number is answered."""
    asked = 0

    def before(path: str) -> None:
        nonlocal asked
        asked += 1
        if asked == at:
            work()

    origin.before = before


@pytest.mark.parametrize("second", ["sync", "rollback"])
def test_one_at_a_time(make_kit: Callable[..., Toolkit], origin_v1: Origin, tree_v1: Path, second: str) -> None:
    """A second one fails at once, with the process that uses the tree, and changes nothing."""
    kit, other, told = make_kit(), make_kit(), []

    def try_it() -> None:
        with pytest.raises(LockedError, match=f"process {os.getpid()}") as caught:
            other.sync(origin_v1.url, tree_v1) if second == "sync" else getattr(other, second)(tree_v1)
        told.append(caught)

    during_sync(origin_v1, try_it)
    assert kit.sync(origin_v1.url, tree_v1).version == "2"
    assert told
    assert tree_of(tree_v1) == TWO
    assert kit.verify(tree_v1).intact


LOCKING: list[Callable[[Toolkit, Path, float], object]] = [
    lambda kit, tree, wait_s: kit.pin(tree, wait_s=wait_s),
    lambda kit, tree, wait_s: kit.unhold(tree, wait_s=wait_s),
    lambda kit, tree, wait_s: kit.hold(tree, "9", wait_s=wait_s),
    lambda kit, tree, wait_s: kit.prune(tree, wait_s=wait_s),
    lambda kit, tree, wait_s: kit.changed_since(tree, 0, wait_s=wait_s),
    lambda kit, tree, wait_s: kit.verify(tree, repair=True, wait_s=wait_s),
    lambda kit, tree, wait_s: kit.rollback(tree, to=0, wait_s=wait_s),
]


def test_every_call_that_locks_can_wait(kit: Toolkit, tree_v1: Path) -> None:
    """For the change that is under way; without waiting, it fails."""
    for call in LOCKING:
        with Tree(str(tree_v1)):
            for wait_s in (0.0, -1.0):
                with pytest.raises(LockedError):
                    call(kit, tree_v1, wait_s)
            with pytest.raises(ConfigError, match="wait_s must be"):
                call(kit, tree_v1, math.nan)
            waiting = threading.Thread(target=call, args=(kit, tree_v1, 60.0))
            waiting.start()
            waiting.join(0.05)
            assert waiting.is_alive()
        waiting.join(60)
        assert not waiting.is_alive()
    assert kit.status(tree_v1).generation == 0  # the last one is a rollback


@pytest.mark.parametrize("read_only", [False, True])
def test_reading_needs_no_lock(
    make_kit: Callable[..., Toolkit], origin_v1: Origin, tree_v1: Path, read_only: bool
) -> None:
    """History, status and verification work during a sync, and on a mount that is read-only."""
    kit, other, told = make_kit(), make_kit(), []

    def read() -> None:
        told.append((other.history(tree_v1)[-1].number, other.status(tree_v1).version, other.verify(tree_v1).intact))

    if read_only:
        with mounted(tree_v1, "--bind", tree_v1):
            subprocess.run(["mount", "-o", "remount,bind,ro", tree_v1], check=True)
            read()
    else:
        during_sync(origin_v1, read)
        kit.sync(origin_v1.url, tree_v1)
    assert told == [(1, "1", True)]


def test_verified_while_it_changes(kit: Toolkit, origin_v1: Origin, tree_v1: Path, monkeypatch: Any) -> None:
    """A report is of one version, never of two."""
    real = verify_module._compare

    def compare(*arguments: Any) -> Any:
        found = real(*arguments)
        with contextlib.suppress(IndexError):
            version = versions.pop()
            origin_v1.publish({**TWO, "version": version.encode()}, version)
            kit.sync(origin_v1.url, tree_v1)
        return found

    monkeypatch.setattr(verify_module, "_compare", compare)
    versions = ["3", "2"]
    report = kit.verify(tree_v1)
    assert (report.version, report.intact) == ("3", True)
    versions = ["7", "6", "5", "4"]
    with pytest.raises(LockedError, match="changed while it was verified"):
        kit.verify(tree_v1)


class Interrupted(HttpTransport):
    """Does some work before its second request. The client does it, not the server: no time-out runs on that side."""

    def __init__(self, config: Config, work: Callable[[], object]) -> None:
        super().__init__(config)
        self._work, self._requests = work, 0

    def open(self, request: Get, cancel: Cancel) -> Response:
        self._requests += 1
        if self._requests == 2:
            self._work()
        return super().open(request, cancel)


def test_another_process(origin_v1: Origin, tree_v1: Path, warm_python: WarmPython) -> None:
    """The lock holds between processes too."""
    ended: list[subprocess.CompletedProcess[str]] = []

    def try_it() -> None:
        command = warm_python.python("-c", SYNC, origin_v1.url, tree_v1)
        ended.append(subprocess.run(command, capture_output=True, text=True, check=False))

    with Toolkit(Config(**QUICK), transport=lambda config: Interrupted(config, try_it)) as kit:
        kit.sync(origin_v1.url, tree_v1)
    assert "LockedError" in ended[0].stderr
    assert tree_of(tree_v1) == TWO


class Moment:
    """A site that offers version 2 until `switch` puts version 3 there, and takes away what only version 2 needs."""

    def __init__(self, origin: Origin, *, prune: bool) -> None:
        self.pointer = origin.site / "perfkit.json"
        origin.publish(TWO, "2")
        self._before = self._files(origin.site)
        origin.publish(THREE, "3")
        self._after = self._files(origin.site)
        self._old = references(self._before[self.pointer]) - references(self._after[self.pointer]) if prune else set()

    def _files(self, site: Path) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in site.rglob("*") if path.is_file()}

    def rewind(self) -> None:
        for path in self._after.keys() - self._before.keys():
            path.unlink(missing_ok=True)
        for path, data in self._before.items():
            path.write_bytes(data)

    def switch(self) -> None:
        for path, data in self._after.items():
            path.write_bytes(data)
        for name in self._old:
            (self.pointer.parent / name).unlink()


def references(pointer: bytes) -> set[str]:
    """The paths of all objects that a pointer refers to."""
    read = Pointer.parse(pointer)
    packed = (read.manifest.object, read.solid.object, read.fine.object)
    return {ref.path for ref in (*packed, *(delta.object for delta in read.deltas))}


@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("start", ["nothing", "1"])
def test_a_release_in_the_middle(kit: Toolkit, origin_v1: Origin, tmp_path: Path, start: str, prune: bool) -> None:
    """The pointer replaced before any request, old objects gone or not: one release or the other, and no mixture."""
    base = tmp_path / "base"
    kit.sync(origin_v1.url, base)
    moment = Moment(origin_v1, prune=prune)
    at, asked, seen = 0, 0, list[str]()
    while not seen or asked >= at:
        at += 1
        dest = tmp_path / f"tree-{at}"
        if start == "1":
            shutil.copytree(base, dest)
        moment.rewind()
        during_sync(origin_v1, moment.switch, at=at)
        asked = -len(origin_v1.sent)
        seen.append(kit.sync(origin_v1.url, dest).version)
        asked += len(origin_v1.sent)
        assert tree_of(dest) == {"2": TWO, "3": THREE}[seen[-1]]
        if asked >= at:
            kit.sync(origin_v1.url, dest)
            assert tree_of(dest) == THREE
    assert len(seen) >= 3
    assert set(seen) == {"2", "3"}


@pytest.mark.parametrize("name", ["README", "pkg/going.py", "pkg/b.py", "pkg/new.py"])
def test_an_edit_in_the_middle(kit: Toolkit, origin_v1: Origin, tree_v1: Path, name: str) -> None:
    """A file that the release changes, removes, moves or adds, and that is edited during the sync, is not lost."""
    before = tree_of(tree_v1)
    during_sync(origin_v1, lambda: edit(tree_v1 / name, b"mine\n"))
    with pytest.raises(FileChangedError, match=f"{name}: .*nothing was changed, retry"):
        kit.sync(origin_v1.url, tree_v1)
    assert tree_of(tree_v1) == {**before, name: b"mine\n"}
    local = f"{name}.perfkit-local"
    assert kit.sync(origin_v1.url, tree_v1).saved_as == {name: local}
    assert tree_of(tree_v1) == {**TWO, local: b"mine\n"}


@pytest.mark.parametrize("early", [True, False])
def test_a_file_that_appears_while_contents_come(
    kit: Toolkit, origin_v1: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    """It is not overwritten, whether or not the commit is prepared by then."""
    tree, fetch = tmp_path / "tree", ReleaseSource.fetch

    def fetch_late(*args: Any) -> tuple[str, ...]:
        write_tree(tree / "pkg", {"a.py": b"mine\n"})
        return fetch(*args)

    if not early:
        monkeypatch.setattr(apply, "_EARLY_FILES", 0)
    monkeypatch.setattr(ReleaseSource, "fetch", fetch_late)
    noticed = "was created or modified" if early else "appeared"
    with pytest.raises(FileChangedError, match=rf"pkg/a\.py: the file {noticed} during the update"):
        kit.sync(origin_v1.url, tree)
    assert tree_of(tree) == {"pkg/a.py": b"mine\n"}
    monkeypatch.setattr(ReleaseSource, "fetch", fetch)
    kit.sync(origin_v1.url, tree)
    assert tree_of(tree) == {**ONE, "pkg/a.py.perfkit-local": b"mine\n"}


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_another_kind_in_the_middle(
    kit: Toolkit, origin_v1: Origin, tree_v1: Path, make: Callable[[Path], None]
) -> None:
    """What takes the place of an old file that a delta needs is not read: a FIFO would wait for its writer."""

    def replace() -> None:
        (tree_v1 / "pkg/a.py").unlink()
        make(tree_v1 / "pkg/a.py")

    during_sync(origin_v1, replace)
    with pytest.raises((FileChangedError, UpdateError), match=r"pkg/a\.py"):
        kit.sync(origin_v1.url, tree_v1)
    assert (tree_v1 / "pkg/b.py").read_bytes() == ONE["pkg/b.py"]


@pytest.mark.parametrize("name", ["pkg/same.py", "pkg/b.py"])
def test_removed_in_the_middle(kit: Toolkit, origin_v1: Origin, tree_v1: Path, name: str) -> None:
    """A file of the tree that the release has a copy of, and one that it moves."""
    origin_v1.publish({**TWO, "pkg/copy.py": ONE["pkg/same.py"]}, "3")
    during_sync(origin_v1, (tree_v1 / name).unlink)
    with pytest.raises(FileChangedError, match=f"{name}: it was removed during the update; .* retry"):
        kit.sync(origin_v1.url, tree_v1)


def test_a_touch_in_the_middle(kit: Toolkit, origin_v1: Origin, tree_v1: Path) -> None:
    """Another mtime, or another inode, with the same content is not an edit."""

    def touch() -> None:
        os.utime(tree_v1 / "README")
        edit(tree_v1 / "pkg/b.py", ONE["pkg/b.py"])

    during_sync(origin_v1, touch)
    assert kit.sync(origin_v1.url, tree_v1).version == "2"
    assert tree_of(tree_v1) == TWO
