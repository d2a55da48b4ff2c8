"""What a change replaces: looked at, kept for the way back, and told to the record as it was meant to be."""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping
from typing import NamedTuple

from perfkit.errors import FileChangedError
from perfkit.filesystem.rootdir import Beneath
from perfkit.transactions.changeset import ChangeSet
from perfkit.transactions.journal_ops import check_places
from perfkit.transactions.layout import is_private
from perfkit.transactions.object_store import EMPTY, Store
from perfkit.transactions.records import Content, Seen

__all__ = ["Known", "prepare"]


def _nothing(name: str) -> None:
    return None


class Known(NamedTuple):
    """What a caller knows of a tree that it is about to change; without it, what is found there is taken as it is.

    Attributes:
        meant: what the current generation has under a name, where the caller can tell. If others have changed the file
            since, the way back restores this and not what they made of it. A change that only brings such files back
            makes no generation.
        seen: what the caller found under a name when it decided on the change; None: nothing. A file that is something
            else by now is not touched, and the change given up.
        holder: a name that has this content (its SHA-256 in hex).
    """

    meant: Callable[[str], Content | None] = _nothing
    seen: Callable[[str], Seen | None] | None = None
    holder: Callable[[str], str | None] = _nothing

    def seen_at(self, name: str) -> Seen | None:
        """What the caller saw under a name that has a file now; None: it may be anything.

        Raises:
            FileChangedError: the caller saw none there.
        """
        if self.seen is None or is_private(name):
            return None
        seen = self.seen(name)
        if seen is None:
            raise FileChangedError(name, "it came meanwhile; nothing was done, try again")
        return seen


def prepare(beneath: Beneath, store: Store, known: Known, changes: ChangeSet) -> tuple[str, ...]:
    """Look at what is to be replaced, keep what the way back needs, and take both down in `changes`.

    What the record tells differs from what is done where others changed a file: it then says that the name held what
    the generation before had, and not what they made of it; but for the names that this returns, where what it had is
    kept nowhere, and the way back leads to theirs.

    Raises:
        UpdateError, UnsafePathError: a file can't have its place.
        FileChangedError: a file is not what the caller saw.
    """
    check_places(beneath, changes)
    lost: dict[str, Content] = {}  # by the names whose file others changed, what was meant
    for row in changes.rows():
        name = changes.name(row)
        found = _found(beneath, name, known, store.keep if changes.acts(row) else store.look)
        meant = known.meant(name) or found
        changes.found(row, found, meant)
        if meant is not None and (found is None or meant.sha256 != found.sha256) and changes.is_told(row):
            lost[name] = meant
    lacking = _lacking(beneath, store, known, {content.sha256: content for content in lost.values()})
    as_found = [name for name, content in lost.items() if content.sha256 in lacking]
    for name in as_found:
        changes.tell_found(name)
    changes.freeze()
    return tuple(as_found)


def _found(beneath: Beneath, name: str, known: Known, look: Callable[[str, Seen | None], Content]) -> Content | None:
    found = beneath.lstat(name)
    if found is None or stat.S_ISDIR(found.st_mode):
        return None
    return look(name, known.seen_at(name))


def _lacking(beneath: Beneath, store: Store, known: Known, lost: Mapping[str, Content]) -> set[str]:
    """Which of these contents, whose own files others changed, the store has not and no known file can give it."""
    lacking = set()
    for digest, content in lost.items():
        if digest == EMPTY or store.has(content):
            continue
        holder = known.holder(digest)
        if holder is None or beneath.lstat(holder) is None or store.keep(holder).sha256 != digest:
            lacking.add(digest)
    return lacking
