"""An update, and a way back, killed or failing at any system call: the tree is the old or the new one, and goes on.

`PERFKIT_FULL_SWEEP=1` tries every single call; otherwise the first, the last and some between are tried.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perfkit import Toolkit
from perfkit.transactions.tree import Tree
from tests.support.crash_cases import FULL, MUTATING, OWN, CrashServer, copy, reachable, sample, snapshot
from tests.support.crash_server import DONE, FAILED, IDLE, UNFINISHED
from tests.support.sites import Origin
from tests.support.tools import need
from tests.support.trees import ONE, TWO, edit, text, tree_of
from tests.support.warm import WarmPython

pytestmark = pytest.mark.once

Counts = dict[str, tuple[int, int]]

SAMPLE = 2  # cases per system call and action
LOCAL = "pkg/same.py.perfkit-local"


class Case:
    """What an action starts from, and the two trees it may leave; served from a site that has version 2."""

    def __init__(self, place: Path, origin: Origin, kit: Toolkit, warm: WarmPython, action: str) -> None:
        self.place, self.origin, self.kit, self.warm = place, origin, kit, warm
        self.action, self.number = action, 0
        self.run = "rollback" if action == "rollback" else "sync"
        self.start = place / "start"
        self.start.mkdir()
        origin.publish(ONE, "1")
        if action != "install":
            kit.sync(origin.url, self.start)
            edit(self.start / "pkg/same.py", b"mine\n")  # kept aside, and the release's comes back
        origin.publish(TWO, "2", executable=("pkg/new.py",))
        if action == "rollback":
            kit.sync(origin.url, self.start)
        self.old = snapshot(self.start)
        goal = self.copy()
        kit.sync(origin.url, goal)
        if action == "rollback":
            kit.rollback(goal, to=1, hold=False)
        self.new = snapshot(goal)
        assert self.old != self.new
        assert (LOCAL in self.new) == (action != "install")

    def copy(self) -> Path:
        self.number += 1
        root = self.place / f"case-{self.number}"
        copy(self.start, root)
        return root

    def count(self, server: CrashServer) -> Counts:
        """The mutating calls of an undisturbed run, by kind: of its first thread, and the most that another makes.

        The process that helps to hash is not counted: it writes only to this one, if it is fast enough.
        """
        logs, root = self.place / "strace", self.copy()
        logs.mkdir()
        calls = ",".join(f"?{name}" for name in sorted({*MUTATING, "execve"}))
        with server.traced("-ff", "-o", str(logs / "log"), "-e", f"trace={calls}"):
            code, child = server.run(self.run, root)
        assert code == DONE
        counts: Counts = {}
        for log in logs.iterdir():
            thread = int(log.suffix[1:])
            found = Counter(line.partition("(")[0] for line in log.read_text(errors="replace").splitlines())
            if found["execve"]:
                continue
            for kind, number in found.items() if thread >= child else ():
                first, other = counts.get(kind, (0, 0))
                counts[kind] = (number, other) if thread == child else (first, max(other, number))
        counts = {kind: each for kind, each in counts.items() if kind.isidentifier()}  # and no notes of signals
        assert set(counts) <= set(IDLE), "a mutating call that is not swept"
        return counts

    def check(self, root: Path, *, tidy: bool = False) -> bool:
        """Open it, and see that it is old or new; go on, and see that it becomes the new one. True if it was new.

        With `tidy`, contents that nothing needs may have stayed, and the next change removes them.
        """
        if (root / ".perfkit").exists():  # or the kill came before anything
            with Tree(root):  # completes or discards what the kill left
                pass
        found = snapshot(root)
        assert found in (self.old, self.new)
        if self.action == "rollback":
            self.kit.rollback(root, to=1, hold=False)
        else:
            self.kit.sync(self.origin.url, root)
        assert snapshot(root) == self.new
        assert {entry.name for entry in (root / ".perfkit").iterdir()} <= OWN
        assert {entry.name for entry in (root / ".perfkit/fetch").iterdir()} <= {"perfkit.json", ".perfkit-parts"}
        with Tree(root) as tree:
            if tidy:
                tree.prune(99)
            _, needed = reachable(root)
        assert {entry.name for entry in (root / ".perfkit/objects").glob("*")} == needed
        return found == self.new


@pytest.fixture
def case(place: Path, kit: Toolkit, warm_python: WarmPython) -> Iterator[Callable[[str], Case]]:
    need("strace")
    with Origin(place) as origin:
        yield lambda action: Case(place, origin, kit, warm_python, action)


def sweep(case: Case, injection: Callable[[str], str | None]) -> Iterator[tuple[str, Path, int]]:
    """Run into each call in turn; yields what it was, the tree, and how the run ended."""
    with contextlib.closing(CrashServer(case.warm, "crash_updater", case.origin.url)) as server:
        counts = case.count(server)
        cases = sum(len(sample(count, SAMPLE)) for each in counts.values() for count in each)
        injections = {
            kind: (how, max(counts[kind]) + cases + 100)  # more than a thread, or the server, makes by itself
            for kind in sorted(counts)
            if (how := injection(kind)) is not None
        }
        with server.injected(injections):
            for kind, (_, when) in injections.items():
                for run, count in zip((case.run, f"{case.run}-threads"), counts[kind], strict=True):
                    for number in sample(count, SAMPLE):
                        root = case.copy()
                        code, _ = server.run(run, root, number, kind, when)
                        yield f"{run}: {kind} {number}", root, code
                        shutil.rmtree(root)


@pytest.mark.timeout(1800 if FULL else 300)
@pytest.mark.parametrize("action", ["rollback", "install", "update"])
def test_killed_at_any_call(case: Callable[[str], Case], action: str) -> None:
    """A kill at every mutating call: the tree is the old or the new one, and the next run brings the new one."""
    this = case(action)
    ends = Counter[bool]()
    for what, root, code in sweep(this, lambda kind: "signal=KILL"):
        # In how many pieces a body comes, and how often the main thread looks whether bytes are waiting.
        varies = ("threads: pwrite64" in what or ": ioctl" in what) and not what.endswith(" 1")
        assert code == -signal.SIGKILL or (varies and code == DONE), what
        ends[this.check(root)] += 1
    print(f"\n{action}: {ends[False]} kills left the old tree, {ends[True]} the new one")
    assert ends[True]
    assert ends[False]


FAILURES = {
    "fsync": "EIO", "fdatasync": "EIO", "syncfs": "EIO", "write": "ENOSPC", "pwrite64": "ENOSPC", "mkdir": "ENOSPC",
    "fallocate": "ENOSPC", "openat": "ENOSPC", "rename": "ENOSPC", "renameat": "ENOSPC", "linkat": "ENOSPC",
    "unlink": "EIO", "unlinkat": "EIO", "fchmod": "EIO", "ftruncate": "EIO", "copy_file_range": "EIO",
}  # fmt: skip


@pytest.mark.timeout(1800 if FULL else 300)
@pytest.mark.parametrize("action", ["install", "update", "rollback"])
def test_fails_at_any_call(case: Callable[[str], Case], action: str) -> None:
    """A failing disk: the tree is at once as it was, or the change is done, or the next run completes it."""
    this = case(action)
    ends = Counter[int]()
    for what, root, code in sweep(this, lambda kind: f"error={FAILURES[kind]}" if kind in FAILURES else None):
        assert code in (DONE, FAILED, UNFINISHED), (what, code)
        ends[code] += 1
        if code == DONE:
            assert snapshot(root) == this.new, what
        elif code == FAILED:
            assert snapshot(root) == this.old, what
        assert this.check(root, tidy=True) == (code != FAILED), what
    print(
        f"\n{action}: {ends[FAILED]} failures left the old tree, {ends[UNFINISHED]} an unfinished one, "
        f"{ends[DONE]} did not matter"
    )
    assert ends[FAILED]
    assert ends[UNFINISHED]


def test_a_full_disk(make_kit: Callable[..., Toolkit], small_disk: Path, tmp_path: Path) -> None:
    """At every fill level the update is whole or not there at all, says why, and works when there is space again."""
    kit, dest, stuffing = make_kit(), small_disk / "tree", small_disk / "stuffing"
    outcomes = Counter[str]()
    with Origin(tmp_path) as origin:
        origin.publish(ONE, "1")
        kit.sync(origin.url, dest)
        three = {**TWO, **{f"pkg/more-{number}.py": text(50 + number, 300) for number in range(12)}}
        origin.publish(three, "3")
        for free_kib in (0, 4, 8, 16, 24, 32, 48, 64, 80, 96, 128, 160, 200, 260):
            fill(stuffing, free_kib << 10)
            try:
                kit.sync(origin.url, dest)
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017
                outcomes["full"] += 1
                assert tree_of(dest) == ONE
            else:
                outcomes["done"] += 1
            stuffing.unlink()
            kit.sync(origin.url, dest)
            assert tree_of(dest) == three
            fill(stuffing, free_kib << 10)
            with contextlib.suppress(OSError):  # it needs a little, for its journal
                kit.rollback(dest, to=1, hold=False)
            assert tree_of(dest) in (ONE, three)
            stuffing.unlink()
            kit.rollback(dest, to=1, hold=False)
            assert tree_of(dest) == ONE
    assert outcomes["full"] >= 5
    assert outcomes["done"]


def fill(stuffing: Path, free: int) -> None:
    """Leave just so many bytes."""
    space = os.statvfs(stuffing.parent)
    with stuffing.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, space.f_bavail * space.f_frsize - free))
