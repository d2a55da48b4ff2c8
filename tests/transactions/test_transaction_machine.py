"""Random transactions, crashes, ways back and outside edits, against a plain dictionary."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from perfkit.errors import RollbackError
from perfkit.transactions.transaction import Transaction
from perfkit.transactions.tree import Tree
from tests.support.faults import Crash, dying

pytestmark = pytest.mark.once

NAMES = ["a", "b", "d/a", "d/b", "d/e/a", "f"]
Files = dict[str, bytes]
Record = dict[str, tuple[bytes | None, bytes | None]]

name = st.sampled_from(NAMES)
data = st.sampled_from([b"", b"one", b"two", b"three" * 2000])
operation = st.one_of(
    st.tuples(st.just("write"), name, data),
    st.tuples(st.just("move"), name, name),
    st.tuples(st.just("remove"), name, st.just(b"")),
)
operations = st.lists(operation, min_size=1, max_size=6)
moment = st.integers(0, 60)  # mutating calls before the crash; more than there are means none


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        base = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.root = Path(tempfile.mkdtemp(prefix="perfkit-machine-", dir=base))
        self.files: Files = {}
        self.chain, self.current, self.next = [0], 0, 1
        self.records: dict[int, Record] = {}
        self.edited = False

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def apply(self, tx: Transaction, todo: list[tuple[str, str, object]]) -> Files:
        """Do it in the tree and in the model."""
        files = dict(self.files)
        for kind, first, second in todo:
            if kind == "write":
                assert isinstance(second, bytes)
                tx.write(first, second)
                files[first] = second
            elif first not in files:
                with contextlib.suppress(FileNotFoundError):
                    tx.move(first, str(second)) if kind == "move" else tx.remove(first)
                    raise AssertionError("there is no such file")
            elif kind == "move":
                tx.move(first, str(second))
                files[str(second)] = files.pop(first)
            else:
                tx.remove(first)
                del files[first]
        return files

    def committed(self, files: Files) -> None:
        every = sorted(self.files.keys() | files.keys())
        record = {n: (self.files.get(n), files.get(n)) for n in every if self.files.get(n) != files.get(n)}
        if record:
            self.chain = [*self.chain[: self.chain.index(self.current) + 1], self.next][-4:]
            self.current, self.next = self.next, self.next + 1
            self.records[self.current] = record
        self.files = files

    def expected(self, to: int) -> Files:
        """The tree after a switch: what the records between say, and whatever else is there."""
        here, there = self.chain.index(self.current), self.chain.index(to)
        files = dict(self.files)
        ends: dict[str, tuple[bytes | None, bytes | None]] = {}
        undo = there < here
        between = reversed(self.chain[there + 1 : here + 1]) if undo else self.chain[here + 1 : there + 1]
        for number in between:
            for n, (before, after) in self.records[number].items():
                first, last = (after, before) if undo else (before, after)
                ends[n] = (ends.get(n, (first, None))[0], last)
        for n, (first, last) in ends.items():
            if first == last:
                continue
            files.pop(n, None)
            if last is not None:
                files[n] = last
        return files

    def reopen(self) -> int:
        """As after the death of the process."""
        (self.root / ".perfkit/owner").unlink(missing_ok=True)
        with Tree(self.root) as tree:
            return tree.generation

    @rule(todo=operations)
    def commit(self, todo: list[tuple[str, str, object]]) -> None:
        with Tree(self.root, keep_generations=3) as tree, tree.transaction() as tx:
            files = self.apply(tx, todo)
        self.committed(files)

    @rule(todo=operations)
    def give_up(self, todo: list[tuple[str, str, object]]) -> None:
        with contextlib.suppress(ZeroDivisionError), Tree(self.root) as tree, tree.transaction() as tx:
            self.apply(tx, todo)
            raise ZeroDivisionError

    @rule(todo=operations, at=moment, again=moment)
    def crash_in_commit(self, todo: list[tuple[str, str, object]], at: int, again: int) -> None:
        files, before = self.files, self.next
        tree = Tree(self.root, keep_generations=3)
        with contextlib.suppress(Crash), dying(at), tree, tree.transaction() as tx:
            files = self.apply(tx, todo)
        (self.root / ".perfkit/owner").unlink(missing_ok=True)
        with contextlib.suppress(Crash), dying(again), Tree(self.root):
            pass  # and once more while recovering
        if self.reopen() == before:
            self.committed(files)

    @rule(choice=st.integers(0, 3))
    def switch(self, choice: int) -> None:
        to = self.chain[choice % len(self.chain)]
        files = self.expected(to)
        with Tree(self.root) as tree:
            try:
                tree.rollback(to, edits="overwrite")
            except RollbackError:
                assert self.edited
                return
        self.files, self.current = files, to

    @rule(choice=st.integers(0, 3), at=moment)
    def crash_in_switch(self, choice: int, at: int) -> None:
        to = self.chain[choice % len(self.chain)]
        files = self.expected(to)
        with contextlib.suppress(Crash, RollbackError), dying(at), Tree(self.root) as tree:
            tree.rollback(to, edits="overwrite")
        if self.reopen() == to and to != self.current:
            self.files, self.current = files, to

    @rule(keep=st.integers(0, 3))
    def prune(self, keep: int) -> None:
        with Tree(self.root) as tree:
            tree.prune(keep)
        self.chain = self.chain[max(0, self.chain.index(self.current) - keep) :]

    @rule(n=st.sampled_from(NAMES), text=st.sampled_from([b"edit", b"edited", None]))
    def edit(self, n: str, text: bytes | None) -> None:
        """By somebody else, as editors do it: a new file in place of the old one."""
        path = self.root / n
        if n in self.files and text is None:
            path.unlink()
            del self.files[n]
        elif text is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_bytes(text)
            self.files[n] = text
        self.edited = True

    @invariant()
    def the_tree_is_as_modelled(self) -> None:
        own = self.root / ".perfkit"
        found = {
            str(p.relative_to(self.root)): p.read_bytes()
            for p in self.root.rglob("*")
            if p.is_file() and own not in p.parents
        }
        assert found == self.files
        assert not own.exists() or {entry.name for entry in own.iterdir()} <= {"lock", "state", "history", "objects"}
        if own.exists():
            with Tree(self.root) as tree:
                assert [(g.number, g.current) for g in tree.history()] == [(n, n == self.current) for n in self.chain]


TestMachine = Machine.TestCase
TestMachine.settings = settings(stateful_step_count=25, suppress_health_check=list(HealthCheck))
