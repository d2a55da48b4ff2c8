"""Hash every file of a tree again, report what differs from the release, and repair it."""

from __future__ import annotations

import os
import time
from dataclasses import replace

from perfkit.config import Config, LocalChanges
from perfkit.downloads.manager import DownloadManager
from perfkit.errors import LockedError, UpdateError
from perfkit.libc import holds_modes
from perfkit.progress.operation import OperationProgress
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.statcache import StatCache
from perfkit.transactions import layout
from perfkit.updates.installed import managed_tree, read_installed
from perfkit.updates.local_tree import LocalTree
from perfkit.updates.report import VerifyReport
from perfkit.updates.source_types import damage_named
from perfkit.updates.sources.open import reopen_source
from perfkit.updates.staging import Fetcher
from perfkit.updates.status import status
from perfkit.updates.updater import Sync, SyncOptions

_TRIES = 3


def verify(
    config: Config,
    downloads: DownloadManager,
    dest: str,
    repair: bool,
    *,
    mirrors: tuple[str, ...] = (),
    wait_s: float = 0.0,
    progress: OperationProgress,
) -> VerifyReport:
    """Hash everything again. See `Toolkit.verify`."""
    began_s = time.monotonic()
    progress.expect(
        {"verifying": 0.0, "applying": 0.0} if repair else {"verifying": 0.0}
    )  # there is rarely something to repair
    if not repair:
        return _verify(dest, began_s, progress)
    with managed_tree(config, dest, wait_s=wait_s) as tree:
        found = _verify(dest, began_s, progress)
        if not (found.missing or found.changed):
            return found
        local_changes: LocalChanges = "overwrite" if config.local_changes == "overwrite" else "keep"
        options = SyncOptions(local_changes=local_changes, check_contents=True)  # damage may not show in stat
        fetcher = Fetcher(downloads, tree.fetch_directory, max_files=config.max_files)
        installed = read_installed(tree.root)
        with damage_named(installed.source):
            source = reopen_source(fetcher, installed, mirrors)
            repaired = Sync(tree.root, fetcher, source, installed, options, progress).run(tree)
        return replace(found, repaired=repaired, generation=tree.generation, seconds=time.monotonic() - began_s)


def _verify(dest: str, began_s: float, progress: OperationProgress) -> VerifyReport:
    """Compare a tree with what is installed. This needs no lock: if the tree changes during it, it starts over."""
    root = os.path.abspath(dest)
    for _ in range(_TRIES):
        before = status(dest)
        installed = read_installed(root)
        if installed.type is None:
            raise UpdateError(f"{dest}: nothing is installed; sync to it first")
        found = _compare(root, installed.manifest, progress)
        after = status(dest)
        if (before.generation, before.changed_s) == (after.generation, after.changed_s):
            missing, changed, extra = found.differences()
            return VerifyReport(
                version=installed.version or "",
                generation=before.generation,
                files=len(installed.manifest),
                bytes=found.hashed_bytes,
                missing=missing,
                changed=changed,
                extra=extra,
                seconds=time.monotonic() - began_s,
            )
    raise LockedError(f"{dest} changed while it was verified; try again later")


def _compare(root: str, manifest: Manifest, progress: OperationProgress) -> LocalTree:
    """Hash every file of the manifest."""
    unknown = StatCache(manifest, modes=holds_modes(os.path.join(root, layout.LOCK)))
    return LocalTree(root, unknown, now_ns=time.time_ns(), progress=progress, phase="verifying")
