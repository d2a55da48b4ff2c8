"""Roll a tree back to an earlier version, without the network, and list the versions that are kept."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from dataclasses import replace
from typing import cast

from perfkit.config import Config, LocalChanges
from perfkit.transactions import layout
from perfkit.transactions.transaction import Commit
from perfkit.transactions.tree import Generation
from perfkit.updates.installed import Installed, managed_tree, read_installed
from perfkit.updates.report import SyncReport
from perfkit.updates.statcache import Patch, append_rows, clock_ns, record_changes

__all__ = ["history", "rollback"]

_log = logging.getLogger(__name__)


def rollback(config: Config, dest: str, to: int | None) -> SyncReport:
    """Go back, or forward again, without the network. See `Toolkit.rollback`."""
    began_s = time.monotonic()
    with managed_tree(config, dest) as tree:
        before = read_installed(tree.root)
        before.record_serial(before.source, before.serial)
        clock = os.path.join(tree.root, layout.CLOCK)
        began_ns = clock_ns(clock)
        unchecked = {layout.MANIFEST: before.manifest_sha256} if before.type else {}
        commit = tree.rollback(to, edits=cast(LocalChanges, config.local_changes), unchecked=unchecked)
        after = _read_restored(tree.root)
        with contextlib.suppress(OSError):  # without the cache, files are hashed again
            patch = Patch()
            record_changes(
                patch,
                tree.root,
                commit.changes,
                skip=commit.saved_as.values(),
                certain_ns=lambda name: began_ns,
                clock=clock,
            )
            append_rows(patch, os.path.join(tree.root, layout.STATCACHE))
        report = _rollback_report(commit, before, after)
        return replace(report, seconds=time.monotonic() - began_s)


def _rollback_report(commit: Commit, before: Installed, after: Installed) -> SyncReport:
    changes = [change for change in commit.changes if not layout.is_private(change.name)]
    added = sum(change.before is None for change in changes)
    removed = sum(change.after is None for change in changes)
    return SyncReport(
        version=after.version or "",
        generation=commit.generation,
        previous_version=before.version,
        route="rollback" if commit.changes else "none",
        bytes_written=sum(change.after.size for change in changes if change.after is not None),
        added=added,
        removed=removed,
        changed=len(changes) - added - removed,
        unchanged=max(0, after.files - len(changes) + removed),
        saved_as=commit.saved_as,
        overwritten=commit.overwritten,
        restored_with_edits=commit.restored_with_edits,
    )


def _read_restored(root: str) -> Installed:
    """What is installed after a rollback. The tree has already changed, so a failure here must not be one of it."""
    try:
        return read_installed(root)
    except OSError as error:
        _log.warning("%s was rolled back, but its record of what is installed can't be read: %s", root, error)
        return Installed(root)


def history(config: Config, dest: str) -> list[Generation]:
    """The generations that `rollback` can reach, oldest first."""
    with managed_tree(config, dest) as tree:
        return tree.history()
