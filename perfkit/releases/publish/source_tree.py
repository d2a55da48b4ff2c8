"""The files of a tree to publish: names, sizes, digests, executable bits."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
import stat
from collections.abc import Collection, Iterator
from typing import BinaryIO, Literal

from perfkit.errors import UnsafePathError
from perfkit.filesystem.paths import name_errors
from perfkit.libc import is_being_written
from perfkit.progress.meter import Progress
from perfkit.progress.stage import Stage
from perfkit.releases.format.manifest import Entry
from perfkit.transactions.layout import PRIVATE_DIR

__all__ = ["Links", "SourceTree"]

Links = Literal["refuse", "skip", "follow"]
_READ_BYTES = 1 << 20
_SHOWN = 20  # names in an error
_Found = tuple[str, os.stat_result]  # name and status


class SourceTree:
    """The entries of a tree, which is hashed once, and then only where files have changed.

    Args:
        exclude: patterns (fnmatch) of names, relative to `src`, to exclude; of a directory, with everything below it.
        links: what to do with symbolic links: `refuse` them, `skip` them, or `follow` them, also out of the tree.
        closed_only: whether a file that is open for writing, as far as that can be known, keeps the entry that it had,
            if any.
    """

    def __init__(
        self, src: str, exclude: Collection[str] = (), *, links: Links = "refuse", closed_only: bool = False
    ) -> None:
        self._src = src
        self._links = links
        self._exclude = tuple(exclude)
        self._closed_only = closed_only
        self.entries: dict[str, Entry] = {}

    def read_all(self, progress: Progress | None = None) -> None:
        """Hash every file.

        Args:
            progress: displays the work.

        Raises:
            UnsafePathError: names that are not valid on every client, symbolic links or special files; all of them.
            OSError: something can't be read.
        """
        sizes = self._checked_sizes()
        with Stage(progress, "checking files", files=len(sizes), total_bytes=sum(sizes)) as shown:
            found = self._below("")
            self.entries = {entry.name: entry for each in found for entry in self._entry(*each, shown)}

    def _checked_sizes(self) -> list[int]:
        """The sizes of all files, if all can be published.

        Raises:
            UnsafePathError: some can't be; it has all of them.
        """
        sizes: list[int] = []
        errors: list[UnsafePathError] = []

        def names() -> Iterator[str]:
            for name, status in self._below(""):
                sizes.append(status.st_size)
                if (error := _type_error(name, status)) is not None:
                    errors.append(error)
                else:
                    yield name

        errors += name_errors(names())
        if len(errors) == 1:
            raise errors[0]
        if errors:
            shown = "; ".join(f"{each.name!r}: {each.reason}" for each in errors[:_SHOWN])
            more = f"; and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
            raise UnsafePathError(
                errors[0].name, f"it and others, {len(errors)} in all, can't be published: {shown}{more}"
            )
        return sizes

    def read(self, names: Collection[str]) -> None:
        """Hash these files again, and everything below those that are directories; forget what was removed.

        Raises:
            UnsafePathError, OSError: as `read_all`; the entries are then as they were.
        """
        names = {name for name in names if not any(parent in names for parent in _parents(name))}
        with Stage(None, "") as shown:
            places = (each for name in sorted(names) for each in self._at(name))
            found = {entry.name: entry for each in places for entry in self._entry(*each, shown)}
        gone = [name for name in self.entries if name in names or any(parent in names for parent in _parents(name))]
        for name in gone:
            del self.entries[name]
        self.entries.update(found)

    def _at(self, name: str) -> Iterator[_Found]:
        if any(self._excluded(each) for each in (name, *_parents(name))):
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
            with contextlib.suppress(FileNotFoundError):  # a dangling link is refused as it is
                return os.stat(path)
        return os.lstat(path)

    def _below(self, directory: str) -> Iterator[_Found]:
        """Everything but directories; a directory that links lead back to is refused as a link."""
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
        return name == PRIVATE_DIR or any(fnmatch.fnmatchcase(name, pattern) for pattern in self._exclude)

    def _entry(self, name: str, status: os.stat_result, shown: Stage) -> Iterator[Entry]:
        if (error := _type_error(name, status)) is not None:
            raise error
        size, digest = 0, hashlib.sha256()
        with open(os.path.join(self._src, name), "rb") as file:
            written = self._is_being_written(file)
            while not written and (data := file.read(_READ_BYTES)):
                digest.update(data)
                size += len(data)
                shown.count(count_bytes=len(data))
            written = written or self._is_being_written(file)
        shown.count(files=1)
        if not written:
            yield Entry(name, size, digest.digest(), bool(status.st_mode & 0o111))
        elif name in self.entries:
            yield self.entries[name]

    def _is_being_written(self, file: BinaryIO) -> bool:
        return self._closed_only and is_being_written(file.fileno())


def _type_error(name: str, status: os.stat_result) -> UnsafePathError | None:
    """What is wrong with anything but a regular file."""
    if stat.S_ISREG(status.st_mode):
        return None
    kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "a special file"
    return UnsafePathError(name, f"it is {kind}; a release has regular files only: exclude or replace it")


def _parents(name: str) -> Iterator[str]:
    while name := name.rpartition("/")[0]:
        yield name
