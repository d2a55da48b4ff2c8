"""Roll a tree back to an earlier version, without the network, and list the versions that are kept."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar, cast

from perfkit.config import Config, LocalChanges
from perfkit.errors import RollbackError, UpdateError
from perfkit.filesystem.rootdir import RootDir
from perfkit.releases.statcache import appended_rows, clock_ns, record_changes
from perfkit.transactions import layout
from perfkit.transactions.history import Generation, History, Pruned, read_current
from perfkit.transactions.object_store import ObjectStore
from perfkit.transactions.transaction import Commit
from perfkit.updates.apply import warn_of_logs
from perfkit.updates.hold import Hold, HoldReason, hold_on, read_holds, with_hold, write_holds
from perfkit.updates.installed import Installed, managed_tree, read_installed, require_managed
from perfkit.updates.report import SyncReport

_log = logging.getLogger(__name__)

T = TypeVar("T")


def rollback(config: Config, dest: str, to: int | None, *, hold: bool = True, wait_s: float = 0.0) -> SyncReport:
    """Go back, or forward again, without the network. See `Toolkit.rollback`."""
    began_s = time.monotonic()
    with managed_tree(config, dest, wait_s=wait_s) as tree:
        before, left = read_installed(tree.root), tree.generation
        before.record_serial(before.source, before.serial)
        clock = os.path.join(tree.root, layout.CLOCK)
        began_ns = clock_ns(clock)
        unchecked = {layout.MANIFEST: before.manifest_sha256} if before.type else {}
        if to is None and before.type is not None and tree.step_back_removes(layout.RELEASE):
            raise RollbackError(
                f"{dest}: no version was installed before {before.version}; to go back to the tree before the first "
                "sync, roll back to generation 0 (--to 0)"
            )
        commit = tree.rollback(to, edits=cast(LocalChanges, config.local_changes), unchecked=unchecked)
        after = _read_restored(tree.root)
        stored = os.path.join(tree.root, layout.STATCACHE)
        with contextlib.suppress(OSError), appended_rows(stored) as rows:  # without the cache, files are hashed again
            record_changes(
                rows,
                tree.root,
                commit.changes,
                skip=commit.saved_as.values(),
                certain_ns=lambda name: began_ns,
                clock=clock,
            )
        warn_of_logs(tree.root, commit.changes, lambda: after.manifest)
        _hold(tree.root, before, after, left=hold and commit.generation < left)
        report = _rollback_report(commit, before, after)
        return replace(report, seconds=time.monotonic() - began_s)


def _hold(root: str, before: Installed, after: Installed, *, left: bool) -> None:
    """Put the version that was left on hold until the source offers another one; a pinned tree stays pinned."""
    holds: tuple[Hold, ...] = ()
    try:
        with contextlib.suppress(UpdateError):  # a damaged record holds nothing
            holds = read_holds(root)
        if any(held.reason is HoldReason.PIN for held in holds):
            if after.version is not None:
                write_holds(root, [hold_on(HoldReason.PIN, after.source, after.version, after.serial)])
            return
        kept = [held for held in holds if held.version != after.version]
        if left and before.version is not None and before.version != after.version:
            kept = with_hold(kept, hold_on(HoldReason.ROLLBACK, before.source, before.version, before.serial))
        write_holds(root, kept)
    except OSError as error:
        _log.warning("%s was rolled back, but the version that it had can't be put on hold: %s", root, error)


def _rollback_report(commit: Commit, before: Installed, after: Installed) -> SyncReport:
    added = removed = changed = written = 0
    for change in commit.changes:
        if not layout.is_private(change.name):
            added += change.before is None
            removed += change.after is None
            changed += change.before is not None and change.after is not None
            written += change.after.size if change.after is not None else 0
    return SyncReport(
        version=after.version or "",
        generation=commit.generation,
        previous_version=before.version,
        route="rollback" if commit.changes else "none",
        bytes_written=written,
        added=added,
        removed=removed,
        changed=changed,
        unchanged=max(0, after.files - added - changed),
        saved_as=commit.saved_as,
        overwritten=commit.overwritten,
        restored_with_edits=commit.restored_with_edits,
    )


def _read_restored(root: str) -> Installed:
    """What is installed after a rollback. The tree has already changed, so an error here must not fail the rollback."""
    try:
        return read_installed(root)
    except OSError as error:
        _log.warning("%s was rolled back, but its record of what is installed can't be read: %s", root, error)
        return Installed(root)


def changed_since(config: Config, dest: str, generation: int, *, wait_s: float = 0.0) -> list[str] | None:
    """The files that differ from those of a generation. See `Toolkit.changed_since`."""
    with managed_tree(config, dest, wait_s=wait_s) as tree:
        return tree.changed_since(generation)


def prune(config: Config, dest: str, keep: int, *, dry_run: bool = False, wait_s: float = 0.0) -> Pruned:
    """Drop old generations. See `Toolkit.prune`."""
    if dry_run:
        return _read(dest, lambda history: history.freed_by(history.timeline().prune(keep)))
    with managed_tree(config, dest, wait_s=wait_s) as tree:
        return tree.prune(keep)


def history(dest: str) -> list[Generation]:
    """The generations that `rollback` can reach, oldest first; read without the tree's lock."""
    return _read(dest, History.generations)


def _read(dest: str, read: Callable[[History], T]) -> T:
    """Read the history without the tree's lock; retry if a change that has just ended deleted a record of it."""
    require_managed(dest)
    with contextlib.closing(RootDir(dest)) as rootdir:
        while True:
            before = read_current(rootdir).number
            try:
                return read(History(rootdir, ObjectStore(rootdir)))
            except RollbackError:
                if read_current(rootdir).number == before:
                    raise
