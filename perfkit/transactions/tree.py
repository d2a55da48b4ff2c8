"""A managed directory: one writer at a time, whole changes, and the way back to earlier generations."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from types import TracebackType

from perfkit.config import LocalChanges
from perfkit.errors import LockedError, PerfkitError, UpdateError
from perfkit.filesystem.rootdir import Beneath
from perfkit.transactions.changeset import Changes, ChangeSet
from perfkit.transactions.commit import Committer
from perfkit.transactions.history import (
    Generation,
    Timeline,
    forget_others,
    generations,
    needed_objects,
    read_timeline,
    record_of,
    state_of,
)
from perfkit.transactions.journal_ops import steps
from perfkit.transactions.layout import FETCH, HISTORY, PRIVATE_DIR, STATE, record_path
from perfkit.transactions.lock import Lock
from perfkit.transactions.object_store import Store
from perfkit.transactions.prepare import Known, prepare
from perfkit.transactions.records import Step
from perfkit.transactions.rollback import plan_switch
from perfkit.transactions.transaction import Commit, Transaction, need_space

__all__ = ["Commit", "Generation", "Known", "Transaction", "Tree"]

_log = logging.getLogger(__name__)


class Tree:
    """A directory that changes only as a whole; its lock is held inside the `with` block, from one thread.

    What perfkit needs stands in `.perfkit` in it. Opening completes or discards what a crash left.

    Args:
        root: the directory; made if need be.
        wait_s: how long to wait for another that is changing it.
        keep_generations: how many generations before the current one stay restorable; at least 1.

    Raises:
        LockedError: another process or thread is changing it.
        RecoveryError: what a crash left can be neither completed nor discarded.
        UnsafePathError: `.perfkit` is a symbolic link.
        OSError: such as no permission.
    """

    def __init__(self, root: str | os.PathLike[str], *, wait_s: float = 0.0, keep_generations: int = 5) -> None:
        if keep_generations < 1:
            raise UpdateError(f"keep_generations must be at least 1; got {keep_generations}")
        self.root = os.path.abspath(os.fspath(root))
        self._wait_s = wait_s
        self._keep = keep_generations
        self._transaction: Transaction | None = None

    def __enter__(self) -> Tree:
        os.makedirs(self.root, exist_ok=True)
        self._beneath = Beneath(self.root)
        try:
            self._beneath.mkdir(PRIVATE_DIR)
            self._lock = Lock(self._beneath)
            self._lock.acquire(self._wait_s)
            try:
                self._store = Store(self._beneath)
                self._committer = Committer(
                    self._beneath, self._lock.token, still_ours=self._lock.check, tidy=self._tidy
                )
                self._committer.recover()
                read_timeline(self._beneath)
            except BaseException:
                self._lock.release()
                raise
        except BaseException:
            self._beneath.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._lock.release()
        finally:
            self._beneath.close()

    @property
    def stage(self) -> str:
        """A directory on the same file system, for what is fetched before a transaction adopts it; crashes leave it."""
        self._beneath.mkdir(FETCH, 0o700)
        return os.path.join(self.root, FETCH)

    @property
    def generation(self) -> int:
        """The number of the current generation; 0 before the first change."""
        return read_timeline(self._beneath).current

    def need_space(self, size: int) -> None:
        """See that so many bytes can still be written.

        Raises:
            OSError: ENOSPC; there is less.
        """
        need_space(self._beneath, size)

    def transaction(
        self,
        label: Mapping[str, str] | None = None,
        *,
        known: Known | None = None,
    ) -> Transaction:
        """A change, to be used in a `with` block: committed at its end, given up if an exception leaves it.

        Args:
            label: stored with the generation, such as a version.
            known: what the caller knows of the tree; without it, files are hashed when they are replaced.

        Raises, at the end of the block:
            UpdateError: a file can't have its place.
            FileChangedError: a file that is to be replaced was written to meanwhile.
            LockedError: another process took the tree over.
            OSError: such as a full disk. After all of these the tree is as it was.
            RecoveryError: the commit could not be completed; the next use of the tree tries again.
        """
        self._begin()
        given, known = dict(label or {}), known or Known()
        self._transaction = Transaction(
            self._beneath,
            self._committer,
            known=known,
            finish=lambda change_set: self._commit(change_set, known, given),
        )
        return self._transaction

    def switch(
        self, to: int | None = None, *, edits: LocalChanges = "refuse", unchecked: Mapping[str, str] | None = None
    ) -> Commit:
        """Go back to a generation, or forward again, touching only what differs.

        Args:
            to: its number; by default the one before the current one.
            edits: what becomes of files that were changed since, by others, and that this would replace or remove:
                refuse to go, keep them aside as NAME.perfkit-local, or overwrite them.
            unchecked: files by name, with the SHA-256 in hex that they have now, which are not hashed on their way,
                since whoever reads them checks them: large ones that say something of the whole tree would make the
                way longer the larger that is.

        Returns:
            What changed. Later generations stay reachable until the next transaction.

        Raises:
            RollbackError: no such generation; a content is not kept, or damaged; or there are edits to be refused. The
                tree is as it was.
            LockedError, OSError, RecoveryError: as `transaction`.
        """
        timeline = read_timeline(self._beneath)
        self._begin()
        with self._preparing():
            way = plan_switch(self._beneath, self._committer, self._store, timeline, to=to, edits=edits,
                              unchecked=unchecked or {})  # fmt: skip
            after = replace(timeline, current=way.target)
            firm, rest = self._steps(way.change_set, way.change_set.changed(), after)
        self._committer.run(firm, rest, self._store.take_back)
        way.changes.sign(self._beneath)
        return Commit(way.target, way.changes, way.aside, way.overwritten, way.as_found)

    def history(self) -> list[Generation]:
        """The generations that `switch` can reach, oldest first.

        Raises:
            RollbackError: a record is damaged.
        """
        return generations(self._beneath, read_timeline(self._beneath))

    def prune(self, keep: int) -> None:
        """Keep only so many generations before the current one, and free what only the others need.

        Raises:
            UpdateError: a negative number.
            LockedError, OSError, RecoveryError: as `transaction`.
        """
        if keep < 0:
            raise UpdateError(f"can't keep {keep} generations")
        self._begin()
        timeline = read_timeline(self._beneath)
        with self._preparing():
            nothing = self._committer.change_set()
            firm, rest = self._steps(nothing, nothing.changed(), timeline.prune(keep))
        self._committer.run(firm, rest, self._store.take_back)

    def _begin(self) -> None:
        if self._transaction is not None and self._transaction.open:
            raise UpdateError(f"{self.root}: a transaction is open; end it first")
        self._committer.recover()
        self._beneath.forget()
        self._store.begin()
        self._committer.begin()

    def _commit(self, change_set: ChangeSet, known: Known, label: Mapping[str, str]) -> Commit:
        timeline = read_timeline(self._beneath)
        with self._preparing():
            as_found = prepare(self._beneath, self._store, known, change_set)
            changes, told = change_set.changed(), change_set.told()
            if not changes and not told:
                self._give_up()
                return Commit(timeline.current)
            record: list[Step] = []
            if told:
                timeline = timeline.commit(self._keep)
                staged = self._staged(record_of(timeline.current, label, told, as_found))
                record = [Step("mkdir", HISTORY), Step("put", record_path(timeline.current), staged)]
            firm, rest = self._steps(change_set, changes, timeline)
        firm = chain(firm, record)
        self._committer.run(firm, rest, self._store.take_back)
        changes.sign(self._beneath)
        return Commit(timeline.current, changes)

    def _steps(
        self, change_set: ChangeSet, changes: Changes, timeline: Timeline
    ) -> tuple[Iterator[Step], Iterator[Step]]:
        """How to make these changes, and to note where on the timeline the tree then is."""
        firm, rest = steps(self._beneath, change_set, changes.rows)
        state = [Step("put", STATE, self._staged(state_of(timeline)))]
        if self._beneath.lstat(STATE) is None:
            return chain(firm, state), rest
        return firm, chain(rest, state)

    def _staged(self, lines: Iterable[bytes]) -> str:
        name, fd = self._committer.stage_file()
        with open(fd, "wb") as file:
            file.writelines(lines)
        return name

    @contextlib.contextmanager
    def _preparing(self) -> Iterator[None]:
        """Up to the commit, any exception gives the change up; from there on the committer answers for it."""
        try:
            yield
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        with contextlib.suppress(LockedError):
            self._lock.check()
            self._store.take_back()
        self._committer.discard()

    def _tidy(self) -> None:
        """Remove the records and contents that no reachable generation needs."""
        try:
            timeline = read_timeline(self._beneath)
            forget_others(self._beneath, timeline)
            self._store.sweep(needed_objects(self._beneath, timeline))
        except (PerfkitError, OSError) as error:
            _log.warning("%s: old generations were not tidied: %s", self.root, error)
