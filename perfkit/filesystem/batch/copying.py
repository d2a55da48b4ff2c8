"""Copies and hard links of whole trees."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from perfkit.errors import ConfigError
from perfkit.filesystem.batch.copyfile import copy_file
from perfkit.filesystem.batch.run import BATCH_FILES, BatchResult, OnError, Path, Run, beside, forget
from perfkit.filesystem.scan import ScanEntry, ScanOptions, scan_batches
from perfkit.progress.meter import Progress

__all__ = ["Copied", "copy_tree", "link_tree"]

_BATCH_BYTES = 8 << 20
_NO_LINK = frozenset({errno.EMLINK, errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copied or linked tree has."""

    files: int
    directories: int  # the root not counted
    bytes: int  # of the files copied or reflinked
    reflinked: int
    linked: int


def copy_tree(
    src: Path, dest: Path, *, merge: bool = False, on_error: OnError = "stop", progress: Progress | None = None
) -> Copied:
    """Copy a tree: contents, permissions (rwx), mtimes, symlinks as they are; not owners, nor setuid bits.

    File contents are shared where the file system can (reflink), else copied inside the kernel, else read and written;
    holes stay holes.

    Args:
        dest: must not exist or be an empty directory. One that does not exist appears in one step, when all is there.
        merge: `dest` may have contents: files are replaced one by one, each in one step; what else is there stays.
        on_error: `stop` at the first failure, and remove a `dest` that was not there before; `continue` with the rest.
        progress: shown here while it runs.

    Raises:
        BatchError: some paths failed; `results` has those, a `BatchResult` each.
        FileExistsError: `dest` has contents (without `merge`), or is no directory.
        OSError: `src` can't be opened, `dest` can't be made.
    """
    return _tree(src, dest, merge, on_error, progress, link=False)


def link_tree(
    src: Path, dest: Path, *, merge: bool = False, on_error: OnError = "stop", progress: Progress | None = None
) -> Copied:
    """As `copy_tree`, but files are hard links: both trees see later changes in place of either.

    Empty files, and what can't be linked (another file system, too many links, not permitted), are copied.
    """
    return _tree(src, dest, merge, on_error, progress, link=True)


def _tree(src: Path, dest: Path, merge: bool, on_error: OnError, progress: Progress | None, *, link: bool) -> Copied:
    source, target = os.path.abspath(os.fspath(src)), os.path.abspath(os.fspath(dest))
    if target == source or os.path.realpath(target).startswith(os.path.join(os.path.realpath(source), "")):
        raise ConfigError(f"{dest} is {src} itself or inside it")
    top = os.stat(source)
    fresh = not os.path.lexists(target)
    if not fresh and not (os.path.isdir(target) and (merge or not os.listdir(target))):
        why = "is not empty" if os.path.isdir(target) else "is no directory"
        raise FileExistsError(errno.EEXIST, f"the destination {why}", target)
    stage = beside(target) if fresh else target
    if fresh:
        os.mkdir(stage, 0o700)
    run = Run(on_error, progress, "link" if link else "copy")
    try:
        copier = _Copier(source, stage, link=link, replace=not fresh)
        run.each(copier.batch, copier.batches(run))
        if not (run.failed and on_error == "stop"):
            copier.finish(run)
            _dress(stage, top)
            if fresh:
                os.rename(stage, target)
                fresh = False
    finally:
        if fresh:
            shutil.rmtree(stage, ignore_errors=True)
    run.close()
    return Copied(run.files, copier.made, run.bytes, run.how.get("reflink", 0), run.how.get("link", 0))


class _Copier:
    """Puts what is in `source` below `target`, a directory that exists."""

    def __init__(self, source: str, target: str, *, link: bool, replace: bool) -> None:
        self._source = os.path.join(source, "")
        self._target = os.path.join(target, "")
        self._link = link
        self._replace = replace
        self._clones = True  # until the file system says it can't
        self._directories: list[ScanEntry] = []
        self.made = 0

    def batches(self, run: Run) -> Iterator[list[ScanEntry]]:
        """The files, in batches; directories are made on the way, before what is in them."""
        batch: list[ScanEntry] = []
        weight = 0
        lost: set[str] = set()  # directories that could not be made: nothing can go below
        for entry in chain.from_iterable(scan_batches(self._source, ScanOptions(directories=True))):
            if lost and any(entry.name.startswith(each) for each in lost):
                run.see(BatchResult(entry.name, error=entry.error or OSError(errno.ENOENT, "its directory failed")))
            elif entry.kind == "directory":
                try:
                    self._make_directory(entry)
                except OSError as error:
                    lost.add(f"{entry.name}/")
                    run.see(BatchResult(entry.name, error=error))
            else:
                batch.append(entry)
                weight += 0 if self._link else entry.size
                if weight >= _BATCH_BYTES or len(batch) >= BATCH_FILES:
                    yield batch
                    batch, weight = [], 0
            if run.over:
                return
        if batch:
            yield batch

    def _make_directory(self, entry: ScanEntry) -> None:
        path = self._target + entry.name
        try:
            os.mkdir(path, 0o700)
            self.made += 1
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path).st_mode):  # a link would lead elsewhere
                raise
        self._directories.append(entry)

    def finish(self, run: Run) -> None:
        """Modes and times of the directories, when nothing changes in them any more."""
        while self._directories:
            entry = self._directories.pop()
            try:
                _dress_path(self._target + entry.name, entry.mode, entry.mtime_ns)
            except OSError as error:
                run.see(BatchResult(entry.name, error=error))

    def batch(self, entries: list[ScanEntry]) -> list[BatchResult]:
        return [self._one(entry) for entry in entries]

    def _one(self, entry: ScanEntry) -> BatchResult:
        name = entry.name
        try:
            if entry.error is not None:
                raise entry.error
            path = self._target + name
            if not self._replace:
                return BatchResult(name, entry.size, self._make(entry, path))
            if os.path.isdir(path) and not os.path.islink(path):
                raise IsADirectoryError(errno.EISDIR, "a directory is in its place", path)
            temporary = beside(path)
            try:
                how = self._make(entry, temporary)
                os.rename(temporary, path)
            finally:
                # After a rename between two links of one file both names are still there (rename(2)).
                forget(temporary)
            return BatchResult(name, entry.size, how)
        except OSError as error:
            return BatchResult(name, error=error)

    def _make(self, entry: ScanEntry, path: str) -> str:
        """Make the file anew at `path`; says how."""
        source = self._source + entry.name
        if entry.kind == "symlink":
            os.symlink(os.readlink(source), path)
            os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)
            return "symlink"
        if entry.kind != "file":
            raise OSError(errno.EINVAL, "neither file, directory nor link", source)
        if self._link and entry.size:
            try:
                os.link(source, path, follow_symlinks=False)
                return "link"
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
        how = copy_file(source, path, clone=self._clones)
        if how == "copy" and entry.size:
            self._clones = False
        return how


def _dress(path: str, status: os.stat_result) -> None:
    _dress_path(path, status.st_mode, status.st_mtime_ns)


def _dress_path(path: str, mode: int, mtime_ns: int) -> None:
    os.chmod(path, mode & 0o777)
    os.utime(path, ns=(mtime_ns, mtime_ns))
