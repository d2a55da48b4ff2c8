"""Remove whole trees."""

from __future__ import annotations

import contextlib
import errno
import os

from perfkit.errors import UnsafePathError
from perfkit.filesystem.batch.run import BatchResult, BatchRun, OnError, Path
from perfkit.filesystem.rootdir import RootDir
from perfkit.filesystem.scan import ScanOptions, totals
from perfkit.progress.meter import Progress

_COUNTED = 256  # files that are counted at once: each count takes a sixth of the time of a removal


def remove_tree(path: Path, *, on_error: OnError = "stop", progress: Progress | None = None) -> int:
    """Remove a directory with its contents, in one thread: two would wait for each other's directory.

    See `Toolkit.remove_tree`.
    """
    run = BatchRun(on_error, progress, "removing")
    path = os.fspath(path).rstrip("/") or "/"  # a slash at the end would lead through a symbolic link
    if os.path.basename(path) in (os.curdir, os.pardir):  # rmdir(2) refuses `.`; `..` contains more than it says
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    with contextlib.closing(RootDir(path, root_may_be_link=False)) as rootdir:
        if progress is not None:
            run.expect(totals(path, ScanOptions(directories=True))[0])
        left = _unlink_files(rootdir, "", run)  # directories to remove; a slash at the end: it has been emptied
        while left and not run.stopped:
            name = left.pop()
            if name.endswith("/"):
                _remove_directory(rootdir, name[:-1], run)
            else:
                left += [f"{name}/", *_unlink_files(rootdir, name, run)]
        if not run.failed:
            os.rmdir(path)
    run.close()
    return run.files + 1


def _remove_directory(rootdir: RootDir, name: str, run: BatchRun) -> None:
    try:
        parent, leaf = rootdir.parent(name)
        os.rmdir(leaf, dir_fd=parent)
    except FileNotFoundError:
        pass  # another process was faster
    except (OSError, UnsafePathError) as error:
        if isinstance(error, OSError):
            rootdir.name_in(error, name)
        run.add(BatchResult(name, error=error))
        return
    run.count(1)


def _unlink_files(rootdir: RootDir, directory: str, run: BatchRun) -> list[str]:
    """Remove everything in a directory except its subdirectories, whose names are returned."""
    unlink, removed = os.unlink, 0
    prefix, directories = f"{directory}/" if directory else "", []
    try:
        descriptor = rootdir.directory(directory)
        with rootdir.scandir(directory) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    directories.append(prefix + entry.name)
                    continue
                try:
                    unlink(entry.name, dir_fd=descriptor)
                except FileNotFoundError:
                    pass  # another process was faster
                except OSError as error:
                    rootdir.name_in(error, prefix + entry.name)
                    run.add(BatchResult(prefix + entry.name, error=error))
                    if run.stopped:
                        break
                    continue
                removed += 1
                if removed == _COUNTED:
                    run.count(removed)
                    removed = 0
    except FileNotFoundError:
        pass  # another process was faster
    except (OSError, UnsafePathError) as error:
        run.add(BatchResult(directory or os.curdir, error=error))
    run.count(removed)
    return directories
