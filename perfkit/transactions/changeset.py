"""What a change does to each name, in columns: fifty bytes of memory a file, where objects would take a thousand."""

from __future__ import annotations

import itertools
import os
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, MutableMapping, Sequence
from struct import Struct
from typing import NamedTuple

from perfkit.filesystem.compact import DigestIndex, DigestSet, Lookup, Names, pack_numbers, sort_numbers
from perfkit.filesystem.spilled import FileRows
from perfkit.transactions.records import Change, Content, signature

_WRITE, _DELETE, _RECORD, _OMIT, _COPY = 1, 2, 4, 8, 16
_NO_CONTENT = 0  # the number of a file that does not exist
_CONTENT = Struct("=32sqHqIQ")  # SHA-256, size, mode; of a file on disk also mtime (seconds, nanoseconds) and inode


class StagedFile(NamedTuple):
    """The new content of a name, and the staged file that has it."""

    source: str
    content: Content


class ChangeSet(MutableMapping[str, StagedFile | None]):
    """The staged file for each name that is written, and None for each name that is deleted.

    Each row also has two previous contents: the one found on disk, and the one for the generation's record. They differ
    if others edited the file.

    Args:
        staged: the common prefix of the names of staged files, before a number.
        fetched: the common prefix of the names of fetched files, before the SHA-256 of their content in hex.
        create_file: returns a descriptor of an empty file without a name, for a change of many files.
        modes: whether files that differ only in their mode count as different.
    """

    def __init__(self, staged: str, fetched: str, create_file: Callable[[], int], *, modes: bool = True) -> None:
        self._prefixes = staged, fetched
        self._names = Names()
        self._flags = bytearray()
        self._contents = _Contents(create_file, modes=modes)
        self._after, self._before, self._recorded = (_Numbers() for _ in range(3))  # of contents
        self._sources = _Numbers()  # of staged files; 0: the fetched one that has the content
        self._signatures = array("q")  # of the files; empty: not known yet
        self._rows = Lookup()
        self._order: Sequence[int] | None = None  # rows by name; None: to be sorted again
        self._count = 0

    def row(self, name: str) -> int:
        """The row of a name, added if necessary."""
        row = self._rows.find(hash(name), lambda row: self._names[row] == name)
        if row is None:
            row = len(self._flags)
            self._names.append(name)
            self._flags.append(0)
            self._rows.add(row, hash(name))
        return row

    def _set(self, name: str, flag: int) -> int:
        row = self.row(name)
        self._order = None
        self._count += (flag != 0) - self.is_key(row)
        self._flags[row] = self._flags[row] & ~(_WRITE | _DELETE | _COPY) | flag
        return row

    def __setitem__(self, name: str, file: StagedFile | None) -> None:
        row = self._set(name, _DELETE if file is None else _WRITE)
        self._after[row] = self._contents.add(None if file is None else file.content)
        self._sources[row] = 0
        if file is not None:
            self.set_source(row, file.source)

    def expect(self, name: str, content: Content, copy: str | None) -> None:
        """Write the name with a fetched file, or with the staged file `copy`, which will be a copy of it."""
        row = self._set(name, _WRITE if copy is None else _WRITE | _COPY)
        self._after[row] = self._contents.add(content)
        self._sources[row] = 0
        if copy is not None:
            self.set_source(row, copy)

    def set_source(self, row: int, source: str) -> None:
        """Set the staged file of a row that is written."""
        staged, fetched = self._prefixes
        assert source.startswith((staged, fetched)), source
        self._sources[row] = int(source.removeprefix(staged)) if source.startswith(staged) else 0

    def follow(self, change: Change) -> None:
        """Append a change to those of its name, the first of which determines the recorded previous content.

        If the name is written, its staged file must be set later.
        """
        row = self.row(change.name)
        if not self.is_key(row):
            self._recorded[row] = self._contents.add(change.before)
        self._set(change.name, _DELETE if change.after is None else _WRITE)
        self._after[row] = self._contents.put(self._after[row], change.after)

    def _sha256(self, row: int) -> str:
        return self._contents.sha256(self._after[row])

    def __delitem__(self, name: str) -> None:
        self._set(name, 0)

    def record(self, name: str) -> None:
        """Include the name in the generation's record, though the change does nothing to it."""
        self._flags[self.row(name)] |= _RECORD
        self._order = None

    def omit_from_record(self, name: str) -> None:
        """Leave the name out of the generation's record."""
        self._flags[self.row(name)] |= _OMIT

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return (self.name(row) for row in range(len(self._flags)) if self.is_key(row))

    def __getitem__(self, name: str) -> StagedFile | None:
        row = self._rows.find(hash(name), lambda row: self.name(row) == name)
        if row is None or not self.is_key(row):
            raise KeyError(name)
        content = self._contents[self._after[row]]
        return None if content is None else StagedFile(self.source(row), content)

    # Access by row: the commit processes the rows in the order of names.

    def rows(self) -> Sequence[int]:
        """All rows that are changed or recorded, sorted by name."""
        if self._order is None:
            self._order = self._sorted_rows()
        return self._order

    def _sorted_rows(self) -> Sequence[int]:
        rows = pack_numbers(row for row, flags in enumerate(self._flags) if flags & (_WRITE | _DELETE | _RECORD))
        key = self._names.encoded
        if all(before < after for before, after in itertools.pairwise(map(key, rows))):
            return rows
        return array("I", sort_numbers(rows, key))

    def name(self, row: int) -> str:
        """The name of a row."""
        return self._names[row]

    def is_key(self, row: int) -> bool:
        """Whether the name is written or deleted, and not only recorded."""
        return self._flags[row] & (_WRITE | _DELETE) != 0

    def is_written(self, row: int) -> bool:
        """Whether the name gets a file."""
        return self._flags[row] & _WRITE != 0

    def source(self, row: int) -> str:
        """The staged file of a row that is written."""
        staged, fetched = self._prefixes
        number = self._sources[row]
        return f"{staged}{number}" if number else fetched + self._sha256(row)

    def written(self) -> Iterator[tuple[int, str, Content]]:
        """The rows that get a file, the staged or fetched file, and its content."""
        staged, fetched = self._prefixes
        for row in filter(self.is_written, range(len(self._flags))):
            content = self.after(row)
            assert content is not None
            number = self._sources[row]
            yield row, f"{staged}{number}" if number else fetched + content.sha256, content

    def is_fetched(self, row: int) -> bool:
        """Whether a row that is written gets a fetched file itself."""
        return not self._sources[row]

    def is_copy(self, row: int) -> bool:
        """Whether a row gets a copy of a fetched file."""
        return self._flags[row] & _COPY != 0

    def freeze(self) -> None:
        """Free the lookup by name; from now on only rows can be used."""
        self.rows()
        del self._rows

    def sign(self, row: int, found: os.stat_result) -> None:
        """Store what its staged file is; its name will have the same one."""
        if not self._signatures:
            self._signatures = array("q", bytes(8 * len(self._flags)))
        self._signatures[row] = signature(found)

    def set_before(
        self, row: int, found: Content | None, recorded: Content | None, file: os.stat_result | None = None
    ) -> None:
        """Set the previous content: as it was found on disk, in this file, and as it is to be recorded."""
        self._before[row] = self._contents.add(found, file)
        self._recorded[row] = self._before[row] if recorded == found else self._contents.add(recorded)

    def record_found(self, name: str) -> None:
        """Record the previous content as it was found on disk, after all."""
        row = self.row(name)
        self._recorded[row] = self._before[row]

    def after(self, row: int) -> Content | None:
        """The content that the name gets."""
        return self._contents[self._after[row]]

    def recorded(self, row: int) -> Content | None:
        """The previous content in the generation's record."""
        return self._contents[self._recorded[row]]

    def recorded_once(self, rows: Iterable[int]) -> Sequence[int]:
        """Those of these rows that have a previous content in the generation's record, each content once."""
        rows = pack_numbers(filter(self._recorded.__getitem__, rows))

        def digests() -> Iterator[bytes]:
            return (self._contents.digest(self._recorded[row]) for row in rows)

        index, repeated = DigestIndex(digests()), DigestSet()
        return pack_numbers(
            row for row, digest in zip(rows, digests(), strict=True) if index.count(digest) == 1 or repeated.add(digest)
        )

    def before(self, row: int) -> Content | None:
        """The previous content on disk."""
        return self._contents[self._before[row]]

    def found_file(self, row: int) -> tuple[int, int]:
        """The mtime, in nanoseconds, and the inode of the file that has the previous content."""
        return self._contents.file(self._before[row])

    def is_new(self, row: int) -> bool:
        """Whether the name did not exist."""
        return self._before[row] == _NO_CONTENT

    def disk_changes(self) -> Changes:
        """The changes made on disk."""
        rows = filter(self.is_key, self.rows())
        return Changes(self, pack_numbers(row for row in rows if not self._same(self._before[row], self._after[row])))

    def recorded_changes(self) -> Changes:
        """The changes in the generation's record."""
        return Changes(self, pack_numbers(filter(self.is_recorded, self.rows())), recorded=True)

    def is_recorded(self, row: int) -> bool:
        """Whether a row is in the generation's record."""
        return not self._flags[row] & _OMIT and not self._same(self._recorded[row], self._result(row))

    def is_there(self, row: int) -> tuple[bool, bool]:
        """Whether the name exists before and after the change, in the generation's record."""
        return self._recorded[row] != _NO_CONTENT, self._result(row) != _NO_CONTENT

    def _result(self, row: int) -> int:
        return self._after[row] if self.is_key(row) else self._before[row]

    def _same(self, one: int, other: int) -> bool:
        return self._contents.same(one, other)

    def change(self, row: int, *, recorded: bool) -> Change:
        """The change of one row: as recorded, or as made on disk."""
        if recorded:
            before, after = self._recorded[row], self._result(row)
        else:
            before, after = self._before[row], self._after[row]
        signature = self._signatures[row] if self._signatures else 0
        return Change(self._names[row], self._contents[before], self._contents[after], signature)


