"""Batches: copy, link, move, remove and write many files at once, in parallel, with a result for each that failed.

A file is made under a temporary name and renamed, or the whole tree is: what stands under a final name is whole.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Literal, NamedTuple, TypeVar

from perfkit.errors import BatchError, ConfigError, UnsafePathError
from perfkit.filesystem.paths import check_name
from perfkit.filesystem.pool import pooled, usable_cpus
from perfkit.filesystem.scan import DIRECTORY, ScanEntry, open_below, scan_batches
from perfkit.progress.meter import Meter, Progress

__all__ = ["BatchResult", "Copied", "OnError", "copy_tree", "link_tree", "move_many", "remove_tree", "write_many"]

_FICLONE = 0x40049409  # ioctl_ficlonerange(2)
_BATCH_FILES = 64
_BATCH_BYTES = 8 << 20
_STEP_BYTES = 64 << 20  # of copy_file_range at once
_BUFFER_BYTES = 256 << 10
_PROGRESS_EVERY_S = 0.1
_NO_RANGE_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY})
_NO_CLONE = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY, errno.EPERM,
                       errno.ETXTBSY})  # fmt: skip
_NO_LINK = frozenset({errno.EMLINK, errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})

T = TypeVar("T")
OnError = Literal["stop", "continue"]
Path = str | os.PathLike[str]


class BatchResult(NamedTuple):
    """What came of one path."""

    name: str  # relative to the tree, or as it was given
    size: int = 0  # bytes, of what was written
    how: str = ""  # reflink, copy, link, symlink, move, remove or write
    error: Exception | None = None


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
    stage = _beside(target) if fresh else target
    if fresh:
        os.mkdir(stage, 0o700)
    run = _Run(on_error, progress, "link" if link else "copy")
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

    def batches(self, run: _Run) -> Iterator[list[ScanEntry]]:
        """The files, in batches; directories are made on the way, before what is in them."""
        batch: list[ScanEntry] = []
        weight = 0
        lost: set[str] = set()  # directories that could not be made: nothing can go below
        for entry in chain.from_iterable(scan_batches(self._source, directories=True)):
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
                if weight >= _BATCH_BYTES or len(batch) >= _BATCH_FILES:
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

    def finish(self, run: _Run) -> None:
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
            temporary = _beside(path)
            try:
                how = self._make(entry, temporary)
                os.rename(temporary, path)
            finally:
                # After a rename between two links of one file both names are still there (rename(2)).
                _forget(temporary)
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


def copy_file(source: str, path: str, *, clone: bool = True) -> str:
    """Copy one file to a name that is not there yet, with its rwx bits and mtime; says `reflink` or `copy`.

    Raises:
        OSError: either can't be; nothing is left at `path` then.
    """
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(reading)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file any more", source)
        writing = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                how = _fill(reading, writing, status, clone)
                os.fchmod(writing, status.st_mode & 0o777)
                os.utime(writing, ns=(status.st_mtime_ns, status.st_mtime_ns))
            finally:
                os.close(writing)
        except BaseException:
            _forget(path)
            raise
        return how
    finally:
        os.close(reading)


def _fill(reading: int, writing: int, status: os.stat_result, clone: bool) -> str:
    if clone and status.st_size:
        try:
            fcntl.ioctl(writing, _FICLONE, reading)
            return "reflink"
        except OSError as error:
            if error.errno not in _NO_CLONE:
                raise
    if status.st_blocks * 512 < status.st_size:
        for start, end in _extents(reading, status.st_size):
            _copy_range(reading, writing, start, end)
        os.ftruncate(writing, status.st_size)
    else:
        _copy_range(reading, writing, 0, status.st_size)
    return "copy"


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a sparse file has data (lseek(2), SEEK_DATA)."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = min(size, os.lseek(descriptor, start, os.SEEK_HOLE))
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        yield start, end


def _copy_range(reading: int, writing: int, start: int, end: int) -> None:
    """These bytes to the same place, as far as the source has them: inside the kernel, or through a buffer."""
    position = start
    try:
        while position < end:
            count = os.copy_file_range(reading, writing, min(_STEP_BYTES, end - position), position, position)
            if count == 0:
                break
            position += count
    except OSError as error:
        if error.errno not in _NO_RANGE_COPY:
            raise
    if position >= end > 0:
        return
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    # A size of 0 may be that of a file made up as it is read, as in /proc: read those to their end.
    while (end == 0 or position < end) and (
        count := os.preadv(reading, [buffer if end == 0 else buffer[: end - position]], position)
    ):
        done = 0
        while done < count:
            done += os.pwrite(writing, buffer[done:count], position + done)
        position += count


def move_many(
    pairs: Iterable[tuple[Path, Path]],
    *,
    replace: bool = False,
    on_error: OnError = "stop",
    progress: Progress | None = None,
) -> list[BatchResult]:
    """Move files, links and directories, one after the other in the order given, since a move may build on another.

    Within a file system a move is a rename, in one step. To another one it is a copy, published by a rename, and then
    the removal of the source.

    Args:
        replace: whether a file in the destination's place is replaced; otherwise it is an error. The look and the move
            are two steps.
        on_error: `stop` at the first failure, leaving what was moved; `continue` with the rest.

    Returns:
        A result per pair, its `name` the source.

    Raises:
        BatchError: some failed; `results` has all that were tried, in order.
    """
    run = _Run(on_error, progress, "move", keep=True)

    def work(pair: tuple[Path, Path]) -> list[BatchResult]:
        source, target = os.fspath(pair[0]), os.fspath(pair[1])
        try:
            return [BatchResult(source, _move(source, target, replace), "move")]
        except (OSError, BatchError, ConfigError) as error:
            return [BatchResult(source, error=error)]

    run.each(work, pairs, threads=1)
    run.close()
    return run.results


def _move(source: str, target: str, replace: bool) -> int:
    status = os.lstat(source)
    if not replace and os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "the destination exists", target)
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if stat.S_ISDIR(status.st_mode):
            copy_tree(source, target)
            remove_tree(source)
            return 0
        temporary = _beside(target)
        try:
            if stat.S_ISLNK(status.st_mode):
                os.symlink(os.readlink(source), temporary)
            else:
                copy_file(source, temporary)
            os.rename(temporary, target)
        finally:
            _forget(temporary)
        os.unlink(source)
    return status.st_size


def remove_tree(path: Path, *, on_error: OnError = "stop", progress: Progress | None = None) -> int:
    """Remove a directory and all below; says how many names. No symlink is followed, in the path's last part neither.

    Args:
        on_error: `stop` at the first failure, leaving the rest; `continue` and remove what can be.

    Raises:
        BatchError: some paths could not be removed; `results` has those.
        OSError: it does not exist, is no directory, or is a link (ENOTDIR).
    """
    run = _Run(on_error, progress, "remove")
    root = os.open(path, DIRECTORY | os.O_NOFOLLOW)
    try:
        directories: list[str] = []
        run.each(lambda names: _unlink(root, names), _removals(path, directories, run))
        while directories and not run.over:
            name = directories.pop()
            parent, _, last = name.rpartition("/")
            try:
                below = open_below(root, parent)
                try:
                    os.rmdir(last, dir_fd=below)
                finally:
                    os.close(below)
                run.see(BatchResult(name, how="remove"))
            except OSError as error:
                run.see(BatchResult(name, error=error))
        if not run.failed:
            os.rmdir(path)
    finally:
        os.close(root)
    run.close()
    return run.files + 1


def _removals(path: Path, directories: list[str], run: _Run) -> Iterator[list[str]]:
    batch: list[str] = []
    for entry in chain.from_iterable(scan_batches(path, directories=True)):
        if entry.kind == "directory":
            directories.append(entry.name)
        elif entry.error is None:
            batch.append(entry.name)
        elif not isinstance(entry.error, FileNotFoundError):
            run.see(BatchResult(entry.name, error=entry.error))
        if len(batch) >= _BATCH_FILES:
            yield batch
            batch = []
        if run.over:
            return
    if batch:
        yield batch


def _unlink(root: int, names: list[str]) -> list[BatchResult]:
    results = []
    for parent, group in groupby(names, key=lambda name: name.rpartition("/")[0]):
        here = list(group)
        try:
            below = open_below(root, parent)
        except OSError as error:
            results += [BatchResult(name, error=error) for name in here]
            continue
        try:
            for name in here:
                try:
                    os.unlink(name.rpartition("/")[2], dir_fd=below)
                    results.append(BatchResult(name, how="remove"))
                except FileNotFoundError:
                    results.append(BatchResult(name, how="remove"))  # somebody was faster
                except OSError as error:
                    results.append(BatchResult(name, error=error))
        finally:
            os.close(below)
    return results


def write_many(
    root: Path,
    files: Iterable[tuple[str, bytes]],
    *,
    on_error: OnError = "stop",
    progress: Progress | None = None,
) -> list[BatchResult]:
    """Write many small files below `root`, each replacing what was there in one step; directories are made.

    Each file is whole or as before after a crash of the process, but the files are not changed together, nor forced to
    the disk: that is what a transaction is for.

    Args:
        files: names relative to the root, with slashes, and contents.

    Returns:
        A result per file, in order.

    Raises:
        BatchError: some failed; `results` has all that were tried, in order.
        OSError: the root can't be opened.
    """
    run = _Run(on_error, progress, "write", keep=True)
    base = os.open(root, DIRECTORY)
    try:
        run.each(lambda batch: [_write(base, name, data) for name, data in batch], _portions(files))
    finally:
        os.close(base)
    run.close()
    return run.results


def _portions(files: Iterable[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    batch: list[tuple[str, bytes]] = []
    weight = 0
    for name, data in files:
        batch.append((name, data))
        weight += len(data)
        if weight >= 1 << 20 or len(batch) >= _BATCH_FILES:
            yield batch
            batch, weight = [], 0
    if batch:
        yield batch


def _write(root: int, name: str, data: bytes) -> BatchResult:
    try:
        parent, _, last = check_name(name).rpartition("/")
        below = _open_or_make(root, parent)
        try:
            temporary = _temporary()
            writing = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=below)
            try:
                try:
                    done = 0
                    while done < len(data):
                        done += os.write(writing, memoryview(data)[done:])
                finally:
                    os.close(writing)
                os.rename(temporary, last, src_dir_fd=below, dst_dir_fd=below)
            except BaseException:
                _forget(temporary, below)
                raise
        finally:
            os.close(below)
        return BatchResult(name, len(data), "write")
    except (OSError, UnsafePathError) as error:
        return BatchResult(name, error=error)


def _open_or_make(root: int, name: str) -> int:
    try:
        return open_below(root, name)
    except FileNotFoundError:
        pass
    parent, _, last = name.rpartition("/")
    above = _open_or_make(root, parent)
    try:
        try:
            os.mkdir(last, dir_fd=above)
        except FileExistsError:
            pass  # another thread was faster
        return os.open(last, DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
    finally:
        os.close(above)


class _Run:
    """Counts results, keeps the failed ones, and shows progress. In the calling thread only."""

    def __init__(self, on_error: OnError, progress: Progress | None, phase: str, *, keep: bool = False) -> None:
        if on_error not in ("stop", "continue"):
            raise ConfigError(f"on_error must be 'stop' or 'continue'; got {on_error!r}")
        self._stop = on_error == "stop"
        self._progress = progress
        self._meter = Meter(phase=phase) if progress is not None else None
        self._shown_s = time.monotonic()
        self._keep = keep
        self.results: list[BatchResult] = []  # all of them, or those that failed
        self.failed = 0
        self.files = 0
        self.bytes = 0
        self.how: dict[str, int] = {}
        if self._meter is not None:
            self._meter.expect(None)

    @property
    def over(self) -> bool:
        return self._stop and self.failed > 0

    def each(self, work: Callable[[T], list[BatchResult]], items: Iterable[T], *, threads: int | None = None) -> None:
        batches = pooled(work, items, threads or usable_cpus())
        try:
            for batch in batches:
                for result in batch:
                    self.see(result)
                if self.over:
                    break
        finally:
            batches.close()

    def see(self, result: BatchResult) -> None:
        if result.error is not None:
            self.failed += 1
        else:
            self.files += 1
            self.how[result.how] = self.how.get(result.how, 0) + 1
            self.bytes += result.size if result.how in ("reflink", "copy") else 0
        if self._keep or result.error is not None:
            self.results.append(result)
        if self._meter is not None and self._progress is not None:
            meter = self._meter.file(result.name)
            meter.start(result.size)
            if result.error is not None:
                meter.failed()
            else:
                meter.advance(result.size)
                meter.done()
            if time.monotonic() - self._shown_s >= _PROGRESS_EVERY_S:
                self._shown_s = time.monotonic()
                self._progress.update(self._meter.snapshot())

    def close(self) -> None:
        """The last word of the progress.

        Raises:
            BatchError: something failed.
        """
        if self._meter is not None and self._progress is not None:
            self._meter.expect(self.files + self.failed)
            self._meter.all_known()
            self._progress.finish(self._meter.snapshot())
        if self.failed:
            raise BatchError(self.results)


def _temporary() -> str:
    return f".perfkit-{secrets.token_hex(8)}~"


def _beside(path: str) -> str:
    """A name that is free, in the same directory."""
    return os.path.join(os.path.dirname(path.rstrip("/")), _temporary())


def _forget(path: str, directory: int | None = None) -> None:
    try:
        os.unlink(path, dir_fd=directory)
    except OSError:
        pass


def _dress(path: str, status: os.stat_result) -> None:
    _dress_path(path, status.st_mode, status.st_mtime_ns)


def _dress_path(path: str, mode: int, mtime_ns: int) -> None:
    os.chmod(path, mode & 0o777)
    os.utime(path, ns=(mtime_ns, mtime_ns))
