"""The commit: once the journal has its name, everything it refers to is safe on disk and will be applied.

The order is what matters: staged files and the journal are synced; the journal gets its name (the commit point); its
operations are applied; the directories are synced; the journal is deleted. After a crash, the next opening deletes the
staged files if the commit point was not reached, and otherwise applies the journal. If an operation fails, all are
undone; a crash during that counts as one after the commit point. Applying and undoing can be repeated any number of
times.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, groupby, islice
from typing import IO

from perfkit.errors import FileChangedError, LockedError, RecoveryError, UnsafePathError, UpdateError
from perfkit.filesystem.own_files import create_unnamed
from perfkit.filesystem.rootdir import RootDir, closing_fd
from perfkit.filesystem.thread_map import cached_property
from perfkit.libc import holds_modes, sync_directory, sync_file, syncfs
from perfkit.transactions import layout
from perfkit.transactions.changeset import Changes, ChangeSet
from perfkit.transactions.history import History, Timeline, state_lines
from perfkit.transactions.journal import check_ops, read_ops, write_ops
from perfkit.transactions.journal_ops import (
    apply_op,
    modified_directories,
    plan_ops,
    previous_file,
    stage_again,
    undo_op,
)
from perfkit.transactions.lock import Lock
from perfkit.transactions.object_store import ObjectStore, link_or_copy, open_regular
from perfkit.transactions.prepare import take_staged
from perfkit.transactions.records import DELETE, MKDIR, RENAME, RMDIR, JournalOp
from perfkit.transactions.replaceable import check_replaceable

_FEW = 8  # files to fsync one by one; for more, one syncfs is faster (docs/adr/0003-transactions.md)

_REFUSED = {errno.EPERM, errno.EACCES, errno.EBUSY, errno.EROFS, errno.EXDEV, errno.ETXTBSY}

_log = logging.getLogger(__name__)


class Committer:
    """Stages, commits and recovers the changes of one tree, while its lock is held."""

    def __init__(self, rootdir: RootDir, lock: Lock, store: ObjectStore, history: History) -> None:
        self.rootdir = rootdir  # of the tree
        self.store = store
        self.history = history
        self._lock = lock
        self._staging = layout.staging_directory(lock.token)  # so that not even two unlocked processes share one
        self._count = 0

    @cached_property
    def holds_modes(self) -> bool:
        """Whether the file system keeps executable bits; otherwise modes are not compared."""
        return holds_modes(os.path.join(self.rootdir.root, layout.LOCK))

    def begin(self) -> None:
        """Begin a change: complete an earlier one if necessary, and create the staging directory.

        As long as that exists, a crash is known to have left files to clean up.

        Raises:
            RecoveryError: as `recover`.
        """
        self.recover()
        self.rootdir.close_cached()
        self.rootdir.mkdir(self._staging, 0o700)

    def new_staged_name(self) -> str:
        """An unused name for a staged file."""
        self._count += 1
        return f"{self._staging}/{self._count}"

    def create_staged_file(self, mode: int = 0o600) -> tuple[str, int]:
        """Create a staged file, with this mode in case it can't be set later; returns its name and a descriptor."""
        name = self.new_staged_name()
        try:
            return name, self.rootdir.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode & 0o777)
        except FileNotFoundError:
            self._lock.check()  # another process took over the tree, and deleted our files
            raise

    def stage_link(self, name: str, fd: int) -> str:
        """Stage the content of the open file `name`, by a hard link if possible; returns the staged name."""
        staged = self.new_staged_name()
        link_or_copy(self.rootdir, name, fd, staged)
        return staged

    def _stage_lines(self, lines: Iterable[bytes]) -> str:
        name, fd = self.create_staged_file(0o644)
        with open(fd, "wb") as file:
            file.writelines(lines)
        return name

    def new_change_set(self) -> ChangeSet:
        """A change set whose new files are staged here, or were fetched."""
        create_file = partial(create_unnamed, os.path.join(self.rootdir.root, self._staging))
        return ChangeSet(f"{self._staging}/", layout.FETCHED_OBJECT, create_file, modes=self.holds_modes)

    @contextlib.contextmanager
    def preparing(self) -> Iterator[None]:
        """A block before the commit: an error in it aborts the change. After an interrupt, the end of the tree's block
        does, since this one may be closed even later.
        """
        try:
            with self.rootdir.remember_missing():
                yield
        except Exception:
            self.abort()
            raise

    def abort(self) -> None:
        """Abort a change that is not committed: delete its staged files, and the objects that were kept for it."""
        with contextlib.suppress(LockedError):  # then the objects belong to the new owner
            self._lock.check()
            self.history.delete_unreachable()
        self.discard_staged()

    def discard_staged(self) -> None:
        """Delete the staged files; what can't be deleted now is left to the next opening."""
        self._delete_staging(self._staging)

    def _delete_staging(self, staging: str) -> None:
        try:
            self._empty(staging)
            self.rootdir.rmdir(staging)
        except OSError as error:
            _log.warning("%s: could not delete staged files: %s", self.rootdir.root, error)

    def _empty(self, directory: str) -> None:
        for name in self.rootdir.iterdir(directory):
            self.rootdir.unlink(f"{directory}/{name}")

    def stage_journal(
        self, change_set: ChangeSet, changes: Changes, timeline: Timeline, record: Iterable[bytes] | None = None
    ) -> str:
        """Write the journal of a change, and what else it refers to, in a block of `preparing`; returns its staged
        name. Until the commit, only the staged files that it names may still be written.

        Args:
            changes: those of the change set that are made on disk.
            timeline: the tree's timeline after the commit.
            record: lines of the record of the new generation, if there is one.
        """
        ops = self._operations(change_set, changes, timeline, record)
        name, fd = self.create_staged_file()
        with open(fd, "wb") as file:
            write_ops(file, ops)
        return name

    def commit(self, journal: str, change_set: ChangeSet, changes: Changes) -> None:
        """Make the changes of a staged journal, all or none, and then free what no generation needs any more.

        Raises:
            LockedError: another process took over the tree; nothing was changed.
            OSError: the disk failed or is full; nothing was changed.
            FileChangedError: others changed a file during the commit, and everything else was undone.
            UpdateError: a file can't be replaced, and everything else was undone.
            RecoveryError: it failed after the commit point, and so did undoing it; the next opening tries again.
        """
        with self.preparing():
            self.rootdir.close_cached()  # since the journal was staged, others may have moved some
            self._lock.check()  # or what is staged is gone
            take_staged(self.rootdir, change_set)
            replaced = (change_set.name(row) for row in changes.rows if not change_set.is_new(row))
            check_replaceable(self.rootdir, replaced, (change_set.name(row) for row in changes.rows))
        try:
            self._pass_commit_point(journal)
            failure = self._apply()
        except RecoveryError:
            raise
        except LockedError:
            self.discard_staged()  # everything else belongs to the new owner
            raise
        except BaseException:
            # An interrupt may have come before or after the commit point: what is on disk decides.
            if self.rootdir.lstat(layout.JOURNAL) is not None:
                self.recover()
            else:
                self.history.delete_unreachable()
            self.discard_staged()
            raise
        if failure is not None:
            self.discard_staged()
            raise failure

    def _operations(
        self, change_set: ChangeSet, changes: Changes, timeline: Timeline, record: Iterable[bytes] | None
    ) -> Iterator[JournalOp]:
        """The operations that make the changes, and store the record and the timeline."""
        record_ops: list[JournalOp] = []
        if record is not None:
            staged_record = self._stage_lines(record)
            record_ops = [
                JournalOp(MKDIR, layout.HISTORY),
                JournalOp(RENAME, layout.record_path(timeline.current), staged_record),
            ]
        first, last = plan_ops(self.rootdir, change_set, changes.rows)
        staged_state = self._stage_lines(state_lines(timeline))
        found = self.rootdir.lstat(layout.STATE)
        if found is None:  # a new name, which may need disk space
            return chain(first, record_ops, [JournalOp(RENAME, layout.STATE, staged_state)], last)
        previous = previous_file(self.store.keep(layout.STATE), found.st_mtime_ns, found.st_ino)
        return chain(first, record_ops, last, [JournalOp(RENAME, layout.STATE, staged_state, previous)])

    def _open_journal(self, name: str = layout.JOURNAL) -> IO[bytes]:
        return open(open_regular(self.rootdir, name), "rb")

    def _pass_commit_point(self, name: str) -> None:
        """Sync everything, then give the journal its name."""
        with self._open_journal(name) as written:
            files = chain.from_iterable(map(_files, read_ops(written)))
            try:
                self._sync(chain([name], files), {"", layout.PRIVATE_DIR, layout.OBJECTS, self._staging})
            except OSError:
                self._discard_fetched()  # what was lost may still seem to be there, and no further sync would tell
                raise
        self._lock.check()
        # link(2), not rename(2): it fails if there is a journal, which only a process that does not see our lock can
        # have written.
        try:
            self.rootdir.link(name, layout.JOURNAL)
        except FileExistsError as error:
            raise LockedError(f"{self.rootdir.root}: another process is committing a change; try again") from error
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            self.rootdir.rename(name, layout.JOURNAL)
        try:
            sync_directory(self.rootdir.directory(layout.PRIVATE_DIR))
        except OSError:
            self.rootdir.unlink(layout.JOURNAL)
            sync_directory(self.rootdir.directory(layout.PRIVATE_DIR))
            raise

    def _discard_fetched(self) -> None:
        try:
            self._empty(layout.FETCH)
        except OSError as error:
            _log.warning("%s: could not delete fetched files: %s", self.rootdir.root, error)

    def recover(self) -> None:
        """Complete or discard what a crash left.

        Raises:
            RecoveryError: that is impossible; the tree is incomplete, and the journal stays.
        """
        self._lock.check()
        self.rootdir.close_cached()
        interrupted = self.rootdir.lstat(layout.JOURNAL) is not None
        if interrupted:
            self._complete()
        staged = [entry for entry in self.rootdir.listdir(layout.PRIVATE_DIR) if layout.is_staging(entry)]
        if staged and not interrupted:
            self.history.delete_unreachable()  # before deleting them: they show that this is necessary
        for entry in staged:
            self._delete_staging(f"{layout.PRIVATE_DIR}/{entry}")

    def _complete(self) -> None:
        """Complete an interrupted commit."""
        _log.info("%s: completing an interrupted change", self.rootdir.root)
        try:
            with self._open_journal() as file:
                check_ops(file)
        except ValueError as error:
            raise RecoveryError(
                f"{self.rootdir.root}: an interrupted change can't be completed, because its journal is {error}; "
                f"remove {layout.JOURNAL} to discard the change, then check the files"
            ) from error
        if (failure := self._apply(again=True)) is not None:
            _log.warning("%s: an interrupted change was undone: %s", self.rootdir.root, failure)

    def _apply(self, *, again: bool = False) -> Exception | None:
        """Apply the operations and delete the journal; or undo them, delete the journal, and return the reason.

        Args:
            again: after a crash.
        """
        failure: Exception | None = None
        modified = {"", layout.PRIVATE_DIR}  # directories to sync
        count = 0
        try:
            with self._open_journal() as file:
                for op in read_ops(file):
                    modified.update(modified_directories(op))
                    try:
                        apply_op(self.rootdir, op, again=again)
                    except (OSError, UnsafePathError, FileChangedError) as error:
                        failure = _explained(op, error)
                        break
                    count += 1
            if failure is not None:
                self._undo(modified)
            self._sync(iter(()), modified)
            self.rootdir.unlink(layout.JOURNAL)
            sync_directory(self.rootdir.directory(layout.PRIVATE_DIR))
        except (OSError, UnsafePathError, UpdateError) as error:
            undone = "" if failure is None else f"{failure}; and it could not be undone: "
            raise RecoveryError(
                f"{self.rootdir.root}: the change could not be completed: {undone}{error}; "
                "fix the cause, and the next change of the tree will complete it first"
            ) from error
        self.history.delete_unreachable()
        if failure is None:
            self.discard_staged()
            _log.debug("%s: committed in %d operations", self.rootdir.root, count)
        return failure

    def _undo(self, modified: set[str]) -> None:
        """Undo all operations, the last one first: after a crash it is not known which were applied."""
        with self._open_journal() as file:
            ops = list(read_ops(file))
        for op in ops:
            stage_again(self.rootdir, op)
        modified.update(os.path.dirname(op.source) for op in ops)
        self._sync(iter(()), modified)
        for kind, group in groupby(reversed(ops), key=lambda op: op.kind):
            if kind == MKDIR:  # what was moved out of directories must be safe before they are removed
                self._sync(iter(()), modified)
            for op in group:
                modified.update(modified_directories(op))
                undo_op(self.rootdir, op)

    def _sync(self, files: Iterator[str], directories: set[str]) -> None:
        """Sync these to disk. An error is final: it is reported once only, and dirty pages may be lost (fsync(2))."""
        few = list(islice(files, _FEW + 1))
        directories = {*directories, *map(os.path.dirname, few)}
        if len(few) + len(directories) > _FEW and syncfs(self.rootdir.fd):
            return
        for name in chain(few, files):
            with closing_fd(self.rootdir.open(name)) as fd:
                sync_file(fd)
            directories.add(os.path.dirname(name))
        for name in sorted(directories):
            try:
                sync_directory(self.rootdir.directory(name))
            except (FileNotFoundError, NotADirectoryError):
                pass  # removed by this change itself


def _files(op: JournalOp) -> Iterator[str]:
    """The files that an operation, or undoing it, needs."""
    if op.source:
        yield op.source
    if op.previous is not None and op.previous.stored:
        yield op.previous.stored


def _explained(op: JournalOp, error: OSError | UnsafePathError | FileChangedError) -> Exception:
    """An error of an operation that was undone, with the name of the file."""
    if not isinstance(error, OSError):
        return error
    if error.errno in _REFUSED:
        verb = {MKDIR: "created", RMDIR: "removed", DELETE: "removed"}.get(op.kind, "replaced")
        failure = UpdateError(
            f"{op.name} can't be {verb if op.previous else 'created'}: {error.strerror}; the tree was not changed"
        )
        failure.__cause__ = error
        return failure
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        reason = "the directory was removed or replaced during the update; nothing was changed, retry"
        return FileChangedError(op.name, reason)
    return error
