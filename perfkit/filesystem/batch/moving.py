"""Moves, within a file system and to another one."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable

from perfkit.errors import BatchError, ConfigError
from perfkit.filesystem.batch.copyfile import copy_file
from perfkit.filesystem.batch.copying import copy_tree
from perfkit.filesystem.batch.removal import remove_tree
from perfkit.filesystem.batch.run import BatchResult, OnError, Path, Run, beside, forget
from perfkit.progress.meter import Progress

__all__ = ["move_many"]


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
    run = Run(on_error, progress, "move", keep=True)

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
        temporary = beside(target)
        try:
            if stat.S_ISLNK(status.st_mode):
                os.symlink(os.readlink(source), temporary)
            else:
                copy_file(source, temporary)
            os.rename(temporary, target)
        finally:
            forget(temporary)
        os.unlink(source)
    return status.st_size
