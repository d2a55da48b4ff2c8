"""Generations: which can be reached, what each changed, and which objects they need."""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

from perfkit.errors import PerfkitError, RecoveryError, RollbackError, UpdateError
from perfkit.filesystem.compact import DigestSet
from perfkit.filesystem.rootdir import RootDir
from perfkit.transactions.changeset import Changes, ChangeSet
from perfkit.transactions.layout import HISTORY, STATE, check_recorded_name, is_private, record_path
from perfkit.transactions.object_store import ObjectStore, open_regular
from perfkit.transactions.records import (
    FORMAT,
    MALFORMED,
    Change,
    Content,
    is_count,
    read_checked,
    read_line,
    unpack,
    with_checksum,
)

_YEAR_10000 = 253402300800.0  # the first moment that datetime(3) can't hold, in seconds since 1970
_DIGEST = re.compile(rb'[\[,]"[0-9a-f]{64}"[,\]]')  # an item of a list, with the characters around it
_PIECE_BYTES = 64 << 10
_HEAD_BYTES = 64 << 10

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Generation:
    """One state of a tree that can be restored.

    `added`, `changed` and `removed` count the files that differ from the generation before it; `bytes_kept` is the size
    of what is stored to undo or redo it; `created_s` is when the change to it began. Number 0 is the tree before
    perfkit's first change, and has no date.
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
        objects: number of stored files.
        bytes: disk space that was freed.
        generations: number of generations, of a tree.
    """

    objects: int
    bytes: int
    generations: int = 0


class Timeline(NamedTuple):
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
        return self._replace(current=number)

    def prune(self, keep: int) -> Timeline:
        """Keep only `keep` generations before the current one.

        Raises:
            UpdateError: `keep` is negative.
        """
        if keep < 0:
            raise UpdateError(f"can't keep {keep} generations; pass 0 or more")
        return self._replace(chain=self.chain[max(0, self.chain.index(self.current) - keep) :])

    def resolve(self, to: int | None) -> int:
        """The generation to go to: `to`, or by default the one before the current one.

        Raises:
            RollbackError: there is no such generation.
        """
        if to is None:
            here = self.chain.index(self.current)
            if here == 0:
                if self.current == 0:
                    raise RollbackError("the tree is as it was before the first change: there is no earlier generation")
                raise RollbackError(f"no generation before {self.current} is kept")
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

    def changes_between(self, numbers: Sequence[int], *, undo: bool, into: ChangeSet) -> set[str]:
        """Combine these records in an empty change set; its recorded contents are what the files should hold now.

        Returns:
            The names that get the edits of others, because the content that the generation should have is not stored.

        Raises:
            RollbackError: a record is damaged or missing.
        """
        with_edits: set[str] = set()
        for number in numbers:
            for change in self.changes(number):
                into.follow(change if not undo else Change(change.name, change.after, change.before))
                with_edits.discard(change.name)
            if undo:
                with_edits.update(self._head(number)["as_found"])
        for row in into.rows():
            if into.recorded(row) == into.after(row):
                del into[into.name(row)]
        return with_edits

    def generations(self) -> list[Generation]:
        """All reachable generations, oldest first.

        Raises:
            RollbackError: a record is damaged or missing.
        """
        timeline = self.timeline()
        here = timeline.chain.index(timeline.current)
        found = []
        for place, number in enumerate(timeline.chain):
            head, kept = self._head(number) if number else {}, 0
            if 0 < place <= here:
                kept = head["bytes_before"]
            elif place > here:
                contents, seen = (change.after for change in self.changes(number)), DigestSet()
                kept = sum(each.size for each in contents if each and seen.add(bytes.fromhex(each.sha256)))
            found.append(_generation(number, head, current=place == here, bytes_kept=kept))
        return found

    def delete_unreachable(self) -> None:
        """Delete the records and objects that no reachable generation needs; a failure is logged."""
        try:
            timeline = self.timeline()
            kept = set(map(str, timeline.chain))
            for entry in self._rootdir.listdir(HISTORY):
                if entry not in kept:
                    self._rootdir.unlink(f"{HISTORY}/{entry}")
            self._store.delete_except(self.needed_objects(timeline))
        except (PerfkitError, OSError) as error:
            _log.warning("%s: could not delete old generations: %s", self._rootdir.root, error)

    def needed_objects(self, timeline: Timeline) -> Iterator[bytes]:
        """The SHA-256 of all contents that are needed to undo what was done, and to redo what was undone.

        Raises:
            RollbackError: a record is damaged or missing.
        """
        here = timeline.chain.index(timeline.current)
        for number in timeline.chain[1 : here + 1]:
            yield from self._objects_before(number)
        for number in timeline.chain[here + 1 :]:
            for change in self.changes(number):
                if change.after is not None:
                    yield bytes.fromhex(change.after.sha256)

    def freed_by(self, timeline: Timeline) -> Pruned:
        """What is deleted once only the generations of this timeline are reachable.

        Raises:
            RollbackError: a record is damaged or missing.
        """
        sizes = self._store.sizes_except(self.needed_objects(timeline))
        return Pruned(len(sizes), sum(sizes), len(self.timeline().chain) - len(timeline.chain))

    def _head(self, number: int) -> dict[str, Any]:
        """The header of a record, without checking its checksum.

        Raises:
            RollbackError: it is damaged, or the record is missing.
        """
        with self._open(number) as file:
            return _checked_head(read_line(file.readline()))

    def _objects_before(self, number: int) -> Iterator[bytes]:
        """The SHA-256 of the objects that undoing a generation needs, without checking the checksum of its record.

        Raises:
            RollbackError: the record is damaged or missing.
        """
        with self._open(number) as file:
            _checked_head(read_line(file.readline()))
            yield from _read_digests(file)

    def changes(self, number: int) -> Iterator[Change]:
        """What a generation changed. The record is verified only once the iterator is exhausted.

        Raises:
            RollbackError: its record is damaged or missing.
        """
        with self._open(number) as file:
            head = file.readline()
            _checked_head(read_line(head))
            for name, before, after in read_checked(file, itertools.chain([head], _pieces_of_line(file))):
                yield Change(check_recorded_name(name), unpack(before), unpack(after))

    @contextlib.contextmanager
    def _open(self, number: int) -> Iterator[IO[bytes]]:
        """The record of a generation, for reading.

        Raises:
            RollbackError: it is missing; or what is read in the block is malformed.
        """
        try:
            with open(open_regular(self._rootdir, record_path(number)), "rb") as file:
                yield file
        except (*MALFORMED, FileNotFoundError) as error:
            raise RollbackError(f"the record of generation {number} can't be read: {error}") from error


