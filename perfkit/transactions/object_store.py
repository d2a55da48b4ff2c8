"""Contents by their SHA-256, kept beside the tree: hard links where the file system has them, else clones or copies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Collection

from perfkit.errors import FileChangedError, UpdateError
from perfkit.filesystem.compact import Names
from perfkit.filesystem.rootdir import Beneath
from perfkit.transactions.layout import OBJECTS, object_path
from perfkit.transactions.records import Content, Seen

__all__ = ["EMPTY", "Store", "content_of", "copy_into", "digest_of", "write_all"]

EMPTY = hashlib.sha256().hexdigest()

_CHUNK = 256 << 10
_DIGEST = re.compile("[0-9a-f]{64}")
_FICLONE = 0x40049409  # ioctl_ficlone(2)
_CANNOT_LINK = {errno.EMLINK, errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES}


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(fd, view) :]


def digest_of(fd: int, name: str) -> str:
    """The SHA-256 of an open file.

    Raises:
        FileChangedError: it was written to while it was read.
    """
    before = os.fstat(fd)
    digest = hashlib.sha256()
    place = 0
    while chunk := os.pread(fd, _CHUNK, place):
        digest.update(chunk)
        place += len(chunk)
    after = os.fstat(fd)
    if place != before.st_size or (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
        raise FileChangedError(name, "it was written to while it was read; try again when its writer has finished")
    return digest.hexdigest()


def copy_into(source: int, target: int) -> str:
    """Copy the content of one open file to another, empty one, by reflink if possible; returns its SHA-256."""
    digest = hashlib.sha256()
    cloned = True
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        cloned = False
    place = 0
    while chunk := os.pread(target if cloned else source, _CHUNK, place):
        if not cloned:
            write_all(target, chunk)
        digest.update(chunk)
        place += len(chunk)
    return digest.hexdigest()


class Store:
    """The objects of one tree."""

    def __init__(self, beneath: Beneath) -> None:
        self._beneath = beneath
        self.added = Names()  # since `begin`; what an abandoned change takes back

    def begin(self) -> None:
        self.added = Names()

    def look(self, name: str, seen: Seen | None = None) -> Content:
        """What a name holds.

        Raises:
            as `keep`.
        """
        fd = open_regular(self._beneath, name)
        try:
            return content_of(fd, name, seen)
        finally:
            os.close(fd)

    def keep(self, name: str, seen: Seen | None = None) -> Content:
        """Keep what a name holds, by a hard link if possible, so that it outlives the name.

        Args:
            seen: what it was found to be before; without, it is hashed.

        Raises:
            FileNotFoundError: nothing has this name.
            UpdateError: it is no regular file.
            FileChangedError: it changed meanwhile.
        """
        fd = open_regular(self._beneath, name)
        try:
            content = content_of(fd, name, seen)
            if content.sha256 != EMPTY:
                self._take(name, fd, object_path(content.sha256))
            return content
        finally:
            os.close(fd)

    def _take(self, name: str, fd: int, target: str) -> None:
        """Make an open file the object `target`.

        If there is one, a writer may have spoilt it through a hard link. To read it takes longer than to replace it.
        """
        found = self._beneath.lstat(target)
        if found is None:
            self._beneath.mkdir(OBJECTS, 0o700)
            self.added.append(target)
            link_or_copy(self._beneath, name, fd, target)
        elif found.st_ino != os.fstat(fd).st_ino:
            fresh = f"{target}~"
            self._beneath.unlink(fresh)  # of a run that crashed
            link_or_copy(self._beneath, name, fd, fresh)
            self._beneath.rename(fresh, target)

    def has(self, content: Content) -> bool:
        """Whether this content is kept, and undamaged; one that a writer spoilt through a hard link is removed."""
        target = object_path(content.sha256)
        found = self._beneath.lstat(target)
        if found is None:
            return False
        if stat.S_ISREG(found.st_mode) and found.st_size == content.size:
            fd = open_regular(self._beneath, target)
            try:
                if digest_of(fd, target) == content.sha256:
                    return True
            finally:
                os.close(fd)
        self._beneath.unlink(target)
        return False

    def take_back(self) -> None:
        """Remove what was added since `begin`."""
        for target in self.added:
            with contextlib.suppress(OSError):  # then the next sweep removes it
                self._beneath.unlink(target)
        self.added = Names()

    def sweep(self, needed: Collection[bytes]) -> None:
        """Remove every object but these."""
        for name in self._beneath.each(OBJECTS):
            if not (_DIGEST.fullmatch(name) and bytes.fromhex(name) in needed):
                self._beneath.unlink(object_path(name))


def content_of(fd: int, name: str, seen: Seen | None = None) -> Content:
    """What an open file holds: what was seen before, if it still looks so; else it is hashed.

    Raises:
        FileChangedError: it is not what was seen, or was written to while it was read.
    """
    found = os.fstat(fd)
    if seen is not None and (found.st_ino, found.st_size, found.st_mtime_ns) == (seen.ino, seen.size, seen.mtime_ns):
        return Content(seen.sha256, found.st_size, stat.S_IMODE(found.st_mode))
    digest = digest_of(fd, name)
    if seen is not None and digest != seen.sha256:
        raise FileChangedError(name, "it was changed by others meanwhile; nothing was done, try again")
    return Content(digest, found.st_size, stat.S_IMODE(found.st_mode))


def open_regular(beneath: Beneath, name: str) -> int:
    """A descriptor of a regular file for reading."""
    try:
        fd = beneath.open(name)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise UpdateError(f"{name}: not a regular file; move it away first") from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise UpdateError(f"{name}: not a regular file; move it away first")
    return fd


def link_or_copy(beneath: Beneath, name: str, fd: int, target: str) -> None:
    """Make `target` another name of the open file `name`, or a copy with its mode and times where that can't be.

    Empty files are never linked: a tree may have more of them than a file system allows links.
    """
    found = os.fstat(fd)
    if found.st_size:
        try:
            beneath.link(name, target)
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
        else:
            linked = beneath.lstat(target)
            if linked is None or linked.st_ino != found.st_ino:
                raise FileChangedError(name, "it was replaced while it was read; try again")
            return
    copy = beneath.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        copy_into(fd, copy)
        os.fchmod(copy, stat.S_IMODE(found.st_mode))
        with contextlib.suppress(OSError):
            os.utime(copy, ns=(found.st_atime_ns, found.st_mtime_ns))
    finally:
        os.close(copy)
