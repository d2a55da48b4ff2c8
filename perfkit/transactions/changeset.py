"""What a change does to each name, in columns: a hundred bytes a file, where objects would take a thousand."""

from __future__ import annotations

import contextlib
import itertools
from array import array
from collections.abc import Callable, Collection, Iterator, MutableMapping, Sequence
from typing import NamedTuple

from perfkit.errors import UnsafePathError
from perfkit.filesystem.compact import Names, pack_numbers, sort_numbers
from perfkit.filesystem.rootdir import Beneath
from perfkit.transactions.records import Change, Content, signature

__all__ = ["ChangeSet", "Changes", "Put"]

_PUT, _DROP, _NOTED, _ASIDE = 1, 2, 4, 8
_NOTHING = 0  # the number of no content
_GONE = -1  # no signature is that


class Put(NamedTuple):
    """What a name is to hold, and the staged file that has it."""

    source: str
    content: Content


class ChangeSet(MutableMapping[str, Put | None]):
    """What each name is to hold; None: nothing. Then, what it held, and what the generation's record tells of it.

    Args:
        staged: what the names of staged files begin with, before a number.
        fetched: what the names of fetched files begin with, before the SHA-256 of their content in hex.
    """

    def __init__(self, staged: str, fetched: str) -> None:
        self._prefixes = staged, fetched
        self._names = Names()
        self._flags = bytearray()
        self._contents = _Contents()
        self._after, self._before, self._told = (_Numbers() for _ in range(3))  # of contents
        self._sources = _Numbers()  # of staged files; 0: the fetched one that has the content
        self._elsewhere: dict[int, str] = {}  # by row, sources that are neither
        self._taken: set[str] = set()  # these, and such as have been
        self._rows = _Lookup(lambda row: hash(self.name(row)))
        self._adopted = _Lookup(lambda row: hash(self._sha256(row)))  # rows that have a fetched file
        self._order: Sequence[int] | None = None  # rows by name, once they were asked for
        self._count = 0

    def row(self, name: str) -> int:
        """The row of a name; made if need be."""
        row = self._rows.find(hash(name), lambda row: self.name(row) == name)
        if row is None:
            row = len(self._flags)
            self._names.append(name)
            self._flags.append(0)
            self._rows.add(row)
        return row

    def _set(self, name: str, flag: int) -> int:
        row = self.row(name)
        self._order = None
        self._count += (flag != 0) - (self._flags[row] & (_PUT | _DROP) != 0)
        self._flags[row] = self._flags[row] & ~(_PUT | _DROP) | flag
        return row

    def __setitem__(self, name: str, put: Put | None) -> None:
        row = self._set(name, _DROP if put is None else _PUT)
        self._after[row] = self._contents.add(None if put is None else put.content)
        self._elsewhere.pop(row, None)
        self._sources[row] = 0
        if put is not None:
            self._take(row, put)

    def _take(self, row: int, put: Put) -> None:
        staged, fetched = self._prefixes
        number = put.source.removeprefix(staged)
        if number != put.source:
            self._sources[row] = int(number)
        elif put.source == fetched + put.content.sha256:
            self._adopted.add(row)
        else:
            self._elsewhere[row] = put.source
            self._taken.add(put.source)

    def takes_fetched(self, source: str) -> bool:
        """Whether a name is to have this fetched file already."""
        if source in self._taken:
            return True
        sha256 = source.removeprefix(self._prefixes[1])
        return self._adopted.find(hash(sha256), lambda row: self.puts(row) and self.source(row) == source) is not None

    def _sha256(self, row: int) -> str:
        return self._contents.sha256(self._after[row])

    def __delitem__(self, name: str) -> None:
        self._set(name, 0)

    def note(self, name: str) -> None:
        """The record is to tell of the name, though nothing is done about it."""
        self._flags[self.row(name)] |= _NOTED
        self._order = None

    def set_aside(self, name: str) -> None:
        """The record is not to tell of the name."""
        self._flags[self.row(name)] |= _ASIDE

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return (self.name(row) for row, flags in enumerate(self._flags) if flags & (_PUT | _DROP))

    def __getitem__(self, name: str) -> Put | None:
        row = self._rows.find(hash(name), lambda row: self.name(row) == name)
        if row is None or not self._flags[row] & (_PUT | _DROP):
            raise KeyError(name)
        content = self._contents[self._after[row]]
        return None if content is None else Put(self.source(row), content)

    # By row: what the commit goes through, in the order of names.

    def rows(self) -> Sequence[int]:
        """All that something is done or told about, by name."""
        if self._order is None:
            self._order = self._in_order()
        return self._order

    def _in_order(self) -> Sequence[int]:
        rows = pack_numbers(row for row, flags in enumerate(self._flags) if flags & (_PUT | _DROP | _NOTED))
        key = self._names.encoded
        if all(before < after for before, after in itertools.pairwise(map(key, rows))):
            return rows
        return array("I", sort_numbers(rows, key))

    def name(self, row: int) -> str:
        """The name that a row is about."""
        return self._names[row]

    def acts(self, row: int) -> bool:
        """Whether something is done about the name, and not only told."""
        return self._flags[row] & (_PUT | _DROP) != 0

    def puts(self, row: int) -> bool:
        """Whether the name is to hold something."""
        return self._flags[row] & _PUT != 0

    def source(self, row: int) -> str:
        """The staged file of a row that puts."""
        if row in self._elsewhere:
            return self._elsewhere[row]
        staged, fetched = self._prefixes
        number = self._sources[row]
        return f"{staged}{number}" if number else fetched + self._sha256(row)

    def freeze(self) -> None:
        """No name will be asked for any more, and rows alone are."""
        self.rows()
        del self._rows, self._adopted

    def found(self, row: int, content: Content | None, told: Content | None) -> None:
        """Take down what the name held when it was looked at, and what the record is to say that it held."""
        self._before[row] = self._contents.add(content)
        self._told[row] = self._before[row] if told == content else self._contents.add(told)

    def tell_found(self, name: str) -> None:
        """The record is to say that the name held what was found, after all."""
        row = self.row(name)
        self._told[row] = self._before[row]

    def before(self, row: int) -> Content | None:
        """What the name held."""
        return self._contents[self._before[row]]

    def is_new(self, row: int) -> bool:
        """Whether the name held nothing."""
        return self._before[row] == _NOTHING

    def changed(self) -> Changes:
        """What is done to the disk."""
        rows = filter(self.acts, self.rows())
        return Changes(self, pack_numbers(row for row in rows if not self._same(self._before[row], self._after[row])))

    def told(self) -> Changes:
        """What the record tells."""
        return Changes(self, pack_numbers(filter(self.is_told, self.rows())), told=True)

    def is_told(self, row: int) -> bool:
        """Whether the record tells of a row."""
        return not self._flags[row] & _ASIDE and not self._same(self._told[row], self._stays(row))

    def _stays(self, row: int) -> int:
        return self._after[row] if self.acts(row) else self._before[row]

    def _same(self, one: int, other: int) -> bool:
        return self._contents.same(one, other)

    def change(self, row: int, *, told: bool, signature: int | None = None) -> Change:
        """What is done to the disk, or told of it, in one row."""
        before, after = (self._told[row], self._stays(row)) if told else (self._before[row], self._after[row])
        return Change(self._names[row], self._contents[before], self._contents[after], signature)


