"""Functions of the C library that Python does not expose, or not as they are needed here.

They raise OSError as the system call does. ctypes takes 2 ms to import, so it is imported on use.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import stat
import struct
import sys
from collections.abc import Callable
from typing import Any

# ENOSYS: of the kernel or the file system; EPERM: refused by a container's filter of system calls (seccomp)
_UNSUPPORTED = {errno.ENOSYS, errno.EPERM, errno.ENOTSUP, errno.EINVAL}

IMMUTABLE, APPEND_ONLY, MOUNT_POINT = 0x10, 0x20, 0x2000  # statx(2): stx_attributes
_AT_NO_FOLLOW = 0x100 | 0x800 | 0x1000  # AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH
_AT_CWD, _RENAME_NOREPLACE = -100, 1  # linux/fcntl.h, linux/fs.h
_FSGETXATTR, _PROJECT_INHERITED = 0x801C581F, 0x200  # linux/fs.h
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
_M_MMAP_THRESHOLD = -3  # malloc.h
_process_settings_allowed = False


def syncfs(descriptor: int) -> bool:
    """Sync the file system that an open file is on: syncfs(2); False where it is unsupported.

    Linux reports write-back errors from syncfs only since 5.8, so earlier versions count as unsupported.
    """
    number = _call("syncfs", descriptor) if _syncfs_tells_errors() else errno.ENOSYS
    if number and number not in _UNSUPPORTED:
        raise OSError(number, os.strerror(number))
    return number == 0


@functools.cache
def boot_id() -> str:
    """What tells this boot of the system from others: random(4), or on macOS sysctl(3); empty where it is unknown."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    import ctypes

    found, size = ctypes.create_string_buffer(64), ctypes.c_size_t(64)
    _call("sysctlbyname", b"kern.bootsessionuuid", found, ctypes.byref(size), None, ctypes.c_size_t(0))
    return found.value.decode()


@functools.cache
def _syncfs_tells_errors() -> bool:
    system = os.uname()
    version = tuple(int(part) for part in system.release.split("-")[0].split(".")[:2] if part.isdigit())
    return system.sysname == "Linux" and version >= (5, 8)


def sync_file(descriptor: int) -> None:
    """Sync an open file: fsync(2), or F_FULLFSYNC (fcntl(2)) on macOS, whose fsync ends at the drive's cache."""
    full_sync = getattr(fcntl, "F_FULLFSYNC", None)
    if full_sync is not None:
        with contextlib.suppress(OSError):  # not every file system has it
            fcntl.fcntl(descriptor, full_sync)
            return
    os.fsync(descriptor)


