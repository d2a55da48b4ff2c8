"""What the C library has and Python does not offer. ctypes takes 2 ms to load: only who calls one of these needs it."""

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
    """Write back the file system that an open file is on: syncfs(2); False if that can't be done here.

    Only Linux 5.8 and later reports the errors of writing back.

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
    """Return to the system what was freed, if the C library can: malloc_trim(3).

    glibc keeps what was freed for the next allocation of that size, such as a decoder's window of 8 MiB, which
    Python's own allocator never asks for: it would stay resident beside all that follows.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


def own_process() -> None:
    """Say that this process is perfkit's, and that settings of the whole process may be made."""
    global _OWN
    _OWN = True


def map_large_blocks() -> None:
    """In a process of our own, have the C library map each block of 256 KiB and more by itself: mallopt(3).

    glibc raises that limit to the largest block that was freed. Columns that grow are then moved about in the heap, and
    leave holes. Arrays that come and go are slower for it.
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
