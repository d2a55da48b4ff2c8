"""Content-addressed storage next to the tree: hard links where supported, otherwise reflinks or copies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator

from perfkit.errors import FileChangedError, UpdateError
from perfkit.filesystem.compact import DigestIndex
from perfkit.filesystem.rootdir import RootDir, closing_fd
from perfkit.libc import set_mode
from perfkit.transactions.layout import OBJECTS, object_path
from perfkit.transactions.records import Content, Seen

EMPTY = hashlib.sha256().hexdigest()

_CHUNK = 256 << 10
_DIGEST = re.compile("[0-9a-f]{64}")
_FICLONE = 0x40049409  # ioctl_ficlone(2)
_CANNOT_LINK = {errno.EMLINK, errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EACCES}


class ObjectStore:
    """The objects of one tree. Empty files are never stored."""

    def __init__(self, rootdir: RootDir) -> None:
        self._rootdir = rootdir

    def inspect(self, name: str, seen: Seen | None = None) -> Content:
        """The content of a file, without keeping it.

        Raises:
            as `keep`.
        """
        with closing_fd(open_regular(self._rootdir, name)) as fd:
            return content_of(fd, name, seen)

    def keep(self, name: str, seen: Seen | None = None) -> Content:
        """Keep the content of a file, by a hard link if possible, so that it outlives the name.

        Args:
            seen: the file as it was when it was hashed; without it, the file is hashed now.

        Raises:
            FileNotFoundError: there is no such file.
            UpdateError: it is not a regular file.
            FileChangedError: it is no longer as it was seen, or is being written to.
        """
        with closing_fd(open_regular(self._rootdir, name)) as fd:
            content = content_of(fd, name, seen)
            if content.sha256 != EMPTY:
                self._add(name, fd, content.sha256)
            return content

    def _add(self, name: str, fd: int, sha256: str) -> None:
        """Make the open file `name` the object of its content.

        An existing object may have been damaged by writing through one of its hard links. Verifying it takes longer
        than replacing it.
        """
        target = object_path(sha256)
        found = self._rootdir.lstat(target)
        if found is None:
            self._rootdir.mkdir(OBJECTS, 0o700)
            link_or_copy(self._rootdir, name, fd, target)
        elif found.st_ino != os.fstat(fd).st_ino:
            temporary = f"{target}~"
            self._rootdir.unlink(temporary)  # left by a crash
            link_or_copy(self._rootdir, name, fd, temporary)
            self._rootdir.rename(temporary, target)

    def has_intact(self, content: Content) -> bool:
        """Whether this content is stored and undamaged; a damaged object is deleted."""
        target = object_path(content.sha256)
        found = self._rootdir.lstat(target)
        if found is None:
            return False
        if stat.S_ISREG(found.st_mode) and found.st_size == content.size:
            with closing_fd(open_regular(self._rootdir, target)) as fd:
                if digest_of(fd, target) == content.sha256:
                    return True
        self._rootdir.unlink(target)
        return False

    def delete_except(self, needed: Iterable[bytes]) -> None:
        """Delete every object but these, given by SHA-256."""
        for path in self._all_except(needed):
            self._rootdir.unlink(path)

    def sizes_except(self, needed: Iterable[bytes]) -> list[int]:
        """The bytes that the disk would get back from each object that `delete_except` would delete."""
        found = (self._rootdir.lstat(path) for path in self._all_except(needed))
        return [each.st_size if each.st_nlink == 1 else 0 for each in found if each is not None]

    def _all_except(self, needed: Iterable[bytes]) -> Iterator[str]:
        index = DigestIndex(needed)
        for name in self._rootdir.iterdir(OBJECTS):
            if not (_DIGEST.fullmatch(name) and index.count(bytes.fromhex(name))):
                yield object_path(name)


def content_of(fd: int, name: str, seen: Seen | None = None) -> Content:
    """The content of an open file, which is hashed unless its stat is that in `seen`.

    Raises:
        FileChangedError: its content differs from `seen`, or was written to while it was read.
    """
    found = os.fstat(fd)
    if seen is not None and (found.st_ino, found.st_size, found.st_mtime_ns) == (seen.ino, seen.size, seen.mtime_ns):
        return Content(seen.sha256, found.st_size, stat.S_IMODE(found.st_mode))
    digest = digest_of(fd, name)
    if seen is not None and digest != seen.sha256:
        raise FileChangedError(name, "the file was modified during the update; nothing was changed, retry")
    return Content(digest, found.st_size, stat.S_IMODE(found.st_mode))


def digest_of(fd: int, name: str) -> str:
    """The SHA-256 of an open file, in hex.

    Raises:
        FileChangedError: it was written to while it was read.
    """
    before = os.fstat(fd)
    digest, size = hashlib.sha256(), 0
    for chunk in _chunks(fd):
        digest.update(chunk)
        size += len(chunk)
    after = os.fstat(fd)
    if size != before.st_size or (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
        raise FileChangedError(name, "the file was modified while it was read; retry when its writer has finished")
    return digest.hexdigest()


def open_regular(rootdir: RootDir, name: str) -> int:
    """A descriptor of a regular file for reading.

    Raises:
        UpdateError: it is not a regular file.
    """
    try:
        fd = rootdir.open(name)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise UpdateError(f"{name}: not a regular file; move it away first") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UpdateError(f"{name}: not a regular file; move it away first")
    except BaseException:
        os.close(fd)
        raise
    return fd


def link_file(rootdir: RootDir, name: str, ino: int, target: str) -> bool:
    """Make `target` a hard link to the file `name`; returns False if that is impossible, or if it is no longer the file
    with this inode number.

    Where each name has a number of its own, as with sshfs, it counts as impossible: nothing would tell that two names
    have the same file.
    """
    try:
        rootdir.link(name, target)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        return False
    linked = rootdir.lstat(target)
    if linked is not None and linked.st_ino == ino:
        return True
    rootdir.unlink(target)
    return False


def link_or_copy(rootdir: RootDir, name: str, fd: int, target: str) -> None:
    """Make `target` a hard link to the open file `name`, or a copy with its mode and times where that is impossible.

    Empty files are never linked: a tree may have more of them than a file system allows links.
    """
    found = os.fstat(fd)
    if found.st_size == 0 or not link_file(rootdir, name, found.st_ino, target):
        os.close(copy_file(rootdir, fd, target, mode=stat.S_IMODE(found.st_mode), mtime_ns=found.st_mtime_ns))


def shares_content(rootdir: RootDir, name: str, unused: str) -> tuple[bool, bool]:
    """Whether the file system has hard links, and whether it has reflinks, as tried on a file and an unused name."""
    with closing_fd(rootdir.open(name)) as fd:
        rootdir.unlink(unused)
        try:
            links = link_file(rootdir, name, os.fstat(fd).st_ino, unused)
        except OSError:
            links = False
        rootdir.unlink(unused)
        with closing_fd(rootdir.open(unused, os.O_RDWR | os.O_CREAT | os.O_EXCL)) as copy:
            try:
                clones = _clone(fd, copy)
            finally:
                rootdir.unlink(unused)
    return links, clones


def copy_file(rootdir: RootDir, fd: int, target: str, *, mode: int, mtime_ns: int) -> int:
    """Copy an open file to a new one, with this mode and modification time; returns a descriptor of the copy."""
    copy = rootdir.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
    try:
        if not _clone(fd, copy):
            for chunk in _chunks(fd):
                write_all(copy, chunk)
        set_mode(copy, mode)
        with contextlib.suppress(OSError):
            os.utime(copy, ns=(mtime_ns, mtime_ns))
    except BaseException:
        os.close(copy)
        raise
    return copy


def copy_into(source: int, target: int) -> str:
    """Copy one open file to another, empty one, using reflinks where supported; returns its SHA-256."""
    digest = hashlib.sha256()
    cloned = _clone(source, target)
    for chunk in _chunks(target if cloned else source):
        if not cloned:
            write_all(target, chunk)
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(fd: int) -> Iterator[bytes]:
    """The bytes of an open file from its beginning, wherever its offset is."""
    offset = 0
    while chunk := os.pread(fd, _CHUNK, offset):
        yield chunk
        offset += len(chunk)


def _clone(source: int, target: int) -> bool:
    """Whether the file system has reflinks: then an empty file now shares the content of another (ioctl_ficlone(2))."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(fd, view) :]
