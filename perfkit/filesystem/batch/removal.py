"""Remove whole trees."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain, groupby

from perfkit.filesystem.batch.run import BATCH_FILES, BatchResult, BatchRun, OnError, Path
from perfkit.filesystem.scan import DIRECTORY, ScanOptions, open_below, scan_batches, totals
from perfkit.progress.meter import Progress

__all__ = ["remove_tree"]


def remove_tree(path: Path, *, on_error: OnError = "stop", progress: Progress | None = None) -> int:
    """Remove a directory with its contents; returns how many names were removed. Symlinks are never followed.

    Args:
        on_error: `stop` at the first failure, or `continue` with the others.

    Raises:
        BatchError: some paths could not be removed; `results` has those.
        OSError: it does not exist, is not a directory, or is a symlink (ENOTDIR).
    """
    run = BatchRun(on_error, progress, "removing")
    root = os.open(path, DIRECTORY | os.O_NOFOLLOW)
    try:
        if progress is not None:
            run.expect(totals(path, ScanOptions(directories=True))[0])
        directories: list[str] = []
        run.execute(lambda names: _unlink(root, names), _removals(path, directories, run))
        while directories and not run.stopped:
            name = directories.pop()
            parent, _, last = name.rpartition("/")
            try:
                below = open_below(root, parent)
                try:
                    os.rmdir(last, dir_fd=below)
                finally:
                    os.close(below)
                run.add(BatchResult(name, how="remove"))
            except OSError as error:
                run.add(BatchResult(name, error=error))
        if not run.failed:
            os.rmdir(path)
    finally:
        os.close(root)
    run.close()
    return run.files + 1


def _removals(path: Path, directories: list[str], run: BatchRun) -> Iterator[list[str]]:
    batch: list[str] = []
    for entry in chain.from_iterable(scan_batches(path, ScanOptions(directories=True))):
        if entry.kind == "directory":
            directories.append(entry.name)
        elif entry.error is None:
            batch.append(entry.name)
        elif not isinstance(entry.error, FileNotFoundError):
            run.add(BatchResult(entry.name, error=entry.error))
        if len(batch) >= BATCH_FILES:
            yield batch
            batch = []
        if run.stopped:
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
                    results.append(BatchResult(name, how="remove"))  # another process was faster
                except OSError as error:
                    results.append(BatchResult(name, error=error))
        finally:
            os.close(below)
    return results
