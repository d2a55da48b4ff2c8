"""A rollback: which files change, what happens to edited ones, where the contents come from, and the commit."""

from __future__ import annotations

import contextlib
import os
import stat
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence

from perfkit.config import LocalChanges
from perfkit.errors import RollbackError, UpdateError
from perfkit.filesystem.compact import DigestSet, sort_numbers
from perfkit.filesystem.paths import backup_name, fold_name
from perfkit.filesystem.rootdir import closing_fd
from perfkit.libc import set_mode
from perfkit.transactions.changeset import ChangeSet, StagedFile
from perfkit.transactions.commit import Committer
from perfkit.transactions.journal_ops import check_conflicts
from perfkit.transactions.layout import object_path
from perfkit.transactions.object_store import EMPTY, copy_into, digest_of, open_regular
from perfkit.transactions.records import Content, Seen
from perfkit.transactions.transaction import Commit

_MAX_SHOWN = 5  # names in an error


def rollback(committer: Committer, *, to: int | None, edits: LocalChanges, unchecked: Mapping[str, str]) -> Commit:
    """Commit the changes from the current generation to another; the cost depends on how much they differ.

    The caller has called `Committer.begin`. See `Tree.rollback`, also for the arguments.
    """
    with committer.preparing():
        timeline = committer.history.timeline()
        target = timeline.resolve(to)
        numbers, undo = timeline.path(target)
        change_set = committer.new_change_set()
        with_edits = committer.history.changes_between(numbers, undo=undo, into=change_set)
        edited, replaced = _compare(committer, change_set, unchecked)
        if edited and edits == "refuse":
            raise RollbackError(
                f"{_shown([*map(change_set.name, edited)])}: changed since the last update; set local_changes to "
                "'keep' or 'overwrite' to roll back"
            )
        check_conflicts(committer.rootdir, change_set)
        _Restorer(committer, replaced, unchecked).stage_all(change_set, target)
        restored = change_set.disk_changes()
        saved_as = _save_edited(committer, change_set, edited) if edits == "keep" else {}
        changes = change_set.disk_changes()  # those between the generations, and the edited files it saves
        journal = committer.stage_journal(change_set, changes, timeline.at(target))
    committer.commit(journal, change_set, changes)
    overwritten = tuple(map(change_set.name, edited)) if edits == "overwrite" else ()
    return Commit(target, restored, saved_as, overwritten, tuple(sorted(with_edits)))


def _compare(
    committer: Committer, change_set: ChangeSet, unchecked: Mapping[str, str]
) -> tuple[Sequence[int], Sequence[int]]:
    """Compare the tree with what is wanted, and keep what is going to be replaced.

    Names that are already as wanted are dropped from the change set. Returns the rows whose file has neither the
    content of the current generation nor the wanted one, and the sorted inodes of the files that are replaced or
    removed, an inode once for each.
    """
    edited, replaced = array("I"), array("Q")
    renamed = set()  # where case is ignored: names that get another spelling
    if committer.rootdir.folds_case:
        rows = change_set.rows()
        renamed = {fold_name(change_set.name(row)) for row in rows if not change_set.is_written(row)}
    for row in change_set.rows():
        name, wanted = change_set.name(row), change_set.after(row)
        found = committer.rootdir.lstat(name)
        if renamed and wanted is not None and fold_name(name) in renamed:
            found = None
        before = None
        if found is not None and not stat.S_ISDIR(found.st_mode):
            sha256 = unchecked.get(name)
            seen = Seen(sha256, found.st_ino, found.st_size, found.st_mtime_ns) if sha256 else None
            before = committer.store.keep(name, seen)
            replaced.append(found.st_ino)
        if before == wanted or (not committer.holds_modes and before and _same_data(before, wanted)):
            del change_set[name]
            continue
        if before is not None and not _same_data(before, change_set.recorded(row)) and not _same_data(before, wanted):
            edited.append(row)
        change_set.set_before(row, before, before, found)
    inode = replaced.__getitem__
    return edited, array("Q", map(inode, sort_numbers(range(len(replaced)), inode)))


