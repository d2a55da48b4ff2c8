"""A rollback: which files change, what happens to edited ones, where the contents come from, and the commit."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from perfkit.config import LocalChanges
from perfkit.errors import RollbackError, UpdateError
from perfkit.filesystem.paths import backup_name, fold_name
from perfkit.libc import set_mode
from perfkit.transactions.changeset import ChangeSet, StagedFile
from perfkit.transactions.commit import Committer
from perfkit.transactions.journal_ops import check_conflicts
from perfkit.transactions.layout import object_path
from perfkit.transactions.object_store import EMPTY, copy_into, digest_of, link_or_copy, open_regular
from perfkit.transactions.records import Change, Content, Seen
from perfkit.transactions.transaction import Commit

__all__ = ["rollback"]

_MAX_SHOWN = 5  # names in an error


def rollback(committer: Committer, *, to: int | None, edits: LocalChanges, unchecked: Mapping[str, str]) -> Commit:
    """Commit what leads from the current generation to another; the cost depends on how much they differ.

    The change is already begun. See `Tree.rollback`, also for the arguments.
    """
    with committer.preparing():
        timeline = committer.history.timeline()
        target = timeline.resolve(to)
        numbers, undo = timeline.path(target)
        recorded, with_edits = committer.history.changes_between(numbers, undo=undo)
        differences = _compare(committer, recorded, unchecked)
        edited = [change.name for change in differences.edited]
        if edited and edits == "refuse":
            raise RollbackError(
                f"{_shown(edited)}: changed since the last update; set local_changes to 'keep' or 'overwrite' to roll "
                "back"
            )
        change_set = _stage(committer, differences, unchecked, target)
        restored = change_set.disk_changes()
        saved_as = _save_edited(committer, change_set, differences.edited) if edits == "keep" else {}
        changes = change_set.disk_changes()  # those between the generations, and the edited files it saves
    committer.commit(change_set, changes, timeline.at(target))
    restored.sign(committer.rootdir)
    overwritten = tuple(edited) if edits == "overwrite" else ()
    return Commit(target, restored, saved_as, overwritten, tuple(sorted(with_edits)))


def _stage(committer: Committer, differences: _Differences, unchecked: Mapping[str, str], target: int) -> ChangeSet:
    """Stage what is restored.

    Raises:
        UpdateError: something in the tree is in the way.
        RollbackError: objects are missing or damaged.
    """
    changes = differences.changes
    check_conflicts(committer.rootdir, {change.name: change.after for change in changes})
    sources = _Restorer(committer, differences.replaced_links, unchecked).stage_all(changes, target)
    change_set = committer.new_change_set()
    for change in changes:
        change_set[change.name] = None if change.after is None else StagedFile(sources[change.name], change.after)
        change_set.set_before(change_set.row(change.name), change.before, change.before)
    return change_set


class _Differences(NamedTuple):
    changes: list[Change]  # from what is on disk to what is wanted, by name
    edited: list[Change]  # those of them whose file is neither the current generation's nor the wanted one
    replaced_links: Counter[int]  # by inode, how many of its names are replaced or removed


def _compare(committer: Committer, recorded: Iterable[Change], unchecked: Mapping[str, str]) -> _Differences:
    """Compare the tree with what is wanted, and keep what is going to be replaced."""
    changes: list[Change] = []
    edited: list[Change] = []
    replaced_links: Counter[int] = Counter()
    recorded = list(recorded)
    renamed = set()  # where case is ignored: names that get another spelling
    if committer.rootdir.folds_case:
        renamed = {fold_name(wanted.name) for wanted in recorded if wanted.after is None}
    for wanted in recorded:
        found = committer.rootdir.lstat(wanted.name)
        if renamed and wanted.after is not None and fold_name(wanted.name) in renamed:
            found = None
        before = None
        if found is not None and not stat.S_ISDIR(found.st_mode):
            sha256 = unchecked.get(wanted.name)
            seen = Seen(sha256, found.st_ino, found.st_size, found.st_mtime_ns) if sha256 else None
            before = committer.store.keep(wanted.name, seen)
            replaced_links[found.st_ino] += 1
        if before == wanted.after or (not committer.holds_modes and before and _same_data(before, wanted.after)):
            continue
        change = Change(wanted.name, before, wanted.after)
        if before is not None and not _same_data(before, wanted.before) and not _same_data(before, wanted.after):
            edited.append(change)
        changes.append(change)
    changes.sort(key=lambda change: change.name)
    return _Differences(changes, edited, replaced_links)


def _same_data(found: Content, content: Content | None) -> bool:
    return content is not None and found.sha256 == content.sha256


def _shown(names: Sequence[str]) -> str:
    more = len(names) - _MAX_SHOWN
    return ", ".join(names[:_MAX_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _save_edited(committer: Committer, change_set: ChangeSet, edited: Iterable[Change]) -> dict[str, str]:
    """Add the edited files to the change set under backup names, which are returned."""
    saved_as: dict[str, str] = {}
    for change in edited:
        backup = backup_name(change.name, lambda name: name in change_set or committer.rootdir.lstat(name) is not None)
        assert change.before is not None
        change_set[backup] = StagedFile(_link(committer, change.name), change.before)
        saved_as[change.name] = backup
    return saved_as


def _link(committer: Committer, name: str) -> str:
    """Stage a file of the tree under another name."""
    fd = open_regular(committer.rootdir, name)
    try:
        staged = committer.new_staged_name()
        link_or_copy(committer.rootdir, name, fd, staged)
        return staged
    finally:
        os.close(fd)


class _Restorer:
    """Stages stored objects, each verified first, except for those of `unchecked` names."""

    def __init__(self, committer: Committer, replaced_links: Mapping[int, int], unchecked: Collection[str]) -> None:
        self._committer = committer
        self._rootdir = committer.rootdir
        self._replaced_links = replaced_links
        self._unchecked = unchecked
        self._linked: set[str] = set()  # objects that were linked: for a second file they are copied

    def stage_all(self, changes: Sequence[Change], target: int) -> dict[str, str]:
        """The staged file of each name that gets one.

        Raises:
            RollbackError: objects are missing or damaged; it names the files.
        """
        sources: dict[str, str] = {}
        lost: dict[str, list[str]] = {}
        for change in changes:
            if change.after is not None:
                try:
                    sources[change.name] = self._stage(change.after, verify=change.name not in self._unchecked)
                except _LostError as error:
                    lost.setdefault(str(error), []).append(change.name)
        if lost:
            reasons = "; ".join(f"{_shown(names)}: {reason}" for reason, names in lost.items())
            raise RollbackError(f"{reasons}; generation {target} can't be restored, and nothing was changed")
        return sources

    def _stage(self, content: Content, *, verify: bool) -> str:
        """Stage a content.

        Its object is linked, and deleted when nothing needs it any more. Where another file of the tree is the same
        inode, it is copied, so that the two files stay independent.
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
        try:
            if verify and digest_of(fd, stored) != content.sha256:
                raise _LostError("its stored copy was modified through a hard link")
            found = os.fstat(fd)
            mode_fits = found.st_nlink == 1 or stat.S_IMODE(found.st_mode) == content.mode
            others = found.st_nlink - 1 - self._replaced_links.get(found.st_ino, 0)  # links besides the object's own
            if mode_fits and content.sha256 not in self._linked and others <= 0:
                self._linked.add(content.sha256)
                set_mode(fd, content.mode)
                source = self._committer.new_staged_name()
                link_or_copy(self._rootdir, stored, fd, source)
                return source
            return self._copy(fd, content)
        finally:
            os.close(fd)

    def _copy(self, fd: int, content: Content) -> str:
        found = os.fstat(fd)
        source, copy = self._committer.create_staged_file(content.mode)
        try:
            if copy_into(fd, copy) != content.sha256:
                raise _LostError("its stored copy was modified while it was read")
            set_mode(copy, content.mode)
            with contextlib.suppress(OSError):
                os.utime(copy, ns=(found.st_atime_ns, found.st_mtime_ns))
        finally:
            os.close(copy)
        return source


class _LostError(Exception):
    """A file can't be restored; the message says why."""