def sync_directory(descriptor: int) -> None:
    """Sync an open directory: fsync(2), which some network and FUSE file systems don't have for directories."""
    try:
        sync_file(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def sync_directory_at(path: str) -> None:
    """`sync_directory` for one that is not open."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_directory(descriptor)
    finally:
        os.close(descriptor)


def start_writing(descriptor: int) -> None:
    """Have the system begin to write an open file to disk: sync_file_range(2), where there is one.

    This is only a hint, so that a later fsync(2) has less to do; that also reports errors.
    """
    import ctypes

    _call("sync_file_range", descriptor, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


def set_mode(descriptor: int, mode: int) -> None:
    """fchmod(2), where the file system has permissions: FAT and mounts of another owner keep theirs."""
    try:
        os.fchmod(descriptor, mode)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def holds_modes(path: str) -> bool:
    """Whether the file system keeps executable bits, as tried on this file; True if that can't be tried.

    If the file belongs to another user, or has other hard links, a new file beside it is used instead.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if found.st_nlink == 1 and os.geteuid() in (found.st_uid, 0):
                return _holds_mode(descriptor)
        finally:
            os.close(descriptor)
        beside = f"{path}~{os.getpid()}"
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.unlink(beside)
            return _holds_mode(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        return True


def _holds_mode(descriptor: int) -> bool:
    before = stat.S_IMODE(os.fstat(descriptor).st_mode)
    changed = before ^ stat.S_IXUSR
    set_mode(descriptor, changed)
    held = stat.S_IMODE(os.fstat(descriptor).st_mode) == changed
    set_mode(descriptor, before)
    return held


def _preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
    (buffer,) = buffers
    data = os.pread(descriptor, len(buffer), offset)
    buffer[: len(data)] = data
    return len(data)


# preadv(2) into one buffer, which PyPy lacks.
preadv: Callable[[int, list[memoryview], int], int] = getattr(os, "preadv", _preadv)


def link(source: str, target: str, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
    """Create a hard link; if `source` is a symbolic link, to the link itself and not its target: linkat(2)."""
    if sys.implementation.name == "pypy":  # never follows links, and refuses the argument (7.3.19)
        os.link(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
    else:
        os.link(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=False)


def rename_to_new(source: str, name: str) -> None:
    """Rename a file to a name that must not exist: renameat2(2); where the file system lacks it, a hard link; where it
    lacks both, such as exFAT, in place of an empty file.
    """
    number = _call("renameat2", _AT_CWD, os.fsencode(source), _AT_CWD, os.fsencode(name), _RENAME_NOREPLACE)
    if number == 0:
        return
    if number not in _UNSUPPORTED:
        raise OSError(number, os.strerror(number), name)
    try:
        link(source, name)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
        try:
            os.replace(source, name)
        except OSError:
            os.unlink(name)
            raise
    else:
        os.unlink(source)


def try_lock(descriptor: int) -> bool:
    """Lock an open file, or raise BlockingIOError: flock(2). False where unsupported (some network file systems)."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # ENOSYS, EOPNOTSUPP, ENOLCK or EBADF, depending on the file system
        return False
    return True


def take_lease(descriptor: int) -> None:
    """Take a read lease on an open file (fcntl(2), "Leases"), until it is closed: other processes that open the file
    for writing, or truncate it, then wait.

    The kernel announces them by a signal, by default SIGIO, which would end the process; here by one that is ignored.

    Raises:
        OSError: EAGAIN: a process has the file open for writing. Only Linux has leases, for the owner and root, and not
            on network file systems.
    """
    import signal

    if not hasattr(fcntl, "F_SETLEASE"):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, 0)  # to no process


def is_being_written(descriptor: int) -> bool:
    """Whether any process has this file, open here for reading, open for writing; False where that can't be known."""
    try:
        take_lease(descriptor)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return False


def file_attributes(descriptor: int, name: str = "") -> int:
    """The attributes of a file in an open directory, or of the open file: statx(2); 0 where they are unknown."""
    import ctypes

    found = ctypes.create_string_buffer(256)
    if _call("statx", descriptor, os.fsencode(name), _AT_NO_FOLLOW, 0, found) != 0:
        return 0
    (attributes,) = struct.unpack_from("=Q", found.raw, 8)  # PyPy takes no array of ctypes
    return int(attributes)


def inherited_project(directory: int) -> int:
    """The quota project that new entries of an open directory get: ioctl_fsgetxattr(2); 0 without one.

    XFS and ext4 refuse to rename or link a file of another project into such a directory, with EXDEV.
    """
    try:
        flags, _, _, project, _ = struct.unpack_from("5I", fcntl.ioctl(directory, _FSGETXATTR, bytes(28)))
    except OSError:
        return 0
    return int(project) if flags & _PROJECT_INHERITED else 0


def trim_heap() -> None:
    """Return freed memory to the system, where the C library can: malloc_trim(3).

    glibc keeps freed blocks for later allocations of that size. A decoder's window of 8 MiB, which Python's own
    allocator never reuses, would stay resident for the rest of the run.
    """
    _call("malloc_trim", 0)


def allow_process_settings() -> None:
    """Allow changing settings of the whole process, because it is perfkit's own and not a caller's."""
    global _process_settings_allowed
    _process_settings_allowed = True


def mmap_large_allocations() -> None:
    """Make malloc use mmap for blocks of 256 KiB and more: mallopt(3). Only where process settings are allowed.

    glibc raises that threshold to the largest block that was freed. Growing arrays are then moved within the heap and
    fragment it. The cost is that short-lived arrays are slower.
    """
    if _process_settings_allowed:
        _call("mallopt", _M_MMAP_THRESHOLD, 256 << 10)


def _call(name: str, *arguments: Any) -> int:
    """Call a function of the C library; returns 0 if the call does, else its errno; ENOSYS if there is none."""
    import ctypes

    function = _function(name)
    if function is None:
        return errno.ENOSYS
    return 0 if function(*arguments) == 0 else ctypes.get_errno()


@functools.cache
def _function(name: str) -> Callable[..., int] | None:
    import ctypes

    try:
        return getattr(ctypes.CDLL(None, use_errno=True), name, None)
    except (OSError, TypeError):
        return None
