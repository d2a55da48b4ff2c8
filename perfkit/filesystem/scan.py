"""Traversal: the files of a tree with their stat, in batches or sorted by name, in little memory."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from perfkit.errors import UnsafePathError
from perfkit.filesystem.paths import name_matcher
from perfkit.filesystem.rootdir import RootDir

_BATCH = 1024
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
    error: Exception | None = None  # it vanished, or can't be read; then all numbers are 0

    @property
    def kind(self) -> str:
        """`file`, `directory`, `symlink`, or `other` (a device, a socket, a pipe, or an error)."""
        return _KINDS.get(stat.S_IFMT(self.mode), "other")


class ScanOptions(NamedTuple):
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
    with contextlib.closing(RootDir(root, follow_symlinks=options.follow_symlinks)) as rootdir:
        walk = _Walk(rootdir, options, batch, types_only)
        while walk.directories:
            yield from walk.list(walk.directories.pop())
        if walk.out:
            yield walk.out


class _Walk:
    """A depth-first traversal."""

    def __init__(self, rootdir: RootDir, options: ScanOptions, batch: int, types_only: bool) -> None:
        self.directories = [""]  # those that are still to be listed, the next one last
        self.out: list[ScanEntry] = []  # entries that are not yielded yet
        self._rootdir = rootdir
        self._above: list[tuple[str, os.stat_result]] = []  # with `follow_symlinks`: the directories on the way down
        self._options = options
        self._included, self._excluded = name_matcher(options.include), name_matcher(options.exclude)
        self._batch = batch
        self._types_only = types_only

    def list(self, directory: str) -> Iterator[list[ScanEntry]]:
        """Full batches of the entries of a directory; its subdirectories are added to `directories`."""
        prefix = f"{directory}/" if directory else ""
        follow, with_directories = self._options.follow_symlinks, self._options.directories
        included, excluded, types_only, batch = self._included, self._excluded, self._types_only, self._batch
        skipped = self._options.without if not prefix else ()
        make = tuple.__new__
        out = self.out
        try:
            if follow:
                self._check_loop(directory)
            with self._rootdir.scandir(directory) as found:
                for entry in found:
                    name = prefix + entry.name
                    if skipped and entry.name in skipped:
                        continue
                    try:
                        is_directory = entry.is_dir(follow_symlinks=follow)
                        if excluded is not None and excluded(f"{name}/" if is_directory else name):
                            continue
                        if is_directory:
                            self.directories.append(name)
                            if not with_directories:
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
        except (OSError, UnsafePathError) as error:
            if not directory:
                raise
            out.append(_failed(directory, error))

    def _check_loop(self, directory: str) -> None:
        """Raise ELOOP if a directory is one of those above it."""
        status = os.fstat(self._rootdir.directory(directory))
        while self._above and not directory.startswith(self._above[-1][0]):
            self._above.pop()
        if any(os.path.samestat(status, above) for _, above in self._above):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), directory)
        self._above.append((f"{directory}/" if directory else "", status))


def _without_stat(entry: os.DirEntry[str], name: str, is_directory: bool, follow_symlinks: bool) -> ScanEntry:
    if is_directory:
        mode = stat.S_IFDIR
    elif entry.is_file(follow_symlinks=follow_symlinks):
        mode = stat.S_IFREG
    else:
        mode = stat.S_IFLNK if entry.is_symlink() else 0
    return tuple.__new__(ScanEntry, (name, 0, 0, 0, 0, 0, mode, None))


def _failed(name: str, error: Exception) -> ScanEntry:
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
    make = tuple.__new__
    with contextlib.closing(RootDir(root)) as rootdir:
        levels = [("", _names(rootdir, "", without))]  # the directories on the way down, and what is left of each
        descriptor = -1  # of the last one; -1: not open
        while levels:
            prefix, names = levels[-1]
            if not names:
                levels.pop()
                descriptor = -1
                continue
            leaf = names.pop()
            name = prefix + leaf
            try:
                if leaf.endswith("/"):
                    descriptor = -1
                    levels.append((name, _names(rootdir, name[:-1])))
                    continue
                if descriptor < 0:
                    descriptor = rootdir.directory(prefix[:-1])
                status = os.stat(leaf, dir_fd=descriptor, follow_symlinks=False)
            except (OSError, UnsafePathError) as error:
                descriptor = -1  # it may be another directory's by now, or closed
                yield _failed(name.rstrip("/"), error)
                continue
            mode = status.st_mode
            if stat.S_ISDIR(mode):  # it became a directory after it was listed: ignore it
                continue
            mtime_ns, ctime_ns = status.st_mtime_ns, status.st_ctime_ns
            yield make(ScanEntry, (name, status.st_size, mtime_ns, ctime_ns, status.st_ino, status.st_dev, mode, None))


def _names(rootdir: RootDir, directory: str, without: Collection[str] = ()) -> list[str]:
    """The names in a directory, the first one last. Those of directories end in a slash: `a.txt` is before `a/b`."""
    with rootdir.scandir(directory) as found:
        names = [
            f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name
            for entry in found
            if entry.name not in without
        ]
    names.sort(reverse=True)
    return names
