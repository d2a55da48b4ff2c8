"""How a tree stands, without its lock and without the network, in time that does not depend on its size."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from perfkit.errors import CancelledError, HTTPStatusError, PerfkitError, TransferError
from perfkit.filesystem.own_files import open_own, replace_own
from perfkit.filesystem.rootdir import RootDir
from perfkit.redact import redacted
from perfkit.transactions import layout
from perfkit.transactions.history import Generation, read_current
from perfkit.updates.hold import Hold, read_hold
from perfkit.updates.installed import read_installed, require_managed

__all__ = ["TreeStatus", "remember_outcome", "status"]

_BACKOFF_S = 60.0
_MOST_RETRY_AFTER_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class TreeStatus:
    """The state of a tree. Times are seconds since 1970; None: never, or unknown.

    Attributes:
        version: installed; None: nothing is.
        generation: its number; 0: the tree before the first change.
        source: where the installed version came from, without passwords.
        type: of the source.
        files: of the installed version.
        changed_s: when this generation was made.
        checked_s: when the source last said what it offers, and the sync succeeded.
        failed_s: when a sync failed, if none has succeeded since.
        error: why it failed.
        failures: how many syncs have failed since, because of the source or the network.
        not_before_s: when the source asks to be asked again (`Retry-After`), at most a day after the failure.
        held: what syncs pass over.
        interrupted: whether a crash has left a change that the next use of the tree completes.
    """

    version: str | None = None
    generation: int = 0
    source: str = ""
    type: str | None = None
    files: int = 0
    changed_s: float | None = None
    checked_s: float | None = None
    failed_s: float | None = None
    error: str | None = None
    failures: int = 0
    not_before_s: float | None = None
    held: Hold | None = None
    interrupted: bool = False

    def age_s(self) -> float:
        """Seconds since the last sync that succeeded; infinite if there was none."""
        return time.time() - self.checked_s if self.checked_s is not None else float("inf")

    def due_in_s(self, min_interval_s: float = 0.0) -> float:
        """Seconds until the next sync is due; 0: now.

        A source's `Retry-After` is always kept to. With an interval, a sync is due so long after the last one that
        succeeded. After a failure of the source or the network it is due earlier: in a minute, and then in twice as
        long each time, up to the interval.
        """
        now = time.time()
        due_s = min(self.not_before_s or 0.0, now + _MOST_RETRY_AFTER_S)
        if self.failed_s is None:
            due_s = max(due_s, min((self.checked_s or 0.0) + min_interval_s, now + min_interval_s))
        elif self.failures:
            backoff_s = min(min_interval_s, _BACKOFF_S * 2.0 ** min(self.failures - 1, 30))
            due_s = max(due_s, min(self.failed_s, now) + backoff_s)
        return max(0.0, due_s - now)


def status(dest: str) -> TreeStatus:
    """How the tree at `dest` stands. See `Toolkit.status`."""
    require_managed(dest)
    root = os.path.abspath(dest)
    rootdir = RootDir(root)
    try:
        current: Generation = read_current(rootdir)
    finally:
        rootdir.close()
    installed = read_installed(root)
    outcome = _read_outcome(root)
    return TreeStatus(
        version=installed.version,
        generation=current.number,
        source=redacted(installed.source),
        type=installed.type,
        files=installed.files,
        changed_s=current.created_s or None,
        checked_s=outcome.get("checked_s"),
        failed_s=outcome.get("failed_s"),
        error=outcome.get("error"),
        failures=outcome.get("failures", 0),
        not_before_s=outcome.get("not_before_s"),
        held=read_hold(root),
        interrupted=os.path.lexists(os.path.join(root, layout.JOURNAL)),
    )


@contextlib.contextmanager
def remember_outcome(root: str) -> Iterator[None]:
    """Note in the tree when the sync in this block ended, and how; for the holder of the tree's lock."""
    try:
        yield
    except CancelledError:
        raise
    except (PerfkitError, OSError) as error:
        before, now = _read_outcome(root), time.time()
        failure = {"failed_s": now, "error": str(error)[:1000], "failures": before.get("failures", 0)}
        if isinstance(error, TransferError):
            failure["failures"] += 1
        if isinstance(error, HTTPStatusError) and error.retry_after_s is not None:
            failure["not_before_s"] = now + min(error.retry_after_s, _MOST_RETRY_AFTER_S)
        _write_outcome(root, {"checked_s": before.get("checked_s"), **failure})
        raise
    _write_outcome(root, {"checked_s": time.time()})


_TYPES = {"checked_s": float, "failed_s": float, "error": str, "failures": int, "not_before_s": float}


def _read_outcome(root: str) -> dict[str, Any]:
    path = os.path.join(root, layout.LAST_SYNC)
    with contextlib.suppress(OSError, ValueError, RecursionError), open(open_own(path), "rb") as file:
        found = json.load(file)
        if isinstance(found, dict):
            return {key: value for key, value in found.items() if isinstance(value, _TYPES.get(key, ()))}
    return {}


def _write_outcome(root: str, outcome: dict[str, Any]) -> None:
    path = os.path.join(root, layout.LAST_SYNC)
    # What is remembered is for people, and no failure of the sync.
    with contextlib.suppress(OSError), replace_own(path) as file:
        file.write(json.dumps(outcome).encode())
