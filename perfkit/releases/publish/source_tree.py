"""The files of a tree to publish: names, sizes, digests, executable bits."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from array import array
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from perfkit.errors import FileChangedError, UnsafePathError
from perfkit.filesystem.paths import name_errors, name_matcher, parents
from perfkit.libc import is_being_written
from perfkit.progress.meter import Progress
from perfkit.progress.stage import Stage
from perfkit.releases.format.manifest import Entry
from perfkit.releases.statcache import StatCache, clamped_ns
from perfkit.transactions.layout import PRIVATE_DIR

Links = Literal["refuse", "skip", "follow"]
_READ_BYTES = 1 << 20
_SHOWN = 20  # names in an error
CHANGED = "it changed while it was being published; publish again"


def open_source(src: str, name: str, links: Links) -> BinaryIO:
    """A file that was found to be regular.

    Raises:
        FileChangedError: it is not any more.
        OSError: it can't be read.
    """
    nofollow = 0 if links == "follow" else os.O_NOFOLLOW
    try:  # a FIFO must not block
        file = os.open(os.path.join(src, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | nofollow)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise FileChangedError(name, CHANGED) from error
        raise
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise FileChangedError(name, CHANGED)
    return open(file, "rb")


class SourceTree:
    """The entries of a tree, which is hashed once, and then only where files have changed.

    Args:
        exclude: patterns, as in a `.gitignore`, of names relative to `src`; a directory is left out with its contents.
        links: what to do with symbolic links: `refuse` them, `skip` them, or `follow` them, even out of the tree.
        closed_only: whether a file that is known to be open for writing keeps the entry that it had, if any.
    """

    def __init__(
        self, src: str, exclude: Collection[str] = (), *, links: Links = "refuse", closed_only: bool = False
    ) -> None:
        self._src = src
        self._matches = name_matcher(exclude)
        self._links = links
        self._closed_only = closed_only
        self.entries: dict[str, Entry] = {}
        self.found: _Found | None = None

    def read_all(self, progress: Progress | None = None, rows: StatCache | None = None) -> None:
        """Hash every file, except those that `rows` vouches for.

        Args:
            progress: displays the work.
            rows: the stat cache of the last release; a file that matches its row is not read.

        Raises:
            UnsafePathError: names that are not valid on every client, symbolic links or special files; it names them.
            FileChangedError: something was removed or replaced meanwhile.
            OSError: something can't be read.
        """
        try:
            found = _Found.of(self._below(""))
        except FileNotFoundError as error:
            raise FileChangedError(str(error.filename), CHANGED) from error
        self._check(found, rows)
        known = [-1] * len(found.names) if rows is None else _known(rows, found)
        unknown = [at for at, entry in enumerate(known) if entry < 0]
        total = sum(map(found.sizes.__getitem__, unknown))
        entries: dict[str, Entry] = {}
        with Stage(progress, "checking files", files=len(unknown), total_bytes=total) as shown:
            for at, (name, entry) in enumerate(zip(found.names, known, strict=True)):
                mode = found.modes[at]
                if entry >= 0 and rows is not None:
                    entries[name] = Entry(name, found.sizes[at], rows.manifest.digest(entry), bool(mode & 0o111))
                else:
                    entries.update((each.name, each) for each in self._entry(name, mode, shown))
        self.entries = entries
        found.names.clear()  # the entries have them
        self.found = found

    def _check(self, found: _Found, rows: StatCache | None) -> None:
        """Check types and names; names are not checked again if the last release had exactly these."""
        types = (_type_error(*each, self._links) for each in zip(found.names, found.modes, strict=True))
        errors = [error for error in types if error is not None]
        wrong = {error.name for error in errors}
        if rows is None or wrong or found.names != list(rows.manifest.names()):
            errors += name_errors(name for name in found.names if name not in wrong)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            shown = "; ".join(f"{each.name!r}: {each.reason}" for each in errors[:_SHOWN])
            more = f"; and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
            raise UnsafePathError(
                errors[0].name, f"it and others, {len(errors)} in all, can't be published: {shown}{more}"
            )

    def record(self, rows: StatCache, *, content_ns: int) -> None:
        """Fill in the rows, which are empty, of a manifest of these entries, as `read_all` found the files.

        Args:
            content_ns: the file system's time before `read_all`.
        """
        assert self.found is not None
        rows.record_all(self.found.rows(), content_ns=content_ns)

    def read(self, names: Collection[str]) -> None:
        """Hash these files again, and everything below those that are directories; forget what was removed.

        Raises:
            UnsafePathError, OSError: as `read_all`; the entries are then as they were.
        """
        names = {name for name in names if not any(parent in names for parent in parents(name))}
        with Stage(None, "") as shown:
            places = (each for name in sorted(names) for each in self._at(name))
            found = {entry.name: entry for name, status in places for entry in self._entry(name, status.st_mode, shown)}
        gone = [name for name in self.entries if name in names or any(parent in names for parent in parents(name))]
        for name in gone:
            del self.entries[name]
        self.entries.update(found)

    def _at(self, name: str) -> Iterator[tuple[str, os.stat_result]]:
        if any(self._excluded(each) for each in (name, *parents(name))):
            return
        try:
            status = self._status(name)
        except (FileNotFoundError, NotADirectoryError):
            return
        if self._links == "skip" and stat.S_ISLNK(status.st_mode):
            return
        if stat.S_ISDIR(status.st_mode):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # removed since: another event reports it
                yield from self._below(name)
        else:
            yield name, status

    def _status(self, name: str) -> os.stat_result:
        path = os.path.join(self._src, name)
        if self._links == "follow":
            try:
                return os.stat(path)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
        return os.lstat(path)

    def _below(self, directory: str) -> Iterator[tuple[str, os.stat_result]]:
        """Everything below except directories. A link back to a directory above it counts as a link, to be refused."""
        left: list[tuple[str, tuple[tuple[int, int], ...]]] = [(directory, ())]
        while left:
            directory, above = left.pop()
            path = os.path.join(self._src, directory)
            if self._links == "follow":
                here = os.stat(path)
                above = (*above, (here.st_dev, here.st_ino))
            with os.scandir(path) as found:
                items = sorted(found, key=lambda item: item.name)
            for item in items:
                name = f"{directory}/{item.name}" if directory else item.name
                if self._excluded(name) or (self._links == "skip" and item.is_symlink()):
                    continue
                status = self._status(name) if item.is_symlink() else item.stat(follow_symlinks=False)
                if not stat.S_ISDIR(status.st_mode):
                    yield name, status
                elif (status.st_dev, status.st_ino) in above:
                    yield name, item.stat(follow_symlinks=False)
                else:
                    left.append((name, above))

    def _excluded(self, name: str) -> bool:
        """Also excludes the private directory of a tree that is itself synced."""
        return name == PRIVATE_DIR or (self._matches is not None and self._matches(name))

    def _entry(self, name: str, mode: int, shown: Stage) -> Iterator[Entry]:
        if (error := _type_error(name, mode, self._links)) is not None:
            raise error
        size, digest = 0, hashlib.sha256()
        with open_source(self._src, name, self._links) as file:
            written = self._is_being_written(file)
            while not written and (data := file.read(_READ_BYTES)):
                digest.update(data)
                size += len(data)
                shown.count(count_bytes=len(data))
            written = written or self._is_being_written(file)
        shown.count(files=1)
        if not written:
            yield Entry(name, size, digest.digest(), bool(mode & 0o111))
        elif name in self.entries:
            yield self.entries[name]

    def _is_being_written(self, file: BinaryIO) -> bool:
        return self._closed_only and is_being_written(file.fileno())


@dataclass(frozen=True, slots=True)
class _Found:
    """What is in a tree, in columns, in order of the names."""

    names: list[str]
    sizes: array[int]
    mtimes: array[int]
    ctimes: array[int]
    inodes: array[int]
    modes: array[int]

    @classmethod
    def of(cls, items: Iterable[tuple[str, os.stat_result]]) -> _Found:
        found = cls([], array("q"), array("q"), array("q"), array("Q"), array("I"))
        for name, status in items:
            found.names.append(name)
            found.sizes.append(status.st_size)
            found.mtimes.append(clamped_ns(status.st_mtime_ns))
            found.ctimes.append(clamped_ns(status.st_ctime_ns))
            found.inodes.append(status.st_ino)
            found.modes.append(status.st_mode)
        order = sorted(range(len(found.names)), key=found.names.__getitem__)
        columns = (found.sizes, found.mtimes, found.ctimes, found.inodes, found.modes)
        return cls(
            [found.names[at] for at in order],
            *(array(column.typecode, map(column.__getitem__, order)) for column in columns),
        )

    def rows(self) -> Iterator[tuple[int, int, int, int, int]]:
        """As `StatCache.rows`."""
        return zip(self.sizes, self.mtimes, self.ctimes, self.inodes, map(stat.S_IMODE, self.modes), strict=True)


def _known(rows: StatCache, found: _Found) -> list[int]:
    """For each file, the entry of the last release that it matches, by its row; -1: it has to be read."""
    known = []
    old = enumerate(zip(rows.manifest.names(), rows.rows(), strict=True))  # in the order of our names
    last = next(old, None)
    for name, status in zip(found.names, found.rows(), strict=True):
        while last is not None and last[1][0] < name:
            last = next(old, None)
        known.append(last[0] if last is not None and last[1] == (name, status) and status[2] else -1)
    return known


def _type_error(name: str, mode: int, links: Links) -> UnsafePathError | None:
    """What is wrong with anything but a regular file."""
    if stat.S_ISREG(mode):
        return None
    if not stat.S_ISLNK(mode):
        reason = "it is a special file; a release has regular files only: exclude or replace it"
    elif links == "follow":
        reason = "it is a symbolic link that points to nothing, or back to itself; exclude it, or skip links"
    else:
        reason = "it is a symbolic link; exclude it, or skip or follow links (--links)"
    return UnsafePathError(name, reason)
