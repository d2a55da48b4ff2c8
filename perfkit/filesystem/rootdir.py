"""File operations confined to one directory: every component is opened by descriptor, without following symlinks."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from perfkit.errors import UnsafePathError
from perfkit.filesystem.paths import PRIVATE_DIR
from perfkit.filesystem.thread_map import cached_property
from perfkit.libc import link, syncfs

P = ParamSpec("P")
R = TypeVar("R")

_MAX_CACHED = 16  # enough for two names and their parents; 128 were no faster
_NOT_REMOVABLE = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EBUSY}  # EBUSY: a mount point


class RootDir:
    """The files below `root`, by names with forward slashes. Not thread-safe.

    A directory is opened component by component with O_NOFOLLOW (open(2)), so that no symbolic link, not even one that
    is moved into place during an operation, leads out of the root. A name may have any depth, however few files the
    process may open: only the 16 most recently used descriptors are kept, and fewer when there are no more.

    Every method raises UnsafePathError where a component is a symbolic link or not a plain name (empty, `.`, `..`, or
    with a NUL), and OSError as the system call does, with the whole path of the file.

    Args:
        follow_symlinks: whether a component may be a symbolic link.
        root_may_be_link: whether the root may be one; if not, opening it raises NotADirectoryError.
    """

    def __init__(
        self, root: str | os.PathLike[str], *, follow_symlinks: bool = False, root_may_be_link: bool = True
    ) -> None:
        self.root = os.path.abspath(root)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self._flags = flags if follow_symlinks else flags | os.O_NOFOLLOW
        self._cached: OrderedDict[str, int] = OrderedDict()
        self._in_use = ""  # a directory whose descriptor must stay open
        self._missing: str | None = None  # see `remember_missing`
        try:
            self.fd = os.open(root, flags if root_may_be_link else flags | os.O_NOFOLLOW)
        except OSError as error:
            if root_may_be_link or error.errno != errno.ELOOP:
                raise
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self.root) from error  # macOS
        try:
            self.owner = self._other_user()
        except BaseException:
            self.close()
            raise

    def _other_user(self) -> tuple[int, int] | None:
        """User and group of the tree, if root works on another user's tree; None if new files need no other owner."""
        if os.geteuid() != 0:
            return None
        found = self.lstat(PRIVATE_DIR) or os.fstat(self.fd)
        return (found.st_uid, found.st_gid) if found.st_uid != 0 else None

    def hand_over(self, descriptor: int) -> None:
        """Make the tree's owner the owner of a file or directory of root's; else one `sudo` would lock the owner out.

        A file with other hard links is left alone: it might be any file.
        """
        if self.owner is not None:
            found = os.fstat(descriptor)
            if found.st_uid == 0 and (stat.S_ISDIR(found.st_mode) or found.st_nlink == 1):
                with contextlib.suppress(OSError):  # the file system has no owners, or a server allows no change
                    os.fchown(descriptor, *self.owner)

    @cached_property
    def folds_case(self) -> bool:
        """Whether names that differ only in case are one file, as tried with perfkit's own directory."""
        other = PRIVATE_DIR.upper()  # FUSE may give it another inode number: look whether it is a separate entry
        return self.lstat(other) is not None and other not in os.listdir(self.fd)

    def close(self) -> None:
        """Close it. May be called again, also after one that a signal ended."""
        self.close_cached()
        if self.fd >= 0:
            fd, self.fd = self.fd, -1  # before the call, after which a signal may end this
            os.close(fd)

    def close_cached(self) -> None:
        """Close the cached directories, since other processes may have moved some."""
        while self._cached:
            os.close(self._cached.popitem()[1])

    def directory(self, name: str) -> int:
        """A descriptor of this directory, valid until the next call; the empty name is the root."""
        if (cached := self._cached.get(name)) is not None:
            self._cached.move_to_end(name)
            return cached
        fd, missing = self._nearest(name)
        while missing:
            at, leaf = missing.pop()
            try:
                fd = self._retried(os.open, leaf, self._flags, dir_fd=fd)
            except OSError as error:
                if error.errno == errno.ENOENT and self._missing is not None:
                    self._missing = f"{at}/"
                elif error.errno != errno.ENOENT and _is_symlink(leaf, fd):
                    raise UnsafePathError(at, "it is a symbolic link where a directory is needed") from error
                self.name_in(error, at)
                raise
            self._cached[at] = fd
            self._close_oldest()
        return fd

    def _nearest(self, name: str) -> tuple[int, list[tuple[str, str]]]:
        """The descriptor of the nearest directory that is open already: this one, or one above it.

        Also the directories to open from there, the last one first: the name and the last component of each.
        """
        missing: list[tuple[str, str]] = []
        while name:
            if name in self._cached:
                self._cached.move_to_end(name)
                return self._cached[name], missing
            directory, leaf = _split(name)
            missing.append((name, leaf))
            name = directory
        return self.fd, missing

    def _close_oldest(self, keep: int = _MAX_CACHED) -> None:
        if self._in_use in self._cached:
            self._cached.move_to_end(self._in_use)
        while len(self._cached) > keep:
            os.close(self._cached.popitem(last=False)[1])

    def _retried(self, call: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
        """A call that needs a descriptor, and uses the directory that was opened last."""
        try:
            return call(*args, **options)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        self._close_oldest(keep=2)  # that directory, and the one in use
        return call(*args, **options)

    def _parents(self, one: str, other: str) -> tuple[tuple[int, str], tuple[int, str]]:
        """`parent` of two names; both descriptors are valid until the next call."""
        first = self.parent(one)
        self._in_use = _split(one)[0]
        try:
            return first, self.parent(other)
        finally:
            self._in_use = ""

    def parent(self, name: str) -> tuple[int, str]:
        """A descriptor of the directory that a name is in, as `directory`, and the name's last component."""
        directory, leaf = _split(name)
        return self.directory(directory), leaf

    @contextlib.contextmanager
    def remember_missing(self) -> Iterator[None]:
        """Inside this block, `lstat` does not look again for a directory that did not exist."""
        before, self._missing = self._missing, "/"  # of no name
        try:
            yield
        finally:
            self._missing = before

    def lstat(self, name: str) -> os.stat_result | None:
        """lstat(2) of a name; None if it does not exist."""
        if self._missing is not None and name.startswith(self._missing):
            return None
        try:
            fd, leaf = self.parent(name)
            return os.stat(leaf, dir_fd=fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError as error:
            self.name_in(error, name)
            raise

    def open(self, name: str, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
        """A descriptor of a file, opened with O_NONBLOCK, so that a FIFO in its place can't block."""
        fd, leaf = self.parent(name)
        try:
            flags_here = flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = self._retried(os.open, leaf, flags_here, mode, dir_fd=fd)
        except OSError as error:
            self.name_in(error, name)
            raise
        try:
            if flags & os.O_CREAT:
                self.hand_over(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def listdir(self, name: str) -> list[str]:
        """The entries of a directory; empty if it does not exist."""
        return list(self.iterdir(name))

    def iterdir(self, name: str) -> Iterator[str]:
        """`listdir`, one entry at a time, for very large directories; entries may be removed during the iteration."""
        try:
            opened = self.scandir(name)
        except FileNotFoundError:
            return
        with opened as entries:
            for entry in entries:
                yield entry.name

    def scandir(self, name: str) -> contextlib.AbstractContextManager[Iterator[os.DirEntry[str]]]:
        """The entries of a directory, as os.scandir returns them."""
        return self._retried(os.scandir, self.directory(name))

    def mkdir(self, name: str, mode: int = 0o777) -> bool:
        """Create a directory; returns False if it exists already."""
        if self._missing is not None:
            self._missing = "/"
        fd, leaf = self.parent(name)
        try:
            os.mkdir(leaf, mode, dir_fd=fd)
        except FileExistsError:
            try:
                self.directory(name)
            except FileNotFoundError:  # another process has removed it in the meantime
                return self.mkdir(name, mode)
            return False
        except OSError as error:
            self.name_in(error, name)
            raise
        if self.owner is not None:
            self.hand_over(self.directory(name))
        return True

    def rmdir(self, name: str) -> bool:
        """Remove a directory if it exists and is empty; returns whether it was removed."""
        try:
            fd, leaf = self.parent(name)
            cached = self._cached.pop(name, None)
            if cached is not None:
                os.close(cached)
            os.rmdir(leaf, dir_fd=fd)
        except OSError as error:
            if error.errno not in _NOT_REMOVABLE and not self.listdir(name):  # FUSE may say EPERM if it is not empty
                self.name_in(error, name)
                raise
            return False
        return True

    def rename(self, source: str, target: str) -> None:
        self._call_with_both(os.rename, source, target)

    def link(self, source: str, target: str) -> None:
        self._call_with_both(link, source, target)

    def _call_with_both(self, call: Callable[..., None], source: str, target: str) -> None:
        (source_fd, source_leaf), (target_fd, target_leaf) = self._parents(source, target)
        try:
            call(source_leaf, target_leaf, src_dir_fd=source_fd, dst_dir_fd=target_fd)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.path.join(self.root, target)) from None

    def unlink(self, name: str) -> bool:
        """Remove a file; returns False if it does not exist."""
        try:
            fd, leaf = self.parent(name)
            os.unlink(leaf, dir_fd=fd)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            self.name_in(error, name)
            raise
        return True

    def name_in(self, error: OSError, name: str) -> None:
        """Name a file in an error by its whole path, instead of by its last component alone."""
        error.filename = os.path.join(self.root, name)

    def free_space(self) -> int:
        """How many bytes are free."""
        found = os.fstatvfs(self.fd)
        return found.f_bavail * found.f_frsize

    def check_free_space(self, size: int) -> None:
        """Raise ENOSPC unless `size` more bytes can be written."""
        free = self.free_space()
        if size > free:  # btrfs frees deleted space, and reports it, only with its next commit
            with contextlib.suppress(OSError):
                syncfs(self.fd)
            free = self.free_space()
        if size > free:
            raise OSError(errno.ENOSPC, f"No space left on device: {size} bytes are needed, {free} are free", self.root)


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Name the file in errors of write(2) and fsync(2), which do not."""
    try:
        yield
    except OSError as error:
        if error.strerror:
            error.filename = error.filename or path
        raise


@contextlib.contextmanager
def closing_fd(descriptor: int) -> Iterator[int]:
    """A block at whose end a descriptor is closed."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _split(name: str) -> tuple[str, str]:
    """The directory that a name is in, and its last component."""
    directory, slash, leaf = name.rpartition("/")
    if slash and not directory:
        raise UnsafePathError(name, "it is absolute; names are relative to their root")
    if leaf in ("", ".", "..") or "\0" in leaf:
        raise UnsafePathError(name, f"{leaf!r} is not the name of a file")
    return directory, leaf


def _is_symlink(leaf: str, fd: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(leaf, dir_fd=fd, follow_symlinks=False).st_mode)
    except OSError:
        return False
