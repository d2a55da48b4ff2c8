"""What archives have in common: which members are wanted, under which names, and how much may come out of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, BinaryIO, Protocol

from perfkit.errors import ConfigError, FileChangedError, ManifestError, UnsafePathError
from perfkit.filesystem.paths import check_name, check_names

__all__ = ["CHUNK_BYTES", "Limits", "Member", "Readable", "Refreshed", "Roster", "Selection", "Writable", "refresh"]

CHUNK_BYTES = 256 << 10


class Readable(Protocol):
    """A binary stream, read forwards."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        ...


class Writable(Protocol):
    """A binary stream, written forwards."""

    def write(self, data: bytes, /) -> object:
        """Write all of it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much an archive may be. What goes beyond is refused, before the tree is touched."""

    members: int = 200_000
    depth: int = 64  # components of a name
    total_bytes: int = 1 << 40  # unpacked
    ratio: int = 250  # unpacked bytes for each packed one, of the whole archive, beyond `free_bytes`
    free_bytes: int = 256 << 20
    window_bytes: int = 128 << 20  # what a decompressor may hold; `xz -9` needs 65 MiB, `zstd --long` 128 MiB

    def check_ratio(self, unpacked: int, packed: int) -> None:
        """See that this much may come out of that.

        Raises:
            ManifestError: it may not.
        """
        if unpacked > self.total_bytes:
            raise ManifestError(f"the archive unpacks to more than {self.total_bytes} bytes")
        if unpacked > self.free_bytes and unpacked > self.ratio * packed:
            raise ManifestError(
                f"{packed} packed bytes unpack to {unpacked} or more: over {self.ratio} to 1, as a bomb does"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which members are wanted, and what they are called in the tree.

    `strip_components` leading directories are cut off, as tar does, and members with no more than these are left out;
    a leading `./` does not count. Patterns are those of `fnmatch`, with case, for the whole name that is left: `*`
    and `?` also match slashes, and a pattern that matches a directory takes all that is in it. A member is wanted if
    one of `include` matches, or there are none, and none of `exclude` does.

    Raises:
        ConfigError: strip_components is negative.
    """

    strip_components: int = 0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.strip_components < 0:
            raise ConfigError(f"strip_components must be 0 or more; got {self.strip_components}")

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Selection:
        """What `record` gave."""
        return cls(
            strip_components=int(record.get("strip_components", 0)),
            include=tuple(record.get("include", ())),
            exclude=tuple(record.get("exclude", ())),
        )

    def record(self) -> dict[str, object]:
        """As JSON has it."""
        return {"strip_components": self.strip_components, "include": [*self.include], "exclude": [*self.exclude]}

    def __str__(self) -> str:
        words = [f"strip {self.strip_components}"] if self.strip_components else []
        words += [f"+{pattern}" for pattern in self.include] + [f"-{pattern}" for pattern in self.exclude]
        return " ".join(words)

    def name(self, member: str) -> str | None:
        """The name in the tree of what an archive calls `member`; None if it isn't wanted. Not yet a safe name.

        Raises:
            UnsafePathError: it is absolute, or has `..` in it, wanted or not.
        """
        if member.startswith("/"):
            raise UnsafePathError(member, "it is absolute; an archive's names must be relative")
        components = member.rstrip("/").split("/")
        if ".." in components:
            raise UnsafePathError(member, "a component is '..'")
        while components and components[0] == ".":
            del components[0]
        name = "/".join(components[self.strip_components :])
        if not name or (self.include and not _matches(name, self.include)) or _matches(name, self.exclude):
            return None
        return name


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern.rstrip('/')}/*") for pattern in patterns)


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive."""

    name: str  # in the tree: safe, with forward slashes
    size: int  # unpacked bytes
    executable: bool


class Roster:
    """Takes an archive's names one by one, and sees that they can stand in one tree."""

    def __init__(self, selection: Selection, limits: Limits) -> None:
        self._selection = selection
        self._limits = limits
        self._files: set[str] = set()
        self._directories: set[str] = set()
        self._count = 0

    def admit(self, member: str, *, kind: str) -> str | None:
        """The name in the tree for a member; None if there is nothing to do for it.

        Args:
            kind: `file`, `directory`, or what else it is, for the error.

        Raises:
            UnsafePathError: the name leads outside, or can't stand on every file system.
            ManifestError: it is neither file nor directory, a duplicate, too deep, or one too many.
        """
        self._count += 1
        if self._count > self._limits.members:
            raise ManifestError(f"the archive has more than {self._limits.members} members")
        name = self._selection.name(member)
        if name is None:
            return None
        if kind not in ("file", "directory"):
            raise ManifestError(f"member {member!r} is {kind}; only files and directories are unpacked (exclude it?)")
        check_name(name)
        if name.count("/") >= self._limits.depth:
            raise ManifestError(f"member {member!r} is more than {self._limits.depth} directories deep")
        if kind == "directory":
            self._directories.add(name)
            return None
        if name in self._files:
            raise ManifestError(f"member {member!r} is there twice")
        self._files.add(name)
        return name

    def close(self) -> None:
        """See that all of them can stand in one tree.

        Raises:
            UnsafePathError: two are the same where case or normalisation don't count; a file is also a directory.
        """
        check_names(self._files)
        folded = {name.casefold() for name in self._files}
        for name in self._directories:
            if name.casefold() in folded:
                raise UnsafePathError(name, "it is a file and a directory")


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What came of comparing a member with the file that stands there."""

    sha256: str  # of the member's content
    changed: bool  # whether it was written to the stage


def refresh(
    member: Member, content: Iterable[bytes | memoryview], old: BinaryIO | None, stage: Callable[[], BinaryIO]
) -> Refreshed:
    """Write a member's content to a stage, unless the installed file has it already.

    Content and file are read side by side, a piece at a time. The stage is opened at the first difference, and closed;
    what came before is copied from the file.

    Args:
        old: the installed file, open for reading and unbuffered; None if there is no regular one.
        stage: opens a new file for writing.

    Raises:
        ManifestError: the archive is damaged (from `content`); what has been staged is then worthless.
        FileChangedError: the installed file was changed meanwhile.
        OSError: the local disk.
    """
    digest = hashlib.sha256()
    pieces = iter(content)
    piece: bytes | memoryview = b""
    same = 0  # bytes
    if old is not None and os.fstat(old.fileno()).st_size == member.size:
        old.seek(0)
        for piece in pieces:
            if old.read(len(piece)) != piece:
                break
            digest.update(piece)
            same += len(piece)
        else:
            return Refreshed(digest.hexdigest(), changed=False)
    with stage() as out:
        if old is not None and same:
            _copy_verified(old, out, same, digest.digest())
        digest.update(piece)
        out.write(piece)
        for piece in pieces:
            digest.update(piece)
            out.write(piece)
    return Refreshed(digest.hexdigest(), changed=True)


def _copy_verified(old: BinaryIO, out: BinaryIO, size: int, sha256: bytes) -> None:
    """Copy the first bytes of a file that another program may be writing to."""
    digest = hashlib.sha256()
    old.seek(0)
    while size and (piece := old.read(min(size, CHUNK_BYTES))):
        digest.update(piece)
        out.write(piece)
        size -= len(piece)
    if digest.digest() != sha256:
        raise FileChangedError(str(old.name), "it changed while it was compared with the archive")
