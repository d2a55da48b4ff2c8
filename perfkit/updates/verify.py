"""Hash every file of a tree again, report what differs from the release, and repair it."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from perfkit.config import Config, LocalChanges
from perfkit.downloads.manager import DownloadManager
from perfkit.errors import LockedError, UpdateError
from perfkit.filesystem.hashing.hash_tree import hash_many
from perfkit.filesystem.scan import ScanEntry
from perfkit.libc import holds_modes
from perfkit.progress.operation import OperationProgress
from perfkit.progress.stage import Stage
from perfkit.releases.format.manifest import Manifest
from perfkit.transactions import layout
from perfkit.updates.installed import managed_tree, read_installed
from perfkit.updates.local_tree import scan_managed
from perfkit.updates.report import VerifyReport
from perfkit.updates.sources.open import reopen_source
from perfkit.updates.staging import Fetcher
from perfkit.updates.status import status
from perfkit.updates.updater import Sync, SyncOptions

__all__ = ["verify"]

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
        source = reopen_source(fetcher, installed, mirrors)
        repaired = Sync(tree.root, fetcher, source, installed, options, progress).run(tree)
        return replace(found, repaired=repaired, generation=tree.generation, seconds=time.monotonic() - began_s)


def _verify(dest: str, began_s: float, progress: OperationProgress) -> VerifyReport:
    """Compare a tree with what is installed; without its lock, so once more if it changes meantime.

    Raises:
        LockedError: it changes all the time.
    """
    root = os.path.abspath(dest)
    for _ in range(_TRIES):
        before = status(dest)
        installed = read_installed(root)
        if installed.type is None:
            raise UpdateError(f"{dest}: nothing is installed; sync to it first")
        found = _compare(root, installed.manifest, progress)
        after = status(dest)
        if (before.generation, before.changed_s) == (after.generation, after.changed_s):
            return VerifyReport(
                version=installed.version or "",
                generation=before.generation,
                files=len(installed.manifest),
                bytes=found.hashed,
                missing=tuple(
                    name for name, seen in zip(installed.manifest.names(), found.seen, strict=True) if not seen
                ),
                changed=tuple(sorted(found.changed)),
                extra=tuple(sorted(found.extra)),
                seconds=time.monotonic() - began_s,
            )
    raise LockedError(f"{dest} changed while it was verified; try again later")


@dataclass(slots=True)
class _Compared:
    """What is there: 1 for each entry of the manifest; the names that differ; and how many bytes were hashed."""

    seen: bytearray
    changed: list[str]
    extra: list[str]
    hashed: int = 0


def _compare(root: str, manifest: Manifest, progress: OperationProgress) -> _Compared:
    """Hash every file of the manifest."""
    found = _Compared(bytearray(len(manifest)), [], [])
    hashing: dict[str, tuple[int, ScanEntry]] = {}
    modes = holds_modes(os.path.join(root, layout.LOCK))
    with Stage(progress, "verifying", files=len(manifest), total_bytes=manifest.total_bytes) as shown:
        for read in hash_many(root, _regular(root, manifest, found, hashing)):
            at, entry = hashing.pop(read.name)
            if isinstance(read.error, FileNotFoundError):
                found.seen[at] = 0
                continue
            if read.error is not None:
                raise read.error
            found.hashed += read.size
            differs = modes and bool(entry.mode & 0o100) != manifest.executable(at)
            if read.sha256 != manifest.digest(at).hex() or differs:
                found.changed.append(read.name)
            shown.count(files=1, count_bytes=read.size)
    return found


def _regular(
    root: str, manifest: Manifest, found: _Compared, hashing: dict[str, tuple[int, ScanEntry]]
) -> Iterator[ScanEntry]:
    """The files to hash; those of another type, and extra ones, go into `found` at once."""
    for at, entry in scan_managed(root, manifest):
        if at is None:
            found.extra.append(entry.name)
            continue
        found.seen[at] = 1
        if stat.S_ISREG(entry.mode):
            hashing[entry.name] = at, entry
            yield entry
        else:
            found.changed.append(entry.name)
