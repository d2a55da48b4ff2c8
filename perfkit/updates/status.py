"""Read the state of a tree, without its lock and without the network, in time that does not depend on its size."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from perfkit.errors import CancelledError, HTTPStatusError, PerfkitError, TransferError
from perfkit.filesystem.own_files import open_own, replace_own
from perfkit.filesystem.rootdir import RootDir
from perfkit.progress.text import described
from perfkit.redact import redacted
from perfkit.transactions import layout
from perfkit.transactions.history import Generation, read_current
from perfkit.transactions.lock import is_held
from perfkit.updates.hold import Hold, is_time, read_holds
from perfkit.updates.installed import Installed, read_installed, require_managed

_COMMIT_S = 2.0
_BACKOFF_S = 60.0
_MOST_RETRY_AFTER_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class TreeStatus:
    """The state of a tree. Times are seconds since 1970; None: never, or unknown.

    Attributes:
        version: the installed version; None: nothing is installed.
        generation: the number of the generation; 0: the tree before the first change.
        source: where the installed version came from, without passwords.
        type: the type of the source.
        files: how many files the installed version has.
        changed_s: when the change to this generation began; a sync fetches its files after that.
        checked_s: when a sync last succeeded.
        failed_s: when a sync last failed, if none has succeeded since.
        error: why it failed.
        failures: how many syncs have failed since the last success because of the source or the network.
        on_change_error: why the command of `--on-change` failed, which the next sync runs again.
        not_before_s: until when the source asks to wait (`Retry-After`), at most a day after the failure.
        held: the release on hold; the latest, if there are several.
        holds: all releases on hold, the latest last.
        interrupted: whether a crash has left an unfinished change that the next command to change the tree completes.
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
    on_change_error: str | None = None
    not_before_s: float | None = None
    held: Hold | None = None
    holds: tuple[Hold, ...] = ()
    interrupted: bool = False

    def age_s(self) -> float:
        """Seconds since the last sync that succeeded, or until then if the clock was set back; infinite: none has."""
        return abs(time.time() - self.checked_s) if self.checked_s is not None else float("inf")

    def due_in_s(self, min_interval_s: float = 0.0) -> float:
        """Seconds until the next sync is due; 0: now.

        A source's `Retry-After` is always respected. With an interval, a sync is due that long after the last one that
        succeeded. After a failure of the source or the network it is due earlier: after a minute, and then after twice
        as long each time, up to the interval. If the last sync is in the future, since the clock was set back, the next
        one is due now.
        """
        now, wait_s = time.time(), min_interval_s
        last_s = self.checked_s if self.failed_s is None else self.failed_s
        if last_s is None or last_s > now:
            return 0.0
        if self.failed_s is not None:
            backoff_s = _BACKOFF_S * 2.0 ** min(self.failures - 1, 30) if self.failures else 0.0
            asked_s = (self.not_before_s or 0.0) - last_s
            wait_s = max(min(min_interval_s, backoff_s), min(asked_s, _MOST_RETRY_AFTER_S))
        return max(0.0, last_s + wait_s - now)


def splay_s(dest: str, most_s: float) -> float:
    """A delay of less than `most_s`, always the same for a host and a tree, so that a fleet does not send its requests
    all at once.
    """
    digest = hashlib.sha256(f"{socket.gethostname()}\0{os.path.abspath(dest)}".encode()).digest()
    return most_s * int.from_bytes(digest[:4]) / 2**32


def status(dest: str) -> TreeStatus:
    """The state of the tree at `dest`. See `Toolkit.status`."""
    require_managed(dest)
    root = os.path.abspath(dest)
    with contextlib.closing(RootDir(root)) as rootdir:
        current, installed, interrupted = _settled(rootdir)
    outcome, holds = _read_outcome(root), read_holds(root)
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
        on_change_error=_on_change_error(root, current),
        not_before_s=outcome.get("not_before_s"),
        held=holds[-1] if holds else None,
        holds=holds,
        interrupted=interrupted,
    )


def _on_change_error(root: str, current: Generation) -> str | None:
    announced = read_json(os.path.join(root, layout.ANNOUNCED))
    error = announced.get("error")
    return error if isinstance(error, str) and announced.get("generation") != current.number else None


def _settled(rootdir: RootDir) -> tuple[Generation, Installed, bool]:
    """The current generation, what is installed, and whether a crash has left an unfinished change. If a change is just
    being committed, waits for it, up to `_COMMIT_S`.
    """
    deadline_s = time.monotonic() + _COMMIT_S
    while True:
        current, installed = read_current(rootdir), read_installed(rootdir.root)
        busy = rootdir.lstat(layout.JOURNAL) is not None
        held = busy and is_held(rootdir)
        changed = held or (not busy and read_current(rootdir) != current)
        if not changed or time.monotonic() >= deadline_s:
            return current, installed, busy and not held
        time.sleep(0.005)


@contextlib.contextmanager
def remember_outcome(root: str) -> Iterator[None]:
    """Record in the tree when and how the sync in this block ended. The caller has the tree's lock."""
    try:
        yield
    except CancelledError:
        raise
    except (PerfkitError, OSError) as error:
        before, now = _read_outcome(root), time.time()
        failure = {"failed_s": now, "error": described(error)[:1000], "failures": before.get("failures", 0)}
        if isinstance(error, TransferError):
            failure["failures"] += 1
        if isinstance(error, HTTPStatusError) and error.retry_after_s is not None:
            failure["not_before_s"] = now + min(error.retry_after_s, _MOST_RETRY_AFTER_S)
        _write_outcome(root, {"checked_s": before.get("checked_s"), **failure})
        raise
    _write_outcome(root, {"checked_s": time.time()})


_TYPES = {"checked_s": float, "failed_s": float, "error": str, "failures": int, "not_before_s": float}


def _read_outcome(root: str) -> dict[str, Any]:
    found = read_json(os.path.join(root, layout.LAST_SYNC))
    known = {key: value for key, value in found.items() if isinstance(value, _TYPES.get(key, ()))}
    return {key: value for key, value in known.items() if not isinstance(value, float) or is_time(value)}


def read_json(path: str) -> dict[str, Any]:
    """A JSON object in one of perfkit's own files; empty: it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError), open(open_own(path), "rb") as file:
        found = json.load(file)
        return found if isinstance(found, dict) else {}
    return {}


def _write_outcome(root: str, outcome: dict[str, Any]) -> None:
    path = os.path.join(root, layout.LAST_SYNC)
    # The outcome is only shown to people: the sync does not fail if it can't be written.
    with contextlib.suppress(OSError), replace_own(path, 0o644) as file:
        file.write(json.dumps(outcome).encode())
