"""Generations: which there are, what each changed, and which kept contents that needs."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from perfkit.errors import RecoveryError, RollbackError
from perfkit.filesystem.rootdir import Beneath
from perfkit.transactions.layout import HISTORY, STATE, is_private, record_path
from perfkit.transactions.records import FORMAT, Change, Content, pack, seal, unpack, unseal

__all__ = ["Generation", "Timeline", "changes_between", "forget_others", "generations"]

_CONTENT = re.compile(rb"[0-9a-f]{64}")
_CONTENTS = re.compile(rb'\[(?:"[0-9a-f]{64}"(?:,"[0-9a-f]{64}")*+)?\]\n')


@dataclass(frozen=True, slots=True)
class Generation:
    """One state of a tree that can be restored.

    `added`, `changed` and `removed` count the files by which it differs from the one before it; `bytes_kept` are held
    to be able to leave it, or return to it. Number 0 is the tree before perfkit's first change, and has no date.
    """

    number: int
    label: Mapping[str, str] = field(default_factory=dict)
    created_s: float = 0.0  # seconds since 1970
    current: bool = False
    added: int = 0
    changed: int = 0
    removed: int = 0
    bytes_kept: int = 0


@dataclass(frozen=True, slots=True)
class Timeline:
    """The generations that can be reached, oldest first; the first is where the others start from."""

    chain: tuple[int, ...] = (0,)
    current: int = 0
    next: int = 1

    def commit(self, keep: int) -> Timeline:
        """A new generation follows: what was undone is gone for good, and only `keep` older ones stay."""
        chain = (*self.chain[: self.chain.index(self.current) + 1], self.next)
        return Timeline(chain[-keep - 1 :], self.next, self.next + 1)

    def prune(self, keep: int) -> Timeline:
        """Keep only so many generations older than the current one."""
        return replace(self, chain=self.chain[max(0, self.chain.index(self.current) - keep) :])

    def path(self, to: int | None) -> tuple[list[int], bool]:
        """The records between here and there, in the order they are undone or done, and whether they are undone.

        Raises:
            RollbackError: there is no such generation.
        """
        here = self.chain.index(self.current)
        if to is None:
            if here == 0:
                raise RollbackError(f"there is no generation before {self.current}")
            to = self.chain[here - 1]
        if to not in self.chain:
            there = ", ".join(str(number) for number in self.chain)
            raise RollbackError(f"generation {to} is not kept; there are {there}")
        target = self.chain.index(to)
        if target <= here:
            return list(reversed(self.chain[target + 1 : here + 1])), True
        return list(self.chain[here + 1 : target + 1]), False


def read_timeline(beneath: Beneath) -> Timeline:
    """Where on the timeline the tree is; at the beginning if nothing says so.

    Raises:
        RecoveryError: it is damaged.
    """
    if beneath.lstat(STATE) is None:
        return Timeline()
    try:
        with open(beneath.open(STATE), "rb") as file:
            ((kind, version, chain, current, following),) = unseal(file)
        if (kind, version) != ("perfkit-state", FORMAT) or current not in chain:
            raise ValueError(f"of format {version!r}, and this perfkit knows {FORMAT}")
        return Timeline(tuple(chain), current, following)
    except (ValueError, TypeError) as error:
        raise RecoveryError(f"{beneath.root}: {STATE} is {error}; remove it to forget the history") from error


def state_of(timeline: Timeline) -> Iterator[bytes]:
    """What `read_timeline` reads."""
    return seal([["perfkit-state", FORMAT, timeline.chain, timeline.current, timeline.next]])


def record_of(
    number: int, label: Mapping[str, str], changes: Iterable[Change], as_found: Collection[str] = ()
) -> Iterator[bytes]:
    """The header, the contents that undoing needs, and the changes; so that most readers stop early.

    Args:
        changes: gone through twice.
        as_found: names whose content before is what others had made of it, since what it should have been is not kept.
    """
    before: dict[bytes, int] = {}  # sizes of contents
    added = changed = removed = 0
    for change in changes:
        if change.before is not None:
            before[bytes.fromhex(change.before.sha256)] = change.before.size
        if not is_private(change.name):
            added += change.before is None
            changed += change.before is not None and change.after is not None
            removed += change.after is None
    head = {
        "format": FORMAT,
        "generation": number,
        "label": dict(label),
        "created_s": time.time(),
        "added": added,
        "changed": changed,
        "removed": removed,
        "bytes_before": sum(before.values()),
        "as_found": list(as_found),
    }
    rows = ([change.name, pack(change.before), pack(change.after)] for change in changes)
    return seal(itertools.chain([head, [digest.hex() for digest in before]], rows))


def _head(beneath: Beneath, number: int) -> tuple[dict[str, Any], set[bytes]]:
    """Header and kept contents (SHA-256) of a record, unverified."""
    try:
        with open(beneath.open(record_path(number)), "rb") as file:
            head, before = json.loads(file.readline()), file.readline()
        if head["format"] != FORMAT:
            raise ValueError(f"of format {head['format']!r}, and this perfkit knows {FORMAT}")
        if _CONTENTS.fullmatch(before) is None:
            raise ValueError("its list of contents is damaged")
        return head, {bytes.fromhex(found[0].decode()) for found in _CONTENT.finditer(before)}
    except (ValueError, TypeError, KeyError, FileNotFoundError) as error:
        raise RollbackError(f"the record of generation {number} can't be read: {error}") from error


class _Record(NamedTuple):
    changes: list[Change]
    as_found: list[str]


def _record(beneath: Beneath, number: int) -> _Record:
    """What this generation changed, and of which names it found something else before than should have been.

    Raises:
        RollbackError: the record is damaged or gone.
    """
    try:
        with open(beneath.open(record_path(number)), "rb") as file:
            head, _before, *rows = unseal(file)
        if head["format"] != FORMAT:
            raise ValueError(f"of format {head['format']!r}, and this perfkit knows {FORMAT}")
        return _Record([Change(name, unpack(before), unpack(after)) for name, before, after in rows], head["as_found"])
    except (ValueError, TypeError, KeyError, FileNotFoundError) as error:
        raise RollbackError(f"the record of generation {number} can't be read: {error}") from error


def changes_between(beneath: Beneath, numbers: Sequence[int], *, undo: bool) -> tuple[list[Change], set[str]]:
    """These records as one: `before` is what the tree should hold now, `after` what it is to hold.

    The names beside them are those whose `after` is what others had made of the file, and not what it should have been.

    Raises:
        RollbackError: a record is damaged or gone.
    """
    first: dict[str, Content | None] = {}
    last: dict[str, Content | None] = {}
    as_found: set[str] = set()
    for number in numbers:
        record = _record(beneath, number)
        for change in record.changes:
            before, after = (change.after, change.before) if undo else (change.before, change.after)
            first.setdefault(change.name, before)
            last[change.name] = after
            as_found.discard(change.name)
        if undo:
            as_found.update(record.as_found)
    return [Change(name, before, last[name]) for name, before in first.items() if before != last[name]], as_found


def needed_objects(beneath: Beneath, timeline: Timeline) -> set[bytes]:
    """What the store must hold, by SHA-256: contents to undo what was done, and to do again what was undone."""
    here = timeline.chain.index(timeline.current)
    needed: set[bytes] = set()
    for number in timeline.chain[1 : here + 1]:
        needed |= _head(beneath, number)[1]
    for number in timeline.chain[here + 1 :]:
        redone = (change.after for change in _record(beneath, number).changes)
        needed.update(bytes.fromhex(content.sha256) for content in redone if content is not None)
    return needed


def forget_others(beneath: Beneath, timeline: Timeline) -> None:
    """Remove the records that are not in the timeline."""
    kept = {str(number) for number in timeline.chain}
    for entry in beneath.names(HISTORY):
        if entry not in kept:
            beneath.unlink(f"{HISTORY}/{entry}")


def generations(beneath: Beneath, timeline: Timeline) -> list[Generation]:
    """All that can be reached, oldest first."""
    here = timeline.chain.index(timeline.current)
    found = []
    for place, number in enumerate(timeline.chain):
        if number == 0:
            found.append(Generation(0, current=timeline.current == 0))
            continue
        head, _ = _head(beneath, number)
        kept = 0
        if 0 < place <= here:
            kept = head["bytes_before"]
        elif place > here:
            sizes = {c.after.sha256: c.after.size for c in _record(beneath, number).changes if c.after is not None}
            kept = sum(sizes.values())
        found.append(
            Generation(
                number,
                label=head["label"],
                created_s=head["created_s"],
                current=number == timeline.current,
                added=head["added"],
                changed=head["changed"],
                removed=head["removed"],
                bytes_kept=kept,
            )
        )
    return found
