"""An update, and a way back, killed or failing at any system call: the tree is the old or the new one, and goes on.

`PERFKIT_FULL_SWEEP=1` tries every single call; otherwise the first, the last and some between are tried.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perfkit import Toolkit
from perfkit.filesystem.history import needed_objects, read_timeline
from perfkit.filesystem.store import EMPTY
from perfkit.filesystem.tree import Tree
from tests.crash_server import DONE, IDLE
from tests.sites import ONE, TWO, Origin, edit
from tests.test_crash import ENVIRONMENT, FULL, MUTATING, copy, place, snapshot
from tests.tools import need

Counts = dict[str, tuple[int, int]]

SAMPLE = 4  # cases per system call and action
OWN = {"lock", "state", "history", "objects", "fetch", "manifest", "release", "serials", "statcache", "clock"}
LOCAL = "pkg/same.py.perfkit-local"

__all__ = ["place"]


class Server:
    """A crash server that strace is attached to for one kind of call after the other."""

    def __init__(self, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash_updater", url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
        )  # fmt: skip
        assert self._answer() == "ready\n"

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    @contextlib.contextmanager
    def traced(self, *options: str) -> Iterator[None]:
        command = ["strace", "-f", *options, "-p", str(self._process.pid)]
        strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert strace.stderr is not None
        assert "attached" in strace.stderr.readline()
        reader = threading.Thread(target=strace.stderr.read)  # it tells of every process and thread
        reader.start()
        try:
            yield
        finally:
            strace.terminate()  # it detaches then
            strace.wait(10)
            reader.join(10)
            strace.stderr.close()

    def run(self, action: str, root: Path, number: int = 0, kind: str = "none", when: int = 0) -> tuple[int, int]:
        """How the run ended, and its PID."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number} {action} {root} {kind} {when}\n")
        self._process.stdin.flush()
        code, pid = map(int, self._answer().split())
        return code, pid

    def close(self) -> None:
        self._process.communicate(timeout=10)


class Case:
    """What an action starts from, and the two trees it may leave; served from a site that has version 2."""

    def __init__(self, place: Path, origin: Origin, kit: Toolkit, action: str) -> None:
        self.place, self.origin, self.kit = place, origin, kit
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
            kit.rollback(goal, to=1)
        self.new = snapshot(goal)
        assert self.old != self.new
        assert (LOCAL in self.new) == (action != "install")

    def copy(self) -> Path:
        self.number += 1
        root = self.place / f"case-{self.number}"
        copy(self.start, root)
        return root

    def count(self, server: Server) -> Counts:
        """The mutating calls of an undisturbed run, by kind: of its first thread, and the most that another makes."""
        logs, root = self.place / "strace", self.copy()
        logs.mkdir()
        calls = ",".join(f"?{name}" for name in sorted(MUTATING))
        with server.traced("-ff", "-o", str(logs / "log"), "-e", f"trace={calls}"):
            code, child = server.run(self.run, root)
        assert code == DONE
        counts: Counts = {}
        for log in logs.iterdir():
            thread = int(log.suffix[1:])
            found = Counter(line.partition("(")[0] for line in log.read_text(errors="replace").splitlines())
            for kind, number in found.items() if thread >= child else ():
                first, other = counts.get(kind, (0, 0))
                counts[kind] = (number, other) if thread == child else (first, max(other, number))
        counts = {kind: each for kind, each in counts.items() if kind.isidentifier()}  # and no notes of signals
        assert set(counts) <= set(IDLE), "a mutating call that is not swept"
        return counts

    def check(self, root: Path) -> bool:
        """Open it, and see that it is old or new; go on, and see that it becomes the new one. True if it was new."""
        if (root / ".perfkit").exists():  # or the kill came before anything
            self.kit.history(root)
        found = snapshot(root)
        assert found in (self.old, self.new)
        if self.action == "rollback":
            self.kit.rollback(root, to=1)
        else:
            self.kit.sync(self.origin.url, root)
        assert snapshot(root) == self.new
        assert {entry.name for entry in (root / ".perfkit").iterdir()} <= OWN
        assert {entry.name for entry in (root / ".perfkit/fetch").iterdir()} <= {"perfkit.json", ".perfkit-parts"}
        with Tree(root) as tree:
            timeline = read_timeline(tree._beneath)
            needed = needed_objects(tree._beneath, timeline) - {EMPTY}
        assert {entry.name for entry in (root / ".perfkit/objects").glob("*")} == needed
        return found == self.new


def sample(count: int) -> list[int]:
    if FULL or count <= SAMPLE:
        return list(range(1, count + 1))
    return sorted({1 + (count - 1) * index // (SAMPLE - 1) for index in range(SAMPLE)})


@pytest.fixture
def case(place: Path, make_kit: Callable[..., Toolkit]) -> Iterator[Callable[[str], Case]]:
    need("strace")
    with Origin(place) as origin:
        yield lambda action: Case(place, origin, make_kit(), action)


def sweep(case: Case, injection: Callable[[str], str | None]) -> Iterator[tuple[str, Path, int]]:
    """Run into each call in turn; yields what it was, the tree, and how the run ended."""
    with contextlib.closing(Server(case.origin.url)) as server:
        for kind, (first, other) in sorted(case.count(server).items()):
            how = injection(kind)
            if how is None:
                continue
            when = max(first, other) + 100  # more than any thread makes by itself
            with server.traced("-o", "/dev/null", "-e", f"trace={kind}", "-e", f"inject={kind}:{how}:when={when}"):
                for run, count in ((case.run, first), (f"{case.run}-threads", other)):
                    for number in sample(count):
                        root = case.copy()
                        code, _ = server.run(run, root, number, kind, when)
                        yield f"{run}: {kind} {number}", root, code
                        shutil.rmtree(root)


@pytest.mark.timeout(1800 if FULL else 120)
@pytest.mark.parametrize("action", ["install", "update", "rollback"])
def test_killed_at_any_call(case: Callable[[str], Case], action: str) -> None:
    """A kill at every mutating call: the tree is the old or the new one, and the next run brings the new one."""
    this = case(action)
    ends = Counter[bool]()
    for what, root, code in sweep(this, lambda kind: "signal=KILL"):
        assert code == -signal.SIGKILL, what
        ends[this.check(root)] += 1
    print(f"\n{action}: {ends[False]} kills left the old tree, {ends[True]} the new one")
    assert ends[True]
    assert ends[False]
