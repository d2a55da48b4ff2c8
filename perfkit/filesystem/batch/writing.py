"""Write many small files, each atomically."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from perfkit.errors import UnsafePathError
from perfkit.filesystem.batch.run import BATCH_FILES, BatchResult, BatchRun, OnError, Path, temporary_name, try_unlink
from perfkit.filesystem.paths import check_name
from perfkit.filesystem.scan import DIRECTORY, open_below
from perfkit.progress.meter import Progress

__all__ = ["write_many"]


def write_many(
    root: Path,
    files: Iterable[tuple[str, bytes]],
    *,
    on_error: OnError = "stop",
    progress: Progress | None = None,
) -> list[BatchResult]:
    """Write many small files below `root`, each replacing an existing one atomically; directories are created.

    After a crash of the process each file is complete or as before, but the files do not change together, and are not
    synced to disk: for that, use a transaction.

    Args:
        files: names relative to the root, with slashes, and contents.

    Returns:
        A result per file, in order.

    Raises:
        BatchError: some failed; `results` has all that were attempted, in order.
        OSError: the root can't be opened.
    """
    run = BatchRun(on_error, progress, "writing", keep=True)
    base = os.open(root, DIRECTORY)
    try:
        run.execute(lambda batch: [_write(base, name, data) for name, data in batch], _portions(files))
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
        if weight >= 1 << 20 or len(batch) >= BATCH_FILES:
            yield batch
            batch, weight = [], 0
    if batch:
        yield batch


def _write(root: int, name: str, data: bytes) -> BatchResult:
    try:
        parent, _, last = check_name(name).rpartition("/")
        below = _open_or_make(root, parent)
        try:
            staged = temporary_name()
            writing = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=below)
            try:
                try:
                    done = 0
                    while done < len(data):
                        done += os.write(writing, memoryview(data)[done:])
                finally:
                    os.close(writing)
                os.rename(staged, last, src_dir_fd=below, dst_dir_fd=below)
            except BaseException:
                try_unlink(staged, below)
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
