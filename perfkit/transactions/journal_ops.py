"""The operations of a journal: which a change needs and in which order, and how each is applied and undone."""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain, takewhile

from perfkit.errors import FileChangedError, UpdateError
from perfkit.filesystem.rootdir import RootDir
from perfkit.transactions.changeset import ChangeSet
from perfkit.transactions.layout import PRIVATE_DIR, object_path
from perfkit.transactions.object_store import EMPTY, link_or_copy, open_regular
from perfkit.transactions.records import DELETE, MKDIR, RENAME, RMDIR, Content, JournalOp

__all__ = ["apply_op", "check_conflicts", "modified_directories", "plan_ops", "undo_op"]


def check_conflicts(rootdir: RootDir, change_set: Mapping[str, object | None]) -> None:
    """Check, before anything is changed, that nothing is in the way of a new file.

    Args:
        change_set: None for each name that is deleted, anything else for each that is written.

    Raises:
        UnsafePathError: a symbolic link is where a directory is needed.
        UpdateError: a file is where a directory is needed, or a directory where a file is, and the change does not
            remove it; or two names of the change are in each other's way.
    """
    checked: set[str] = set()
    for name in change_set:
        if change_set[name] is None:
            continue
        found = rootdir.lstat(name)
        if found is not None and stat.S_ISDIR(found.st_mode):
            _check_all_deleted(rootdir, name, change_set)
        elif found is not None and not stat.S_ISREG(found.st_mode):
            raise UpdateError(f"{name}: not a regular file; move it away first")
        for parent in _parents(name):
            if parent in checked:
                break
            checked.add(parent)
            if change_set.get(parent) is not None:
                raise UpdateError(f"{parent} can't be both a file and the directory of {name}")
            found = rootdir.lstat(parent)
            if found is not None and not stat.S_ISDIR(found.st_mode) and change_set.get(parent, ...) is not None:
                raise UpdateError(f"{parent} is a file; it must be removed before {name} can be created")


def _check_all_deleted(rootdir: RootDir, directory: str, change_set: Mapping[str, object | None]) -> None:
    """Check that every file below a directory that a file is to replace is deleted by the same change."""
    for leaf in rootdir.listdir(directory):
        name = f"{directory}/{leaf}"
        found = rootdir.lstat(name)
        if found is not None and stat.S_ISDIR(found.st_mode):
            _check_all_deleted(rootdir, name, change_set)
        elif change_set.get(name, ...) is not None:
            raise UpdateError(f"{directory} is a directory; {name} must be removed before a file can replace it")


def plan_ops(
    rootdir: RootDir, change_set: ChangeSet, changed: Collection[int]
) -> tuple[Iterator[JournalOp], Iterator[JournalOp]]:
    """The operations that make a change: first those that can be undone, then those that need no disk space.

    Only new names can fail for lack of space, so they come first, after the deletions that make way for them: a file
    where a directory is to be, or the files of a directory where a file is to be.

    Args:
        changed: the rows that differ from what is on disk.

    Raises, while the operations are read:
        FileChangedError: a file that is to be deleted is gone.
        OSError: a directory can't be read.
    """
    deleted = array("I", (row for row in changed if not change_set.is_written(row)))
    written = array("I", (row for row in changed if change_set.is_written(row)))
    needed: set[str] = set()  # directories that new files need
    replaced: set[str] = set()  # directories that files replace
    for row in written:
        name = change_set.name(row)
        needed.update(_until(_parents(name), needed))
        found = rootdir.lstat(name) if change_set.is_new(row) else None
        if found is not None and stat.S_ISDIR(found.st_mode):
            replaced.update(_directories(rootdir, name))
    in_the_way, others = array("I"), array("I")
    emptied: set[str] = set()  # directories that may be empty afterwards
    for row in deleted:
        name = change_set.name(row)
        blocks = name in needed or any(parent in replaced for parent in _parents(name))
        (in_the_way if blocks else others).append(row)
        emptied.update(_until(_parents(name), emptied))

    def renames(*, new: bool) -> Iterator[JournalOp]:
        rows = (row for row in written if change_set.is_new(row) == new)
        return (JournalOp(RENAME, change_set.name(row), change_set.source(row)) for row in rows)

    def deletions(rows: Iterable[int]) -> Iterator[JournalOp]:
        return (_delete(rootdir, change_set.name(row), change_set.before(row)) for row in rows)

    def rmdirs(names: set[str]) -> Iterator[JournalOp]:
        return (JournalOp(RMDIR, name) for name in sorted(names, reverse=True))

    mkdirs = (JournalOp(MKDIR, name) for name in sorted(needed) if not _is_directory(rootdir, name))
    reversible = chain(deletions(in_the_way), rmdirs(replaced), mkdirs, renames(new=True))
    final = chain(renames(new=False), deletions(others), rmdirs(emptied - needed - replaced - {PRIVATE_DIR}))
    return reversible, final


