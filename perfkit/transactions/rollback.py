"""The way to another generation, decided and staged: what changes, what others' edits become, where contents are."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from perfkit.config import LocalChanges
from perfkit.errors import RollbackError, UpdateError
from perfkit.filesystem.paths import aside_name
from perfkit.filesystem.rootdir import Beneath
from perfkit.transactions.changeset import Changes, ChangeSet, Put
from perfkit.transactions.commit import Committer
from perfkit.transactions.history import Timeline, changes_between
from perfkit.transactions.journal_ops import check_places
from perfkit.transactions.layout import object_path
from perfkit.transactions.object_store import EMPTY, Store, copy_into, digest_of, link_or_copy, open_regular
from perfkit.transactions.records import Change, Content, Seen

__all__ = ["Switch", "plan_switch"]


_SHOWN = 5  # names in an error


class Switch(NamedTuple):
    """What is to be done: the generation that comes of it, and how.

    `changes` are those between the generations, and `change_set` all; `aside` has the edited names, and what each is
    kept under; `overwritten` the edited names that are not kept; `as_found` the names that have again, or still, what
    others had made of them.
    """

    target: int
    change_set: ChangeSet
    changes: Changes
    aside: dict[str, str]
    overwritten: tuple[str, ...]
    as_found: tuple[str, ...]


def plan_switch(
    beneath: Beneath,
    committer: Committer,
    store: Store,
    timeline: Timeline,
    *,
    to: int | None,
    edits: LocalChanges,
    unchecked: Mapping[str, str],
) -> Switch:
    """Decide, and stage, how to get from the current generation to another; it costs as much as they differ.

    Args:
        unchecked: as in `Tree.switch`.

    Raises:
        RollbackError: there is no such generation, its contents are not all kept, or there are edits to be refused.
        UpdateError, UnsafePathError, OSError: what stands in the tree is in the way.
    """
    numbers, undo = timeline.path(to)
    target = timeline.current
    if numbers:
        place = timeline.chain.index(numbers[-1])
        target = timeline.chain[place - 1 if undo else place]
    changes: list[Change] = []
    edited: list[Change] = []
    leaving: Counter[int] = Counter()  # inode to how many of its names are replaced or removed
    recorded, as_found = changes_between(beneath, numbers, undo=undo)
    for wanted in recorded:
        found = beneath.lstat(wanted.name)
        before = None
        if found is not None and not stat.S_ISDIR(found.st_mode):
            vouched = unchecked.get(wanted.name)
            seen = Seen(vouched, found.st_ino, found.st_size, found.st_mtime_ns) if vouched else None
            before = store.keep(wanted.name, seen)
            leaving[found.st_ino] += 1
        if before == wanted.after:
            continue
        change = Change(wanted.name, before, wanted.after)
        if before is not None and not _holds(before, wanted.before) and not _holds(before, wanted.after):
            edited.append(change)
        changes.append(change)
    if edited and edits == "refuse":
        names = _shown([change.name for change in edited])
        raise RollbackError(f"{names}: changed since by others; keep it aside, or overwrite it")
    changes.sort(key=lambda change: change.name)
    check_places(beneath, {change.name: change.after for change in changes})
    sources = _Staging(beneath, committer, leaving, unchecked).restore(changes, target)
    change_set = committer.change_set()
    for change in changes:
        change_set[change.name] = None if change.after is None else Put(sources[change.name], change.after)
        change_set.found(change_set.row(change.name), change.before, change.before)
    between = change_set.changed()
    aside: dict[str, str] = {}
    for change in edited if edits == "keep" else ():
        fresh = aside_name(change.name, lambda name: name in change_set or beneath.lstat(name) is not None)
        assert change.before is not None
        change_set[fresh] = Put(_linked(beneath, committer, change.name), change.before)
        aside[change.name] = fresh
    overwritten = tuple(change.name for change in edited) if edits == "overwrite" else ()
    return Switch(target, change_set, between, aside, overwritten, tuple(sorted(as_found)))


def _holds(found: Content, content: Content | None) -> bool:
    return content is not None and found.sha256 == content.sha256


def _shown(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _linked(beneath: Beneath, committer: Committer, name: str) -> str:
    """Another name in the stage for a file of the tree."""
    fd = open_regular(beneath, name)
    try:
        staged = committer.stage()
        link_or_copy(beneath, name, fd, staged)
        return staged
    finally:
        os.close(fd)


class _Staging:
    """Kept contents on their way back into the tree, each hashed again before, but for those of `unchecked` names."""

    def __init__(
        self, beneath: Beneath, committer: Committer, leaving: Mapping[int, int], unchecked: Collection[str]
    ) -> None:
        self._unchecked = unchecked
        self._beneath = beneath
        self._committer = committer
        self._leaving = leaving
        self._taken: set[str] = set()  # objects that were linked: for a second file they are copied

    def restore(self, changes: Sequence[Change], target: int) -> dict[str, str]:
        """The staged file of each change that makes one.

        Raises:
            RollbackError: contents are not kept, or damaged; it names the files.
        """
        sources: dict[str, str] = {}
        lost: dict[str, list[str]] = {}
        for change in changes:
            if change.after is not None:
                try:
                    sources[change.name] = self._stage(change.after, checked=change.name not in self._unchecked)
                except _LostError as error:
                    lost.setdefault(str(error), []).append(change.name)
        if lost:
            told = "; ".join(f"{_shown(names)}: {reason}" for reason, names in lost.items())
            raise RollbackError(f"{told}; generation {target} can't be restored, and nothing was done")
        return sources

    def _stage(self, content: Content, *, checked: bool) -> str:
        """Stage a kept content.

        Its object is linked, and loses its own name when nothing needs it any more. Where another file of the tree
        shares it, it is copied: two files must not be one.
        """
        if content.sha256 == EMPTY:
            source, fd = self._committer.stage_file()
            os.fchmod(fd, content.mode)
            os.close(fd)
            return source
        kept = object_path(content.sha256)
        try:
            fd = open_regular(self._beneath, kept)
        except (FileNotFoundError, UpdateError):
            raise _LostError("its kept content is gone, or no regular file") from None
        try:
            if checked and digest_of(fd, kept) != content.sha256:
                raise _LostError("its kept content was changed by others, through a hard link")
            found = os.fstat(fd)
            alone = found.st_nlink == 1 or stat.S_IMODE(found.st_mode) == content.mode
            links = self._leaving.get(found.st_ino, 0)  # of this file, that go; beside them it has its object's name
            if alone and content.sha256 not in self._taken and found.st_nlink - 1 <= links:
                self._taken.add(content.sha256)
                os.fchmod(fd, content.mode)
                source = self._committer.stage()
                link_or_copy(self._beneath, kept, fd, source)
                return source
            return self._copied(fd, content)
        finally:
            os.close(fd)

    def _copied(self, fd: int, content: Content) -> str:
        found = os.fstat(fd)
        source, copy = self._committer.stage_file()
        try:
            if copy_into(fd, copy) != content.sha256:
                raise _LostError("its kept content was changed by others while it was copied")
            os.fchmod(copy, content.mode)
            os.utime(copy, ns=(found.st_atime_ns, found.st_mtime_ns))
        finally:
            os.close(copy)
        return source


class _LostError(Exception):
    """A content can't come back; the message says why."""
