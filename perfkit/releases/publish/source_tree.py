"""The files of a tree to publish: names, sizes, digests, executable bits."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Collection, Iterator
from typing import BinaryIO

from perfkit.errors import UnsafePathError
from perfkit.filesystem.paths import name_matcher
from perfkit.libc import is_being_written
from perfkit.progress.meter import Progress
from perfkit.progress.stage import Stage
from perfkit.releases.format.manifest import Entry
from perfkit.transactions.layout import PRIVATE_DIR

__all__ = ["SourceTree"]

_READ_BYTES = 1 << 20
_Found = tuple[str, os.stat_result]  # name and status


class SourceTree:
    """The entries of a tree, which is hashed once, and then only where files have changed.

    Args:
        exclude: patterns, as in a `.gitignore`, of names relative to `src`; a directory is left out with its contents.
        closed_only: whether a file that is open for writing, as far as that can be known, keeps the entry that it had,
            if any.
    """

    def __init__(self, src: str, exclude: Collection[str] = (), *, closed_only: bool = False) -> None:
        self._src = src
        self._matches = name_matcher(exclude)
        self._closed_only = closed_only
        self.entries: dict[str, Entry] = {}

    def read_all(self, progress: Progress | None = None) -> None:
        """Hash every file.

        Args:
            progress: displays the work; then the sizes of all files are added up before.

        Raises:
            UnsafePathError: a symbolic link or special file.
            OSError: something can't be read.
        """
        sizes = [status.st_size for _, status in self._below("")] if progress is not None else []
        with Stage(progress, "checking files", files=len(sizes), total_bytes=sum(sizes)) as shown:
            found = self._below("")
            self.entries = {entry.name: entry for each in found for entry in self._entry(*each, shown)}

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
            status = os.lstat(os.path.join(self._src, name))
        except (FileNotFoundError, NotADirectoryError):
            return
        if stat.S_ISDIR(status.st_mode):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # removed since: another event reports it
                yield from self._below(name)
        else:
            yield name, status

    def _below(self, directory: str) -> Iterator[_Found]:
        left = [directory]
        while left:
            directory = left.pop()
            with os.scandir(os.path.join(self._src, directory)) as found:
                items = sorted(found, key=lambda item: item.name)
            for item in items:
                name = f"{directory}/{item.name}" if directory else item.name
                if self._excluded(name):
                    continue
                status = item.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    left.append(name)
                else:
                    yield name, status

    def _excluded(self, name: str) -> bool:
        """Also excludes the private directory of a tree that is itself synced."""
        return name == PRIVATE_DIR or (self._matches is not None and self._matches(name))

    def _entry(self, name: str, status: os.stat_result, shown: Stage) -> Iterator[Entry]:
        if not stat.S_ISREG(status.st_mode):
            kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "a special file"
            raise UnsafePathError(name, f"it is {kind}; a release has regular files only: exclude or replace it")
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


def _parents(name: str) -> Iterator[str]:
    while name := name.rpartition("/")[0]:
        yield name
