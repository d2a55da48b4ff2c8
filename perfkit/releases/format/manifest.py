"""The manifest of a tree: name, size, SHA-256 and executable bit of each file. No I/O.

A manifest is kept as its canonical bytes, and entries are decoded on access, so that a hundred thousand files take ten
megabytes instead of a hundred. `docs/format.md` has the layout.
"""

from __future__ import annotations

import hashlib
import itertools
import operator
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from struct import Struct
from typing import NamedTuple

from perfkit.errors import ManifestError, UnsafePathError
from perfkit.filesystem.compact import Digests, LazySequence, Names, sort_numbers
from perfkit.filesystem.paths import FoldedNames, check_name, check_names, fold_name, most_directories
from perfkit.filesystem.spilled import Bytes, chunks
from perfkit.releases.format.columns import Reader, pack_column

MAX_ENTRIES = 1_000_000
MAX_MANIFEST_BYTES = 128 << 20
MAX_NAME_BYTES = 4096  # PATH_MAX of Linux
MAX_FILE_BYTES = 1 << 50

_MAGIC = b"perfkit manifest 1\n"
_WHAT = "manifest"
_BATCH = 512
_DIGEST = Struct("32s")
_DIGESTS_BYTES = 32 << 10  # whole digests, however `chunks` cuts
_LINE_FEED = re.compile(b"\n")
_SUSPECT = re.compile(  # between line feeds; names without any of this need no further check
    rb"""[^ -~\n] | [<>:"|?*\\] | \n/ | // | /\n | \n\n | [. ][/\n] | \n\.perfkit | [^/\n]{256}
    | \npe[0-9a-z]{4}~ | [/\n](?:con|prn|aux|nul|com[0-9]|lpt[0-9]|conin\$|conout\$)[ ./\n]""",
    re.VERBOSE | re.IGNORECASE,
)


class Entry(NamedTuple):
    """One file of a tree."""

    name: str  # relative, with forward slashes, safe on every file system
    size: int  # bytes
    sha256: bytes  # the digest of its content, 32 bytes
    executable: bool = False  # mode 0755 instead of 0644