def _pieces_of_line(file: IO[bytes]) -> Iterator[bytes]:
    """A line that may be megabytes long."""
    while piece := file.readline(_PIECE_BYTES):
        yield piece
        if piece.endswith(b"\n"):
            return


def _read_digests(file: IO[bytes]) -> Iterator[bytes]:
    """The second line of a record, a list of digests in hexadecimal.

    Raises:
        ValueError: it is malformed.
    """
    begin = file.read(3)
    if begin == b"[]\n":
        return
    item = begin + file.read(65)
    while _DIGEST.fullmatch(item):
        yield bytes.fromhex(item[2:66].decode())
        if item.endswith(b"]"):
            if file.read(1) == b"\n":
                return
            break
        item = b"," + file.read(67)
    raise ValueError("its list of objects is damaged")


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
            return _generation(number, _checked_head(read_line(file.readline(_HEAD_BYTES))), current=True)
    except (*MALFORMED, FileNotFoundError):  # number 0, or it has just been left and deleted
        return Generation(number, current=True)


def _generation(number: int, head: Mapping[str, Any], *, current: bool, bytes_kept: int = 0) -> Generation:
    names = ("label", "created_s", "added", "changed", "removed")
    counts = {name: head[name] for name in names if name in head}  # number 0 has no record
    return Generation(number, current=current, bytes_kept=bytes_kept, **counts)


def _unknown_format(version: object) -> str:
    return f"in format {version!r}; this version of perfkit reads format {FORMAT}"


def state_lines(timeline: Timeline) -> Iterator[bytes]:
    """The state file, which `History.timeline` reads."""
    return with_checksum([["perfkit-state", FORMAT, timeline.chain, timeline.current, timeline.next]])


def record_lines(
    number: int,
    label: Mapping[str, str],
    change_set: ChangeSet,
    changes: Changes,
    restored_with_edits: Collection[str] = (),
) -> Iterator[bytes]:
    """A record: its header, the objects that undoing needs, and the changes, so that most readers can stop early.

    Args:
        changes: the recorded ones of the change set.
        restored_with_edits: names of edited files whose original content is not stored: rollback restores the edits.
    """
    once = change_set.recorded_once(changes.rows)

    def replaced() -> Iterator[Content]:
        return filter(None, map(change_set.recorded, once))

    added = changed = removed = 0
    for row in changes.rows:
        if not is_private(change_set.name(row)):
            before, after = change_set.is_there(row)
            added += not before
            changed += before and after
            removed += not after
    head = {
        "format": FORMAT,
        "generation": number,
        "label": dict(label),
        "created_s": time.time(),
        "added": added,
        "changed": changed,
        "removed": removed,
        "bytes_before": sum(content.size for content in replaced()),
        "as_found": list(restored_with_edits),
    }
    rows = (change[:3] for change in changes)
    return with_checksum(itertools.chain([head], _digest_line(content.sha256 for content in replaced()), rows))


def _digest_line(digests: Iterable[str]) -> Iterator[bytes]:
    """A list of digests as a line of JSON, in pieces."""
    separator = b"["
    for digest in digests:
        yield b'%b"%b"' % (separator, digest.encode())
        separator = b","
    yield b"]\n" if separator == b"," else b"[]\n"