class Changes(Collection[Change]):
    """Changes in the order of names, each made when it is asked for.

    Attributes:
        rows: of the change set.
    """

    def __init__(self, change_set: ChangeSet, rows: Sequence[int], *, told: bool = False) -> None:
        self.rows = rows
        self._set = change_set
        self._told = told
        self._signatures = array("q")

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Change]:
        for row, found in itertools.zip_longest(self.rows, self._signatures):
            yield self._set.change(row, told=self._told, signature=None if found == _GONE else found)

    def __contains__(self, change: object) -> bool:
        return any(each == change for each in self)

    def sign(self, beneath: Beneath) -> None:
        """Take down the signature that each file has now."""
        for row in self.rows:
            found = None
            with contextlib.suppress(OSError, UnsafePathError):  # the change is made, and stays made
                found = beneath.lstat(self._set.name(row)) if self._set.puts(row) else None
            self._signatures.append(_GONE if found is None else signature(found))


class _Numbers:
    """A number for each row, of which the last may be said to be 0 by saying nothing."""

    def __init__(self) -> None:
        self._numbers = array("I")

    def __getitem__(self, row: int) -> int:
        return self._numbers[row] if row < len(self._numbers) else 0

    def __setitem__(self, row: int, number: int) -> None:
        if number and row >= len(self._numbers):
            self._numbers.extend(itertools.repeat(0, row + 1 - len(self._numbers)))
        if row < len(self._numbers):
            self._numbers[row] = number


class _Contents:
    """Contents by number; number 0 is that of none."""

    def __init__(self) -> None:
        self._digests = bytearray(32)
        self._sizes, self._modes = array("q", (0,)), array("H", (0,))

    def add(self, content: Content | None) -> int:
        """The number of this content from now on."""
        if content is None:
            return _NOTHING
        self._digests += bytes.fromhex(content.sha256)
        self._sizes.append(content.size)
        self._modes.append(content.mode)
        return len(self._sizes) - 1

    def __getitem__(self, number: int) -> Content | None:
        if number == _NOTHING:
            return None
        return Content(self.sha256(number), self._sizes[number], self._modes[number])

    def sha256(self, number: int) -> str:
        """In hexadecimal."""
        return self._digests[32 * number : 32 * number + 32].hex()

    def same(self, one: int, other: int) -> bool:
        """Whether these are the same content with the same mode, or both none."""
        if one == other or not one or not other:
            return one == other
        same_mode = self._modes[one] == self._modes[other] and self._sizes[one] == self._sizes[other]
        return same_mode and self.sha256(one) == self.sha256(other)


class _Lookup:
    """Numbers of rows by the hash of what the rows hold; a dictionary of strings would take ten times the memory."""

    def __init__(self, hash_of: Callable[[int], int]) -> None:
        self._hash_of = hash_of
        self._slots = array("I", bytes(4 * 64))  # a row's number plus one; 0: free
        self._used = 0

    def find(self, key: int, fits: Callable[[int], bool]) -> int | None:
        """The row with this hash that fits."""
        mask = len(self._slots) - 1
        at = key & mask
        while found := self._slots[at]:
            if fits(found - 1):
                return found - 1
            at = (at + 1) & mask
        return None

    def add(self, row: int) -> None:
        """One more row."""
        self._used += 1
        if 3 * self._used > 2 * len(self._slots):
            before, self._slots = self._slots, array("I", bytes(8 * len(self._slots)))
            for each in filter(None, before):
                self._place(each)
        self._place(row + 1)

    def _place(self, entry: int) -> None:
        mask = len(self._slots) - 1
        at = self._hash_of(entry - 1) & mask
        while self._slots[at]:
            at = (at + 1) & mask
        self._slots[at] = entry
