"""Every path below `.perfkit`, relative to the root of a managed tree. docs/concepts/transaction.md explains them."""

from __future__ import annotations

import re

from perfkit.errors import UnsafePathError
from perfkit.filesystem.paths import PRIVATE_DIR as PRIVATE_DIR
from perfkit.filesystem.paths import check_name

# The transaction's own.
LOCK = f"{PRIVATE_DIR}/lock"  # locked with flock(2) while the tree is being changed
OWNER = f"{PRIVATE_DIR}/owner"  # JSON: which process holds the lock, for file systems where flock does nothing
JOURNAL = f"{PRIVATE_DIR}/journal"  # present: a change is past its commit point and has to be completed
STATE = f"{PRIVATE_DIR}/state"  # the generations that can be reached, and the current one
HISTORY = f"{PRIVATE_DIR}/history"  # a record per generation, by number
OBJECTS = f"{PRIVATE_DIR}/objects"  # file contents that rollback needs, by SHA-256
FETCH = f"{PRIVATE_DIR}/fetch"  # what is fetched before a transaction takes it; survives a crash
FETCHED_OBJECT = f"{FETCH}/content-"  # followed by the SHA-256 of the file's content
_STAGING = "stage-"  # followed by the lock's token: the new files of one transaction; deleted after a crash

# Written by the updater.
MANIFEST = f"{PRIVATE_DIR}/manifest"  # of the installed release; committed and rolled back with its files
RELEASE = f"{PRIVATE_DIR}/release"  # JSON: source and version of the installed release; rolled back, too
SERIALS = f"{PRIVATE_DIR}/serials"  # JSON: the highest serial installed from each source; never rolled back
TRUST = f"{PRIVATE_DIR}/trust"  # JSON: whose signatures the tree's releases need; never rolled back
STATCACHE = f"{PRIVATE_DIR}/statcache"  # stat and digest of each file, so that unchanged ones are not read again
CLOCK = f"{PRIVATE_DIR}/clock"  # touched to read the file system's clock

CHECK = f"{PRIVATE_DIR}/check"  # the tree as it will be, made of links, while a check runs
HOLD = f"{PRIVATE_DIR}/hold"  # JSON: the release that syncs pass over, and why; never rolled back
LAST_SYNC = f"{PRIVATE_DIR}/last-sync"  # JSON: time of the last request to the source, and the last failure

# Written by the command line.
ANNOUNCED = f"{PRIVATE_DIR}/on-change"  # JSON: the generation that the command of --on-change was last run for

# Written by the Django app.
NOTIFIED = f"{PRIVATE_DIR}/django"  # JSON: the generation that all receivers of `tree_updated` were notified of

_RESERVED = frozenset(path.rpartition("/")[2] for path in (LOCK, OWNER, JOURNAL, STATE, HISTORY, OBJECTS, FETCH))

_OBJECT = re.compile(re.escape(OBJECTS) + "/[0-9a-f]{64}")


def object_path(sha256: str) -> str:
    """The stored object with this SHA-256 (hexadecimal)."""
    return f"{OBJECTS}/{sha256}"


def record_path(generation: int) -> str:
    """The record of what a generation changed."""
    return f"{HISTORY}/{generation}"


def staging_directory(token: str) -> str:
    """Where the transaction whose lock has this token writes its new files."""
    return f"{PRIVATE_DIR}/{_STAGING}{token}"


def is_staging(leaf: str) -> bool:
    """Whether an entry of `.perfkit` is a `staging_directory`."""
    return leaf.startswith(_STAGING)


def is_private(name: str) -> bool:
    """Whether a name is in `.perfkit`, and not a file of the tree itself."""
    return name.startswith(f"{PRIVATE_DIR}/")


def check_own_name(name: str) -> str:
    """Returns `name`, if it is a file in `.perfkit`, by `check_name`; else raises UnsafePathError."""
    if not isinstance(name, str) or not is_private(name):
        raise UnsafePathError(str(name), f"it is not in {PRIVATE_DIR}")
    check_name(name.removeprefix(f"{PRIVATE_DIR}/"))
    return name


def check_recorded_name(name: str) -> str:
    """Returns `name`, if a generation may record it: a file of the tree, or one of `.perfkit` that callers write.

    Raises:
        UnsafePathError: it could lead out of the tree, or is managed by the transactions themselves.
    """
    if not isinstance(name, str) or not is_private(name):
        return check_name(name)
    leaf = check_own_name(name).split("/")[1]
    if leaf in _RESERVED or is_staging(leaf):
        raise UnsafePathError(name, "it is reserved for perfkit's transactions")
    return name


def check_staged_name(name: str) -> str:
    """Returns `name`, if it is a staged or fetched file, from which changes take new files; else UnsafePathError."""
    directory = check_own_name(name).split("/")[1]
    if not (is_staging(directory) or name.startswith(f"{FETCH}/")):
        raise UnsafePathError(name, "it is neither a staged nor a fetched file")
    return name


def check_stored_name(name: str) -> str:
    """Returns `name`, if it is a stored object; else raises UnsafePathError."""
    if not isinstance(name, str) or not _OBJECT.fullmatch(name):
        raise UnsafePathError(str(name), "it is not a stored object")
    return name
