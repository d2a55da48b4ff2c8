"""How a change is made: in which order names come and go, and whether every new file can have its place."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Mapping

from perfkit.errors import FileChangedError, UpdateError
from perfkit.filesystem.beneath import Beneath
from perfkit.filesystem.commit import OWN
from perfkit.filesystem.records import Change, Step
from perfkit.filesystem.store import EMPTY, OBJECTS

__all__ = ["check_places", "steps"]


def check_places(beneath: Beneath, final: Mapping[str, object | None]) -> None:
    """See, before anything is done, that each new file can have its place.

    Raises:
        UnsafePathError: a symbolic link stands where a directory is needed.
        UpdateError: a file stands where a directory is needed, a directory where a file is, and the change doesn't
            clear them away; or two names of the change do that to each other.
    """
    puts = {name for name, put in final.items() if put is not None}
    seen: set[str] = set()
    for name in puts:
        found = beneath.lstat(name)
        if found is not None and stat.S_ISDIR(found.st_mode):
            _check_leaves(beneath, name, final)
        elif found is not None and not stat.S_ISREG(found.st_mode):
            raise UpdateError(f"{name}: not a regular file; move it away first")
        parent = name.rpartition("/")[0]
        while parent and parent not in seen:
            seen.add(parent)
            if parent in puts:
                raise UpdateError(f"{parent} can't be both a file and the directory of {name}")
            found = beneath.lstat(parent)
            if found is not None and not stat.S_ISDIR(found.st_mode) and final.get(parent, ...) is not None:
                raise UpdateError(f"{parent}: it is a file, and must go before {name} can be made")
            parent = parent.rpartition("/")[0]


def _check_leaves(beneath: Beneath, directory: str, final: Mapping[str, object | None]) -> None:
    """See that every file below a directory that a file is to replace is removed by the same change."""
    for leaf in beneath.names(directory):
        name = f"{directory}/{leaf}"
        found = beneath.lstat(name)
        if found is not None and stat.S_ISDIR(found.st_mode):
            _check_leaves(beneath, name, final)
        elif final.get(name, ...) is not None:
            raise UpdateError(f"{directory}: it is a directory, and {name} must go before it can be a file")


def steps(beneath: Beneath, changes: Iterable[Change], source: Callable[[str], str]) -> tuple[list[Step], list[Step]]:
    """How to make these changes: first what can be taken back, then what needs no space.

    Only adding can fail for want of space, so additions come first, after the removals that make room for a name: a
    file whose name a directory is to have, or the files of a directory whose name a file is to have.
    """
    puts = [change for change in changes if change.after is not None]
    drops = {change.name: change for change in changes if change.after is None}
    above = {parent for change in puts for parent in _parents(change.name)}
    names = {change.name for change in puts}
    first: list[Step] = []
    later: list[Step] = []
    for name, change in drops.items():
        blocks = name in above or not names.isdisjoint(_parents(name))
        (first if blocks else later).append(_drop(beneath, change))
    emptied: set[str] = set()
    for name in names:
        found = beneath.lstat(name)
        if found is not None and stat.S_ISDIR(found.st_mode):
            emptied.update(_directories(beneath, name))
    firm = first + [Step("rmdir", name) for name in sorted(emptied, reverse=True)]
    firm += [Step("mkdir", name) for name in sorted(above) if not _is_directory(beneath, name)]
    firm += [Step("put", change.name, source(change.name)) for change in puts if change.before is None]
    rest = [Step("put", change.name, source(change.name)) for change in puts if change.before is not None]
    emptied = {parent for name in drops for parent in _parents(name)} - above - names - emptied - {OWN}
    return firm, rest + later + [Step("rmdir", name) for name in sorted(emptied, reverse=True)]


def _drop(beneath: Beneath, change: Change) -> Step:
    found = beneath.lstat(change.name)
    assert change.before is not None
    if found is None:
        raise FileChangedError(change.name, "it was removed meanwhile")
    kept = "" if change.before.sha256 == EMPTY else f"{OBJECTS}/{change.before.sha256}"
    return Step("drop", change.name, kept, found.st_size, found.st_mtime_ns)


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
