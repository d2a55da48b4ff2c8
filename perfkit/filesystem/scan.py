"""Traversal: the files of a tree with their stat, in batches or sorted by name, in little memory."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from perfkit.filesystem.paths import name_matcher

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
BELOW = DIRECTORY | os.O_NOFOLLOW  # for a directory in the tree: no link may lead out of it
_BATCH = 1024
_MAX_OPEN = 32  # directories held open at once; others are opened again on the way back
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}

Path = str | os.PathLike[str]


class ScanEntry(NamedTuple):
    """One name in a tree, and its lstat(2); stat(2) where symlinks are followed.

    A tuple, since creating a frozen dataclass takes four times as long.
    """

    name: str  # relative to the root, with slashes; os.fsencode gives back bytes that are not UTF-8
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int
    mode: int  # type and permissions, as st_mode
    error: OSError | None = None  # it vanished, or can't be read; then all numbers are 0

    @property
    def kind(self) -> str:
        """`file`, `directory`, `symlink`, or `other` (a device, a socket, a pipe, or an error)."""
        return _KINDS.get(stat.S_IFMT(self.mode), "other")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanOptions:
    """What to scan.

    `include` and `exclude` are patterns as in a `.gitignore` (gitignore(5)). Only what matches `include` is
    an entry; what matches `exclude` is left out, with everything below it.
    """

    directories: bool = False  # whether directories are entries, too, each before its contents; never the root
    follow_symlinks: bool = False  # whether links are replaced by their targets; otherwise they are entries themselves
    include: Iterable[str] = ()
    exclude: Iterable[str] = ()
    without: Collection[str] = ()  # names directly in the root to leave out, such as `.perfkit`


def scan(root: Path, options: ScanOptions = ScanOptions()) -> Iterator[ScanEntry]:
    """Everything below `root` except directories, in the order of the file system.

    What vanishes during the scan or can't be read is an entry with `error` set; so is a directory that can't be listed,
    and with `follow_symlinks` a link that is broken or points back to a directory it is in (ELOOP). Memory depends on
    the depth of the tree and the number of subdirectories of one directory, not on the number of files.

    Raises:
        ConfigError: invalid patterns.
        OSError: the root can't be opened or listed.
    """
    return chain.from_iterable(scan_batches(root, options))


def scan_batches(
    root: Path, options: ScanOptions = ScanOptions(), *, batch: int = _BATCH, types_only: bool = False
) -> Iterator[list[ScanEntry]]:
    """Like `scan`, in non-empty lists of about `batch` entries; only a list that ends with an error is longer.

    Args:
        types_only: read only names and types, in half the time: all numbers are 0, and `mode` has the type alone.
    """
    walk = _Walk(options, batch, types_only)
    walk.levels.append(Level(os.open(root, DIRECTORY), ""))
    level: Level | None = walk.levels[0]
    try:
        while level is not None:
            yield from walk.list(level)
            level = walk.next_directory()
        if walk.out:
            yield walk.out
    finally:
        for each in walk.levels:
            each.close()


class _Walk:
    """A depth-first traversal: `list` a directory, then go to the `next_directory`."""

    def __init__(self, options: ScanOptions, batch: int, types_only: bool) -> None:
        self.levels: list[Level] = []  # the open directory and those above it
        self.out: list[ScanEntry] = []  # entries that are not yielded yet
        self._options = options
        self._included, self._excluded = name_matcher(options.include), name_matcher(options.exclude)
        self._flags = DIRECTORY if options.follow_symlinks else BELOW
        self._batch = batch
        self._types_only = types_only

    def list(self, level: Level) -> Iterator[list[ScanEntry]]:
        """Full batches of the entries of a directory; its subdirectories are added to the level."""
        prefix, names = level.prefix, level.names
        follow, directories = self._options.follow_symlinks, self._options.directories
        included, excluded, types_only, batch = self._included, self._excluded, self._types_only, self._batch
        skipped = self._options.without if not prefix else ()
        make = tuple.__new__
        out = self.out
        try:
            with os.scandir(level.descriptor) as found:
                for entry in found:
                    name = prefix + entry.name
                    if skipped and entry.name in skipped:
                        continue
                    try:
                        is_directory = entry.is_dir(follow_symlinks=follow)
                        if excluded is not None and excluded(f"{name}/" if is_directory else name):
                            continue
                        if is_directory:
                            names.append(entry.name)
                            if not directories:
                                continue
                        if included is not None and not included(f"{name}/" if is_directory else name):
                            continue
                        if types_only:
                            out.append(_without_stat(entry, name, is_directory, follow))
                        else:
                            status = entry.stat(follow_symlinks=follow)
                            mode, inode, device, _, _, _, size, _, _, _ = status
                            row = (name, size, status.st_mtime_ns, status.st_ctime_ns, inode, device, mode, None)
                            out.append(make(ScanEntry, row))
                    except OSError as error:
                        out.append(_failed(name, error))
                        continue
                    if len(out) >= batch:
                        yield out
                        self.out = out = []
        except OSError as error:
            if not prefix:
                raise
            out.append(_failed(prefix[:-1], error))

    def next_directory(self) -> Level | None:
        """Open the next directory; None at the end. One that can't be opened becomes an entry with an error."""
        levels = self.levels
        while levels:
            parent = levels[-1]
            if not parent.names:
                levels.pop().close()
                continue
            name = parent.names.pop()
            try:
                level = descend(levels, name, self._flags)
            except OSError as error:
                self.out.append(_failed(parent.prefix + name, error))
                continue
            if self._options.follow_symlinks and any(level.identity == above.identity for above in levels[:-1]):
                levels.pop().close()
                loop = OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
                self.out.append(_failed(level.prefix[:-1], loop))
                continue
            return level
        return None


