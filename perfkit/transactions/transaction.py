"""One change of many files: staged beside the tree, then committed all or nothing."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import TracebackType
from typing import NamedTuple

from perfkit.config import check_type
from perfkit.errors import ConfigError, FileChangedError, UpdateError
from perfkit.filesystem.paths import check_name, local_path
from perfkit.filesystem.rootdir import closing_fd, naming
from perfkit.libc import set_mode
from perfkit.transactions.changeset import Changes, StagedFile
from perfkit.transactions.commit import Committer
from perfkit.transactions.history import Timeline, record_lines
from perfkit.transactions.layout import check_own_name, check_recorded_name
from perfkit.transactions.object_store import content_of, copy_into, open_regular, write_all
from perfkit.transactions.prepare import Known, prepare
from perfkit.transactions.records import Change, Content

_BYTES = (bytes, bytearray, memoryview)


class Commit(NamedTuple):
    """The result of a transaction or a rollback: the generation the tree is in, and every name that changed.

    `saved_as` maps each edited file that a rollback kept to the name it was saved under. `overwritten` has the edited
    files that it did not keep. `restored_with_edits` has those that were restored as others had edited them, because
    their original content is not stored anywhere.
    """

    generation: int
    changes: Collection[Change] = ()
    saved_as: Mapping[str, str] = {}
    overwritten: tuple[str, ...] = ()
    restored_with_edits: tuple[str, ...] = ()


class Transaction:
    """Changes of one tree, in a `with` block of `Toolkit.transaction`; for one thread.

    The block is committed at its end, and aborted if an exception leaves it. Each call sees the effects of the ones
    before it, and changes nothing if it raises. Names are relative to the tree, with slashes, and valid on every
    system.

    Attributes:
        result: after the block: what was committed.
    """

    def __init__(self, committer: Committer, *, known: Known, label: Mapping[str, str], keep_generations: int) -> None:
        self._committer = committer
        self._rootdir = committer.rootdir
        self._known = known
        self._label = label
        self._keep_generations = keep_generations
        self._change_set = committer.new_change_set()
        self._entered = self._ended = False
        self._prepared: tuple[Timeline, Changes, str | None] | None = None
        self.result: Commit | None = None

    def __enter__(self) -> Transaction:
        self._entered = True
        return self

    @property
    def open(self) -> bool:
        """Whether its block has been entered and not left."""
        return self._entered and not self._ended

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._ended = True
        if kind is not None:
            self._committer.abort()
        else:
            with naming(self._rootdir.root):
                self.result = self._commit()

    def prepare(self) -> None:
        """Do now what the end of the block needs no fetched file for. Nothing may be changed after this call.

        What others change in the tree until the end of the block is noticed then, file by file, and everything undone;
        where case is ignored new files of others are not, so there this does nothing.

        Raises:
            as the end of the block, after which it must be left with an exception.
        """
        self._check_open()
        if not self._rootdir.folds_case:
            self._prepared = self._prepare()

    def _prepare(self) -> tuple[Timeline, Changes, str | None]:
        """The timeline after the commit, the changes of files, and the journal; None: nothing changes."""
        committer, change_set = self._committer, self._change_set
        timeline = committer.history.timeline()
        record: Iterable[bytes] | None = None
        with committer.preparing():
            restored_with_edits = prepare(self._rootdir, committer.store, self._known, change_set)
            changes, recorded = change_set.disk_changes(), change_set.recorded_changes()
            if not changes and not recorded:
                return timeline, changes, None
            if recorded:
                timeline = timeline.append(self._keep_generations)
                record = record_lines(timeline.current, self._label, change_set, recorded, restored_with_edits)
            return timeline, changes, committer.stage_journal(change_set, changes, timeline, record)

    def _commit(self) -> Commit:
        committer = self._committer
        timeline, changes, journal = self._prepared or self._prepare()
        if journal is None:
            committer.abort()
            return Commit(timeline.current)
        committer.commit(journal, self._change_set, changes)
        return Commit(timeline.current, changes)

    def write(self, name: str, data: bytes | Iterable[bytes], *, mode: int = 0o644) -> Content:
        """Write a file with this content; an iterable is written as it is read.

        Raises:
            ConfigError: `data` is neither bytes nor an iterable of them, or `mode` is not permission bits.
            UnsafePathError: the name could lead out of the tree.
            OSError: such as a full disk.
        """
        return self._write(check_name(name), data, mode)

    def write_private(self, name: str, data: bytes | Iterable[bytes], *, mode: int = 0o644) -> Content:
        """`write` for one of perfkit's own files (see `layout`): it is committed and rolled back with the others."""
        return self._write(check_recorded_name(check_own_name(name)), data, mode)

    def _write(self, name: str, data: bytes | Iterable[bytes], mode: int) -> Content:
        self._check_open()
        if isinstance(data, str) or not isinstance(data, Iterable):
            raise ConfigError(f"{name}: the content must be bytes, or an iterable of them; got a {type(data).__name__}")
        chunks = [data] if isinstance(data, _BYTES) else data
        digest = hashlib.sha256()
        with self._staged_file(mode) as (source, fd):
            for chunk in chunks:
                if not isinstance(chunk, _BYTES):
                    raise ConfigError(f"{name}: the content must be bytes; got a {type(chunk).__name__}")
                with naming(self._path(name)):
                    write_all(fd, chunk)
                digest.update(chunk)
            return self._set_staged(name, source, fd, mode, digest.hexdigest())

    @contextlib.contextmanager
    def _staged_file(self, mode: int) -> Iterator[tuple[str, int]]:
        """The name and a descriptor of a staged file, which is deleted if the block raises an Exception.

        After an interrupt, the end of the transaction does: a block that a signal ends as it begins is closed later.
        """
        check_type("mode", mode, "int", secret=False)
        if not 0 <= mode <= 0o7777:
            raise ConfigError(f"mode must be permission bits, such as 0o644; got {mode}")
        source, descriptor = self._committer.create_staged_file(mode)
        with closing_fd(descriptor):
            try:
                yield source, descriptor
            except Exception:
                self._rootdir.unlink(source)
                raise

    def replace(self, name: str, path: str | os.PathLike[str], *, mode: int | None = None) -> Content:
        """Write a file with the content of another file, copied with reflinks where supported.

        Args:
            mode: permission bits; by default those of the other file.

        Raises:
            ConfigError: `path` is not a path, or `mode` not permission bits.
            UnsafePathError, OSError: as `write`.
            FileChangedError: the other file was modified while it was copied.
            UpdateError: it is not a regular file.
        """
        check_name(name)
        self._check_open()
        path = local_path(path)
        with closing_fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)) as other:
            before = os.fstat(other)
            if not stat.S_ISREG(before.st_mode):
                raise UpdateError(f"{path}: not a regular file")
            self._rootdir.check_free_space(before.st_size)
            mode = stat.S_IMODE(before.st_mode) if mode is None else mode
            with self._staged_file(mode) as (source, fd):
                with naming(self._path(name)):
                    digest = copy_into(other, fd)
                after = os.fstat(other)
                if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                    raise FileChangedError(path, "the file was modified while it was copied; retry")
                return self._set_staged(name, source, fd, mode, digest)

    def expect(self, name: str, content: Content, *, copy: bool = False) -> None:
        """Use a file in `Tree.fetch_directory` as the file `name`: the commit renames it instead of copying it.

        It has the name of its content (`layout.FETCHED_OBJECT`), and need not be there before the end of the block; by
        then the caller has verified it. If the change is aborted, it stays where it is.

        Args:
            name: not checked again: a manifest has only valid names.
            copy: use a copy, since another name gets the file itself.

        Raises:
            UpdateError, at the end of the block: it is not a regular file of that size, or has other hard links,
                through which it could be modified.
        """
        self._check_open()
        self._change_set.expect(name, content, self._committer.new_staged_name() if copy else None)

    def _set_staged(self, name: str, source: str, fd: int, mode: int, digest: str) -> Content:
        """Set the mode of a complete staged file, and add it to the change set."""
        self._rootdir.hand_over(fd)
        found = os.fstat(fd)
        if stat.S_IMODE(found.st_mode) != mode & 0o777:
            set_mode(fd, mode & 0o777)
        content = Content(digest, found.st_size, mode & 0o777)
        self._change_set[name] = StagedFile(source, content)
        return content

    def move(self, name: str, to: str) -> None:
        """Rename the file, replacing a file that has the new name.

        Raises:
            FileNotFoundError: no such file.
            UnsafePathError, OSError: as `write`.
            UpdateError: it is not a regular file.
        """
        check_name(name)
        check_name(to)
        self._check_open()
        if name in self._change_set:
            file = self._change_set[name]
            if file is None:
                raise self._not_found(name)
        else:
            file = self._link(name)
        if name != to:
            self._remove(name)
            self._change_set[to] = file

    def move_aside(self, name: str, to: str) -> None:
        """`move` a file that others created or edited: no generation includes it, so no rollback touches it.

        Raises:
            as `move`.
        """
        self.move(name, to)
        self._change_set.omit_from_record(to)

    def record_existing(self, name: str) -> None:
        """Record that a file already has the wanted content (or is absent, as wanted), though others made it so.

        The file is not touched. If the previous generation should have something else there, rollback restores that.

        Raises:
            UnsafePathError: as `write`.
        """
        self._check_open()
        self._change_set.record(check_name(name))

    def _link(self, name: str) -> StagedFile:
        """Stage a file of the tree under another name."""
        with open(open_regular(self._rootdir, name), "rb") as file:
            content = content_of(file.fileno(), name, self._known.seen_at(name))
            return StagedFile(self._committer.stage_link(name, file.fileno()), content)

    def remove(self, name: str, *, missing_ok: bool = False) -> None:
        """Remove the file, and directories that this leaves empty.

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
        on_disk = self._rootdir.lstat(name) is not None
        if (self._change_set[name] is None) if name in self._change_set else not on_disk:
            raise self._not_found(name)
        if on_disk:
            self._change_set[name] = None
        else:
            del self._change_set[name]

    def _check_open(self) -> None:
        if self._ended or self._prepared is not None:
            raise UpdateError("this transaction has ended; begin another one")

    def _not_found(self, name: str) -> FileNotFoundError:
        return FileNotFoundError(errno.ENOENT, "no such file in the tree", self._path(name))

    def _path(self, name: str) -> str:
        return os.path.join(self._rootdir.root, name)