@dataclass(frozen=True, slots=True)
class Manifest:
    """The entries of a tree, sorted by the UTF-8 bytes of their names; a sequence of `Entry`."""

    data: Bytes = field(repr=False, compare=False)  # the canonical bytes
    sha256: bytes  # their digest, 32 bytes. Two manifests are equal if these are.
    sizes: array[int] = field(repr=False, compare=False)  # of the entries, in bytes
    _flags_at: int = field(repr=False, compare=False)
    _name_ends: array[int] = field(repr=False, compare=False)  # offsets in raw; the first is where the names begin
    _next: array[int] = field(repr=False, compare=False)  # the index that `find` is likely to need next

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Manifest:
        """The manifest of these entries, in any order.

        Raises:
            ManifestError: an invalid size or digest; too many entries.
            UnsafePathError: an unsafe name, or two that collide.
        """
        listed, sizes, executable, digests = Names(), array("Q"), bytearray(), Digests()
        for name, size, digest, flag in entries:
            if len(digest) != 32 or not 0 <= size <= MAX_FILE_BYTES:
                raise ManifestError(f"{name}: a file of {size} bytes with digest {digest.hex()!r}")
            listed.append(name)
            sizes.append(size)
            executable.append(flag)
            digests.append(digest)
        order = array("I", sort_numbers(range(len(listed)), listed.encoded))
        names = LazySequence(listed.__getitem__, order)
        flags, rest = (executable[row] == 1 for row in order), map(digests.__getitem__, order)
        try:
            return cls.parse(_encode(names, map(sizes.__getitem__, order), flags, rest))
        except (ManifestError, UnsafePathError, UnicodeEncodeError):
            check_names(names)  # says which name it is
            raise

    @classmethod
    def of_columns(
        cls, names: Sequence[str], sizes: Iterable[int], executable: Iterable[bool], digests: Iterable[bytes]
    ) -> Manifest:
        """The manifest of files with these names, which are in order, and which `check_names` accepts.

        Raises:
            ManifestError: an invalid size; too many entries.
        """
        raw = _encode(names, sizes, executable, digests)
        return cls.parse(raw, sha256=hashlib.sha256(raw).digest(), known=True)

    @classmethod
    def parse(cls, raw: Bytes, *, sha256: bytes | None = None, known: bool = False) -> Manifest:
        """Read canonical bytes.

        Args:
            sha256: the expected digest.
            known: bytes with this digest were parsed before; their names are not checked again.

        Raises:
            ManifestError: they are not canonical, exceed a limit, have another format version, or another digest.
            UnsafePathError: an unsafe name, or two that collide.
        """
        if len(raw) > MAX_MANIFEST_BYTES:
            raise ManifestError(f"manifest: larger than {MAX_MANIFEST_BYTES} bytes")
        hashed = hashlib.sha256()
        for chunk in chunks(raw):
            hashed.update(chunk)
        digest = hashed.digest()
        if sha256 is not None and digest != sha256:
            raise ManifestError(f"manifest: its digest is {digest.hex()}, not {sha256.hex()}")
        reader = Reader(raw, _WHAT, _MAGIC)
        count, name_bytes = reader.number(), reader.number()
        if count > MAX_ENTRIES:
            raise ManifestError(f"manifest: more than {MAX_ENTRIES} entries")
        sizes = reader.column(8, count)
        largest = max(sizes, default=0)
        if largest > MAX_FILE_BYTES:
            raise ManifestError(f"manifest: a file larger than {MAX_FILE_BYTES} bytes")
        if largest < 1 << 32:
            sizes = array("I", sizes)
        flags_at = reader.position
        if reader.take(count).strip(b"\x00\x01"):
            raise ManifestError("manifest: an unknown flag")
        reader.skip(32 * count)
        names_at = reader.position
        reader.skip(name_bytes)
        reader.end()
        ends = array("I", (names_at,))
        ends.extend(itertools.islice(_line_ends(raw, names_at), count + 1))
        if len(ends) != count + 1 or ends[-1] != len(raw):
            raise ManifestError("manifest: the number of names differs from that of entries")
        manifest = cls(raw, digest, sizes, flags_at, ends, array("I", (0,)))
        if not known or sha256 is None:
            manifest._check_names()
        return manifest

    @property
    def raw(self) -> bytes:
        """The canonical bytes, in memory."""
        return self.data[:]

    def reading(self, data: Bytes) -> Manifest:
        """The same manifest, with these bytes instead of its own."""
        return replace(self, data=data)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Entry:
        if not 0 <= index < len(self.sizes):
            raise IndexError(index)
        return Entry(self.name(index), self.sizes[index], self.digest(index), self.executable(index))

    def __iter__(self) -> Iterator[Entry]:
        return map(self.__getitem__, range(len(self)))

    def name(self, index: int) -> str:
        """The name of one entry."""
        return self._text(index, index + 1)

    def names(self) -> Iterator[str]:
        """The names of all entries, in order."""
        for start in range(0, len(self), _BATCH):
            stop = min(start + _BATCH, len(self))
            yield from self._text(start, stop).split("\n")

    def _text(self, start: int, stop: int) -> str:
        """The names of these entries, with line feeds between."""
        try:
            return self.data[self._name_ends[start] : self._name_ends[stop] - 1].decode()
        except UnicodeDecodeError as error:
            raise ManifestError(f"manifest: a name is not UTF-8: {error}") from error

    def executable(self, index: int) -> bool:
        """Whether one entry is executable."""
        at = self._flags_at + index
        return self.data[at : at + 1] == b"\1"

    def size(self, index: int) -> int:
        """The size of one entry."""
        return self.sizes[index]

    def digest(self, index: int) -> bytes:
        """The SHA-256 of one entry."""
        at = self._flags_at + len(self.sizes) + 32 * index
        return self.data[at : at + 32]

    def digests(self) -> Iterator[bytes]:
        """The SHA-256 of each entry, in order."""
        start = self._flags_at + len(self)
        end = start + 32 * len(self)
        blocks = (self.data[at : min(at + _DIGESTS_BYTES, end)] for at in range(start, end, _DIGESTS_BYTES))
        return (digest for block in blocks for (digest,) in _DIGEST.iter_unpack(block))

    def with_digests(self, changes: Iterable[tuple[int, bytes | bytearray]]) -> Iterator[bytes]:
        """The canonical bytes, in parts, with other digests for some entries, which are given in order."""
        start, done = self._flags_at + len(self), 0
        for index, digest in changes:
            yield from chunks(self.data, done, start + 32 * index)
            yield bytes(digest)
            done = start + 32 * (index + 1)
        yield from chunks(self.data, done)

    def same(self, index: int, other: Manifest, there: int) -> bool:
        """Whether an entry has the same content and mode as an entry of another manifest."""
        return self.digest(index) == other.digest(there) and self.executable(index) == other.executable(there)

    @property
    def total_bytes(self) -> int:
        """The total size of all entries."""
        return sum(self.sizes)

    def find(self, name: str) -> int | None:
        """The index of the entry with this name; None: not found."""
        wanted, count, likely = name.encode(), len(self), self._next[0]
        if likely < count and self._encoded(likely) == wanted:
            index = likely
        elif likely and self._encoded(likely - 1) == wanted:  # asked for again
            index = likely - 1
        else:
            index = bisect_left(range(count), wanted, key=self._encoded)
            if index == count or self._encoded(index) != wanted:
                return None
        self._next[0] = index + 1
        return index

    def _encoded(self, index: int) -> bytes:
        return self.data[self._name_ends[index] : self._name_ends[index + 1] - 1]

    def _check_names(self) -> None:
        """Check that names are sorted, safe, and differ in more than case or normalisation; in little memory."""
        seen, most, last = FoldedNames(), most_directories(len(self)), b""
        for start in range(0, len(self), _BATCH):
            stop = min(start + _BATCH, len(self))
            block = self.data[self._name_ends[start] : self._name_ends[stop]]
            lines = block.split(b"\n")[:-1]
            if not (all(map(operator.lt, lines, lines[1:])) and last < lines[0]):
                raise ManifestError("manifest: names out of order")
            last = lines[-1]
            if max(map(len, lines)) > MAX_NAME_BYTES:
                raise ManifestError(f"manifest: a name longer than {MAX_NAME_BYTES} bytes")
            if not seen.add(self._folded(block), most=most):
                raise ManifestError(f"manifest: more than {most} directories")
        if seen.may_collide():
            check_names(LazySequence(self.name, range(len(self))))

    @staticmethod
    def _folded(block: bytes) -> list[str]:
        if _SUSPECT.search(b"\n" + block) is None:
            return block.decode("ascii").lower().split("\n")[:-1]
        try:
            names = block.decode().split("\n")[:-1]
        except UnicodeDecodeError as error:
            raise ManifestError(f"manifest: a name is not UTF-8: {error}") from error
        return [fold_name(check_name(name)) for name in names]