def _until(names: Iterable[str], known: Collection[str]) -> Iterable[str]:
    """The names before the first that is known."""
    return takewhile(lambda name: name not in known, names)


def _delete(rootdir: RootDir, name: str, before: Content | None) -> JournalOp:
    found = rootdir.lstat(name)
    assert before is not None
    if found is None:
        raise FileChangedError(name, "the file was removed during the update; nothing was changed, retry")
    stored = "" if before.sha256 == EMPTY else object_path(before.sha256)
    return JournalOp(DELETE, name, stored, found.st_size, found.st_mtime_ns)


def _parents(name: str) -> Iterable[str]:
    while name := name.rpartition("/")[0]:
        yield name


def _is_directory(rootdir: RootDir, name: str) -> bool:
    found = rootdir.lstat(name)
    return found is not None and stat.S_ISDIR(found.st_mode)


def _directories(rootdir: RootDir, name: str) -> Iterable[str]:
    """A directory and all directories below it."""
    yield name
    for leaf in rootdir.listdir(name):
        if _is_directory(rootdir, f"{name}/{leaf}"):
            yield from _directories(rootdir, f"{name}/{leaf}")


def apply_op(rootdir: RootDir, op: JournalOp) -> None:
    """Apply an operation; a second time this does nothing."""
    if op.kind == MKDIR:
        rootdir.mkdir(op.name)
    elif op.kind == RMDIR:
        rootdir.rmdir(op.name)
    elif op.kind == DELETE:
        found = rootdir.lstat(op.name)
        if found is not None and _is_same_file(found, op):
            rootdir.unlink(op.name)
    else:
        try:
            rootdir.rename(op.source, op.name)
        except FileNotFoundError:
            if rootdir.lstat(op.source) is not None:
                raise  # the target's directory is missing


def _is_same_file(found: os.stat_result, op: JournalOp) -> bool:
    """Whether this is still the file that is to be deleted, and not one that was created after a crash."""
    return stat.S_ISREG(found.st_mode) and (found.st_size, found.st_mtime_ns) == (op.size, op.mtime_ns)


def undo_op(rootdir: RootDir, op: JournalOp) -> None:
    """Undo a reversible operation; if it was not applied, or is undone already, this does nothing."""
    if op.kind == MKDIR:
        rootdir.rmdir(op.name)
    elif op.kind == RMDIR:
        rootdir.mkdir(op.name)
    elif op.kind == DELETE:
        if rootdir.lstat(op.name) is None:
            _restore(rootdir, op)
    elif rootdir.lstat(op.source) is None and rootdir.lstat(op.name) is not None:
        rootdir.rename(op.name, op.source)


def _restore(rootdir: RootDir, op: JournalOp) -> None:
    """Recreate a deleted file from its object."""
    if not op.source:  # an empty file
        os.close(rootdir.open(op.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        return
    fd = open_regular(rootdir, op.source)
    try:
        link_or_copy(rootdir, op.source, fd, op.name)
    finally:
        os.close(fd)


def modified_directories(op: JournalOp) -> tuple[str, ...]:
    """The directories whose entries an operation changes."""
    directory = op.name.rpartition("/")[0]
    return (directory, op.name) if op.kind == MKDIR else (directory,)
