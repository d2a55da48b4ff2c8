"""Before a commit: inspect the files it replaces, keep them for rollback, and decide how they are recorded."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Mapping
from typing import NamedTuple

from perfkit.errors import FileChangedError, UpdateError
from perfkit.filesystem.paths import fold_name
from perfkit.filesystem.rootdir import RootDir, closing_fd
from perfkit.libc import set_mode
from perfkit.transactions.changeset import ChangeSet
from perfkit.transactions.journal_ops import check_conflicts
from perfkit.transactions.layout import FETCHED_OBJECT, is_private
from perfkit.transactions.object_store import EMPTY, ObjectStore, copy_into, open_regular
from perfkit.transactions.records import Content, Seen


def _nothing(name: str) -> None:
    return None


class Known(NamedTuple):
    """What a caller knows about a tree that it changes; by default, whatever is on disk is taken as it is.

    Attributes:
        expected: by name, the content that the current generation should have, where the caller knows. If others have
            edited the file, rollback restores this content, not theirs. A change that only repairs such files creates
            no generation.
        seen: by name, the file that the caller found when it decided on the change; None if there was none. If it has
            changed since, the change is aborted.
        copy_of: by SHA-256 in hex, the name of a file of the tree with this content.
    """

    expected: Callable[[str], Content | None] = _nothing
    seen: Callable[[str], Seen | None] | None = None
    copy_of: Callable[[str], str | None] = _nothing

    def seen_at(self, name: str) -> Seen | None:
        """What the caller saw under the name of an existing file; None if it does not matter.

        Raises:
            FileChangedError: the file did not exist then.
        """
        if self.seen is None or is_private(name):
            return None
        seen = self.seen(name)
        if seen is None:
            reason = "the file appeared during the update, or exists in another case; nothing was changed, retry"
            raise FileChangedError(name, reason)
        return seen


def prepare(rootdir: RootDir, store: ObjectStore, known: Known, change_set: ChangeSet) -> tuple[str, ...]:
    """Inspect the files that are to be replaced, keep what rollback needs, and set both in `change_set`.

    If others edited a file, the record gets its content in the previous generation as the previous one, not the edit.
    Returns the exceptions: names whose content in the previous generation is no longer available, so that rollback
    restores the edited file.

    Raises:
        UpdateError, UnsafePathError: something is in the way of a new file.
        FileChangedError: a file is not as the caller saw it.
    """
    check_conflicts(rootdir, change_set)
    renamed = set()  # where case is ignored: names that are written under another spelling
    if rootdir.folds_case:
        renamed = {fold_name(name) for name in change_set if change_set[name] is None}
    edited: dict[str, Content] = {}  # by name, the content that it should have
    for row in change_set.rows():
        name = change_set.name(row)
        found, status = None, rootdir.lstat(name)  # before the file is read, so that later changes are noticed
        spelt_anew = renamed and change_set.is_written(row) and fold_name(name) in renamed
        if status is not None and not stat.S_ISDIR(status.st_mode) and not spelt_anew:
            inspect = store.keep if change_set.is_key(row) else store.inspect
            found = inspect(name, known.seen_at(name))
        expected = known.expected(name) or found
        change_set.set_before(row, found, expected, status)
        if expected is not None and (found is None or expected.sha256 != found.sha256) and change_set.is_recorded(row):
            edited[name] = expected
    missing = _missing(rootdir, store, known, {content.sha256: content for content in edited.values()})
    restored_with_edits = [name for name, content in edited.items() if content.sha256 in missing]
    for name in restored_with_edits:
        change_set.record_found(name)
    change_set.freeze()
    return tuple(restored_with_edits)


def take_staged(rootdir: RootDir, change_set: ChangeSet) -> None:
    """Look at the staged and fetched files that become files of the tree, last before the commit.

    Fetched ones are checked and get their mode and owner; of some, copies are made for other names.

    Raises:
        UpdateError: a fetched file is missing or was changed.
    """
    for row, source, content in change_set.written():
        if change_set.is_copy(row):
            _copy(rootdir, FETCHED_OBJECT + content.sha256, source, content)
        found = rootdir.lstat(source)
        if change_set.is_fetched(row):
            if found is None or not stat.S_ISREG(found.st_mode) or (found.st_nlink, found.st_size) != (1, content.size):
                raise _not_as_fetched(source)
            if stat.S_IMODE(found.st_mode) != content.mode or rootdir.owner is not None:
                with closing_fd(open_regular(rootdir, source)) as fd:
                    set_mode(fd, content.mode)
                    rootdir.hand_over(fd)
        if found is not None:
            change_set.sign(row, found)


def _copy(rootdir: RootDir, source: str, target: str, content: Content) -> None:
    """Copy a fetched file with its mtime, the time when its content was written, as of the others."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    with closing_fd(open_regular(rootdir, source)) as fd, closing_fd(rootdir.open(target, flags, content.mode)) as copy:
        if copy_into(fd, copy) != content.sha256:
            raise _not_as_fetched(source)
        set_mode(copy, content.mode)
        with contextlib.suppress(OSError):
            os.utime(copy, ns=(os.fstat(fd).st_mtime_ns,) * 2)


def _not_as_fetched(source: str) -> UpdateError:
    return UpdateError(f"{source} is missing or was changed during the update; nothing was changed, retry")


def _missing(rootdir: RootDir, store: ObjectStore, known: Known, edited: Mapping[str, Content]) -> set[str]:
    """Which contents of files that others edited are neither in the store nor in another file of the tree."""
    missing = set()
    for digest, content in edited.items():
        if digest == EMPTY or store.has_intact(content):
            continue
        copy = known.copy_of(digest)
        if copy is None or rootdir.lstat(copy) is None or store.keep(copy).sha256 != digest:
            missing.add(digest)
    return missing
