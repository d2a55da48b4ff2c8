"""Put a plan's changes into a transaction."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import chain

from perfkit.errors import FileChangedError, ManifestError, UpdateError
from perfkit.progress.stage import Stage
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.statcache import StatCache, record_changes
from perfkit.transactions import layout
from perfkit.transactions.records import Change, Content
from perfkit.transactions.transaction import Commit, Transaction
from perfkit.updates.planner import Plan
from perfkit.updates.staging import StagingArea

_EARLY_FILES = 1 << 14
_MODES = 0o644, 0o755  # of a file that is not executable, and of one that is
_DATABASE_BYTES = 512  # the size of a SQLite database is a multiple of this (sqlite.org/fileformat.html, section 1.3.2)

_log = logging.getLogger(__name__)


def installed_content(manifest: Manifest) -> Callable[[str], Content | None]:
    """A function that returns what the manifest has under a name."""

    def content(name: str) -> Content | None:
        at = manifest.find(name)
        if at is None:
            return None
        entry = manifest[at]
        return Content(entry.sha256.hex(), entry.size, _MODES[entry.executable])

    return content


@dataclass(frozen=True, slots=True)
class Applied:
    """A plan that was applied."""

    commit: Commit  # every name that changed
    bytes_written: int  # total size of new files
    written_ns: int  # the file system's time after all new files were written, and before they were renamed into place
    moved: frozenset[str]  # the names of files that were not written, but moved

    def record(self, cache: StatCache, root: str, *, skip: Collection[str], seen_ns: int) -> None:
        """Add what changed to the stat cache.

        Args:
            skip: names to leave out.
            seen_ns: the file system's time before the tree was scanned.
        """

        def certain_ns(name: str) -> int:
            return seen_ns if name in self.moved else self.written_ns

        clock = os.path.join(root, layout.CLOCK)
        record_changes(cache, root, self.commit.changes, skip=skip, certain_ns=certain_ns, clock=clock)


class PlanApplier:
    """Puts files in place in one transaction.

    Args:
        root: the tree's root directory.
        manifest: the manifest of the version to install.
        staging: knows which blobs the tree lacks.
    """

    def __init__(self, root: str, tx: Transaction, manifest: Manifest, staging: StagingArea, plan: Plan) -> None:
        self.bytes_written = 0  # total size of new files; moved files do not count
        self._shown: Stage | None = None
        self._root = root
        self._tx = tx
        self._manifest = manifest
        self._staging = staging
        self._plan = plan

    @property
    def early(self) -> bool:
        """Whether to `apply`, and to prepare the commit, before contents come, unless files have to be copied or moved.

        For thousands of files this takes as long as a round trip, and while contents come there is time for it. For
        many more, the change would take megabytes while decoders need them.
        """
        plan = self._plan
        return not (plan.saved_as or plan.local or plan.modes) and plan.steps <= _EARLY_FILES

    def apply(self, shown: Stage | None = None) -> None:
        """Make all changes of the plan in the transaction; what it fetches need not be staged yet.

        Args:
            shown: counts the files.

        Raises:
            UpdateError, FileChangedError: a file of the tree changed while it was copied; it was removed.
            OSError: as the methods of `Transaction`.
        """
        self._shown, plan = shown, self._plan
        try:
            for name, saved in plan.saved_as.items():
                self._tx.move_aside(name, saved)
            for name in plan.already_applied:
                self._tx.record_existing(name)
            for each in plan.local:
                if each.move:
                    self._tx.move(each.source, each.name)
                    self._count(0)
                else:
                    self._copy(each.name, os.path.join(self._root, each.source))
            for name in plan.modes:
                self._copy(name, os.path.join(self._root, name))
            for name in chain(plan.stored, plan.fetch):
                self._expect(name)
            for name in plan.remove:
                self._tx.remove(name, missing_ok=True)
                self._count(0)
        except FileNotFoundError as error:
            reason = "it was removed during the update; nothing was changed, retry"
            raise FileChangedError(str(error.filename), reason) from error

    def _expect(self, name: str) -> None:
        """Have the first name of each staged content take it, and others get copies; write an empty file."""
        manifest = self._manifest
        at = manifest.find(name)
        assert at is not None, name
        size, mode = manifest.size(at), _MODES[manifest.executable(at)]
        if size:
            content = Content(manifest.digest(at).hex(), size, mode)
            self._tx.expect(name, content, copy=not self._staging.expected.has_first(at))
        else:
            self._tx.write(name, b"", mode=mode)
        self._count(size)

    def _copy(self, name: str, path: str) -> None:
        """Copy another file, and check what was copied."""
        at = self._manifest.find(name)
        assert at is not None, name
        entry = self._manifest[at]
        content = self._tx.replace(name, path, mode=_MODES[entry.executable])
        if content.sha256 != entry.sha256.hex():
            raise UpdateError(f"{path} changed while it was copied to {name}; the tree was not changed, sync again")
        self._count(entry.size)

    def _count(self, size: int) -> None:
        self.bytes_written += size
        if self._shown is not None:
            self._shown.count(files=1, count_bytes=size)


def warn_of_logs(root: str, changes: Iterable[Change], manifest: Callable[[], Manifest]) -> None:
    """Warn of databases that were replaced while the write-ahead log of the old one lies beside them: SQLite would
    apply it to the new one.

    Args:
        manifest: returns that of the tree as it is now.
    """
    for name, before, after in ((each.name, each.before, each.after) for each in changes):
        if before is None or after is None or after.size % _DATABASE_BYTES or before.sha256 == after.sha256:
            continue
        with contextlib.suppress(OSError, ManifestError):
            path = os.path.join(root, name)
            if os.path.getsize(f"{path}-wal") and manifest().find(f"{name}-wal") is None:
                _log.warning(
                    "%s was replaced, and the log beside it belongs to the old file: close the programs that have it "
                    "open, and remove %s-wal before anything opens the new one",
                    path,
                    path,
                )
