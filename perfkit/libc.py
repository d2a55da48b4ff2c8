"""Functions of the C library that Python does not offer. ctypes, which takes 2 ms to load, is imported on demand."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Callable

__all__ = ["give_back", "map_large_blocks", "own_process", "syncfs"]

_M_MMAP_THRESHOLD = -3  # malloc.h
_OWN = False


def syncfs(descriptor: int) -> bool:
    """Sync the file system of an open file: syncfs(2); False if that is not supported here.

    Only Linux 5.8 and later report write-back errors.

    Raises:
        OSError: the disk failed.
    """
    call = _syncfs()
    if call is None:
        return False
    import ctypes

    if call(descriptor) != 0:
        number = ctypes.get_errno()
        if number == errno.ENOSYS:
            return False
        raise OSError(number, os.strerror(number))
    return True


@functools.cache
def _syncfs() -> Callable[[int], int] | None:
    system = os.uname()
    version = tuple(int(part) for part in system.release.split("-")[0].split(".")[:2] if part.isdigit())
    if system.sysname != "Linux" or version < (5, 8):
        return None
    import ctypes

    return getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)


def give_back() -> None:
    """Return freed memory to the system, if the C library can: malloc_trim(3).

    glibc keeps freed blocks for the next allocation of their size, such as a decoder's window of 8 MiB. Python's own
    allocator never requests such sizes, so they would stay resident.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


def own_process() -> None:
    """Declare that this process belongs to perfkit, so that process-wide settings may be changed."""
    global _OWN
    _OWN = True


def map_large_blocks() -> None:
    """In a process of perfkit, make the C library map each block of 256 KiB or more separately: mallopt(3).

    glibc raises that threshold to the largest freed block. Growing columns would then be moved within the heap and
    leave holes. Short-lived arrays are slower with this setting.
    """
    if _OWN:
        import ctypes

        with contextlib.suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 256 << 10)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    import ctypes

    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
