"""One change of many files: written beside the tree, then all of it is there, or none."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType

from perfkit.errors import FileChangedError, UpdateError
from perfkit.filesystem.beneath import Beneath
from perfkit.filesystem.commit import OWN, Committer
from perfkit.filesystem.paths import check_name
from perfkit.filesystem.records import Change, Content, FileStat, Step
from perfkit.filesystem.store import (
    EMPTY,
    OBJECTS,
    Store,
    copy_into,
    digest_of,
    link_or_copy,
    open_regular,
    write_all,
)

__all__ = ["Commit", "Transaction"]

FETCH = f"{OWN}/fetch"
_DIRECTORY_BYTES = 4096  # at least, of each directory that is made


@dataclass(frozen=True, slots=True)
class Commit:
    """What came of a transaction or a switch: the generation the tree is in, and every name that changed."""

    generation: int
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class _Put:
    source: str
    content: Content


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
        store: Store,
        *,
        known: Mapping[str, str],
        finish: Callable[[Transaction], Commit],
    ) -> None:
        self._beneath = beneath
        self._committer = committer
        self._store = store
        self._known = known
        self._finish = finish
        self._final: dict[str, _Put | None] = {}
        self._adopted: set[str] = set()
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
            self.result = self._finish(self)

    def write(self, name: str, data: bytes | Iterable[bytes], *, mode: int = 0o644) -> Content:
        """The file is to have this content; an iterable is written as it comes.

        Raises:
            UnsafePathError: the name leads, or might lead, out of the tree.
            OSError: such as a full disk.
        """
        return self._write(check_name(name), data, mode)

    def write_private(self, name: str, data: bytes | Iterable[bytes]) -> Content:
        """`write` for perfkit's own files: `.perfkit/NAME`, which is committed and rolled back with all else."""
        return self._write(_private(name), data, 0o644)

    def remove_private(self, name: str) -> None:
        """`remove` for perfkit's own files."""
        self._remove(_private(name))

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
        if not source.startswith(f"{FETCH}/") or source in self._adopted:
            raise UpdateError(f"{os.fspath(path)}: only a file in the tree's stage can be adopted, and only once")
        fd = open_regular(self._beneath, source)
        try:
            found = os.fstat(fd)
            if found.st_nlink != 1:
                raise UpdateError(f"{os.fspath(path)}: it has other hard links, which could change it later")
            content = self._staged(name, source, fd, mode, sha256)
        finally:
            os.close(fd)
        self._adopted.add(source)
        return content

    def _staged(self, name: str, source: str, fd: int, mode: int, digest: str | None = None) -> Content:
        """An open staged file is complete: note what it is for."""
        os.fchmod(fd, mode & 0o777)
        digest = digest or digest_of(fd, name)
        content = Content(digest, os.fstat(fd).st_size, mode & 0o777)
        self._final[name] = _Put(source, content)
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

    def _link(self, name: str) -> _Put:
        """Another name in the stage for a file of the tree."""
        fd = open_regular(self._beneath, name)
        try:
            found = os.fstat(fd)
            source = self._committer.stage()
            digest = self._known.get(name) or digest_of(fd, name)
            link_or_copy(self._beneath, name, fd, source)
            return _Put(source, Content(digest, found.st_size, stat.S_IMODE(found.st_mode)))
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

    # What follows is the commit; Tree calls it.

    def prepare(self) -> list[Change]:
        """Look at what is to be replaced, keep it, and return what really changes."""
        changes = []
        check_places(self._beneath, self._final)
        for name, put in sorted(self._final.items()):
            before = None
            found = self._beneath.lstat(name)
            if found is not None and not stat.S_ISDIR(found.st_mode):
                before, _ = self._store.keep(name, self._known.get(name))
            after = None if put is None else put.content
            if before != after:
                changes.append(Change(name, before, after))
        return changes

    def source(self, name: str) -> str:
        put = self._final[name]
        assert put is not None
        return put.source


def need_space(beneath: Beneath, size: int) -> None:
    """See that so many bytes can still be written.

    Raises:
        OSError: ENOSPC; there is less.
    """
    found = os.fstatvfs(beneath.fd)
    free = found.f_bavail * found.f_frsize
    if size > free:
        raise OSError(28, f"No space left on device: {size} bytes are needed, {free} are free", beneath.root)


def _private(name: str) -> str:
    """A name of our own, in our own directory, that is none of the machinery's."""
    first = check_name(name).partition("/")[0]
    if first in ("lock", "owner", "journal", "state", "objects", "history", "fetch") or first.startswith("stage-"):
        raise UpdateError(f"{OWN}/{name} is the machinery's own")
    return f"{OWN}/{name}"