class EntrySubset(Mapping[str, Entry]):
    """Some entries of a manifest, by name, decoded on access; fast if names are looked up in order."""

    def __init__(self, manifest: Manifest) -> None:
        self._places = array("I")
        self.names = LazySequence(manifest.name, self._places)  # the names of the entries, in order
        self.entries = LazySequence(manifest.__getitem__, self._places)  # the entries
        self._next = 0  # the position that `_find` is likely to need next

    def add(self, index: int) -> None:
        """Add an entry; indexes must be added in ascending order."""
        self._places.append(index)

    def places(self) -> Iterator[tuple[int, str]]:
        """The index of each entry, and its name."""
        return zip(self._places, self.names, strict=True)

    def __getitem__(self, name: str) -> Entry:
        at = self._find(name)
        if at < 0:
            raise KeyError(name)
        return self.entries[at]

    def _find(self, name: str) -> int:
        """The position of a name, or -1. The next position is tried first."""
        names, at = self.names, self._next
        after = names[at] if at < len(names) else None
        if after == name:
            self._next = at + 1
            return at
        before = names[at - 1] if at else None
        if before == name:
            return at - 1
        if (before is None or before < name) and (after is None or name < after):
            return -1
        at = bisect_left(names, name)
        found = at < len(names) and names[at] == name
        self._next = at + found
        return at if found else -1

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) >= 0

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self._places)


def _encode(names: Sequence[str], sizes: Iterable[int], executable: Iterable[bool], digests: Iterable[bytes]) -> bytes:
    raw = BytesIO()  # a join would hold everything twice
    raw.write(_MAGIC + bytes(8))
    raw.write(pack_column(8, sizes))
    raw.write(bytes(executable))
    raw.writelines(digests)
    names_at = raw.tell()
    raw.writelines(name.encode() + b"\n" for name in names)
    name_bytes = raw.tell() - names_at
    raw.seek(len(_MAGIC))
    raw.write(len(names).to_bytes(4, "little") + name_bytes.to_bytes(4, "little"))
    return raw.getvalue()


def _line_ends(data: Bytes, start: int) -> Iterator[int]:
    """The offsets after each line feed."""
    for chunk in chunks(data, start):
        yield from map(start.__add__, map(re.Match.end, _LINE_FEED.finditer(chunk)))
        start += len(chunk)


def pair_entries(old: Manifest, new: Manifest) -> Iterator[tuple[str, int | None, int | None]]:
    """Every name of either manifest, in order, with its index in both; None: it is not in that one."""
    olds, news = enumerate(old.names()), enumerate(new.names())
    here, there = next(olds, None), next(news, None)
    while here is not None or there is not None:
        if there is None or (here is not None and here[1] < there[1]):
            assert here is not None
            yield here[1], here[0], None
            here = next(olds, None)
        elif here is None or there[1] < here[1]:
            yield there[1], None, there[0]
            there = next(news, None)
        else:
            yield there[1], here[0], there[0]
            here, there = next(olds, None), next(news, None)