class Changes(Collection[Change]):
    """Changes in the order of names, each created when it is read."""

    def __init__(self, change_set: ChangeSet, rows: Sequence[int], *, recorded: bool = False) -> None:
        self.rows = rows  # of the change set
        self._set = change_set
        self._recorded = recorded

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Change]:
        return (self._set.change(row, recorded=self._recorded) for row in self.rows)

    def __contains__(self, change: object) -> bool:
        return any(each == change for each in self)


class _Numbers:
    """A number for each row; trailing zeros take no memory."""

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
    """Contents by number; 0 is the number of a file that does not exist."""

    def __init__(self, create_file: Callable[[], int], *, modes: bool) -> None:
        self._compare_modes = modes
        self._rows = FileRows(_CONTENT, create_file)
        self._rows.append(bytes(32), 0, 0, 0, 0, 0)

    def add(self, content: Content | None, file: os.stat_result | None = None) -> int:
        """Add a content, and the file that has it; returns its number."""
        if content is None:
            return _NO_CONTENT
        mtime_ns, inode = (0, 0) if file is None else (file.st_mtime_ns, file.st_ino)
        seconds, nanoseconds = divmod(mtime_ns, 10**9)  # together they may need more than 64 bits
        self._rows.append(bytes.fromhex(content.sha256), content.size, content.mode, seconds, nanoseconds, inode)
        return len(self._rows) - 1

    def put(self, number: int, content: Content | None) -> int:
        """Replace a content that only one row has; returns the number of the new one."""
        if number == _NO_CONTENT or content is None:
            return self.add(content)
        self._rows[number] = bytes.fromhex(content.sha256), content.size, content.mode, 0, 0, 0
        return number

    def __getitem__(self, number: int) -> Content | None:
        if number == _NO_CONTENT:
            return None
        digest, size, mode, *_ = self._rows[number]
        return Content(digest.hex(), size, mode)

    def file(self, number: int) -> tuple[int, int]:
        """The mtime, in nanoseconds, and the inode."""
        *_, seconds, nanoseconds, inode = self._rows[number]
        return seconds * 10**9 + nanoseconds, inode

    def digest(self, number: int) -> bytes:
        """Its SHA-256."""
        digest: bytes = self._rows[number][0]
        return digest

    def sha256(self, number: int) -> str:
        """In hexadecimal."""
        return self.digest(number).hex()

    def same(self, one: int, other: int) -> bool:
        """Whether both have the same content and, if modes matter, the same mode, or neither exists."""
        if one == other or not one or not other:
            return one == other
        compared = 3 if self._compare_modes else 2
        same: bool = self._rows[one][:compared] == self._rows[other][:compared]
        return same
