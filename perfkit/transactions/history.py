"""Generations: which can be reached, what each changed, and which objects that needs."""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from perfkit.errors import PerfkitError, RecoveryError, RollbackError
from perfkit.filesystem.rootdir import RootDir
from perfkit.transactions.layout import HISTORY, STATE, check_recorded_name, is_private, record_path
from perfkit.transactions.object_store import ObjectStore, open_regular
from perfkit.transactions.records import (
    FORMAT,
    MALFORMED,
    Change,
    Content,
    is_count,
    pack,
    read_checked,
    read_line,
    unpack,
    with_checksum,
)

__all__ = ["Generation", "History", "Pruned", "Timeline", "read_current", "record_lines", "state_lines"]

_YEAR_10000 = 253402300800.0  # the first moment that datetime(3) can't hold, in seconds since 1970
_DIGEST = re.compile(rb"[0-9a-f]{64}")
_DIGESTS = re.compile(rb'\[(?:"[0-9a-f]{64}"(?:,"[0-9a-f]{64}")*+)?\]\n')

_HEAD_BYTES = 64 << 10

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Generation:
    """One state of a tree that can be restored.

    `added`, `changed` and `removed` count the files by which it differs from the one before it; `bytes_kept` are stored
    so that it can be left or restored. Number 0 is the tree before perfkit's first change, and has no date.
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
class Pruned:
    """What was removed, or would be.

    Attributes:
        objects: files.
        bytes: that the disk got back.
        generations: of a tree.
    """

    objects: int
    bytes: int
    generations: int = 0


@dataclass(frozen=True, slots=True)
class Timeline:
    """The reachable generations, oldest first: a chain, like an editor's undo history."""

    chain: tuple[int, ...] = (0,)
    current: int = 0
    next: int = 1

    def append(self, keep: int) -> Timeline:
        """Add a generation and make it current: undone ones are dropped, and only the last `keep` older ones stay."""
        chain = (*self.chain[: self.chain.index(self.current) + 1], self.next)
        return Timeline(chain[-keep - 1 :], self.next, self.next + 1)

    def at(self, number: int) -> Timeline:
        """The same timeline with another current generation."""
        return replace(self, current=number)

    def prune(self, keep: int) -> Timeline:
        """Keep only so many generations before the current one."""
        return replace(self, chain=self.chain[max(0, self.chain.index(self.current) - keep) :])

    def resolve(self, to: int | None) -> int:
        """The generation to go to: this one, or by default the one before the current one.

        Raises:
            RollbackError: there is no such generation.
        """
        if to is None:
            here = self.chain.index(self.current)
            if here == 0:
                raise RollbackError(f"there is no generation before {self.current}")
            return self.chain[here - 1]
        if to not in self.chain:
            kept = ", ".join(str(number) for number in self.chain)
            raise RollbackError(f"generation {to} is not kept; choose one of {kept}")
        return to

    def path(self, target: int) -> tuple[list[int], bool]:
        """The records between the current generation and another, in order, and whether they are to be undone."""
        here, there = self.chain.index(self.current), self.chain.index(target)
        if there <= here:
            return list(reversed(self.chain[there + 1 : here + 1])), True
        return list(self.chain[here + 1 : there + 1]), False


class _Record(NamedTuple):
    changes: list[Change]
    restored_with_edits: list[str]


