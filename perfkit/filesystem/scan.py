"""Traversal: what is in a tree, with its stat information, in batches or in the order of names, in little memory."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from perfkit.errors import ConfigError

__all__ = ["DIRECTORY", "ScanEntry", "open_below", "scan", "scan_batches", "scan_in_order"]

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_BELOW = DIRECTORY | os.O_NOFOLLOW
_BATCH = 1024
_OPEN_MOST = 32  # directories held open at once; deeper ones are opened again on the way back
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}

Path = str | os.PathLike[str]


class ScanEntry(NamedTuple):
    """One name in a tree, and what `lstat` says of it (`stat` where symlinks are followed).

    A tuple, since a frozen dataclass takes four times as long to make.
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


def scan(
    root: Path,
    *,
    directories: bool = False,
    follow_symlinks: bool = False,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    without: Collection[str] = (),
) -> Iterator[ScanEntry]:
    """Everything below `root` but directories, in the order of the file system.

    What vanishes meanwhile or can't be read is an entry with `error` set; so is a directory that can't be listed, and
    with `follow_symlinks` a link that leads to nothing or back to a directory it is in (ELOOP). Memory follows the
    depth of the tree and the subdirectories of one directory, not the number of files.

    Args:
        directories: whether directories are entries too, each before what is in it; the root is none.
        follow_symlinks: whether links are taken for what they lead to. Otherwise they are entries of their own.
        include: gitignore-style patterns (needs `perfkit[patterns]`); only what matches is an entry.
        exclude: gitignore-style patterns; what matches is no entry, nor what is below it.
        without: names directly in the root to leave out, such as `.perfkit`.

    Raises:
        ConfigError: patterns that can't be read, or without the package that reads them.
        OSError: the root can't be opened or listed.
    """
    batches = scan_batches(root, directories=directories, follow_symlinks=follow_symlinks, include=include,
                           exclude=exclude, without=without)  # fmt: skip
    return chain.from_iterable(batches)


def scan_batches(
    root: Path,
    *,
    directories: bool = False,
    follow_symlinks: bool = False,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    without: Collection[str] = (),
    batch: int = _BATCH,
    bare: bool = False,
) -> Iterator[list[ScanEntry]]:
    """As `scan`, in lists of about `batch` entries: no list is empty, and only one that an error ends is longer.

    Args:
        bare: names and types only, which takes half the time: all numbers are 0, and `mode` has the type alone.
    """
    included, excluded = _matcher(include), _matcher(exclude)
    flags = DIRECTORY if follow_symlinks else DIRECTORY | os.O_NOFOLLOW
    make = tuple.__new__
    levels: list[_Level] = []
    out: list[ScanEntry] = []
    level = _Level(os.open(root, DIRECTORY), "", follow_symlinks)
    try:
        while True:
            levels.append(level)
            prefix, names = level.prefix, level.names
            skipped = without if not prefix else ()
            try:
                with os.scandir(level.descriptor) as found:
                    for entry in found:
                        name = prefix + entry.name
                        if skipped and entry.name in skipped:
                            continue
                        try:
                            is_directory = entry.is_dir(follow_symlinks=follow_symlinks)
                            if excluded is not None and excluded(f"{name}/" if is_directory else name):
                                continue
                            if is_directory:
                                names.append(entry.name)
                                if not directories:
                                    continue
                            if included is not None and not included(f"{name}/" if is_directory else name):
                                continue
                            if bare:
                                out.append(_bare(entry, name, is_directory, follow_symlinks))
                            else:
                                status = entry.stat(follow_symlinks=follow_symlinks)
                                mode, inode, device, _, _, _, size, _, _, _ = status
                                out.append(make(ScanEntry, (name, size, status.st_mtime_ns, status.st_ctime_ns, inode,
                                                            device, mode, None)))  # fmt: skip
                        except OSError as error:
                            out.append(_failed(name, error))
                            continue
                        if len(out) >= batch:
                            yield out
                            out = []
            except OSError as error:
                if not prefix:
                    raise
                out.append(_failed(prefix[:-1], error))
            while True:  # to the next directory
                while not levels[-1].names:
                    levels.pop().close()
                    if not levels:
                        if out:
                            yield out
                        return
                parent = levels[-1]
                name = parent.names.pop()
                try:
                    if parent.descriptor < 0:
                        parent.descriptor = open_below(levels[0].descriptor, parent.prefix, flags)
                    level = _Level(os.open(name, flags, dir_fd=parent.descriptor), f"{parent.prefix}{name}/",
                                   follow_symlinks)  # fmt: skip
                except OSError as error:
                    out.append(_failed(parent.prefix + name, error))
                    continue
                if follow_symlinks and any(level.identity == above.identity for above in levels):
                    level.close()
                    out.append(_failed(level.prefix[:-1], OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)))
                    continue
                if len(levels) > _OPEN_MOST:
                    levels[-_OPEN_MOST].close()
                break
    finally:
        level.close()
        for each in levels:
            each.close()


