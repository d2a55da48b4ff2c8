"""What archive formats share: which members are wanted, what they are called, and how large they may be."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from perfkit.archives import limits
from perfkit.archives.links import follow_links
from perfkit.config import check_type
from perfkit.errors import ConfigError, ManifestError, UnsafePathError
from perfkit.filesystem.compact import LazySequence, Lookup, Names
from perfkit.filesystem.paths import check_name, check_names, name_matcher
from perfkit.redact import value_shown

LINKS = ("refuse", "skip", "follow")
SYMLINK, HARD_LINK = "a symbolic link", "a hard link"  # kinds of members


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which files of a release, or members of an archive, are wanted, and which names they get in the tree.

    `strip_components` leading directories are removed, as by tar, and members without more components are skipped; a
    leading `./` does not count. Patterns are those of a `.gitignore` (gitignore(5)) for the remaining name: one without
    a slash matches in any directory, and one that matches a directory includes everything below it. A member is wanted
    if it matches `include`, or `include` is empty, and it does not match `exclude`.

    `links` says what to do with symbolic links that are wanted: `refuse` the archive; `skip` them; or `follow` them,
    which makes copies of the files that they point to, all of which must be wanted members of the archive.

    Raises:
        ConfigError: a value has another type, strip_components is negative, `links` has another value, or a pattern is
            invalid.
    """

    strip_components: int = 0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    links: Literal["refuse", "skip", "follow"] = "refuse"

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            if isinstance(patterns := getattr(self, name), list):
                object.__setattr__(self, name, tuple(patterns))
        for each in fields(self)[:3]:
            check_type(f"Selection.{each.name}", getattr(self, each.name), str(each.type), secret=False)
        if self.strip_components < 0:
            raise ConfigError(f"strip_components must be 0 or more; got {self.strip_components}")
        if self.links not in LINKS:
            raise ConfigError(f"links must be one of {', '.join(LINKS)}; got {value_shown(self.links)}")
        _matcher(self.include), _matcher(self.exclude)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Selection:
        """The selection that `record` returned.

        Raises:
            ManifestError: it is damaged.
        """
        try:
            return cls(
                strip_components=record.get("strip_components", 0),
                include=tuple(record.get("include", ())),
                exclude=tuple(record.get("exclude", ())),
                links=record.get("links", "refuse"),
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise ManifestError(f"the record of which files are selected is damaged: {error}") from error

    def record(self) -> dict[str, object]:
        """The selection as a JSON object, which has lists."""
        return {**asdict(self), "include": [*self.include], "exclude": [*self.exclude]}

    def __str__(self) -> str:
        words = [f"strip {self.strip_components}"] if self.strip_components else []
        words += [f"+{pattern}" for pattern in self.include] + [f"-{pattern}" for pattern in self.exclude]
        words += [f"{self.links} links"] if self.links != "refuse" else []
        return " ".join(words)

    def name(self, member: str) -> str | None:
        """The name in the tree of an archive's `member`; None if it isn't wanted. The name may still be unsafe.

        Raises:
            UnsafePathError: it is absolute, or has a component `..`, wanted or not.
        """
        if member.startswith("/"):
            raise UnsafePathError(member, "it is absolute; names in an archive must be relative")
        components = member.rstrip("/").split("/")
        if ".." in components:
            raise UnsafePathError(member, "a component is '..'")
        while components and components[0] == ".":
            del components[0]
        name = "/".join(components[self.strip_components :])
        return name if name and self.wants(name) else None

    def wants(self, name: str) -> bool:
        """Whether the file with this name in the tree is wanted."""
        included, excluded = _matcher(self.include), _matcher(self.exclude)
        return (included is None or included(name)) and not (excluded is not None and excluded(name))


_matcher = functools.lru_cache(maxsize=16)(name_matcher)


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive."""

    name: str  # in the tree: safe, with forward slashes
    size: int  # unpacked bytes
    executable: bool
    copy_of: str | None = field(default=None, kw_only=True)  # in a tar: the file that this is a copy of, by a link


class MemberNames:
    """Checks the names of an archive one by one, that they do not collide, and where links point to."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._names = Names()  # of the files, in the tree
        self._paths = Names()  # of the files, in the archive; empty: the same
        self._rows = Lookup()
        self._directories: set[str] = set()
        self._links: dict[str, str] = {}  # by path in the archive
        self._count = 0

    def admit(self, member: str, *, kind: str) -> str | None:
        """The name in the tree for a member; None if it is not wanted, or a directory. If a link gets a name, pass its
        target to `add_link`.

        Args:
            kind: `file`, `directory`, SYMLINK, HARD_LINK, or a description of anything else, for the error.

        Raises:
            UnsafePathError: the name leads outside the tree, or is not valid on every file system.
            ManifestError: it is of another kind, a duplicate, or too deep, or there are too many members.
        """
        self._count += 1
        if self._count > limits.MEMBERS:
            raise ManifestError(f"the archive has more than {limits.MEMBERS} members")
        name = self._selection.name(member)
        if name is None or (kind == SYMLINK and self._selection.links == "skip"):
            return None
        if kind == HARD_LINK or (kind == SYMLINK and self._selection.links == "follow"):
            return name
        if kind == SYMLINK:
            raise ManifestError(f"member {member!r} is {kind}; exclude it, or skip or follow links (--links)")
        if kind not in ("file", "directory"):
            raise ManifestError(f"member {member!r} is {kind}; only files and directories can be unpacked; exclude it")
        self._check(member, name)
        if kind == "directory":
            self._directories.add(name)
            return None
        self._add(member, name)
        return name

    def add_link(self, member: str, target: str, *, hard: bool = False) -> None:
        """Add an admitted link and its target: a path from the link's directory or, if `hard`, that of a member.

        Raises:
            UnsafePathError: it is absolute.
            ManifestError: a member of the same name is a link, too.
        """
        path = _plain(member)
        if target.startswith("/") and not hard:
            raise UnsafePathError(member, f"it is a link to {target!r}, outside the archive")
        if path in self._links:
            raise ManifestError(f"member {member!r} occurs twice")
        self._links[path] = f"/{target}" if hard else target

    def _check(self, member: str, name: str) -> None:
        check_name(name)
        if name.count("/") >= limits.DEPTH:
            raise ManifestError(f"member {member!r} is more than {limits.DEPTH} directories deep")

    def _add(self, member: str, name: str) -> None:
        key, path = hash(name), _plain(member)
        if self._rows.find(key, lambda row: self._names[row] == name) is not None:
            raise ManifestError(f"member {member!r} occurs twice")
        self._names.append(name)
        self._paths.append("" if path == name else path)
        self._rows.add(len(self._names) - 1, key)

    def close(self) -> dict[str, str]:
        """Check that no names collide. Returns the names that links add, each with that of the file it is a copy of.

        Raises:
            UnsafePathError: two names differ only in case or Unicode normalisation; a file is also a directory; a link
                points outside the archive.
            ManifestError: a link points to nothing that is wanted, or adds a name that exists.
        """
        copies = {}
        if self._links:
            every = range(len(self._names))
            names = {self._paths[row] or self._names[row]: self._names[row] for row in every}
            for path, file in follow_links(self._links, names, most=limits.MEMBERS).items():
                if (name := self._selection.name(path)) is not None:
                    self._check(path, name)
                    self._add(path, name)
                    copies[name] = names[file]
        files = LazySequence(self._names.__getitem__, range(len(self._names)))
        check_names(files)
        directories = {name.casefold() for name in self._directories}
        for name in files:
            if name.casefold() in directories:
                raise UnsafePathError(name, "it is both a file and a directory")
        return copies


def _plain(path: str) -> str:
    return "/".join(part for part in path.split("/") if part not in ("", "."))


class Stream:
    """The bytes of an archive, read forwards; it is an error if they end too early."""

    def __init__(self, read: Callable[[], bytes], archive: str, position: int = 0) -> None:
        self._read = read  # the next chunk, of any size; empty at the end
        self._archive = archive  # for messages
        self._chunk = memoryview(b"")
        self.position = position  # in the archive

    def take(self, most: int) -> memoryview:
        """The next bytes of the current chunk: at least one, unless `most` is 0."""
        if not self._chunk and most:
            self._chunk = memoryview(self._read())
            if not self._chunk:
                raise ManifestError(f"{self._archive} is truncated at byte {self.position}")
        taken, self._chunk = self._chunk[:most], self._chunk[most:]
        self.position += len(taken)
        return taken

    def take_exactly(self, count: int) -> bytes:
        taken = bytes(self.take(count))
        while len(taken) < count:
            taken += self.take(count - len(taken))
        return taken

    def chunks(self, end: int) -> Generator[memoryview, None, None]:
        """The bytes up to this position."""
        while self.position < end:
            yield self.take(end - self.position)

    def skip_to(self, position: int) -> None:
        for _ in self.chunks(position):
            pass

    def rest(self) -> Iterator[memoryview]:
        """All that is left."""
        while chunk := self._chunk or memoryview(self._read()):
            self._chunk = memoryview(b"")
            self.position += len(chunk)
            yield chunk
