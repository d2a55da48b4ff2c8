"""What a change replaces: looked at, kept for the way back, and told to the record as it was meant to be."""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

from perfkit.errors import FileChangedError
from perfkit.filesystem.beneath import Beneath
from perfkit.filesystem.commit import OWN
from perfkit.filesystem.records import Change, Content, Seen
from perfkit.filesystem.steps import check_places
from perfkit.filesystem.store import EMPTY, Store

__all__ = ["Known", "Prepared", "Put", "prepare"]


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
        if self.seen is None or name.startswith(f"{OWN}/"):
            return None
        seen = self.seen(name)
        if seen is None:
            raise FileChangedError(name, "it came meanwhile; nothing was done, try again")
        return seen


class Put(NamedTuple):
    """What a name is to hold, and the staged file that has it."""

    source: str
    content: Content


class Prepared(NamedTuple):
    """What is to be done to the disk, and what the generation's record says of it.

    They differ where others changed a file: `told` then has as `before` what the generation before had, not what they
    made of it; but for the names in `as_found`, where what it had is kept nowhere, and the way back leads to theirs.
    """

    changes: list[Change]
    told: list[Change]
    as_found: list[str]


def prepare(
    beneath: Beneath,
    store: Store,
    known: Known,
    final: Mapping[str, Put | None],
    *,
    noted: Collection[str],
    aside: Collection[str],
) -> Prepared:
    """Look at what is to be replaced, and keep what the way back needs.

    Args:
        final: what each name is to hold; None: nothing.
        noted: names that are left as they are, and told of.
        aside: names that no record tells of.

    Raises:
        UpdateError, UnsafePathError: a file can't have its place.
        FileChangedError: a file is not what the caller saw.
    """
    check_places(beneath, final)
    changes: list[Change] = []
    told: list[Change] = []
    lost: dict[str, Content] = {}
    others: dict[str, Content | None] = {}  # what was found where others changed what was meant
    for name in sorted(final.keys() | noted):
        found = _found(beneath, name, known, store.keep if name in final else store.look)
        after = found
        if name in final:
            put = final[name]
            after = None if put is None else put.content
        change = Change(name, found, after)
        if found != after:
            changes.append(change)
        before = known.meant(name) or found
        if name in aside or before == after:
            continue
        told.append(change if before == found else Change(name, before, after))
        if before is not None and (found is None or before.sha256 != found.sha256):
            lost[before.sha256] = before
            others[name] = found
    lacking = _lacking(beneath, store, known, lost)
    as_found = {each.name: others[each.name] for each in told
                if each.name in others and each.before and each.before.sha256 in lacking}  # fmt: skip
    kept = [replace(each, before=as_found[each.name]) if each.name in as_found else each for each in told]
    return Prepared(changes, [each for each in kept if each.before != each.after], list(as_found))


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
