"""perfkit's own files: a link that others planted under their names is neither followed nor written through.

All functions raise OSError as the system calls do.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

from perfkit.errors import UpdateError
from perfkit.filesystem.rootdir import closing_fd, naming
from perfkit.libc import sync_file

T = TypeVar("T")

_PATH = getattr(os, "O_PATH", os.O_RDONLY)  # Linux only: also opens a directory without read permission


def open_own(path: str, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
    """A descriptor of a regular file, without waiting for a FIFO.

    Raises:
        OSError: ELOOP: it is a symbolic link. EINVAL: it is not a regular file. EMLINK: it is opened for
            writing, and has other hard links, which others may have made.
    """
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file; remove it", path)
        if flags & (os.O_WRONLY | os.O_RDWR) and found.st_nlink > 1:
            raise OSError(errno.EMLINK, "The file has other hard links; remove it", path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_record(path: str, parse: Callable[[Any], T], remedy: str) -> T | None:
    """The result of `parse` for a JSON file; None if there is no such file.

    Args:
        parse: may raise ValueError, or any error that values of unexpected types cause, if the file is damaged.
        remedy: what to do then; the end of the error's message.

    Raises:
        UpdateError: the file is damaged.
    """
    try:
        with open(open_own(path), "rb") as file:
            return parse(json.load(file))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise UpdateError(f"{path} is damaged ({error}); {remedy}") from error


def write_record(path: str, record: Any, mode: int = 0o600) -> None:
    """Replace a JSON file that `read_record` reads; when this returns, it is on disk."""
    with replace_own(path, mode) as file:
        file.write(json.dumps(record).encode())
        file.flush()
        sync_file(file.fileno())


def create_own(path: str, mode: int = 0o600) -> int:
    """A descriptor of a new file in place of whatever has this name; its owner is its directory's, even for root."""
    with closing_fd(os.open(os.path.dirname(path) or ".", _PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as directory:
        leaf, flags = os.path.basename(path), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            descriptor = os.open(leaf, flags, mode, dir_fd=directory)
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(leaf, dir_fd=directory)
            descriptor = os.open(leaf, flags, mode, dir_fd=directory)
        except OSError as error:
            error.filename = path  # not its last component alone
            raise
        try:
            if os.geteuid() == 0:
                owner = os.fstat(directory)
                with contextlib.suppress(OSError):  # the file system has no owners, or a server allows no change
                    os.fchown(descriptor, owner.st_uid, owner.st_gid)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def create_unnamed(directory: str) -> int:
    """A descriptor of a new file without a name in this directory (O_TMPFILE, open(2)), or where its file system has no
    such files, in the directory for temporary files. FAT by FUSE, for example, loses what is written to a deleted file.
    """
    try:
        return os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except (AttributeError, OSError):  # AttributeError: macOS
        import tempfile

        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())


@contextlib.contextmanager
def replace_own(path: str, mode: int = 0o600) -> Iterator[IO[bytes]]:
    """A new file that is renamed to `path` at the end of the block; if that fails, the old file stays."""
    fresh = f"{path}~"
    try:
        with naming(fresh), open(create_own(fresh, mode), "wb") as file:
            yield file
        os.replace(fresh, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise
