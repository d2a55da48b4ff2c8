"""Copy whole trees, or link them with hard links."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from perfkit.errors import ConfigError
from perfkit.filesystem.batch.copyfile import copy_file
from perfkit.filesystem.batch.run import BatchResult, BatchRun, OnError, Path, replacing, temporary_path
from perfkit.filesystem.scan import ScanEntry, ScanOptions, scan_batches, totals
from perfkit.libc import link
from perfkit.progress.meter import Progress

_LARGE_BYTES = 64 << 10  # copied in threads
_QUICK_S = 50e-6  # if small files take less on average, threads would only wait for the interpreter lock
_TRIED_FILES = 64  # before that is known
_BATCH_FILES, _BATCH_BYTES = 64, 8 << 20
_NO_LINK = frozenset({errno.EMLINK, errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.ENOSYS})


@dataclass(frozen=True, slots=True)
class CopyResult:
    """What was copied or linked."""

    files: int
    directories: int  # without the root
    bytes: int  # in files that were copied or reflinked
    reflinked: int
    linked: int


def copy_tree(
    src: Path,
    dest: Path,
    *,
    merge: bool = False,
    on_error: OnError = "stop",
    progress: Progress | None = None,
    link: bool = False,
) -> CopyResult:
    """Copy a tree, or `link` its files; see `Toolkit.copy_tree` and `Toolkit.link_tree`."""
    source, target = os.path.abspath(os.fspath(src)), os.path.abspath(os.fspath(dest))
    if target == source or os.path.realpath(target).startswith(os.path.join(os.path.realpath(source), "")):
        raise ConfigError(f"can't copy {src} to {dest}, which is the same directory or inside it")
    top = os.stat(source)
    fresh = not os.path.lexists(target)
    if not fresh and not (os.path.isdir(target) and (merge or not os.listdir(target))):
        why = "is not empty" if os.path.isdir(target) else "is not a directory"
        raise FileExistsError(errno.EEXIST, f"the destination {why}", target)
    run = BatchRun(on_error, progress, "linking" if link else "copying")
    place = temporary_path(target) if fresh else target
    try:
        if fresh:
            os.mkdir(place, 0o700)
        if progress is not None:
            run.expect(*totals(source))
        copier = _Copier(source, place, link=link, replace=not fresh)
        run.execute(copier.copy, copier.batches(run))
        if not (run.failed and on_error == "stop"):
            copier.finish(run)
            _set_metadata(place, top.st_mode, top.st_mtime_ns)
            if fresh:
                os.rename(place, target)
                fresh = False
    finally:
        if fresh:
            shutil.rmtree(place, ignore_errors=True)
    run.close()
    return CopyResult(run.files, copier.made, run.bytes, run.how.get("reflink", 0), run.how.get("link", 0))


class _Copier:
    """Copies the contents of `source` into `target`, an existing directory."""

    def __init__(self, source: str, target: str, *, link: bool, replace: bool) -> None:
        self._source = os.path.join(source, "")
        self._target = os.path.join(target, "")
        self._link = link
        self._replace = replace
        self._clones = True  # until the file system turns out not to support it
        self._directories: list[ScanEntry] = []
        self._small, self._small_s = 0, 0.0  # small files that were copied one by one, and how long that took
        self.made = 0

    def batches(self, run: BatchRun) -> Iterator[list[ScanEntry]]:
        """The files, in batches; directories are created on the way, before their contents, and small files copied, as
        long as that is quick.
        """
        batch: list[ScanEntry] = []
        weight = 0
        failed: set[str] = set()  # directories that could not be created
        for entry in chain.from_iterable(scan_batches(self._source, ScanOptions(directories=True))):
            if failed and any(entry.name.startswith(each) for each in failed):
                why = entry.error or OSError(errno.ENOENT, "its directory could not be created")
                run.add(BatchResult(entry.name, error=why))
            elif entry.kind == "directory":
                try:
                    self._make_directory(entry)
                except OSError as error:
                    failed.add(f"{entry.name}/")
                    run.add(BatchResult(entry.name, error=error))
            elif self._is_quick(entry):
                began_s = time.perf_counter()
                run.add(self._one(entry))
                self._small += 1
                self._small_s += time.perf_counter() - began_s
            else:
                batch.append(entry)
                weight += 0 if self._link else entry.size
                if weight >= _BATCH_BYTES or len(batch) >= _BATCH_FILES:
                    yield batch
                    batch, weight = [], 0
            if run.stopped:
                return
        if batch:
            yield batch

    def _is_quick(self, entry: ScanEntry) -> bool:
        """Whether it is small, and small files have been quick so far: those of slow file systems go to threads."""
        return (self._link or entry.size < _LARGE_BYTES) and self._small_s <= _QUICK_S * max(_TRIED_FILES, self._small)

    def _make_directory(self, entry: ScanEntry) -> None:
        path = self._target + entry.name
        try:
            os.mkdir(path, 0o700)
            self.made += 1
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path).st_mode):  # a symlink could lead out of the tree
                raise
        self._directories.append(entry)

    def finish(self, run: BatchRun) -> None:
        """Set modes and times of the directories, after everything in them has been created."""
        while self._directories:
            entry = self._directories.pop()
            try:
                _set_metadata(self._target + entry.name, entry.mode, entry.mtime_ns)
            except OSError as error:
                run.add(BatchResult(entry.name, error=error))

    def copy(self, entries: list[ScanEntry]) -> list[BatchResult]:
        return [self._one(entry) for entry in entries]

    def _one(self, entry: ScanEntry) -> BatchResult:
        name = entry.name
        if entry.error is not None:
            return BatchResult(name, error=entry.error)
        try:
            path = self._target + name
            if not self._replace:
                return BatchResult(name, entry.size, self._make(entry, path))
            if os.path.isdir(path) and not os.path.islink(path):
                raise IsADirectoryError(errno.EISDIR, "the destination is a directory", path)
            with replacing(path) as temporary:
                how = self._make(entry, temporary)
            return BatchResult(name, entry.size, how)
        except OSError as error:
            return BatchResult(name, error=error)

    def _make(self, entry: ScanEntry, path: str) -> str:
        """Create the file at `path`; returns how."""
        source = self._source + entry.name
        if entry.kind == "symlink":
            os.symlink(os.readlink(source), path)
            os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)
            return "symlink"
        if entry.kind != "file":
            raise OSError(errno.EINVAL, "not a file, directory or symlink", source)
        if self._link and entry.size:
            try:
                link(source, path)
                return "link"
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
        how = copy_file(source, path, clone=self._clones)
        if how == "copy" and entry.size:
            self._clones = False
        return how


def _set_metadata(path: str, mode: int, mtime_ns: int) -> None:
    with contextlib.suppress(OSError):  # a directory's mode is no reason to fail the copy
        os.chmod(path, mode & 0o777)
    os.utime(path, ns=(mtime_ns, mtime_ns))
