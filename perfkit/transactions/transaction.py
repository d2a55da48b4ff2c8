"""One change of many files: written beside the tree, then all of it is there, or none."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType

from perfkit.errors import FileChangedError, UpdateError
from perfkit.filesystem.paths import check_name
from perfkit.filesystem.rootdir import Beneath
from perfkit.transactions.changeset import ChangeSet, Put
from perfkit.transactions.commit import Committer
from perfkit.transactions.layout import FETCH, PRIVATE_DIR, is_private, is_reserved
from perfkit.transactions.object_store import content_of, copy_into, digest_of, link_or_copy, open_regular, write_all
from perfkit.transactions.prepare import Known
from perfkit.transactions.records import Change, Content

__all__ = ["Commit", "Transaction"]


@dataclass(frozen=True, slots=True)
class Commit:
    """What came of a transaction or a switch: the generation the tree is in, and every name that changed.

    `aside` has the edited files that a switch kept, by name, and the names they are kept under; `overwritten` those
    that it did not keep; `as_found` those that came back as others had left them, for want of what they should be.
    """

    generation: int
    changes: Collection[Change] = ()
    aside: Mapping[str, str] = field(default_factory=dict)
    overwritten: tuple[str, ...] = ()
    as_found: tuple[str, ...] = ()


class Transaction:
    """Changes of one tree, in a `with` block of `Tree.transaction`; from one thread.

    Each call sees what the ones before it did. Names are those of `check_name`. A call that raises has changed
    nothing; an exception that leaves the block gives all up.

    Attributes:
        result: after the block: what was committed.
    """

    def __init__(
        self,
        beneath: Beneath,
        committer: Committer,
        *,
        known: Known,
        finish: Callable[[ChangeSet], Commit],
    ) -> None:
        self._beneath = beneath
        self._committer = committer
        self._known = known
        self._finish = finish
        self._final = committer.change_set()
        self._entered = self._over = False
        self.result: Commit | None = None

    def __enter__(self) -> Transaction:
        self._entered = True
        return self

    @property
    def open(self) -> bool:
        """Whether its block has begun and not ended."""
        return self._entered and not self._over

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._over = True
        if kind is not None:
            self._committer.discard()
        else:
            self.result = self._finish(self._final)

    def write(self, name: str, data: bytes | Iterable[bytes], *, mode: int = 0o644) -> Content:
        """The file is to have this content; an iterable is written as it comes.

        Raises:
            UnsafePathError: the name leads, or might lead, out of the tree.
            OSError: such as a full disk.
        """
        return self._write(check_name(name), data, mode)

    def write_private(self, name: str, data: bytes | Iterable[bytes]) -> Content:
        """`write` for one of perfkit's own files (see `layout`): it is committed and rolled back with the others."""
        return self._write(_check_private(name), data, 0o600)  # a source's URL may have a password in it

    def _write(self, name: str, data: bytes | Iterable[bytes], mode: int) -> Content:
        self._check_open()
        chunks = [data] if isinstance(data, (bytes, bytearray, memoryview)) else data
        source, fd = self._committer.stage_file()
        try:
            for chunk in chunks:
                write_all(fd, chunk)
            return self._staged(name, source, fd, mode)
        except BaseException:
            self._beneath.unlink(source)
            raise
        finally:
            os.close(fd)

    def replace(self, name: str, path: str | os.PathLike[str], *, mode: int | None = None) -> Content:
        """The file is to have the content of another file, which stays as it is; by reflink where there is one.

        Args:
            mode: permission bits; those of the other file by default.

        Raises:
            UnsafePathError, OSError: as `write`.
            FileChangedError: the other file was written to meanwhile.
            UpdateError: it is no regular file.
        """
        check_name(name)
        self._check_open()
        path = os.fspath(path)
        other = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            before = os.fstat(other)
            if not stat.S_ISREG(before.st_mode):
                raise UpdateError(f"{path}: not a regular file")
            self.need_space(before.st_size)
            source, fd = self._committer.stage_file()
            try:
                digest = copy_into(other, fd)
                after = os.fstat(other)
                if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                    raise FileChangedError(path, "it was written to while it was copied")
                return self._staged(name, source, fd, stat.S_IMODE(before.st_mode) if mode is None else mode, digest)
            except BaseException:
                self._beneath.unlink(source)
                raise
            finally:
                os.close(fd)
        finally:
            os.close(other)

    def adopt(
        self, name: str, path: str | os.PathLike[str], *, sha256: str | None = None, mode: int = 0o644
    ) -> Content:
        """The file is to be this one, which stands in `Tree.stage`: it is renamed, at the commit, and not copied.

        Until then it must not be written to, and stays where it is if the change is given up.

        Args:
            sha256: its digest in hex, where the caller took it while writing.

        Raises:
            UnsafePathError, OSError: as `write`.
            UpdateError: it is not in the stage, is no regular file, or was adopted already.
        """
        check_name(name)
        self._check_open()
        source = os.path.relpath(os.path.abspath(os.fspath(path)), self._beneath.root)
        if not source.startswith(f"{FETCH}/") or self._final.takes_fetched(source):
            raise UpdateError(f"{os.fspath(path)}: only a file in the tree's stage can be adopted, and only once")
        fd = open_regular(self._beneath, source)
        try:
            found = os.fstat(fd)
            if found.st_nlink != 1:
                raise UpdateError(f"{os.fspath(path)}: it has other hard links, which could change it later")
            return self._staged(name, source, fd, mode, sha256)
        finally:
            os.close(fd)

    def _staged(self, name: str, source: str, fd: int, mode: int, digest: str | None = None) -> Content:
        """An open staged file is complete: note what it is for."""
        os.fchmod(fd, mode & 0o777)
        digest = digest or digest_of(fd, name)
        content = Content(digest, os.fstat(fd).st_size, mode & 0o777)
        self._final[name] = Put(source, content)
        return content

    def move(self, name: str, to: str) -> None:
        """The file is to have another name, in place of what has that name now.

        Raises:
            FileNotFoundError: no such file.
            UnsafePathError, OSError: as `write`.
            UpdateError: it is no regular file.
        """
        check_name(name)
        check_name(to)
        self._check_open()
        if name in self._final:
            put = self._final[name]
            if put is None:
                raise FileNotFoundError(2, "no such file in the tree", name)
        else:
            put = self._link(name)
        if name != to:
            self._remove(name)
            self._final[to] = put

    def set_aside(self, name: str, to: str) -> None:
        """`move` for a file that others made or edited: no generation has it, so that no way back takes it away.

        Raises:
            as `move`.
        """
        self.move(name, to)
        self._final.set_aside(to)

    def note(self, name: str) -> None:
        """What stands under this name, or that nothing does, is as wanted, though others saw to it.

        It is not touched; where the generation before was meant to have something else, the way back restores that.

        Raises:
            UnsafePathError: as `write`.
        """
        self._check_open()
        self._final.note(check_name(name))

    def _link(self, name: str) -> Put:
        """Another name in the stage for a file of the tree."""
        fd = open_regular(self._beneath, name)
        try:
            source = self._committer.stage()
            content = content_of(fd, name, self._known.seen_at(name))
            link_or_copy(self._beneath, name, fd, source)
            return Put(source, content)
        finally:
            os.close(fd)

    def remove(self, name: str, *, missing_ok: bool = False) -> None:
        """The file is to be gone, and directories that this leaves empty.

        Raises:
            FileNotFoundError: no such file, unless `missing_ok`.
            UnsafePathError: as `write`.
        """
        try:
            self._remove(check_name(name))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def _remove(self, name: str) -> None:
        self._check_open()
        there = self._beneath.lstat(name) is not None
        if (self._final[name] is None) if name in self._final else not there:
            raise FileNotFoundError(2, "no such file in the tree", name)
        if there:
            self._final[name] = None
        else:
            del self._final[name]

    def need_space(self, size: int) -> None:
        """See that so many bytes can still be written.

        Raises:
            OSError: ENOSPC; there is less.
        """
        need_space(self._beneath, size)

    def _check_open(self) -> None:
        if self._over:
            raise UpdateError("this transaction is over; begin another")


def need_space(beneath: Beneath, size: int) -> None:
    """See that so many bytes can still be written.

    Raises:
        OSError: ENOSPC; there is less.
    """
    found = os.fstatvfs(beneath.fd)
    free = found.f_bavail * found.f_frsize
    if size > free:
        raise OSError(28, f"No space left on device: {size} bytes are needed, {free} are free", beneath.root)


def _check_private(name: str) -> str:
    leaf = check_name(name.removeprefix(f"{PRIVATE_DIR}/"))
    if not is_private(name) or is_reserved(leaf.partition("/")[0]):
        raise UpdateError(f"{name} can't be written: it is reserved for perfkit")
    return name