class Level:
    """A directory on the way down from the root, open unless there are too many."""

    __slots__ = ("_identity", "descriptor", "names", "prefix")

    def __init__(self, descriptor: int, prefix: str) -> None:
        self.descriptor = descriptor  # of the open directory; -1 if it was closed
        self.prefix = prefix  # its name relative to the root, with a slash at the end; empty for the root
        self.names: list[str] = []  # its entries that are still to be visited, the next one last
        self._identity: tuple[int, int] | None = None

    @property
    def identity(self) -> tuple[int, int]:
        """Its device and inode, as first read while it was open."""
        if self._identity is None:
            status = os.fstat(self.descriptor)
            self._identity = status.st_dev, status.st_ino
        return self._identity

    def reopen(self, root: Level, flags: int = BELOW) -> None:
        """Open it again if it was closed because there were too many."""
        if self.descriptor < 0:
            self.descriptor = open_below(root.descriptor, self.prefix, flags)

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def descend(levels: list[Level], leaf: str, flags: int = BELOW) -> Level:
    """Open a directory in the last of `levels`, and append it; if too many are open then, one of them is closed.

    Raises:
        OSError: it can't be opened.
    """
    parent = levels[-1]
    parent.reopen(levels[0], flags)
    level = Level(os.open(leaf, flags, dir_fd=parent.descriptor), f"{parent.prefix}{leaf}/")
    levels.append(level)
    if len(levels) > _MAX_OPEN:
        levels[-_MAX_OPEN].close()
    return level


def open_below(root: int, name: str, flags: int = BELOW) -> int:
    """Open the directory `name` below the open directory `root`, one component at a time.

    So no symlink can lead out of `root`, and the path may be longer than PATH_MAX.

    Raises:
        OSError: a component is missing, not a directory, or a symlink (ELOOP, ENOTDIR).
    """
    descriptor = os.open(".", DIRECTORY, dir_fd=root)
    for component in name.split("/"):
        if component:
            try:
                below = os.open(component, flags, dir_fd=descriptor)
            finally:
                os.close(descriptor)
            descriptor = below
    return descriptor


def _without_stat(entry: os.DirEntry[str], name: str, is_directory: bool, follow_symlinks: bool) -> ScanEntry:
    if is_directory:
        mode = stat.S_IFDIR
    elif entry.is_file(follow_symlinks=follow_symlinks):
        mode = stat.S_IFREG
    else:
        mode = stat.S_IFLNK if entry.is_symlink() else 0
    return tuple.__new__(ScanEntry, (name, 0, 0, 0, 0, 0, mode, None))


def _failed(name: str, error: OSError) -> ScanEntry:
    return ScanEntry(name, 0, 0, 0, 0, 0, 0, error)


def totals(root: Path, options: ScanOptions = ScanOptions(), *, regular: bool = False) -> tuple[int, int]:
    """How many entries, or `regular` files, a scan finds, and the sum of their sizes; for progress."""
    files = size = 0
    for entry in scan(root, options):
        if entry.kind == "file" or not regular:
            files += 1
            size += entry.size
    return files, size


def scan_in_order(root: str | os.PathLike[str], *, without: Collection[str] = ()) -> Iterator[ScanEntry]:
    """Everything below `root` except directories, as `scan` finds it, sorted by the code points of the whole names.

    That is also the order of their UTF-8 bytes. Memory depends on the number of names in one directory.

    Args:
        without: names directly in the root to leave out.

    Raises:
        OSError: the root can't be opened or listed.
    """
    levels = [Level(os.open(root, DIRECTORY), "")]
    make = tuple.__new__
    try:
        _list_sorted(levels[0], without)
        while levels:
            level = levels[-1]
            if not level.names:
                levels.pop().close()
                continue
            leaf = level.names.pop()
            name = level.prefix + leaf
            try:
                if leaf.endswith("/"):
                    _list_sorted(descend(levels, leaf[:-1]))
                    continue
                level.reopen(levels[0])
                status = os.stat(leaf, dir_fd=level.descriptor, follow_symlinks=False)
            except OSError as error:
                yield ScanEntry(name.rstrip("/"), 0, 0, 0, 0, 0, 0, error)
                continue
            mode = status.st_mode
            if stat.S_ISDIR(mode):  # it became a directory after it was listed: ignore it
                continue
            mtime_ns, ctime_ns = status.st_mtime_ns, status.st_ctime_ns
            yield make(ScanEntry, (name, status.st_size, mtime_ns, ctime_ns, status.st_ino, status.st_dev, mode, None))
    finally:
        for level in levels:
            level.close()


def _list_sorted(level: Level, without: Collection[str] = ()) -> None:
    """Read the names in a directory. Those of directories end in a slash, which sorts `a.txt` before `a/b`."""
    with os.scandir(level.descriptor) as found:
        level.names = [
            f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name
            for entry in found
            if entry.name not in without
        ]
    level.names.sort(reverse=True)
