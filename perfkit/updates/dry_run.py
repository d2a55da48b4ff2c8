"""What a sync would do, without writing to the tree."""

from __future__ import annotations

import contextlib
import os
import tempfile
from typing import cast

from perfkit.config import Config, LocalChanges
from perfkit.downloads.manager import DownloadManager
from perfkit.errors import UpdateError
from perfkit.filesystem.rootdir import RootDir
from perfkit.progress.operation import OperationProgress
from perfkit.transactions import layout
from perfkit.updates.digest_index import BlobSet
from perfkit.updates.hold import is_held, read_holds
from perfkit.updates.installed import read_installed
from perfkit.updates.planner import Plan
from perfkit.updates.source_types import SourceSpec, damage_named
from perfkit.updates.sources.open import open_source
from perfkit.updates.staging import Fetcher, StagingArea
from perfkit.updates.updater import Sync, SyncOptions


def plan(
    config: Config, downloads: DownloadManager, spec: SourceSpec, dest: str, *, progress: OperationProgress
) -> Plan:
    """What `sync` would do; nothing is written to `dest`. See `Toolkit.plan`."""
    root = os.path.abspath(dest)
    with damage_named(spec.location), contextlib.ExitStack() as stack:
        directory = stack.enter_context(_temporary_directory(root))
        fetcher = stack.enter_context(contextlib.closing(Fetcher(downloads, directory, max_files=config.max_files)))
        installed = read_installed(root)
        source = open_source(fetcher, spec, installed, dry_run=True)
        if spec.release is None and is_held(read_holds(root), source, retry_rejected=False):
            version = installed.version
            return Plan(
                version=version or "", installed_version=version, held=source.version, unchanged=installed.files
            )
        local_changes = cast(LocalChanges, config.local_changes)
        options = SyncOptions(local_changes=local_changes, check_contents=config.check_contents)
        dry_run = Sync(root, fetcher, source, installed, options, progress)
        if spec.release is None:
            dry_run.refuse_downgrade(allow_older=False)
        local = dry_run.scan(now_ns=0)
        staging = StagingArea(stack.enter_context(contextlib.closing(RootDir(directory))), progress=progress)
        manifest = dry_run.resolve(local, staging)
        plan = dry_run.plan(local, manifest)
        needed = BlobSet.of_files(manifest, plan.fetch)
        staging.expect(needed)
        missing = staging.missing(needed)
        return plan.with_offers(source.offers(missing, manifest, local), needed.index.bytes_of(needed))


def _temporary_directory(root: str) -> contextlib.AbstractContextManager[str]:
    """A directory for a dry run: the system's, or else in memory or among perfkit's own files."""
    for directory in (
        None,
        "/dev/shm",
        os.environ.get("XDG_RUNTIME_DIR") or "/run",
        os.path.join(root, layout.PRIVATE_DIR),
    ):
        with contextlib.suppress(OSError):
            return tempfile.TemporaryDirectory(prefix="perfkit-", dir=directory)
    raise UpdateError("a dry run needs a directory for temporary files: set TMPDIR to one that can be written")
