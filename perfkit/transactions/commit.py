"""The commit: a journal that is there says that everything it names is safe on disk and will be done.

Order is all. The staged files and the journal reach the disk; the journal takes its name (the commit point); the
steps are done; the directories reach the disk; the journal goes. A crash before the commit point leaves a stage that is
thrown away, one after it a journal that is carried out at the next opening. Both can be done any number of times.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice

from perfkit.errors import LockedError, RecoveryError, UnsafePathError, UpdateError
from perfkit.filesystem.rootdir import Beneath
from perfkit.libc import syncfs
from perfkit.transactions.changeset import ChangeSet
from perfkit.transactions.journal import Journal
from perfkit.transactions.layout import FETCHED_OBJECT, JOURNAL, OBJECTS, PRIVATE_DIR, is_stage, stage_directory
from perfkit.transactions.object_store import link_or_copy, open_regular
from perfkit.transactions.records import Step

__all__ = ["Committer"]

_FEW = 8  # files to fsync one by one; for more, one syncfs is faster (docs/adr/0003-transactions.md)

_log = logging.getLogger(__name__)


class Committer:
    """Stages and commits the changes of one tree; held by the one that holds the tree's lock.

    Args:
        token: names the stage, so that not even two unlocked processes share one.
        still_ours: raises if another process took the tree over.
        tidy: removes what nothing needs after a commit; called while the journal still stands.
    """

    def __init__(
        self, beneath: Beneath, token: str, *, still_ours: Callable[[], None], tidy: Callable[[], None]
    ) -> None:
        self._beneath = beneath
        self._stage = stage_directory(token)
        self._still_ours = still_ours
        self._tidy = tidy
        self._count = 0
        self._retiring = False  # the change is done, and only its journal is still to go

    def begin(self) -> None:
        """Make the stage: as long as it is there, a crash is known to have left things to clear away."""
        self._beneath.mkdir(self._stage, 0o700)

    def stage(self) -> str:
        """A name for one more staged file."""
        self._count += 1
        return f"{self._stage}/{self._count}"

    def stage_file(self) -> tuple[str, int]:
        """A new staged file: its name, and a descriptor to read and write it."""
        name = self.stage()
        try:
            return name, self._beneath.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except FileNotFoundError:
            self._still_ours()  # another took the tree over, and threw our stage away
            raise

    def change_set(self) -> ChangeSet:
        """For changes whose new files are staged here, or were fetched."""
        return ChangeSet(staged=f"{self._stage}/", fetched=FETCHED_OBJECT)

    def discard(self) -> None:
        """Remove the stage; what can't be removed now waits for the next opening."""
        self._remove_stage(self._stage)

    def _remove_stage(self, stage: str) -> None:
        try:
            for name in self._beneath.names(stage):
                self._beneath.unlink(f"{stage}/{name}")
            self._beneath.rmdir(stage)
        except OSError as error:
            _log.warning("%s: leftovers could not be removed: %s", self._beneath.root, error)

    def run(self, firm: Iterable[Step], rest: Iterable[Step], abandon: Callable[[], None]) -> None:
        """Carry out these steps, all or none.

        Args:
            firm: steps that can be taken back: new directories and files, and what must go to make room for them.
            rest: steps that need no space: replacements and removals. Both are read once.
            abandon: takes back what was prepared outside the stage, when the change is given up.

        Raises:
            LockedError: another process took the tree over; nothing was changed.
            OSError: the disk failed or is full; nothing was changed.
            RecoveryError: it failed after the commit point; the next opening completes it.
        """
        self._retiring = False
        try:
            self._write_journal(firm, rest)
            done = self._carry_out(self._journal())
        except RecoveryError:
            raise
        except LockedError:
            self.discard()  # what else there is belongs to the other now
            raise
        except BaseException:
            # An interrupt may have come on either side of the commit point: what is on disk decides.
            if self.committed:
                self.recover()
            elif not self._retiring:
                abandon()
            self.discard()
            raise
        if done is not None:
            abandon()
            self.discard()
            raise done

    def _journal(self, name: str = JOURNAL) -> Journal:
        return Journal(lambda: open(open_regular(self._beneath, name), "rb"))

    def _write_journal(self, firm: Iterable[Step], rest: Iterable[Step]) -> None:
        name, fd = self.stage_file()
        with open(fd, "wb") as file:
            Journal.write(file, firm, rest)
        with self._journal(name).steps() as (written_firm, written_rest):
            sources = (step.source for step in chain(written_firm, written_rest) if step.source)
            self._sync(chain([name], sources), {"", PRIVATE_DIR, OBJECTS, self._stage})
        self._still_ours()
        # link(2) and not rename: it fails if there is a journal, which only one that does not see our lock can make.
        try:
            self._beneath.link(name, JOURNAL)
        except FileExistsError as error:
            raise LockedError(f"{self._beneath.root}: another process is committing a change; start again") from error
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            self._beneath.rename(name, JOURNAL)
        try:
            os.fsync(self._beneath.directory(PRIVATE_DIR))
        except OSError:
            self._beneath.unlink(JOURNAL)
            os.fsync(self._beneath.directory(PRIVATE_DIR))
            raise

    @property
    def committed(self) -> bool:
        """Whether a change is past its commit point and not yet completed."""
        return self._beneath.lstat(JOURNAL) is not None

    def recover(self) -> None:
        """Complete or discard what a crash left.

        Raises:
            RecoveryError: it can't be; the tree is not whole, and the journal stays.
        """
        self._still_ours()
        self._beneath.forget()
        found = self._beneath.lstat(JOURNAL) is not None
        if found:
            _log.info("%s: completing an interrupted change", self._beneath.root)
            journal = self._journal()
            try:
                journal.check()
            except (ValueError, TypeError) as error:
                raise RecoveryError(
                    f"{self._beneath.root}: an interrupted change can't be completed, its journal is {error}; "
                    f"remove {JOURNAL} to give it up, and check the files"
                ) from error
            if (failed := self._carry_out(journal)) is not None:
                _log.warning("%s: an interrupted change was given up: %s", self._beneath.root, failed)
        litter = [entry for entry in self._beneath.names(PRIVATE_DIR) if is_stage(entry)]
        if litter and not found:
            self._tidy()  # before the stage goes: it tells the next one that there is something to tidy
        for entry in litter:
            self._remove_stage(f"{PRIVATE_DIR}/{entry}")

    def _carry_out(self, journal: Journal) -> Exception | None:
        """Do the steps and retire the journal; or undo them, retire it, and return why."""
        failed: Exception | None = None
        touched = {"", PRIVATE_DIR}  # directories whose entries the steps change
        done = 0
        try:
            with journal.steps() as (firm, rest):
                try:
                    for step in firm:
                        touched.update(_touched(step))
                        self._do(step)
                        done += 1
                except (OSError, UnsafePathError) as error:
                    failed = error
                for step in rest if failed is None else ():
                    touched.update(_touched(step))
                    self._do(step)
                    done += 1
            if failed is not None:
                self._undo_all(journal, touched)
            self._sync(iter(()), touched)
            self._tidy()
            self._retiring = True
            self._beneath.unlink(JOURNAL)
            os.fsync(self._beneath.directory(PRIVATE_DIR))
        except (OSError, UnsafePathError, UpdateError) as error:
            raise RecoveryError(
                f"{self._beneath.root}: the change could not be completed: {error}; "
                "when the cause is gone, the next use of the tree completes it"
            ) from error
        if failed is None:
            self.discard()
            _log.debug("%s: %d steps committed", self._beneath.root, done)
        return failed

    def _undo_all(self, journal: Journal, touched: set[str]) -> None:
        with journal.steps() as (firm, _):
            for step in reversed(list(firm)):
                touched.update(_touched(step))
                self._undo(step)

    def _do(self, step: Step) -> None:
        beneath = self._beneath
        if step.kind == "mkdir":
            beneath.mkdir(step.name)
        elif step.kind == "rmdir":
            beneath.rmdir(step.name)
        elif step.kind == "drop":
            found = beneath.lstat(step.name)
            if found is not None and _is(found, step):
                beneath.unlink(step.name)
        else:
            try:
                beneath.rename(step.source, step.name)
            except FileNotFoundError:
                if beneath.lstat(step.source) is not None:
                    raise  # it is the directory that is missing

    def _undo(self, step: Step) -> None:
        beneath = self._beneath
        if step.kind == "mkdir":
            beneath.rmdir(step.name)
        elif step.kind == "rmdir":
            beneath.mkdir(step.name)
        elif step.kind == "drop":
            if beneath.lstat(step.name) is not None:
                return
            if not step.source:  # an empty file
                os.close(beneath.open(step.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
            else:
                fd = open_regular(beneath, step.source)
                try:
                    link_or_copy(beneath, step.source, fd, step.name)
                finally:
                    os.close(fd)
        elif beneath.lstat(step.source) is None and beneath.lstat(step.name) is not None:
            beneath.rename(step.name, step.source)

    def _sync(self, files: Iterator[str], directories: set[str]) -> None:
        """See that these are on disk. An error is final: it is reported once, and the pages may be lost."""
        few = list(islice(files, _FEW + 1))
        directories = {*directories, *map(os.path.dirname, few)}
        if len(few) + len(directories) > _FEW and syncfs(self._beneath.fd):
            return
        for name in chain(few, files):
            fd = self._beneath.open(name)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            directories.add(os.path.dirname(name))
        for name in sorted(directories):
            try:
                os.fsync(self._beneath.directory(name))
            except (FileNotFoundError, NotADirectoryError):
                pass  # removed by this very change


def _is(found: os.stat_result, step: Step) -> bool:
    """Whether this is still the file that the step is about, and not one that came after the crash."""
    return stat.S_ISREG(found.st_mode) and (found.st_size, found.st_mtime_ns) == (step.size, step.mtime_ns)


def _touched(step: Step) -> tuple[str, ...]:
    """The directories whose entries a step changes."""
    directory = step.name.rpartition("/")[0]
    return (directory, step.name) if step.kind == "mkdir" else (directory,)
