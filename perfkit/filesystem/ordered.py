"""Traversal in the order of names, so that a tree can be laid beside a sorted list without holding either."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator

from perfkit.filesystem.scan import DIRECTORY, ScanEntry, open_below

__all__ = ["scan_in_order"]

_BELOW = DIRECTORY | os.O_NOFOLLOW
_OPEN_MOST = 32  # directories held open at once; deeper ones are opened again on the way back


def scan_in_order(root: str | os.PathLike[str], *, without: Collection[str] = ()) -> Iterator[ScanEntry]:
    """Everything below `root` but directories, as `scan` has it, sorted by the code points of the whole names.

    That is the order of their UTF-8 bytes, too. Memory follows the names of one directory.

    Args:
        without: names directly in the root to leave out.

    Raises:
        OSError: the root can't be opened or listed.
    """
    levels = [_Level(os.open(root, DIRECTORY), "")]
    make = tuple.__new__
    try:
        levels[0].list(without)
        while levels:
            level = levels[-1]
            if not level.names:
                levels.pop().close()
                continue
            leaf = level.names.pop()
            name = level.prefix + leaf
            try:
                if level.descriptor < 0:
                    level.descriptor = open_below(levels[0].descriptor, level.prefix)
                if leaf.endswith("/"):
                    below = _Level(os.open(leaf[:-1], _BELOW, dir_fd=level.descriptor), name)
                    levels.append(below)
                    below.list()
                    if len(levels) > _OPEN_MOST:
                        levels[-_OPEN_MOST].close()
                    continue
                status = os.stat(leaf, dir_fd=level.descriptor, follow_symlinks=False)
            except OSError as error:
                yield ScanEntry(name.rstrip("/"), 0, 0, 0, 0, 0, 0, error)
                continue
            mode = status.st_mode
            if stat.S_ISDIR(mode):  # since it was listed; as if it had not been there
                continue
            yield make(ScanEntry, (name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino,
                                   status.st_dev, mode, None))  # fmt: skip
    finally:
        for level in levels:
            level.close()


class _Level:
    """A directory on the way down: its names still to come, the next one last; those of directories end in a slash,
    which is what puts `a.txt` before `a/b`."""

    __slots__ = ("descriptor", "names", "prefix")

    def __init__(self, descriptor: int, prefix: str) -> None:
        self.descriptor = descriptor
        self.prefix = prefix
        self.names: list[str] = []

    def list(self, without: Collection[str] = ()) -> None:
        with os.scandir(self.descriptor) as found:
            self.names = [f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name
                          for entry in found if entry.name not in without]  # fmt: skip
        self.names.sort(reverse=True)

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
