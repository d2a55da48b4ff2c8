"""The stat cache after a change of our own: renames and links change ctime, and new files have no row yet."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from perfkit.transactions.commit import OWN
from perfkit.transactions.records import Change, signature
from perfkit.updates.statcache import Rows, next_tick_ns

__all__ = ["stamp"]


class _Status(NamedTuple):
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    mode: int


def stamp(
    rows: Rows,
    root: str,
    changes: Collection[Change],
    *,
    but: Collection[str],
    certain_ns: Callable[[str], int],
    probe: str,
) -> None:
    """Note what a commit put under each name, where a change by others since can't hide.

    Args:
        but: names of files that are none of the release.
        certain_ns: by name, `clock_ns` when the content was certain, as in `Rows.record`: for what we wrote, after
            that and before the commit; for what was hashed, before it was.
        probe: the file for `clock_ns`.
    """
    if next(_files(changes), None) is None:
        return
    seen_ns = 0
    with contextlib.suppress(OSError):  # without a clock nothing is certain, and the files are read again
        seen_ns = next_tick_ns(probe)  # later than our own renames
    for change in _files(changes):
        found = None
        with contextlib.suppress(OSError):
            found = os.lstat(os.path.join(root, change.name))
        if change.after is None or found is None or signature(found) != change.signature or change.name in but:
            rows.forget(change.name)
        else:
            status = _Status(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_mode)
            rows.record(change.name, status, change.after.sha256, content_ns=certain_ns(change.name), seen_ns=seen_ns)


def _files(changes: Iterable[Change]) -> Iterator[Change]:
    """Those of the tree's files, and not of perfkit's own."""
    return (change for change in changes if not change.name.startswith(f"{OWN}/"))
