"""A transaction, and a way back, that is killed or fails at any system call: the tree is the old one or the new one.

`PERFKIT_FULL_SWEEP=1` tries every single call; otherwise an even sample of them is tried.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perfkit.errors import UpdateError
from perfkit.transactions.tree import Tree
from tests.support import crash_server
from tests.support.crash_cases import FULL, MUTATING, CrashServer, check_whole, copy, sample, snapshot
from tests.support.crash_server import DONE, FAILED, IDLE, UNFINISHED
from tests.support.tools import need
from tests.support.warm import WarmPython

pytestmark = pytest.mark.once

SAMPLE = 3  # cases per system call and action


@pytest.fixture
def server(warm_python: WarmPython) -> Iterator[CrashServer]:
    need("strace")
    with contextlib.closing(CrashServer(warm_python, "crash_server")) as server:
        yield server


class Case:
    """What an action starts from, and the two states it may leave."""

    def __init__(self, place: Path, server: CrashServer, action: str) -> None:
        self.place, self.action = place, action
        self._server = server
        self.start, self.number = place / "start", 0
        crash_server.begin(str(self.start))
        if action not in ("change", "refused"):
            crash_server.change(str(self.start))
        self.old = snapshot(self.start)
        if action == "recover":
            self.start = self._interrupted()
        goal = self.copy()
        with contextlib.ExitStack() as stack:
            if action == "recover":
                stack.enter_context(Tree(goal))
            else:
                crash_server.ACTIONS["change" if action == "refused" else action](str(goal))
        self.new = snapshot(goal)
        assert action == "prune" or self.old != self.new

    def _interrupted(self) -> Path:
        """A way back that was killed in the middle of its renames."""
        root = self.copy()
        with self._server.injected({"renameat": ("signal=KILL", 6)}):
            code, _ = self._server.run("back", root, 6, "renameat", 6)
        assert code == -signal.SIGKILL
        return root

    def _count(self) -> dict[str, int]:
        """How often an undisturbed run makes each mutating call; one that the sweep doesn't know fails the test."""
        log, root = self.place / "strace.log", self.copy()
        calls = ",".join(f"?{name}" for name in sorted(MUTATING))
        with self._server.traced("-o", str(log), "-e", f"trace={calls}"):
            code, child = self._server.run(self.action, root)
        assert code in (DONE, FAILED)
        lines = [line.split(maxsplit=1) for line in log.read_text(errors="replace").splitlines()]
        found = Counter(text.partition("(")[0] for pid, text in lines if int(pid) == child and text[0].isalpha())
        assert set(found) <= set(IDLE), "a mutating call that is not swept"
        return dict(found)

    def sweep(self, injection: Callable[[str], str | None]) -> Iterator[tuple[str, Path, int]]:
        """Run into each call in turn; yields what it was, the tree, and how the run ended."""
        counts = self._count()
        cases = sum(len(sample(count, SAMPLE)) for count in counts.values())
        injections = {
            kind: (how, counts[kind] + cases + 100)  # more than a run, or the server, makes by itself
            for kind in sorted(counts)
            if (how := injection(kind)) is not None
        }
        with self._server.injected(injections):
            for kind, (_, when) in injections.items():
                for number in sample(counts[kind], SAMPLE):
                    root = self.copy()
                    code, _ = self._server.run(self.action, root, number, kind, when)
                    yield f"{kind} {number}", root, code
                    shutil.rmtree(root)

    def copy(self) -> Path:
        self.number += 1
        root = self.place / f"case-{self.number}"
        copy(self.start, root)
        return root


@pytest.mark.timeout(1800 if FULL else 300)
@pytest.mark.parametrize("gone", [True, False], ids=["cause gone", "cause still there"])
def test_killed_while_undoing(place: Path, server: CrashServer, gone: bool) -> None:
    """A kill at every call of a commit that is refused in the middle and undone: the old tree, or the new one."""
    case = Case(place, server, "refused")
    ends = {True: 0, False: 0}
    root = case.copy()
    with pytest.raises(UpdateError, match=f"{crash_server.REFUSED} can't be removed: Operation not permitted"):
        crash_server.refused(str(root))
    check_whole(root, case.old, case.old)
    for what, root, code in case.sweep(lambda kind: "signal=KILL"):
        assert code == -signal.SIGKILL, what
        if not gone:
            with crash_server.refusing(), Tree(root):
                assert snapshot(root) == case.old, what
        new = check_whole(root, case.old, case.new) and gone
        ends[new] += 1
        fetched = root / f".perfkit/fetch/content-{crash_server.FETCHED.sha256}"
        if not new and fetched.exists() and fetched.stat().st_size:
            crash_server.change(str(root))
            assert snapshot(root) == case.new, what
    print(f"\n{ends[False]} kills left the old tree, {ends[True]} the new one")
    assert ends[False]
    assert bool(ends[True]) == gone


@pytest.mark.timeout(1800 if FULL else 300)
@pytest.mark.parametrize("action", ["change", "back", "prune", "recover"])
def test_killed_at_any_call(place: Path, server: CrashServer, action: str) -> None:
    """A kill at every mutating call: afterwards the tree is the old or the new one, whole, and without litter."""
    case = Case(place, server, action)
    ends = {True: 0, False: 0}
    for what, root, code in case.sweep(lambda kind: "signal=KILL"):
        assert code == -signal.SIGKILL, what
        ends[check_whole(root, case.old, case.new)] += 1
    print(f"\n{action}: {ends[False]} kills left the old tree, {ends[True]} the new one")
    assert ends[True]
    assert ends[False] or action in ("prune", "recover")


FAILURES = {  # but for ioctl: its failure only means that there is no reflink
    "fsync": "EIO", "syncfs": "EIO", "write": "ENOSPC", "mkdir": "ENOSPC", "mkdirat": "ENOSPC",
    "openat": "ENOSPC", "renameat": "ENOSPC", "linkat": "ENOSPC", "unlinkat": "EIO", "fchmod": "EIO",
    "utimensat": "EIO",
}  # fmt: skip


@pytest.mark.timeout(1800 if FULL else 300)
@pytest.mark.parametrize("action", ["change", "back"])
def test_fails_at_any_call(place: Path, server: CrashServer, action: str) -> None:
    """A failing call: after an OSError the tree is at once as it was, after a RecoveryError reopening completes it."""
    case = Case(place, server, action)
    ends = {DONE: 0, FAILED: 0, UNFINISHED: 0}
    for what, root, code in case.sweep(lambda kind: f"error={FAILURES[kind]}" if kind in FAILURES else None):
        assert code in ends, (what, code)
        ends[code] += 1
        if code == FAILED:
            assert snapshot(root) == case.old, what
        elif code == DONE:
            assert snapshot(root) == case.new, what
        assert check_whole(root, case.old, case.new, tidy=True) == (code != FAILED), (what, code)
    print(
        f"\n{action}: {ends[FAILED]} failures left the old tree, {ends[UNFINISHED]} an unfinished one, "
        f"{ends[DONE]} did not matter"
    )
    assert ends[FAILED]
    assert ends[UNFINISHED]