class History:
    """The generations of one tree."""

    def __init__(self, rootdir: RootDir, store: ObjectStore) -> None:
        self._rootdir = rootdir
        self._store = store

    def timeline(self) -> Timeline:
        """The reachable generations; only number 0 in a tree that has no history.

        Raises:
            RecoveryError: the state file is damaged.
        """
        return _read_timeline(self._rootdir)

    def changes_between(self, numbers: Sequence[int], *, undo: bool) -> tuple[list[Change], set[str]]:
        """These records combined: `before` is what the tree should hold now, `after` what it is to hold.

        Also returns the names whose `after` is not what the generation should have, but how others had edited it.

        Raises:
            RollbackError: a record is damaged or missing.
        """
        first: dict[str, Content | None] = {}
        last: dict[str, Content | None] = {}
        with_edits: set[str] = set()
        for number in numbers:
            record = self._record(number)
            for change in record.changes:
                before, after = (change.after, change.before) if undo else (change.before, change.after)
                first.setdefault(change.name, before)
                last[change.name] = after
                with_edits.discard(change.name)
            if undo:
                with_edits.update(record.restored_with_edits)
        return [Change(name, before, last[name]) for name, before in first.items() if before != last[name]], with_edits

    def generations(self) -> list[Generation]:
        """All reachable generations, oldest first.

        Raises:
            RollbackError: a record is damaged or missing.
        """
        timeline = self.timeline()
        here = timeline.chain.index(timeline.current)
        found = []
        for place, number in enumerate(timeline.chain):
            if number == 0:
                found.append(Generation(0, current=timeline.current == 0))
                continue
            head, _ = self._head(number)
            kept = 0
            if 0 < place <= here:
                kept = head["bytes_before"]
            elif place > here:
                kept = sum({c.after.sha256: c.after.size for c in self._record(number).changes if c.after}.values())
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

    def delete_unreachable(self) -> None:
        """Delete the records and objects that no reachable generation needs; a failure is logged."""
        try:
            timeline = self.timeline()
            self._delete_records_except(timeline)
            self._store.delete_except(self.needed_objects(timeline))
        except (PerfkitError, OSError) as error:
            _log.warning("%s: could not delete old generations: %s", self._rootdir.root, error)

    def _delete_records_except(self, timeline: Timeline) -> None:
        kept = {str(number) for number in timeline.chain}
        for entry in self._rootdir.listdir(HISTORY):
            if entry not in kept:
                self._rootdir.unlink(f"{HISTORY}/{entry}")

    def needed_objects(self, timeline: Timeline) -> set[bytes]:
        """The SHA-256 of all contents that are needed to undo what was done, and to redo what was undone."""
        here = timeline.chain.index(timeline.current)
        needed: set[bytes] = set()
        for number in timeline.chain[1 : here + 1]:
            needed |= self._head(number)[1]
        for number in timeline.chain[here + 1 :]:
            redone = (change.after for change in self._record(number).changes)
            needed.update(bytes.fromhex(content.sha256) for content in redone if content is not None)
        return needed

    def freed_by(self, timeline: Timeline) -> Pruned:
        """What is deleted once only the generations of this timeline are reachable.

        Raises:
            RollbackError: a record is damaged or missing.
        """
        sizes = self._store.sizes_except(self.needed_objects(timeline))
        return Pruned(len(sizes), sum(sizes), len(self.timeline().chain) - len(timeline.chain))

    def _head(self, number: int) -> tuple[dict[str, Any], set[bytes]]:
        """Header and needed objects (SHA-256) of a record, without checking its checksum."""
        try:
            with open(open_regular(self._rootdir, record_path(number)), "rb") as file:
                head, before = _checked_head(read_line(file.readline())), file.readline()
            if _DIGESTS.fullmatch(before) is None:
                raise ValueError("its list of objects is damaged")
            return head, {bytes.fromhex(found[0].decode()) for found in _DIGEST.finditer(before)}
        except (*MALFORMED, FileNotFoundError) as error:
            raise RollbackError(f"the record of generation {number} can't be read: {error}") from error

    def _record(self, number: int) -> _Record:
        """The changes of a generation, and the names of which it found an edited file that was not its predecessor's.

        Raises:
            RollbackError: the record is damaged or missing.
        """
        try:
            with open(open_regular(self._rootdir, record_path(number)), "rb") as file:
                head, _before, *rows = read_checked(file)
            changes = [Change(check_recorded_name(name), unpack(before), unpack(after)) for name, before, after in rows]
            return _Record(changes, _checked_head(head)["as_found"])
        except (*MALFORMED, FileNotFoundError) as error:
            raise RollbackError(f"the record of generation {number} can't be read: {error}") from error


def _checked_head(head: dict[str, Any]) -> dict[str, Any]:
    """The header of a record, if it is as `record_lines` writes it."""
    if head["format"] != FORMAT:
        raise ValueError(_unknown_format(head["format"]))
    texts = (*head["label"].items(), head["as_found"])
    whole = all(is_count(head[key]) for key in ("added", "changed", "removed", "bytes_before"))
    dated = isinstance(head["created_s"], float) and 0 <= head["created_s"] < _YEAR_10000
    named = isinstance(head["as_found"], list) and all(isinstance(text, str) for text in itertools.chain(*texts))
    if not (whole and dated and named):
        raise ValueError("its header is damaged")
    return head


def _read_timeline(rootdir: RootDir) -> Timeline:
    if rootdir.lstat(STATE) is None:
        return Timeline()
    try:
        with open(open_regular(rootdir, STATE), "rb") as file:
            ((kind, version, chain, current, following),) = read_checked(file)
        if (kind, version) != ("perfkit-state", FORMAT):
            raise ValueError(_unknown_format(version))
        numbers = (*chain, following)
        ascending = all(map(is_count, numbers)) and all(one < other for one, other in itertools.pairwise(numbers))
        if not ascending or current not in chain:
            raise ValueError("damaged")
        return Timeline(tuple(chain), current, following)
    except MALFORMED as error:
        raise RecoveryError(f"{rootdir.root}: {STATE} is {error}; remove it to forget the history") from error


def read_current(rootdir: RootDir) -> Generation:
    """The current generation without its `bytes_kept`, read without the tree's lock.

    Raises:
        RecoveryError: the state file is damaged.
        UpdateError: it, or the record, is not a regular file.
    """
    number = _read_timeline(rootdir).current
    try:
        with open(open_regular(rootdir, record_path(number)), "rb") as file:
            head = _checked_head(read_line(file.readline(_HEAD_BYTES)))
        counts = {name: head[name] for name in ("added", "changed", "removed")}
        return Generation(number, label=head["label"], created_s=head["created_s"], current=True, **counts)
    except (*MALFORMED, FileNotFoundError):  # number 0, or it has just been left and deleted
        return Generation(number, current=True)


def _unknown_format(version: object) -> str:
    return f"in format {version!r}; this version of perfkit reads format {FORMAT}"


def state_lines(timeline: Timeline) -> Iterator[bytes]:
    """The state file, which `History.timeline` reads."""
    return with_checksum([["perfkit-state", FORMAT, timeline.chain, timeline.current, timeline.next]])


def record_lines(
    number: int, label: Mapping[str, str], changes: Iterable[Change], restored_with_edits: Collection[str] = ()
) -> Iterator[bytes]:
    """A record: its header, the objects that undoing needs, and the changes, so that most readers can stop early.

    Args:
        changes: iterated twice.
        restored_with_edits: names of edited files whose original content is not stored: rollback restores the edits.
    """
    before: dict[bytes, int] = {}  # size of each content
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
        "as_found": list(restored_with_edits),
    }
    rows = ([change.name, pack(change.before), pack(change.after)] for change in changes)
    return with_checksum(itertools.chain([head, [digest.hex() for digest in before]], rows))
