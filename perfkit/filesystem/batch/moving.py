"""Move files and trees, within a file system or to another one."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable

from perfkit.errors import BatchError, ConfigError
from perfkit.filesystem.batch.copyfile import copy_file
from perfkit.filesystem.batch.copying import copy_tree
from perfkit.filesystem.batch.removal import remove_tree
from perfkit.filesystem.batch.run import BatchResult, BatchRun, OnError, Path, replacing
from perfkit.progress.meter import Progress


def move_many(
    pairs: Iterable[tuple[Path, Path]],
    *,
    replace: bool = False,
    on_error: OnError = "stop",
    progress: Progress | None = None,
) -> list[BatchResult]:
    """Move files, symlinks and directories; see `Toolkit.move_many`."""
    run = BatchRun(on_error, progress, "moving", keep=True)
    moves = list(pairs)  # before the first move: a scan that goes on would list what was moved, under its new name
    run.expect(len(moves))

    def work(pair: tuple[Path, Path]) -> list[BatchResult]:
        source, target = os.fspath(pair[0]), os.fspath(pair[1])
        try:
            return [BatchResult(source, _move(source, target, replace), "move")]
        except (OSError, BatchError, ConfigError) as error:
            return [BatchResult(source, error=error)]

    run.execute(work, moves, threads=1)
    run.close()
    return run.results


def _move(source: str, target: str, replace: bool) -> int:
    status = os.lstat(source.rstrip("/") or "/")
    if source.endswith("/") and not stat.S_ISDIR(status.st_mode):  # a link whose target would be copied and kept
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), source)
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
        with replacing(target) as temporary:
            if stat.S_ISLNK(status.st_mode):
                os.symlink(os.readlink(source), temporary)
            else:
                copy_file(source, temporary)
        os.unlink(source)
    return status.st_size