def _same_data(found: Content, content: Content | None) -> bool:
    return content is not None and found.sha256 == content.sha256


def _shown(names: Sequence[str]) -> str:
    more = len(names) - _MAX_SHOWN
    return ", ".join(names[:_MAX_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _save_edited(committer: Committer, change_set: ChangeSet, edited: Iterable[int]) -> dict[str, str]:
    """Add the edited files to the change set under backup names, which are returned."""
    saved_as: dict[str, str] = {}
    for row in edited:
        name, before = change_set.name(row), change_set.before(row)
        backup = backup_name(name, lambda name: name in change_set or committer.rootdir.lstat(name) is not None)
        assert before is not None
        with open(open_regular(committer.rootdir, name), "rb") as file:
            change_set[backup] = StagedFile(committer.stage_link(name, file.fileno()), before)
        saved_as[name] = backup
    return saved_as


class _Restorer:
    """Stages stored objects, each verified first, except for those of `unchecked` names."""

    def __init__(self, committer: Committer, replaced: Sequence[int], unchecked: Collection[str]) -> None:
        self._committer = committer
        self._rootdir = committer.rootdir
        self._replaced = replaced
        self._unchecked = unchecked
        self._linked = DigestSet()  # objects linked so far: a second file with the same content gets a copy

    def stage_all(self, change_set: ChangeSet, target: int) -> None:
        """Set the staged file of each name that gets one.

        Raises:
            RollbackError: objects are missing or damaged; the message names the files.
        """
        lost: dict[str, list[str]] = {}
        for row in change_set.rows():
            if (content := change_set.after(row)) is not None:
                name = change_set.name(row)
                try:
                    change_set.set_source(row, self._stage(content, verify=name not in self._unchecked))
                except _LostError as error:
                    lost.setdefault(str(error), []).append(name)
        if lost:
            reasons = "; ".join(f"{_shown(names)}: {reason}" for reason, names in lost.items())
            raise RollbackError(f"{reasons}; generation {target} can't be restored, and nothing was changed")

    def _stage(self, content: Content, *, verify: bool) -> str:
        """Stage a file with this content.

        The object is linked, and deleted when nothing needs it any more. If another file of the tree has the same
        inode, the object is copied instead, so that the two files stay independent.
        """
        if content.sha256 == EMPTY:
            source, fd = self._committer.create_staged_file(content.mode)
            set_mode(fd, content.mode)
            os.close(fd)
            return source
        stored = object_path(content.sha256)
        try:
            fd = open_regular(self._rootdir, stored)
        except (FileNotFoundError, UpdateError):
            raise _LostError("its stored copy is missing, or not a regular file") from None
        with closing_fd(fd):
            if verify and digest_of(fd, stored) != content.sha256:
                raise _LostError("its stored copy was modified through a hard link")
            found = os.fstat(fd)
            mode_fits = found.st_nlink == 1 or stat.S_IMODE(found.st_mode) == content.mode
            gone = bisect_right(self._replaced, found.st_ino) - bisect_left(self._replaced, found.st_ino)
            only = found.st_nlink == 1 or found.st_nlink - 1 <= gone  # no other name of it stays
            if mode_fits and only and self._linked.add(bytes.fromhex(content.sha256)):
                set_mode(fd, content.mode)
                return self._committer.stage_link(stored, fd)
            return self._copy(fd, content)

    def _copy(self, fd: int, content: Content) -> str:
        found = os.fstat(fd)
        source, copy = self._committer.create_staged_file(content.mode)
        with closing_fd(copy):
            if copy_into(fd, copy) != content.sha256:
                raise _LostError("its stored copy was modified while it was read")
            set_mode(copy, content.mode)
            with contextlib.suppress(OSError):
                os.utime(copy, ns=(found.st_atime_ns, found.st_mtime_ns))
        return source


class _LostError(Exception):
    """A file can't be restored; the message says why."""