class _Level:
    """A directory on the way down from the root."""

    __slots__ = ("descriptor", "identity", "names", "prefix")

    def __init__(self, descriptor: int, prefix: str, identify: bool) -> None:
        self.descriptor = descriptor
        self.prefix = prefix
        self.names: list[str] = []  # the subdirectories still to come
        self.identity: tuple[int, int] | None = None
        if identify:
            status = os.fstat(descriptor)
            self.identity = status.st_dev, status.st_ino

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def open_below(root: int, name: str, flags: int = DIRECTORY | os.O_NOFOLLOW) -> int:
    """Open the directory `name` below the open directory `root`, a component at a time: no link can lead out of it, and
    it may be deeper than PATH_MAX.

    Raises:
        OSError: a component is missing, no directory, or (ELOOP, ENOTDIR) a symlink.
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


def _bare(entry: os.DirEntry[str], name: str, is_directory: bool, follow_symlinks: bool) -> ScanEntry:
    if is_directory:
        mode = stat.S_IFDIR
    elif entry.is_file(follow_symlinks=follow_symlinks):
        mode = stat.S_IFREG
    else:
        mode = stat.S_IFLNK if entry.is_symlink() else 0
    return tuple.__new__(ScanEntry, (name, 0, 0, 0, 0, 0, mode, None))


def _failed(name: str, error: OSError) -> ScanEntry:
    return ScanEntry(name, 0, 0, 0, 0, 0, 0, error)


def _matcher(patterns: Iterable[str]) -> Callable[[str], bool] | None:
    lines = [patterns] if isinstance(patterns, str) else list(patterns)
    if not lines:
        return None
    try:
        from pathspec import GitIgnoreSpec
    except ImportError:
        raise ConfigError("patterns need the package pathspec: pip install 'perfkit[patterns]'") from None
    try:
        return GitIgnoreSpec.from_lines(lines).match_file
    except ValueError as error:
        raise ConfigError(f"{lines}: not gitignore patterns: {error}") from error


def scan_in_order(root: str | os.PathLike[str], *, without: Collection[str] = ()) -> Iterator[ScanEntry]:
    """Everything below `root` but directories, as `scan` has it, sorted by the code points of the whole names.

    That is the order of their UTF-8 bytes, too. Memory follows the names of one directory.

    Args:
        without: names directly in the root to leave out.

    Raises:
        OSError: the root can't be opened or listed.
    """
    levels = [_SortedLevel(os.open(root, DIRECTORY), "")]
    make = tuple.__new__
    try:
        levels[0].list(without)
        while levels:
            level = levels[-1]
            if not level.names:
                levels.pop().close()
                continue
            leaf = level.names.pop()
            name = level.prefix + leaf
            try:
                if level.descriptor < 0:
                    level.descriptor = open_below(levels[0].descriptor, level.prefix)
                if leaf.endswith("/"):
                    below = _SortedLevel(os.open(leaf[:-1], _BELOW, dir_fd=level.descriptor), name)
                    levels.append(below)
                    below.list()
                    if len(levels) > _OPEN_MOST:
                        levels[-_OPEN_MOST].close()
                    continue
                status = os.stat(leaf, dir_fd=level.descriptor, follow_symlinks=False)
            except OSError as error:
                yield ScanEntry(name.rstrip("/"), 0, 0, 0, 0, 0, 0, error)
                continue
            mode = status.st_mode
            if stat.S_ISDIR(mode):  # since it was listed; as if it had not been there
                continue
            yield make(ScanEntry, (name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino,
                                   status.st_dev, mode, None))  # fmt: skip
    finally:
        for level in levels:
            level.close()


class _SortedLevel:
    """A directory on the way down: its names still to come, the next one last; those of directories end in a slash,
    which is what puts `a.txt` before `a/b`."""

    __slots__ = ("descriptor", "names", "prefix")

    def __init__(self, descriptor: int, prefix: str) -> None:
        self.descriptor = descriptor
        self.prefix = prefix
        self.names: list[str] = []

    def list(self, without: Collection[str] = ()) -> None:
        with os.scandir(self.descriptor) as found:
            self.names = [f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name
                          for entry in found if entry.name not in without]  # fmt: skip
        self.names.sort(reverse=True)

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
