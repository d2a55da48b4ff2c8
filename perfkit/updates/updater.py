"""Update a tree to match a source: scan, resolve, plan, fetch, check, apply."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from perfkit.config import Config, LocalChanges
from perfkit.downloads.manager import DownloadManager
from perfkit.errors import (
    CancelledError,
    CheckFailedError,
    ConfigError,
    HTTPStatusError,
    ManifestError,
    StaleSourceError,
    TransferError,
)
from perfkit.filesystem.spilled import chunks
from perfkit.libc import holds_modes, trim_heap
from perfkit.progress.operation import OperationProgress
from perfkit.progress.stage import Stage
from perfkit.progress.text import counted
from perfkit.redact import redacted
from perfkit.releases.format.manifest import EntrySubset, Manifest, pair_entries
from perfkit.releases.statcache import StatCache, clock_ns, next_tick_ns
from perfkit.transactions import layout
from perfkit.transactions.prepare import Known
from perfkit.transactions.replaceable import check_replaceable
from perfkit.transactions.tree import Tree
from perfkit.updates.apply import Applied, PlanApplier, installed_content, warn_of_logs
from perfkit.updates.digest_index import BlobSet
from perfkit.updates.hold import HoldReason, add_hold, hold_on, is_held, keep_holds, read_holds
from perfkit.updates.installed import (
    Installed,
    as_recorded,
    encode_record,
    managed_tree,
    read_installed,
    read_manifest,
)
from perfkit.updates.local_tree import LocalTree
from perfkit.updates.planner import Plan, decide
from perfkit.updates.report import SyncReport
from perfkit.updates.signers import Trust, warn_if_unprotected
from perfkit.updates.source_types import SourceSpec, SourceType, damage_named
from perfkit.updates.sources import Source
from perfkit.updates.sources.open import open_source
from perfkit.updates.staging import Fetcher, StagingArea
from perfkit.updates.status import remember_outcome

if TYPE_CHECKING:
    from perfkit.updates.check import Check

# Typical speeds of the stages after the last download, for the displayed time left.
_UNPACKED_BYTES_PER_S = 150e6
_APPLIED_FILES_PER_S = 10e3
_BRIEF_S = 0.5  # a stage whose size is not known yet

_log = logging.getLogger(__name__)


class SyncOptions(NamedTuple):
    """How to sync."""

    local_changes: LocalChanges  # what to do with files that were edited locally
    check_contents: bool = False  # hash every file, even those that the stat cache vouches for
    check: Check | None = None  # inspects the tree as it will be, and may refuse it
    retry_rejected: bool = False  # install a release that a check refused before, if the check accepts it now
    wait_s: float = 0.0  # how long to wait for another process or thread that is changing the tree


def sync(
    config: Config,
    downloads: DownloadManager,
    spec: SourceSpec,
    dest: str,
    *,
    options: SyncOptions,
    progress: OperationProgress,
) -> SyncReport:
    """Update `dest` to match a source. See `Toolkit.sync`."""
    began_s = time.monotonic()
    opened = managed_tree(config, dest, wait_s=options.wait_s, create=True)
    with opened as tree, remember_outcome(tree.root), damage_named(spec.location):
        fetcher = Fetcher(downloads, tree.fetch_directory, max_files=config.max_files)
        try:
            report = _sync(tree, fetcher, spec, options, progress)
        except StaleSourceError as error:
            installed = read_installed(tree.root)
            if not spec.mirrors or installed.type is None:
                raise
            _log.warning("nothing new: %s", error)
            report = _passed_over(tree, installed, fetcher, None)
    return replace(report, seconds=time.monotonic() - began_s)


def _sync(
    tree: Tree, fetcher: Fetcher, spec: SourceSpec, options: SyncOptions, progress: OperationProgress
) -> SyncReport:
    """Sync from the source; retry once if it changed, or if leftovers of an earlier sync filled the disk."""
    installed = read_installed(tree.root)
    holds = read_holds(tree.root)
    pinned = [held for held in holds if held.reason is HoldReason.PIN]
    if pinned and spec.release is None:
        return _passed_over(tree, installed, fetcher, pinned[0].version)

    def passes_over(source: Source) -> bool:
        return spec.release is None and is_held(holds, source, retry_rejected=options.retry_rejected)

    def sync_from(source: Source) -> SyncReport:
        if passes_over(source):
            return _passed_over(tree, installed, fetcher, source.version)
        update = Sync(tree.root, fetcher, source, installed, options, progress)
        if spec.release is None:
            update.refuse_downgrade(allow_older=spec.allow_older)
        with contextlib.closing(fetcher):
            report = update.run(tree, passes_over)
        if report.held is not None:
            return report
        keep_holds(tree.root, holds, source, newest=spec.release is None)
        return report

    before = os.listdir(fetcher.directory)  # left by an earlier sync that failed
    source = open_source(fetcher, spec, installed)
    signed = spec.signers is not None or Trust.read(tree.root).signers is not None
    if not signed and not installed.is_from(source.url):
        warn_if_unprotected(source.url)
    try:
        return sync_from(source)
    except (ManifestError, TransferError) as error:
        if isinstance(error, CancelledError) or (isinstance(error, TransferError) and error.transient):
            raise
        newer = open_source(fetcher, spec, installed)
        _refuse_behind(newer, source, error)
        if newer.record() == source.record():
            raise
        _log.info("%s changed during the sync; starting over with %s", redacted(source.url), newer.version)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full or not _remove_staged(fetcher.directory, before, keep=source.keep_staged):
            raise
        newer = open_source(fetcher, spec, installed)
        _log.info("%s: the disk is full; starting over without what an earlier sync has fetched", tree.root)
    return sync_from(newer)  # outside the handler, which keeps the failed attempt in memory


def _passed_over(tree: Tree, installed: Installed, fetcher: Fetcher, version: str | None) -> SyncReport:
    """The report of a sync that leaves the tree as it is: this version is on hold, or all mirrors are behind."""
    return SyncReport(
        version=installed.version or "",
        generation=tree.generation,
        previous_version=installed.version,
        held=version,
        unchanged=installed.files,
        requests=fetcher.requests,
        bytes_received=fetcher.bytes_received,
    )


def _refuse_behind(newer: Source, source: Source, error: Exception) -> None:
    """Raise if a sync failed because the server is behind: it lacks a file of the release that it offers, or now offers
    an older release than a moment ago.

    Args:
        newer: what the source offers after the failure.
    """
    if newer.serial < source.serial:
        reason = f"it offers {source.version}, and then the older {newer.version}"
    elif source.serial and isinstance(error, HTTPStatusError) and error.status in (404, 410):
        if newer.record() != source.record():
            return
        reason = f"it offers {source.version}, but lacks a file of it: {error}"
    else:
        return
    reason += "; a cache, mirror or edge is behind, or the site is incomplete: try again later"
    raise StaleSourceError(source.url, reason, transient=True) from error


class Sync:
    """One update of one tree from one source. Its methods are the steps of `run`.

    Args:
        root: the tree's root directory.
        installed: what is installed there.
    """

    def __init__(
        self,
        root: str,
        fetcher: Fetcher,
        source: Source,
        installed: Installed,
        options: SyncOptions,
        progress: OperationProgress,
    ) -> None:
        self._root = root
        self._fetcher = fetcher
        self._source = source
        self._installed = installed
        self._options = options
        self._progress = progress
        self._clock = os.path.join(root, layout.CLOCK)  # a file whose mtime tells the file system's time

    def run(self, tree: Tree, passes_over: Callable[[Source], bool] = lambda source: False) -> SyncReport:
        """Update the tree, in one transaction.

        Args:
            passes_over: tells whether a source's version is on hold; called after `resolve`, since a list has its
                version only then.

        Raises:
            UpdateError: there are local changes, and the options refuse them.
            CheckFailedError: the check refused the version; it is on hold now.
            ManifestError, UnsafePathError: what the source offers is damaged or hostile.
            TransferError: something can't be fetched.
            FileChangedError, LockedError, OSError: as `Tree.transaction`. After any error so far the tree is unchanged.
            RecoveryError: as `Tree.transaction`.
        """
        local = self.scan(now_ns=clock_ns(self._clock))
        staging = StagingArea(tree.rootdir, layout.FETCH, progress=self._progress)
        manifest = self.resolve(local, staging)
        if passes_over(self._source):
            return _passed_over(tree, self._installed, self._fetcher, self._source.version)
        plan = self.plan(local, manifest)
        moved = [each.source for each in plan.local if each.move]
        replaced = [plan.changed, plan.remove, moved, plan.saved_as]
        check_replaceable(tree.rootdir, chain(*replaced), chain(*replaced, plan.added, plan.saved_as.values()))
        applied: Applied | None = None
        routes: tuple[str, ...] = ()
        if plan.empty and not self._record_differs(manifest):
            if self._source.serial > self._installed.highest_serial(self._source.url):
                self._installed.record_serial(self._source.url, self._source.serial)
        else:
            applied, routes = self.change(tree, local, manifest, plan, staging)
            if plan.changed:
                warn_of_logs(self._root, applied.commit.changes, lambda: manifest)
        report = self._report(tree, plan, applied, routes)
        del plan, staging  # frees megabytes if there are many files
        self._save_statcache(local, manifest, applied, report)
        with contextlib.suppress(OSError):  # the tree is already changed; the next sync removes what is left
            _remove_staged(tree.fetch_directory, os.listdir(tree.fetch_directory), keep=self._source.keep_staged)
        return report

    def refuse_downgrade(self, *, allow_older: bool) -> None:
        """Refuse a release that is older than one installed from this source before, unless allowed.

        Raises:
            ConfigError: releases were installed from it, and it is of another type now.
            StaleSourceError: the source offers an older one.
        """
        source = self._source
        if source.serial < (highest := self._installed.highest_serial(source.url)):
            if allow_older:
                self._installed = self._installed.forget_serials(source.url)
                return
            if source.type is not SourceType.RELEASE:
                raise ConfigError(
                    f"releases of {redacted(source.url)} were installed here, and nothing tells whether a source of "
                    f"type {source.type} is newer; leave out the type, or allow older releases (--allow-older)"
                )
            reason = (
                f"it offers version {source.version}, an older release (serial {source.serial}) than was installed "
                f"from it before (serial {highest}): a cache, mirror or edge may be behind, so try again later. To "
                "install it, allow older releases (--allow-older); to go back to the previous version, use rollback"
            )
            raise StaleSourceError(source.url, reason, transient=True)

    def scan(self, *, now_ns: int) -> LocalTree:
        """The files of the tree, compared with the installed manifest.

        Args:
            now_ns: the time by the file system's clock; files that change from then on are not cached. 0: no file is.
        """

        self._progress.expect({"checking files": 0.0, "applying": 0.0 if self._source.unchanged() else None})

        def earlier(digest: str) -> Manifest | None:
            with contextlib.suppress(OSError, ManifestError):
                return read_manifest(self._object(digest), digest)
            return None

        manifest, modes = self._installed.manifest, holds_modes(os.path.join(self._root, layout.LOCK))
        cache = StatCache(manifest, modes=modes)
        if not self._options.check_contents:
            cache = StatCache.load(os.path.join(self._root, layout.STATCACHE), manifest, earlier, modes=modes)
        return LocalTree(self._root, cache, now_ns=now_ns, progress=self._progress)

    def resolve(self, local: LocalTree, staging: StagingArea) -> Manifest:
        """The manifest of the version to install."""
        if self._source.unchanged():
            return self._installed.manifest
        self._expect(unpacking_s=_BRIEF_S, applying_s=_BRIEF_S)  # for a delta, which `resolve` fetches
        manifest = self._source.resolve(local, staging)
        if not manifest and (chosen := self._selection()):
            raise ConfigError(f"{self._source.url}: version {self._source.version} has no files that match {chosen}")
        return manifest

    def _selection(self) -> str:
        """The selected part of what the source offers; empty: all of it."""
        selection: Any = self._source.record().get("selection")
        if selection is None:
            return ""
        from perfkit.archives.members import Selection  # loads what only archives need

        return str(Selection.of(selection))

    def plan(self, local: LocalTree, manifest: Manifest) -> Plan:
        """The steps from the scanned tree to the manifest; `decide` gets only the entries that differ.

        Raises:
            UpdateError: there are local changes, and the options refuse them.
        """
        version, installed = self._source.version, self._installed
        if manifest.sha256 == installed.manifest.sha256 and local.all_intact:
            return Plan(version=version, installed_version=installed.version, unchanged=len(manifest))
        before, after = _differing(installed.manifest, manifest, local)
        history = os.path.exists(os.path.join(self._root, layout.OBJECTS))
        plan = decide(
            after,
            local.existing(before, after),
            before,
            stored=lambda digest: history and os.path.exists(self._object(digest.hex())),
            taken=lambda name: os.path.lexists(os.path.join(self._root, name)),
            local_changes=self._options.local_changes,
        )
        unchanged = len(manifest) - len(plan.added) - len(plan.changed)
        return replace(plan, version=version, installed_version=installed.version, unchanged=unchanged)

    def change(
        self, tree: Tree, local: LocalTree, manifest: Manifest, plan: Plan, staging: StagingArea
    ) -> tuple[Applied, tuple[str, ...]]:
        """Fetch what is missing, and change the tree as planned, all of it or nothing; returns the routes, too.

        Raises:
            OSError: there is not enough space (ENOSPC).
            as `fetch`, `check`, `PlanApplier.apply` and `Tree.transaction`.
        """
        source, installed = self._source, self._installed
        label = {"version": source.version, "source": redacted(source.url)}  # history shows and logs it
        known = Known(expected=installed_content(installed.manifest), seen=local.seen, copy_of=local.name_of_blob)
        with contextlib.ExitStack() as stages:
            with tree.transaction(label, known=known) as tx:
                missing = self.expect(local, manifest, plan, staging)
                size = staging.expected.index.bytes_of(missing)
                self._check_space(tree, local, manifest, plan, missing, fetched=size)
                tx.write_private(layout.MANIFEST, chunks(manifest.data))
                secret = "?" in source.url  # such as an account key
                tx.write_private(layout.RELEASE, encode_record(source, manifest), mode=0o600 if secret else 0o644)
                applier = PlanApplier(self._root, tx, manifest, staging, plan)
                if early := applier.early:
                    applier.apply()
                    tx.prepare()
                self._expect(unpacking_s=size / _UNPACKED_BYTES_PER_S, applying_s=plan.steps / _APPLIED_FILES_PER_S)
                routes = self.fetch(manifest, local, staging, missing)
                self.check(manifest, plan, staging)
                installed.record_serial(installed.source, installed.serial)
                shown = stages.enter_context(Stage(self._progress, "applying", files=plan.steps))
                if early:
                    shown.count(files=plan.steps, count_bytes=applier.bytes_written)
                else:
                    applier.apply(shown)
                written_ns = next_tick_ns(self._clock)
            assert tx.result is not None
        moved = frozenset(each.name for each in plan.local if each.move)
        return Applied(tx.result, applier.bytes_written, written_ns, moved), routes

    def expect(self, local: LocalTree, manifest: Manifest, plan: Plan, staging: StagingArea) -> Set[bytes]:
        """Stage every blob that only the tree's history has; returns those that have to be fetched."""
        found = f"{plan.unchanged} files unchanged, {len(plan.local) + len(plan.stored)} from the tree or its history"
        steps = f"{found}, {len(plan.fetch)} to fetch, {len(plan.remove)} to remove"
        _log.debug("%s: %s offers %s: %s", self._root, self._source.type, self._source.version, steps)
        local.free_index()
        if not plan.empty:
            trim_heap()  # free what planning used before decoders need memory
        needed = BlobSet.of_files(manifest, chain(plan.stored, plan.fetch))
        staging.expect(needed)
        for digest in staging.missing(BlobSet.of_files(manifest, plan.stored)):
            staging.copy(digest, self._object(digest.hex()))
        return staging.missing(needed)

    def fetch(self, manifest: Manifest, local: LocalTree, staging: StagingArea, missing: Set[bytes]) -> tuple[str, ...]:
        """Stage every blob that the plan needs and the tree does not have; returns the routes taken.

        Raises:
            ManifestError, TransferError: as `Source.fetch`.
            OSError: the disk is full or failed.
        """
        routes = self._source.fetch(missing, manifest, local, staging)
        cost = f"{self._fetcher.bytes_received} bytes received in {counted(self._fetcher.requests, 'request')}"
        _log.debug("%s: %s; route: %s", self._root, cost, "+".join(routes) or "none")
        return routes

    def _expect(self, *, unpacking_s: float, applying_s: float) -> None:
        """Let progress displays show the rest of the sync as one piece of work."""
        self._progress.expect({"fetching": 0.0, "unpacking": unpacking_s, "applying": applying_s})

    def _check_space(
        self, tree: Tree, local: LocalTree, manifest: Manifest, plan: Plan, missing: Set[bytes], *, fetched: int
    ) -> None:
        """Check that there is enough free space; the exact need is computed only if space may be short.

        What is fetched takes space twice, packed and unpacked. Local copies take space unless the file system can share
        contents; files that are kept for rollback do only where there are no hard links either.
        """
        if tree.rootdir.free_space() >= 2 * fetched + manifest.total_bytes + self._installed.manifest.total_bytes:
            return
        links, clones = tree.shares_content()
        needed = fetched
        if not clones:
            copies = [each.name for each in plan.local if not each.move] + [*plan.modes]
            needed += sum(manifest[at].size for name in copies if (at := manifest.find(name)) is not None)
            staged = [
                manifest[at] for name in chain(plan.stored, plan.fetch) if (at := manifest.find(name)) is not None
            ]
            needed += sum(each.size for each in staged)
            needed -= sum({each.sha256: each.size for each in staged}.values())
        if not links and not clones:
            gone = chain(plan.changed, plan.remove, (each.source for each in plan.local if each.move))
            needed += sum(found.size for name in gone if (found := local.get(name)) is not None)
        if missing:
            needed += sum(offer.bytes for offer in self._source.offers(missing, manifest, local))
        tree.rootdir.check_free_space(needed)

    def check(self, manifest: Manifest, plan: Plan, staging: StagingArea) -> None:
        """Verify that everything is staged, and run the caller's check; the tree changes only after this.

        Raises:
            TransferError: a blob is missing.
            CheckFailedError: the check refused the version; it is on hold now.
        """
        if missing := staging.missing(staging.expected):
            reason = f"{len(missing)} file contents could not be fetched intact; the tree was not changed, sync again"
            raise TransferError(self._source.url, reason)
        if self._options.check is None or plan.empty:
            return
        try:
            from perfkit.updates.check import run_check  # loads what only a check needs

            run_check(self._options.check, self._root, plan, manifest, staging, self._installed.manifest)
        except CheckFailedError as error:
            source = self._source
            hold = hold_on(HoldReason.CHECK, source.url, source.version, source.serial, error.reason)
            add_hold(self._root, hold)
            raise

    def _record_differs(self, manifest: Manifest) -> bool:
        """Whether the tree's record of what is installed changes, even if no file does."""
        source, installed, record = self._source, self._installed, self._source.record()
        origin = record.get("origin")
        # What has no lasting validator is named after the time of the response, if at all.
        lasts = not isinstance(origin, Mapping) or any(origin.values())
        offered = (source.type, as_recorded(source.url), manifest.sha256.hex())
        same = offered == (installed.type, installed.source, installed.manifest_sha256)
        same = same and (source.version == installed.version or not lasts)
        return not same or any(record.get(name) != installed.state.get(name) for name in ("selection", "signers"))

    def _report(self, tree: Tree, plan: Plan, applied: Applied | None, routes: tuple[str, ...]) -> SyncReport:
        version = self._source.version if applied is not None else self._installed.version or ""
        report = SyncReport(
            version=version,
            generation=tree.generation if applied is None else applied.commit.generation,
            previous_version=self._installed.version,
            selection=self._selection(),
            unchanged=plan.unchanged,
            requests=self._fetcher.requests,
            bytes_received=self._fetcher.bytes_received,
        )
        if applied is None:
            return report
        return replace(
            report,
            route="+".join(routes) or plan.route,
            bytes_written=applied.bytes_written,
            added=len(plan.added),
            changed=len(plan.changed),
            removed=len(plan.remove) + sum(each.move for each in plan.local),
            saved_as=plan.saved_as,
            overwritten=plan.overwritten,
        )

    def _save_statcache(
        self, local: LocalTree, manifest: Manifest, applied: Applied | None, report: SyncReport
    ) -> None:
        cache = local.cache
        if applied is not None:
            cache = local.cache_for(manifest)
            applied.record(cache, self._root, skip=report.saved_as.values(), seen_ns=local.now_ns)
        if cache.dirty:
            with contextlib.suppress(OSError):  # without the cache, files are hashed again
                cache.save(os.path.join(self._root, layout.STATCACHE))

    def _object(self, name: str) -> str:
        """The path of an object in the tree's history."""
        return os.path.join(self._root, layout.object_path(name))


def _differing(installed: Manifest, wanted: Manifest, local: LocalTree) -> tuple[EntrySubset, EntrySubset]:
    """The entries of both that differ or are not intact in the tree, plus one local source for each blob needed."""

    def unchanged(here: int | None, there: int | None) -> bool:
        return here is not None and there is not None and local.is_intact(here) and installed.same(here, wanted, there)

    sources: set[int] = set()
    if len(installed):
        pairs = pair_entries(installed, wanted)
        changed = (there for _, here, there in pairs if there is not None and not unchanged(here, there))
        needed = BlobSet.at(wanted, changed)
        sources.update(at for digest in needed for at in islice(local.entries_with(digest), 1))
    before, after = EntrySubset(installed), EntrySubset(wanted)
    for _, here, there in pair_entries(installed, wanted):
        if here in sources or not unchanged(here, there):
            if here is not None:
                before.add(here)
            if there is not None:
                after.add(there)
    return before, after


def _remove_staged(directory: str, names: Iterable[str], *, keep: frozenset[str]) -> bool:
    """Remove fetched files, except those that the next sync revalidates; returns whether any was removed."""
    removed = False
    for name in names:
        if name not in keep:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(directory, name))
                removed = True
    return removed
