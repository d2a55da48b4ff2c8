"""How a change is made: in which order names come and go, and whether every new file can have its place."""

from __future__ import annotations

import stat
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain, takewhile

from perfkit.errors import FileChangedError, UpdateError
from perfkit.filesystem.rootdir import Beneath
from perfkit.transactions.changeset import ChangeSet
from perfkit.transactions.layout import PRIVATE_DIR, object_path
from perfkit.transactions.object_store import EMPTY
from perfkit.transactions.records import Content, Step

__all__ = ["check_places", "steps"]


def check_places(beneath: Beneath, final: Mapping[str, object | None]) -> None:
    """See, before anything is done, that each new file can have its place.

    Raises:
        UnsafePathError: a symbolic link stands where a directory is needed.
        UpdateError: a file stands where a directory is needed, a directory where a file is, and the change doesn't
            clear them away; or two names of the change do that to each other.
    """
    seen: set[str] = set()
    for name in final:
        if final[name] is None:
            continue
        found = beneath.lstat(name)
        if found is not None and stat.S_ISDIR(found.st_mode):
            _check_leaves(beneath, name, final)
        elif found is not None and not stat.S_ISREG(found.st_mode):
            raise UpdateError(f"{name}: not a regular file; move it away first")
        for parent in _parents(name):
            if parent in seen:
                break
            seen.add(parent)
            if final.get(parent) is not None:
                raise UpdateError(f"{parent} can't be both a file and the directory of {name}")
            found = beneath.lstat(parent)
            if found is not None and not stat.S_ISDIR(found.st_mode) and final.get(parent, ...) is not None:
                raise UpdateError(f"{parent}: it is a file, and must go before {name} can be made")


def _check_leaves(beneath: Beneath, directory: str, final: Mapping[str, object | None]) -> None:
    """See that every file below a directory that a file is to replace is removed by the same change."""
    for leaf in beneath.names(directory):
        name = f"{directory}/{leaf}"
        found = beneath.lstat(name)
        if found is not None and stat.S_ISDIR(found.st_mode):
            _check_leaves(beneath, name, final)
        elif final.get(name, ...) is not None:
            raise UpdateError(f"{directory}: it is a directory, and {name} must go before it can be a file")


def steps(beneath: Beneath, changes: ChangeSet, changed: Collection[int]) -> tuple[Iterator[Step], Iterator[Step]]:
    """How to make these changes: first what can be taken back, then what needs no space.

    Only adding can fail for want of space, so additions come first, after the removals that make room for a name: a
    file whose name a directory is to have, or the files of a directory whose name a file is to have.

    Args:
        changed: the rows that differ from what is there.

    Raises, as the steps are asked for:
        FileChangedError: a file that is to be removed is gone.
        OSError: a directory can't be looked at.
    """
    drops = array("I", (row for row in changed if not changes.puts(row)))
    puts = array("I", (row for row in changed if changes.puts(row)))
    above: set[str] = set()  # directories that new files need
    emptied: set[str] = set()  # directories whose names files are to have
    for row in puts:
        name = changes.name(row)
        above.update(_until(_parents(name), above))
        found = beneath.lstat(name) if changes.is_new(row) else None
        if found is not None and stat.S_ISDIR(found.st_mode):
            emptied.update(_directories(beneath, name))
    first, later = array("I"), array("I")
    left: set[str] = set()  # directories that files leave
    for row in drops:
        name = changes.name(row)
        blocks = name in above or any(parent in emptied for parent in _parents(name))
        (first if blocks else later).append(row)
        left.update(_until(_parents(name), left))

    def placed(*, new: bool) -> Iterator[Step]:
        return (Step("put", changes.name(r), changes.source(r)) for r in puts if changes.is_new(r) == new)

    def dropped(rows: Iterable[int]) -> Iterator[Step]:
        return (_drop(beneath, changes.name(row), changes.before(row)) for row in rows)

    def removed(names: set[str]) -> Iterator[Step]:
        return (Step("rmdir", name) for name in sorted(names, reverse=True))

    made = (Step("mkdir", name) for name in sorted(above) if not _is_directory(beneath, name))
    firm = chain(dropped(first), removed(emptied), made, placed(new=True))
    return firm, chain(placed(new=False), dropped(later), removed(left - above - emptied - {PRIVATE_DIR}))


def _until(names: Iterable[str], known: Collection[str]) -> Iterable[str]:
    """The names up to the first that is known."""
    return takewhile(lambda name: name not in known, names)


def _drop(beneath: Beneath, name: str, before: Content | None) -> Step:
    found = beneath.lstat(name)
    assert before is not None
    if found is None:
        raise FileChangedError(name, "it was removed meanwhile")
    kept = "" if before.sha256 == EMPTY else object_path(before.sha256)
    return Step("drop", name, kept, found.st_size, found.st_mtime_ns)


def _parents(name: str) -> Iterable[str]:
    while name := name.rpartition("/")[0]:
        yield name


def _is_directory(beneath: Beneath, name: str) -> bool:
    found = beneath.lstat(name)
    return found is not None and stat.S_ISDIR(found.st_mode)


def _directories(beneath: Beneath, name: str) -> Iterable[str]:
    """A directory and all below it."""
    yield name
    for leaf in beneath.names(name):
        if _is_directory(beneath, f"{name}/{leaf}"):
            yield from _directories(beneath, f"{name}/{leaf}")