def check_places(beneath: Beneath, final: Mapping[str, object | None]) -> None:
    """See, before anything is done, that each new file can have its place.

    Raises:
        UnsafePathError: a symbolic link stands where a directory is needed.
        UpdateError: a file stands where a directory is needed, a directory where a file is, and the change doesn't
            clear them away; or two names of the change do that to each other.
    """
    puts = {name for name, put in final.items() if put is not None}
    seen: set[str] = set()
    for name in puts:
        found = beneath.lstat(name)
        if found is not None and stat.S_ISDIR(found.st_mode):
            _check_leaves(beneath, name, final)
        elif found is not None and not stat.S_ISREG(found.st_mode):
            raise UpdateError(f"{name}: not a regular file; move it away first")
        parent = name.rpartition("/")[0]
        while parent and parent not in seen:
            seen.add(parent)
            if parent in puts:
                raise UpdateError(f"{parent} can't be both a file and the directory of {name}")
            found = beneath.lstat(parent)
            if found is not None and not stat.S_ISDIR(found.st_mode) and final.get(parent, ...) is not None:
                raise UpdateError(f"{parent}: it is a file, and must go before {name} can be made")
            parent = parent.rpartition("/")[0]


def _check_leaves(beneath: Beneath, directory: str, final: Mapping[str, object | None]) -> None:
    """See that every file below a directory that a file is to replace is removed by the same change."""
    for leaf in beneath.names(directory):
        name = f"{directory}/{leaf}"
        found = beneath.lstat(name)
        if found is not None and stat.S_ISDIR(found.st_mode):
            _check_leaves(beneath, name, final)
        elif final.get(name, ...) is not None:
            raise UpdateError(f"{directory}: it is a directory, and {name} must go before it can be a file")


def steps(beneath: Beneath, changes: Iterable[Change], source: Callable[[str], str]) -> tuple[list[Step], list[Step]]:
    """How to make these changes: first what can be taken back, then what needs no space.

    Only adding can fail for want of space, so additions come first, after the removals that make room for a name: a
    file whose name a directory is to have, or the files of a directory whose name a file is to have.
    """
    puts = [change for change in changes if change.after is not None]
    drops = {change.name: change for change in changes if change.after is None}
    above = {parent for change in puts for parent in _parents(change.name)}
    names = {change.name for change in puts}
    first: list[Step] = []
    later: list[Step] = []
    for name, change in drops.items():
        blocks = name in above or not names.isdisjoint(_parents(name))
        (first if blocks else later).append(_drop(beneath, change))
    emptied: set[str] = set()
    for name in names:
        found = beneath.lstat(name)
        if found is not None and stat.S_ISDIR(found.st_mode):
            emptied.update(_directories(beneath, name))
    firm = first + [Step("rmdir", name) for name in sorted(emptied, reverse=True)]
    firm += [Step("mkdir", name) for name in sorted(above) if not _is_directory(beneath, name)]
    firm += [Step("put", change.name, source(change.name)) for change in puts if change.before is None]
    rest = [Step("put", change.name, source(change.name)) for change in puts if change.before is not None]
    emptied = {parent for name in drops for parent in _parents(name)} - above - names - emptied - {OWN}
    return firm, rest + later + [Step("rmdir", name) for name in sorted(emptied, reverse=True)]


def _drop(beneath: Beneath, change: Change) -> Step:
    found = beneath.lstat(change.name)
    assert change.before is not None
    if found is None:
        raise FileChangedError(change.name, "it was removed meanwhile")
    kept = "" if change.before.sha256 == EMPTY else f"{OBJECTS}/{change.before.sha256}"
    return Step("drop", change.name, kept, found.st_size, found.st_mtime_ns)


def _parents(name: str) -> Iterable[str]:
    while name := name.rpartition("/")[0]:
        yield name


def _is_directory(beneath: Beneath, name: str) -> bool:
    found = beneath.lstat(name)
    return found is not None and stat.S_ISDIR(found.st_mode)


def _directories(beneath: Beneath, name: str) -> Iterable[str]:
    """A directory and all below it."""
    yield name
    for leaf in beneath.names(name):
        if _is_directory(beneath, f"{name}/{leaf}"):
            yield from _directories(beneath, f"{name}/{leaf}")


def with_stats(beneath: Beneath, changes: Iterable[Change]) -> tuple[Change, ...]:
    """The changes, each with what stat(2) says of its file now."""
    done = []
    for change in changes:
        found = beneath.lstat(change.name) if change.after is not None else None
        if found is not None:
            times = (found.st_mtime_ns, found.st_ctime_ns)
            change = replace(change, stat=FileStat(found.st_ino, found.st_size, stat.S_IMODE(found.st_mode), *times))
        done.append(change)
    return tuple(done)
