"""A transaction, and a way back, that is killed or fails at any system call: the tree is the old one or the new one.

`PERFKIT_FULL_SWEEP=1` tries every single call; otherwise an even sample of them is tried.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perfkit.errors import UpdateError
from perfkit.transactions.tree import Tree
from tests.support import crash_server
from tests.support.crash_cases import FULL, MUTATING, check_whole, copy, snapshot
from tests.support.crash_server import DONE, FAILED, IDLE, UNFINISHED
from tests.support.tools import ENVIRONMENT, need

pytestmark = pytest.mark.once

SAMPLE = 3  # cases per system call and action
WHEN = 400  # more calls of a kind than any child makes; opening files is also what imports do

_SERVER = [sys.executable, "-m", "tests.support.crash_server"]


class Server:
    """A crash server under strace; `run(K, action, root)` returns how the child ended."""

    def __init__(self, kind: str, injection: str) -> None:
        when = WHEN * 4 if kind == "openat" else WHEN
        inject = ("-e", f"inject={kind}:{injection}:when={when}")
        fast = ["--seccomp-bpf"] if injection.startswith("error=") else []  # strace 6.1 sends no signal with it
        command = ["strace", "-f", *fast, "-qq", "-o", "/dev/null", "-e", f"trace={kind}", *inject]
        self._process = subprocess.Popen(
            [*command, *_SERVER, kind, str(when)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )

    def run(self, number: int, action: str, root: Path) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{number} {action} {root}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline().split()[0])

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture
def serve() -> Iterator[Callable[[str, str], Server]]:
    need("strace")
    with contextlib.ExitStack() as stack:

        def start(kind: str, injection: str) -> Server:
            server = Server(kind, injection)
            stack.callback(server.close)
            return server

        yield start


class Case:
    """What an action starts from, and the two states it may leave."""

    def __init__(self, place: Path, action: str) -> None:
        self.place, self.action = place, action
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
        server = Server("renameat", "signal=KILL")
        assert server.run(6, "back", root) == -signal.SIGKILL
        server.close()
        return root

    def count(self) -> dict[str, int]:
        """How often an undisturbed run makes each mutating call; one that the sweep doesn't know fails the test."""
        need("strace")
        log, root = self.place / "strace.log", self.copy()
        calls = ",".join(f"?{name}" for name in sorted(MUTATING))
        subprocess.run(
            ["strace", "-f", "--seccomp-bpf", "-qq", "-o", str(log), "-e", f"trace={calls}", *_SERVER, "none", "0"],
            input=f"0 {self.action} {root}\n",
            text=True,
            check=True,
            capture_output=True,
            env=ENVIRONMENT,
        )
        lines = [line.split(maxsplit=1) for line in log.read_text(errors="replace").splitlines()]
        parent = lines[0][0]
        found = Counter(text.partition("(")[0] for pid, text in lines if pid != parent and text[0].isalpha())
        assert set(found) <= set(IDLE), "a mutating call that is not swept"
        return dict(found)

    def copy(self) -> Path:
        self.number += 1
        root = self.place / f"case-{self.number}"
        copy(self.start, root)
        return root


def sample(count: int) -> list[int]:
    """Cases from 1 to `count`: all, or evenly some, the first and the last among them."""
    if FULL or count <= SAMPLE:
        return list(range(1, count + 1))
    return sorted({1 + (count - 1) * index // (SAMPLE - 1) for index in range(SAMPLE)})


@pytest.mark.timeout(1800 if FULL else 300)
@pytest.mark.parametrize("gone", [True, False], ids=["cause gone", "cause still there"])
def test_killed_while_undoing(place: Path, serve: Callable[[str, str], Server], gone: bool) -> None:
    """A kill at every call of a commit that is refused in the middle and undone: the old tree, or the new one."""
    case = Case(place, "refused")
    ends = {True: 0, False: 0}
    root = case.copy()
    with pytest.raises(UpdateError, match=f"{crash_server.REFUSED} can't be removed: Operation not permitted"):
        crash_server.refused(str(root))
    check_whole(root, case.old, case.old)
    for kind, count in sorted(case.count().items()):
        server = serve(kind, "signal=KILL")
        for number in sample(count):
            root = case.copy()
            assert server.run(number, "refused", root) == -signal.SIGKILL, (kind, number)
            if not gone:
                with crash_server.refusing(), Tree(root):
                    assert snapshot(root) == case.old, (kind, number)
            new = check_whole(root, case.old, case.new) and gone
            ends[new] += 1
            fetched = root / ".perfkit/fetch/fetched"
            if not new and fetched.exists() and fetched.stat().st_size:
                crash_server.change(str(root))
                assert snapshot(root) == case.new, (kind, number)
            shutil.rmtree(root)
    print(f"\n{ends[False]} kills left the old tree, {ends[True]} the new one")
    assert ends[False]
    assert bool(ends[True]) == gone


@pytest.mark.timeout(1800 if FULL else 300)
@pytest.mark.parametrize("action", ["change", "back", "prune", "recover"])
def test_killed_at_any_call(place: Path, serve: Callable[[str, str], Server], action: str) -> None:
    """A kill at every mutating call: afterwards the tree is the old or the new one, whole, and without litter."""
    case = Case(place, action)
    ends = {True: 0, False: 0}
    for kind, count in sorted(case.count().items()):
        server = serve(kind, "signal=KILL")
        for number in sample(count):
            root = case.copy()
            assert server.run(number, action, root) == -signal.SIGKILL, (kind, number)
            ends[check_whole(root, case.old, case.new)] += 1
            shutil.rmtree(root)
    print(f"\n{action}: {ends[False]} kills left the old tree, {ends[True]} the new one")
    assert ends[True]
    assert ends[False] or action in ("prune", "recover")


FAILURES = {
    "fsync": "EIO", "syncfs": "EIO", "write": "ENOSPC", "mkdir": "ENOSPC", "mkdirat": "ENOSPC",
    "openat": "ENOSPC", "renameat": "ENOSPC", "linkat": "ENOSPC", "unlinkat": "EIO", "fchmod": "EIO",
    "utimensat": "EIO",
}  # fmt: skip


@pytest.mark.timeout(1800 if FULL else 300)
@pytest.mark.parametrize("action", ["change", "back"])
def test_fails_at_any_call(place: Path, serve: Callable[[str, str], Server], action: str) -> None:
    """A failing call: after an OSError the tree is at once as it was, after a RecoveryError reopening completes it."""
    case = Case(place, action)
    ends = {DONE: 0, FAILED: 0, UNFINISHED: 0}
    for kind, count in sorted(case.count().items()):
        if kind not in FAILURES:
            continue  # a failing ioctl only means that there is no reflink
        server = serve(kind, f"error={FAILURES[kind]}")
        for number in sample(count):
            root = case.copy()
            code = server.run(number, action, root)
            assert code in ends, (kind, number, code)
            ends[code] += 1
            if code == FAILED:
                assert snapshot(root) == case.old, (kind, number)
            elif code == DONE:
                assert snapshot(root) == case.new, (kind, number)
            new = check_whole(root, case.old, case.new, tidy=True)
            assert new == (code != FAILED), (kind, number, code)
            shutil.rmtree(root)
    print(
        f"\n{action}: {ends[FAILED]} failures left the old tree, {ends[UNFINISHED]} an unfinished one, "
        f"{ends[DONE]} did not matter"
    )
    assert ends[FAILED]
    assert ends[UNFINISHED]
