"""Remove whole trees."""

from __future__ import annotations

import os

from perfkit.filesystem.batch.run import BatchResult, BatchRun, OnError, Path
from perfkit.filesystem.scan import BELOW, Level, ScanOptions, descend, totals
from perfkit.progress.meter import Progress

_REMOVED = BatchResult("", how="remove")  # the names of what was removed are not kept


def remove_tree(path: Path, *, on_error: OnError = "stop", progress: Progress | None = None) -> int:
    """Remove a directory with its contents, in one thread: two would wait for each other's directory.

    See `Toolkit.remove_tree`.
    """
    run = BatchRun(on_error, progress, "removing")
    levels = [Level(os.open(path, BELOW), "")]
    try:
        if progress is not None:
            run.expect(totals(path, ScanOptions(directories=True))[0])
        _unlink_files(levels[0], run)
        while not run.stopped:
            _descend(levels, run)
            if len(levels) == 1:
                break
            gone = levels.pop()
            gone.close()
            levels[-1].reopen(levels[0])
            _remove_directory(levels[-1], gone.prefix, run)
        if not run.failed:
            os.rmdir(path)
    finally:
        for level in levels:
            level.close()
    run.close()
    return run.files + 1


def _descend(levels: list[Level], run: BatchRun) -> None:
    """Go down until a directory has no more subdirectories, and remove the files on the way."""
    while levels[-1].names and not run.stopped:
        leaf = levels[-1].names.pop()
        try:
            below = descend(levels, leaf)
        except FileNotFoundError:
            continue
        except OSError as error:
            run.add(BatchResult(levels[-1].prefix + leaf, error=error))
            continue
        _unlink_files(below, run)


def _remove_directory(parent: Level, prefix: str, run: BatchRun) -> None:
    try:
        os.rmdir(prefix[len(parent.prefix) : -1], dir_fd=parent.descriptor)
    except FileNotFoundError:
        pass  # another process was faster
    except OSError as error:
        run.add(BatchResult(prefix[:-1], error=error))
        return
    run.add(_REMOVED)


def _unlink_files(level: Level, run: BatchRun) -> None:
    """Remove everything in a directory except its subdirectories, whose names are kept for later."""
    descriptor, unlink, add = level.descriptor, os.unlink, run.add
    try:
        with os.scandir(descriptor) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    level.names.append(entry.name)
                    continue
                try:
                    unlink(entry.name, dir_fd=descriptor)
                except FileNotFoundError:
                    pass  # another process was faster
                except OSError as error:
                    add(BatchResult(level.prefix + entry.name, error=error))
                    if run.stopped:
                        return
                    continue
                add(_REMOVED)
    except OSError as error:
        add(BatchResult(level.prefix[:-1] or os.curdir, error=error))
