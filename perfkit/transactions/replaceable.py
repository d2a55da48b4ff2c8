"""Finds files that the kernel lets nobody replace, before the commit point and as far as the kernel tells."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from perfkit.errors import UpdateError
from perfkit.filesystem.rootdir import RootDir
from perfkit.libc import APPEND_ONLY, IMMUTABLE, MOUNT_POINT, file_attributes, inherited_project
from perfkit.transactions.layout import PRIVATE_DIR

_REASONS = {
    MOUNT_POINT: "it is a mount point; unmount it",
    IMMUTABLE: "it is immutable; see chattr(1)",
    APPEND_ONLY: "it is append-only; see chattr(1)",
}


def check_replaceable(rootdir: RootDir, replaced: Iterable[str], changed: Iterable[str]) -> None:
    """Check that files can be renamed to these names, as far as that can be known without doing it.

    Args:
        replaced: existing files that are replaced, moved or removed.
        changed: these and new files: their directories are checked.

    Raises:
        UpdateError: a file or directory is a mount point, on another file system, of another quota project, immutable
            or not writable.
    """
    directories = _Directories(rootdir)
    directories.check_same_file_system(PRIVATE_DIR)
    with rootdir.remember_missing():
        for name in changed:
            directories.check(name.rpartition("/")[0])
    for name in replaced:
        if rootdir.lstat(name) is not None:
            fd, leaf = rootdir.parent(name)
            _check_attributes(name, file_attributes(fd, leaf))


def _check_attributes(name: str, attributes: int) -> None:
    for attribute, reason in _REASONS.items():
        if attributes & attribute:
            raise UpdateError(f"{name or 'the directory'} can't be changed: {reason}; nothing was changed")


class _Directories:
    """Checks each directory once."""

    def __init__(self, rootdir: RootDir) -> None:
        self._rootdir = rootdir
        self._device = os.fstat(rootdir.fd).st_dev
        self._project = inherited_project(rootdir.fd)
        self._writable: set[str] = set()
        self._same = {""}  # on the same file system

    def check(self, name: str) -> None:
        """Check the directory, or where it does not exist, the one that it will be created in."""
        while name not in self._writable:
            self._writable.add(name)
            found = self._rootdir.lstat(name) if name else None
            if name and (found is None or stat.S_IFMT(found.st_mode) not in (stat.S_IFDIR, stat.S_IFLNK)):
                name = name.rpartition("/")[0]
                continue
            self.check_same_file_system(name)
            fd = self._rootdir.directory(name)
            _check_attributes(name, file_attributes(fd) & ~MOUNT_POINT)
            if not _is_writable(fd):
                raise UpdateError(f"{name or self._rootdir.root}: no permission to write here; nothing was changed")

    def check_same_file_system(self, name: str) -> None:
        """Check that files can be renamed from `.perfkit` to this directory."""
        while name not in self._same:
            fd = self._rootdir.directory(name)
            if os.fstat(fd).st_dev != self._device or file_attributes(fd) & MOUNT_POINT:
                raise UpdateError(
                    f"{name} is a mount point or a subvolume; a tree must be in one file system; nothing was changed"
                )
            if inherited_project(fd) != self._project:
                raise UpdateError(
                    f"{name} has another quota project than {self._rootdir.root}, so no file can be renamed into it; "
                    "give both the same project (chattr(1), -p); nothing was changed"
                )
            self._same.add(name)
            name = name.rpartition("/")[0]


def _is_writable(directory: int) -> bool:
    """Whether an open directory can be changed, as far as access(2) tells, which checks the real user."""
    if os.getuid() != os.geteuid() or os.access(".", os.W_OK | os.X_OK, dir_fd=directory):
        return True
    return not os.access(".", os.F_OK, dir_fd=directory)  # then the call itself was refused, by a container's filter
