"""Copy one file: with reflinks where supported, else inside the kernel, else through a buffer."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator

from perfkit.filesystem.batch.run import try_unlink
from perfkit.filesystem.rootdir import closing_fd
from perfkit.libc import preadv, set_mode

_FICLONE = 0x40049409  # ioctl_ficlonerange(2)
_STEP_BYTES = 64 << 20  # of copy_file_range at once
_BUFFER_BYTES = 256 << 10
_NO_RANGE_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM, errno.ETXTBSY})
_NO_CLONE = _NO_RANGE_COPY | {errno.ENOTTY}


def copy_file(source: str, path: str, *, clone: bool = True) -> str:
    """Copy one file to a new name, with its rwx bits and mtime; returns `reflink` or `copy`.

    Raises:
        OSError: reading or writing failed, or `path` exists; nothing is left behind.
    """
    with closing_fd(os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)) as reading:
        status = os.fstat(reading)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "no longer a regular file", source)
        writing = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with closing_fd(writing):
                how = _fill(reading, writing, status, clone)
                set_mode(writing, status.st_mode & 0o777)
                os.utime(writing, ns=(status.st_mtime_ns, status.st_mtime_ns))
        except BaseException:
            try_unlink(path)
            raise
        return how


def _fill(reading: int, writing: int, status: os.stat_result, clone: bool) -> str:
    if clone and status.st_size:
        try:
            fcntl.ioctl(writing, _FICLONE, reading)
            return "reflink"
        except OSError as error:
            if error.errno not in _NO_CLONE:
                raise
    if status.st_blocks * 512 < status.st_size and hasattr(os, "SEEK_DATA"):
        for start, end in _extents(reading, status.st_size):
            _copy_range(reading, writing, start, end)
        os.ftruncate(writing, status.st_size)
    else:
        _copy_range(reading, writing, 0, status.st_size)
    return "copy"


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """The ranges of a sparse file that have data (lseek(2), SEEK_DATA)."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = min(size, os.lseek(descriptor, start, os.SEEK_HOLE))
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        yield start, end


def _copy_range(reading: int, writing: int, start: int, end: int) -> None:
    """Copy a range of bytes, up to the end of the source: inside the kernel, or through a buffer."""
    position = start
    try:
        while position < end and hasattr(os, "copy_file_range"):  # Linux only
            count = os.copy_file_range(reading, writing, min(_STEP_BYTES, end - position), position, position)
            if count == 0:
                break
            position += count
    except OSError as error:
        if error.errno not in _NO_RANGE_COPY:
            raise
    if position >= end > 0:
        return
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    # Files that are generated on reading, as in /proc, have size 0: read those to their end.
    while (end == 0 or position < end) and (
        count := preadv(reading, [buffer if end == 0 else buffer[: end - position]], position)
    ):
        done = 0
        while done < count:
            done += os.pwrite(writing, buffer[done:count], position + done)
        position += count
