"""The operations of a journal: which a change needs and in which order, and how each is applied and undone."""

from __future__ import annotations

import contextlib
import os
import stat
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain, takewhile

from perfkit.errors import FileChangedError, UpdateError
from perfkit.filesystem.paths import fold_name, parents
from perfkit.filesystem.rootdir import RootDir, closing_fd
from perfkit.libc import sync_file
from perfkit.transactions.changeset import ChangeSet
from perfkit.transactions.layout import OBJECTS, PRIVATE_DIR, is_private, object_path
from perfkit.transactions.object_store import EMPTY, copy_file, link_file, open_regular
from perfkit.transactions.records import DELETE, MKDIR, RENAME, RMDIR, Content, JournalOp, Previous

_RESTORED = f"{OBJECTS}/restored~"  # a restored file, until it is renamed
_CHANGED = "the file was created or modified during the update; nothing was changed, retry"


def check_conflicts(rootdir: RootDir, change_set: ChangeSet) -> None:
    """Check, before anything is changed, that nothing is in the way of a new file.

    Raises:
        UnsafePathError: a symbolic link is where a directory is needed.
        UpdateError: a file is where a directory is needed, or a directory where a file is, and the change does not
            remove it; or two names of the change are in each other's way.
    """
    checked: set[str] = set()
    is_deleted = _deletions(rootdir, change_set)
    for name in map(change_set.name, filter(change_set.is_written, change_set.rows())):
        found = rootdir.lstat(name)
        if found is not None and stat.S_ISDIR(found.st_mode):
            _check_all_deleted(rootdir, name, is_deleted)
        elif found is not None and not stat.S_ISREG(found.st_mode):
            raise UpdateError(f"{name}: not a regular file; move it away first")
        for parent in parents(name):
            if parent in checked:
                break
            checked.add(parent)
            if change_set.get(parent) is not None:
                raise UpdateError(f"{parent} can't be both a file and the directory of {name}")
            found = rootdir.lstat(parent)
            if found is not None and not stat.S_ISDIR(found.st_mode) and not is_deleted(parent):
                raise UpdateError(f"{parent} is a file; it must be removed before {name} can be created")


def _deletions(rootdir: RootDir, change_set: ChangeSet) -> Callable[[str], bool]:
    """A function that tells whether a change deletes a name; where case is ignored, in any spelling."""
    if not rootdir.folds_case:
        return lambda name: change_set.get(name, ...) is None
    deleted = {fold_name(name) for name in change_set if change_set[name] is None}
    return lambda name: fold_name(name) in deleted


def _check_all_deleted(rootdir: RootDir, directory: str, is_deleted: Callable[[str], bool]) -> None:
    """Check that every file below a directory that a file is to replace is deleted by the same change."""
    for below in _directories(rootdir, directory):
        for name in (f"{below}/{leaf}" for leaf in rootdir.listdir(below)):
            if not _is_directory(rootdir, name) and not is_deleted(name):
                raise UpdateError(f"{directory} is a directory; {name} must be removed before a file can replace it")


def plan_ops(
    rootdir: RootDir, change_set: ChangeSet, changed: Collection[int]
) -> tuple[Iterator[JournalOp], Iterator[JournalOp]]:
    """The operations that make a change: first those that may need disk space, then the others.

    Only new names can fail for lack of space, so they come first, after the deletions that make way for them: a file
    where a directory is to be, or the files of a directory where a file is to be.

    Args:
        changed: the rows that differ from what is on disk.

    Raises:
        OSError: a directory can't be read; also while the operations are read.
    """
    deleted = array("I", (row for row in changed if not change_set.is_written(row)))
    written = array("I", (row for row in changed if change_set.is_written(row)))
    new, existing = array("I"), array("I")  # those written under a name that is not there, and under one that is
    needed: set[str] = set()  # directories that new files need
    replaced: set[str] = set()  # directories that files replace
    for row in written:
        name = change_set.name(row)
        needed.update(_until(parents(name), needed))
        if not change_set.is_new(row):
            existing.append(row)
            continue
        new.append(row)
        found = rootdir.lstat(name)
        if found is not None and stat.S_ISDIR(found.st_mode):
            replaced.update(_directories(rootdir, name))
    in_the_way, others = array("I"), array("I")
    emptied: set[str] = set()  # directories that may be empty afterwards
    for row in deleted:
        name = change_set.name(row)
        blocks = rootdir.folds_case or name in needed or any(parent in replaced for parent in parents(name))
        (in_the_way if blocks else others).append(row)
        emptied.update(_until(parents(name), emptied))

    def renames(rows: Iterable[int]) -> Iterator[JournalOp]:
        return (JournalOp(RENAME, change_set.name(row), change_set.source(row), previous(row)) for row in rows)

    def deletions(rows: Iterable[int]) -> Iterator[JournalOp]:
        return (
            JournalOp(DELETE, name, spelt.get(fold_name(name), "") if spelt else "", previous(row))
            for row, name in ((row, change_set.name(row)) for row in rows)
        )

    def previous(row: int) -> Previous | None:
        before = change_set.before(row)
        return None if before is None else previous_file(before, *change_set.found_file(row))

    def rmdirs(names: set[str]) -> Iterator[JournalOp]:
        return (JournalOp(RMDIR, name, "", _previous_directory(rootdir, name)) for name in sorted(names, reverse=True))

    unneeded = emptied - needed - replaced - {PRIVATE_DIR}
    spelt: dict[str, str] = {}
    if rootdir.folds_case:  # a name may get another spelling, so what is deleted goes first
        spelt = {fold_name(change_set.name(row)): change_set.source(row) for row in written}
        replaced, unneeded = replaced | unneeded, set()
    mkdirs = (
        JournalOp(MKDIR, name) for name in sorted(needed) if rootdir.folds_case or not _is_directory(rootdir, name)
    )
    first = chain(deletions(in_the_way), rmdirs(replaced), mkdirs, renames(new))
    last = chain(renames(existing), deletions(others), rmdirs(unneeded))
    return first, last


def _until(names: Iterable[str], known: Collection[str]) -> Iterable[str]:
    """The names before the first that is known."""
    return takewhile(lambda name: name not in known, names)


def previous_file(before: Content, mtime_ns: int, inode: int) -> Previous:
    """A file as it is before an operation, and its object."""
    stored = "" if before.sha256 == EMPTY else object_path(before.sha256)
    return Previous(stored, before.size, mtime_ns, before.mode, inode)


def _previous_directory(rootdir: RootDir, name: str) -> Previous | None:
    found = rootdir.lstat(name)
    return None if found is None else Previous("", 0, 0, stat.S_IMODE(found.st_mode), found.st_ino)


def _is_directory(rootdir: RootDir, name: str) -> bool:
    found = rootdir.lstat(name)
    return found is not None and stat.S_ISDIR(found.st_mode)


def _directories(rootdir: RootDir, name: str) -> Iterable[str]:
    """A directory and all directories below it."""
    left = [name]
    while left:
        yield (name := left.pop())
        left += (below for leaf in rootdir.listdir(name) if _is_directory(rootdir, below := f"{name}/{leaf}"))


def apply_op(rootdir: RootDir, op: JournalOp, *, again: bool = False) -> None:
    """Apply an operation; idempotent.

    Args:
        again: after a crash, which may have interrupted `undo_op`.

    Raises:
        FileChangedError: others created or changed the file since it was looked at. After a crash, a file that was to
            be deleted is left alone instead.
    """
    if op.kind == MKDIR:
        rootdir.mkdir(op.name)
    elif op.kind == RMDIR:
        rootdir.rmdir(op.name)
    elif op.kind == DELETE:
        if op.source and rootdir.lstat(op.source) is None:  # renamed before a crash
            return
        found = rootdir.lstat(op.name)
        if _is_previous(found, op.previous):
            rootdir.unlink(op.name)
        elif found is not None and not again:
            raise FileChangedError(op.name, _CHANGED)
    else:
        _check_unchanged(rootdir, op)
        try:
            rootdir.rename(op.source, op.name)
        except FileNotFoundError:
            if rootdir.lstat(op.source) is not None:
                raise  # the target's directory is missing
        if again:  # if both names were links to one file, rename(2) did nothing
            rootdir.unlink(op.source)


def _check_unchanged(rootdir: RootDir, op: JournalOp) -> None:
    """Check that a rename replaces the file that was looked at, or none."""
    if is_private(op.name):
        return  # a record that is left over from a lost state may be replaced
    if op.previous is None and rootdir.folds_case:
        return  # FUSE still has a file of another spelling under this name for a second after it was deleted
    found = rootdir.lstat(op.name)
    if found is not None and not _is_previous(found, op.previous):
        staged = rootdir.lstat(op.source)
        if staged is not None and not os.path.samestat(found, staged):  # else it was renamed before a crash
            raise FileChangedError(op.name, _CHANGED)


def _is_previous(found: os.stat_result | None, previous: Previous | None) -> bool:
    """Whether this is still the file that was looked at. Its inode does not matter: FUSE may give it another number."""
    return (
        found is not None
        and previous is not None
        and stat.S_ISREG(found.st_mode)
        and (found.st_size, found.st_mtime_ns) == (previous.size, previous.mtime_ns)
    )


def stage_again(rootdir: RootDir, op: JournalOp) -> None:
    """Before undoing: link a new file that replaced another to its staged name, so that the old one can replace it.

    Without hard links this does nothing, and the undo leaves the name missing for a moment.
    """
    if op.kind == RENAME and op.previous is not None and rootdir.lstat(op.source) is None:
        found = rootdir.lstat(op.name)
        if found is not None:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # others have removed it now
                link_file(rootdir, op.name, found.st_ino, op.source)


def undo_op(rootdir: RootDir, op: JournalOp) -> None:
    """Undo an operation; if it was not applied, or is undone already, this does nothing.

    Nor if others have removed or replaced the directory: those that the change removed are there again by now.
    """
    directory = op.name.rpartition("/")[0]
    if op.kind == MKDIR:
        rootdir.rmdir(op.name)
    elif directory and not _is_directory(rootdir, directory):
        return
    elif op.kind == RMDIR:
        if op.previous is not None and rootdir.lstat(op.name) is None:
            rootdir.mkdir(op.name, op.previous.mode)
    elif op.kind == DELETE:
        if rootdir.lstat(op.name) is None:
            _restore(rootdir, op)
    else:
        if rootdir.lstat(op.source) is None and rootdir.lstat(op.name) is not None:
            rootdir.rename(op.name, op.source)
        if op.previous is not None and _is_taken_back(rootdir, op):
            _restore(rootdir, op)


def _is_taken_back(rootdir: RootDir, op: JournalOp) -> bool:
    """Whether the name is missing, or has the new file."""
    found, staged = rootdir.lstat(op.name), rootdir.lstat(op.source)
    return found is None or (staged is not None and os.path.samestat(found, staged))


def _restore(rootdir: RootDir, op: JournalOp) -> None:
    """Give a name its previous file again: the same inode, if it is stored, or else a copy."""
    previous = op.previous
    assert previous is not None
    rootdir.mkdir(OBJECTS, 0o700)
    rootdir.unlink(_RESTORED)  # left by a crash
    found = open_regular(rootdir, previous.stored) if previous.stored else os.open(os.devnull, os.O_RDONLY)
    with closing_fd(found) as stored:
        if not _link_restored(rootdir, previous, stored):
            mode, mtime_ns = previous.mode, previous.mtime_ns
            with closing_fd(copy_file(rootdir, stored, _RESTORED, mode=mode, mtime_ns=mtime_ns)) as copy:
                sync_file(copy)
    rootdir.rename(_RESTORED, op.name)


def _link_restored(rootdir: RootDir, previous: Previous, fd: int) -> bool:
    """Link the object if it is the previous inode with its mode; False if it is not, or can't be linked."""
    found = os.fstat(fd)
    if not previous.stored or (found.st_ino, stat.S_IMODE(found.st_mode)) != (previous.ino, previous.mode):
        return False
    return link_file(rootdir, previous.stored, previous.ino, _RESTORED)


def modified_directories(op: JournalOp) -> tuple[str, ...]:
    """The directories whose entries an operation changes."""
    directory = op.name.rpartition("/")[0]
    return (directory, op.name) if op.kind == MKDIR else (directory,)
