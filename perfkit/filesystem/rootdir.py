"""Work below one directory, and never outside it: every step goes through directory descriptors, without symlinks."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator

from perfkit.errors import UnsafePathError

__all__ = ["Beneath"]

_MOST_OPEN = 128
_NOT_EMPTY = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EBUSY}  # or gone, or a mount point
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Beneath:
    """The files below `root`, by names with forward slashes; not for several threads at once.

    A directory is opened component by component with O_NOFOLLOW (open(2)), so that no symbolic link, and no rename of
    one into the way while we work, leads out of the root. Open directories are kept, the last 128 of them.

    Every method raises UnsafePathError where a component is a symbolic link, and OSError as the system call does.
    """

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        self.fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._open: OrderedDict[str, int] = OrderedDict()

    def close(self) -> None:
        self.forget()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def forget(self) -> None:
        """Open every directory anew: others may have moved them meanwhile."""
        while self._open:
            os.close(self._open.popitem()[1])

    def directory(self, name: str) -> int:
        """A descriptor of this directory, good until 128 others were asked for; the empty name is the root."""
        if not name:
            return self.fd
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        parent, _, leaf = name.rpartition("/")
        above = self.directory(parent)
        try:
            fd = os.open(leaf, _DIRECTORY, dir_fd=above)
        except OSError as error:
            if _is_symlink(leaf, above):
                raise UnsafePathError(name, "it is a symbolic link where a directory is needed") from error
            error.filename = name
            raise
        self._open[name] = fd
        if len(self._open) > _MOST_OPEN:
            os.close(self._open.popitem(last=False)[1])
        return fd

    def parent(self, name: str) -> tuple[int, str]:
        """The directory of a name, and its last component."""
        directory, _, leaf = name.rpartition("/")
        return self.directory(directory), leaf

    def lstat(self, name: str) -> os.stat_result | None:
        """What has this name; None if nothing has."""
        try:
            fd, leaf = self.parent(name)
            return os.stat(leaf, dir_fd=fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def open(self, name: str, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
        """A descriptor of a file; O_NONBLOCK, lest a FIFO in its place hang us."""
        fd, leaf = self.parent(name)
        try:
            return os.open(leaf, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, mode, dir_fd=fd)
        except OSError as error:
            error.filename = name
            raise

    def names(self, name: str) -> list[str]:
        """What a directory holds; nothing if there is none."""
        try:
            return os.listdir(self.directory(name))
        except FileNotFoundError:
            return []

    def each(self, name: str) -> Iterator[str]:
        """`names` one after the other, for directories that may have very many; what was told may be removed."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.directory(name)) as entries:
            for entry in entries:
                yield entry.name

    def mkdir(self, name: str, mode: int = 0o777) -> bool:
        """Make a directory; False if there is one already."""
        fd, leaf = self.parent(name)
        try:
            os.mkdir(leaf, mode, dir_fd=fd)
        except FileExistsError:
            self.directory(name)
            return False
        return True

    def rmdir(self, name: str) -> bool:
        """Remove a directory if it is there and empty."""
        try:
            fd, leaf = self.parent(name)
            held = self._open.pop(name, None)
            if held is not None:
                os.close(held)
            os.rmdir(leaf, dir_fd=fd)
        except OSError as error:
            if error.errno not in _NOT_EMPTY:
                raise
            return False
        return True

    def rename(self, source: str, target: str) -> None:
        source_fd, source_leaf = self.parent(source)
        target_fd, target_leaf = self.parent(target)
        os.rename(source_leaf, target_leaf, src_dir_fd=source_fd, dst_dir_fd=target_fd)

    def link(self, source: str, target: str) -> None:
        source_fd, source_leaf = self.parent(source)
        target_fd, target_leaf = self.parent(target)
        os.link(source_leaf, target_leaf, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False)

    def unlink(self, name: str) -> bool:
        """Remove a file; False if it is not there."""
        try:
            fd, leaf = self.parent(name)
            os.unlink(leaf, dir_fd=fd)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def _is_symlink(leaf: str, fd: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(leaf, dir_fd=fd, follow_symlinks=False).st_mode)
    except OSError:
        return False
