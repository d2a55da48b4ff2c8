"""A managed directory: one writer at a time, all-or-nothing changes, and rollback to earlier generations."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from types import TracebackType

from perfkit.config import LocalChanges
from perfkit.errors import UpdateError
from perfkit.filesystem.rootdir import RootDir, closing_fd
from perfkit.transactions.commit import Committer
from perfkit.transactions.history import Generation, History, Pruned
from perfkit.transactions.layout import (
    ANNOUNCED,
    CLOCK,
    FETCH,
    LAST_SYNC,
    LOCK,
    OBJECTS,
    OWNER,
    PRIVATE_DIR,
    is_private,
)
from perfkit.transactions.lock import Lock
from perfkit.transactions.object_store import ObjectStore, shares_content
from perfkit.transactions.prepare import Known
from perfkit.transactions.rollback import rollback
from perfkit.transactions.transaction import Commit, Transaction

_NOT_WORTH_KEEPING = 64 << 10  # bytes


class Tree:
    """A directory that changes all at once. Inside the `with` block, one thread holds its lock.

    perfkit's own files are in its subdirectory `.perfkit`. Entering the block completes or discards what a crash left.

    Args:
        root: the directory; created if necessary.
        wait_s: how long to wait for another process or thread that is changing it.
        keep_generations: how many generations before the current one can be restored; at least 1.
        trust_other_owners: use a `.perfkit` that belongs to another user, who can then have files of this tree
            replaced and deleted.

    Raises:
        LockedError: another process or thread is changing it.
        RecoveryError: what a crash left can be neither completed nor discarded.
        UnsafePathError: `.perfkit` is a symbolic link.
        UpdateError: it belongs to another user.
        OSError: such as missing permissions.

    Attributes:
        rootdir: access to its files, inside the block.
    """

    rootdir: RootDir

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        wait_s: float = 0.0,
        keep_generations: int = 5,
        trust_other_owners: bool = False,
    ) -> None:
        self.root = os.path.abspath(os.fspath(root))
        self._wait_s = wait_s
        self._keep_generations = keep_generations
        self._trust_other_owners = trust_other_owners
        self._transaction: Transaction | None = None
        self._close: Callable[[], None] | None = None

    def __enter__(self) -> Tree:
        os.makedirs(self.root, exist_ok=True)
        try:
            self.rootdir = RootDir(self.root)
            self._close = self.rootdir.close
            self._open_private()
            self._lock = Lock(self.rootdir)
            self._close = self._lock.close
            self._lock.acquire(self._wait_s)
            store = ObjectStore(self.rootdir)
            self._history = History(self.rootdir, store)
            self._committer = Committer(self.rootdir, self._lock, store, self._history)
            self._committer.recover()
            self._history.timeline()  # raises if it is damaged
        except BaseException:
            self.close()
            raise
        return self

    def _open_private(self) -> None:
        """Create `.perfkit`, unless it exists, and check whose it is."""
        while True:
            self._new = self.rootdir.mkdir(PRIVATE_DIR)
            try:
                return self._check_owner()
            except FileNotFoundError:  # removed by a process whose first change failed
                self.rootdir.close_cached()

    def _check_owner(self) -> None:
        """Check that `.perfkit` belongs to root, to this user, or to the user who called sudo(8)."""
        directory = self.rootdir.directory(PRIVATE_DIR)
        owner, user = os.fstat(directory).st_uid, os.geteuid()
        by_sudo = user == 0 and os.environ.get("SUDO_UID") == str(owner)
        if owner in (user, 0) or by_sudo or self._trust_other_owners or _owner_of_new_file(directory) == owner:
            return
        if self._new:
            self.rootdir.rmdir(PRIVATE_DIR)
        raise UpdateError(
            f"{self.root}: {PRIVATE_DIR} belongs to the user with ID {owner}, who could have any file of the tree "
            "replaced or deleted by this command; run it as that user, or set trust_other_owners"
        )

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is not None:
                with contextlib.suppress(OSError, UpdateError):
                    if not issubclass(kind, Exception):  # an interrupt can come anywhere: what is on disk decides
                        self._committer.recover()
                    self._remove_unused()
            if self.rootdir.owner is not None:
                self._hand_over()
        finally:
            self.close()

    def close(self) -> None:
        """Release the lock, and close the descriptors. May be called again: a signal as `__exit__` begins skips it."""
        if self._close is not None:
            self._close()

    def _hand_over(self) -> None:
        """Make the owner of the tree the owner of perfkit's own files, after root changed the tree."""
        for directory in (PRIVATE_DIR, FETCH):
            for leaf in self.rootdir.listdir(directory):
                name = f"{directory}/{leaf}"
                with contextlib.suppress(OSError), closing_fd(self.rootdir.open(name)) as descriptor:
                    self.rootdir.hand_over(descriptor)

    def _remove_unused(self) -> None:
        """Remove what a failed first change created, unless it fetched enough to be worth keeping.

        A tree that has changed before is left alone. The record of the failure stays, and so does the root: others may
        be waiting for its lock.
        """
        self._lock.check()
        expected = {
            path.rpartition("/")[2] for path in (ANNOUNCED, CLOCK, FETCH, LAST_SYNC, LOCK, OBJECTS, OWNER)
        }  # no state, no journal
        fetched = [f"{FETCH}/{name}" for name in self.rootdir.listdir(FETCH)]
        sizes = (found.st_size for name in fetched if (found := self.rootdir.lstat(name)))
        if not expected.issuperset(self.rootdir.listdir(PRIVATE_DIR)) or sum(sizes) > _NOT_WORTH_KEEPING:
            return
        for name in (*fetched, ANNOUNCED, CLOCK, OWNER):
            self.rootdir.unlink(name)
        self.rootdir.rmdir(FETCH)
        self.rootdir.rmdir(OBJECTS)
        self.rootdir.unlink(LOCK)  # from here on, another change may begin
        self.rootdir.rmdir(PRIVATE_DIR)

    @property
    def fetch_directory(self) -> str:
        """The path of a directory on the same file system, for files to `expect`; it survives a crash."""
        self.rootdir.mkdir(FETCH, 0o700)
        return os.path.join(self.root, FETCH)

    @property
    def generation(self) -> int:
        """The number of the current generation; 0 before the first change."""
        return self._history.timeline().current

    def step_back_removes(self, name: str) -> bool:
        """Whether going back by one generation removes this file.

        Raises:
            RollbackError: a record is damaged, or there is no earlier generation.
        """
        timeline = self._history.timeline()
        timeline.resolve(None)
        added = [change.name == name and change.before is None for change in self._history.changes(timeline.current)]
        return any(added)

    def changed_since(self, generation: int) -> list[str] | None:
        """The names of files that differ from an earlier or a later generation; None if it is not kept.

        Raises:
            RollbackError: a record is damaged.
        """
        timeline = self._history.timeline()
        if generation not in timeline.chain:
            return None
        numbers, undo = timeline.at(generation).path(timeline.current)
        self._begin()
        try:
            changes = self._committer.new_change_set()
            self._history.changes_between(numbers, undo=undo, into=changes)
            return [name for name in map(changes.name, changes.rows()) if not is_private(name)]
        finally:
            self._committer.discard_staged()

    def shares_content(self) -> tuple[bool, bool]:
        """Whether replaced files are kept as hard links, and whether copies are reflinks; neither uses space."""
        return shares_content(self.rootdir, OWNER, f"{OWNER}~")

    def transaction(self, label: Mapping[str, str] | None = None, *, known: Known | None = None) -> Transaction:
        """A change, for a `with` block: committed at its end, aborted if an exception leaves it.

        Args:
            label: stored with the generation, such as a version.
            known: what the caller knows about the tree; without it, files are hashed when they are replaced.

        Raises, at the end of the block:
            UpdateError: something is in the way of a new file.
            FileChangedError: a file that is to be replaced was modified during the change.
            LockedError: another process took over the tree.
            OSError: such as a full disk. After any of these, the tree is as it was.
            RecoveryError: the commit could not be completed; the next change of the tree tries again.
        """
        self._begin()
        self._transaction = Transaction(
            self._committer,
            known=known or Known(),
            label=dict(label or {}),
            keep_generations=self._keep_generations,
        )
        return self._transaction

    def rollback(
        self, to: int | None = None, *, edits: LocalChanges = "refuse", unchecked: Mapping[str, str] | None = None
    ) -> Commit:
        """Go back to a generation, or forward again, changing only the files that differ.

        Args:
            to: its number; by default the one before the current one.
            edits: what to do with files that others have edited since, and that this would replace or remove: refuse
                to roll back, keep them as NAME.perfkit-local, or overwrite them.
            unchecked: files that are not verified: by name, the SHA-256 in hex that they have now. These are large
                files that describe the whole tree, and that their readers verify; if they were hashed, the time of a
                rollback would grow with the tree.

        Returns:
            What changed. Later generations stay reachable until the next transaction.

        Raises:
            RollbackError: there is no such generation; an object that it needs is missing or damaged; or files were
                edited and `edits` is "refuse". The tree is as it was.
            LockedError, OSError, RecoveryError: as `transaction`.
        """
        self._begin()
        return rollback(self._committer, to=to, edits=edits, unchecked=unchecked or {})

    def history(self) -> list[Generation]:
        """The generations that `rollback` can reach, oldest first.

        Raises:
            RollbackError: a record is damaged.
        """
        return self._history.generations()

    def prune(self, keep: int) -> Pruned:
        """Keep only `keep` generations before the current one, and delete what only the others need.

        Raises:
            UpdateError: `keep` is negative.
            RollbackError: a record is damaged.
            LockedError, OSError, RecoveryError: as `transaction`.
        """
        timeline = self._history.timeline().prune(keep)
        pruned = self._history.freed_by(timeline)
        self._begin()
        with self._committer.preparing():
            nothing = self._committer.new_change_set()
            changes = nothing.disk_changes()
            journal = self._committer.stage_journal(nothing, changes, timeline)
        self._committer.commit(journal, nothing, changes)
        return pruned

    def _begin(self) -> None:
        if self._transaction is not None and self._transaction.open:
            raise UpdateError(f"{self.root}: a transaction is open; end it first")
        self._committer.begin()


def _owner_of_new_file(directory: int) -> int:
    """The owner that a new file gets: on some mounts all files have one owner, whoever creates them."""
    name = f"owner~{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with closing_fd(os.open(name, flags, 0o600, dir_fd=directory)) as fd:
        os.unlink(name, dir_fd=directory)
        return os.fstat(fd).st_uid
