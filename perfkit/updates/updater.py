"""One tree in step with a source: open, look, decide, fetch, commit; and the way back, without the network."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple, cast

from perfkit.config import Config, LocalChanges
from perfkit.downloads.manager import DownloadManager
from perfkit.errors import CancelledError, ManifestError, TransferError, UpdateError
from perfkit.libc import give_back
from perfkit.progress.meter import Progress
from perfkit.redact import redacted
from perfkit.releases.format.manifest import Manifest, Part, side_by_side
from perfkit.transactions.commit import OWN
from perfkit.transactions.tree import Generation, Tree
from perfkit.updates.apply import Done, carry_out
from perfkit.updates.digest_index import ContentSet
from perfkit.updates.installed import MANIFEST, Installed, read_installed
from perfkit.updates.local_tree import Look
from perfkit.updates.planner import Plan, decide
from perfkit.updates.report import SyncReport
from perfkit.updates.source_types import Kind
from perfkit.updates.sources import Source
from perfkit.updates.sources.open import open_source
from perfkit.updates.staging import Assembly, Fetcher
from perfkit.updates.statcache import Patch, StatCache, append, clock_ns, stamp

if TYPE_CHECKING:
    from perfkit.archives.members import Selection

__all__ = ["Job", "bring", "history", "must_be_managed", "own", "plan", "rollback", "sync"]

_log = logging.getLogger(__name__)


def sync(
    config: Config,
    downloads: DownloadManager,
    origin: str,
    dest: str,
    *,
    kind: Kind | None = None,
    selection: Selection | None = None,
    progress: Progress | None = None,
) -> SyncReport:
    """Bring `dest` to what `origin` offers. See `Toolkit.sync`."""
    began_s = time.monotonic()
    with Tree(dest, keep_generations=config.keep_generations) as tree:
        installed = read_installed(tree.root)
        fetcher = Fetcher(downloads, tree.stage)
        ask = partial(open_source, fetcher, origin, installed, kind=kind, selection=selection)
        report = _bring_newest(Job(tree, fetcher, installed, _policy(config), progress), ask)
    return replace(report, seconds=time.monotonic() - began_s)


def plan(
    config: Config,
    downloads: DownloadManager,
    origin: str,
    dest: str,
    *,
    kind: Kind | None = None,
    selection: Selection | None = None,
    progress: Progress | None = None,
) -> Plan:
    """What `sync` would do; nothing is written to `dest`. See `Toolkit.plan`."""
    import tempfile

    root = os.path.abspath(dest)
    with tempfile.TemporaryDirectory(prefix="perfkit-") as stage:
        installed = read_installed(root)
        source = open_source(Fetcher(downloads, stage), origin, installed, kind=kind, selection=selection, dry_run=True)
        _refuse_older(source, installed)
        look = _look(root, installed, now_ns=0, progress=progress)
        assembly = Assembly(stage, progress=progress, standing=look.path)
        wanted = _wanted(source, installed, look, assembly)
        plan = _decide(root, source, wanted, installed, look, _policy(config))
        missing = assembly.lacking(_contents(wanted, plan.fetch))
        return plan.by(source.offers(missing, wanted))


def _refuse_older(source: Source, installed: Installed) -> None:
    if source.serial < (highest := installed.highest(source.url)):
        raise UpdateError(
            f"{source.url} offers release {source.serial} ({source.version}), and {highest} was "
            "installed from it before: an old pointer is not followed; rollback goes back"
        )


def _policy(config: Config) -> LocalChanges:
    return cast(LocalChanges, config.local_changes)  # Config has seen to it


class Job(NamedTuple):
    """What one sync or repair works on and with."""

    tree: Tree
    fetcher: Fetcher
    installed: Installed
    policy: LocalChanges
    progress: Progress | None


def _bring_newest(job: Job, ask: Callable[[], Source]) -> SyncReport:
    """The tree as the source has it; one that changes meanwhile is asked once more, and all begins anew."""
    source = ask()
    _refuse_older(source, job.installed)
    try:
        return bring(job, source)
    except (ManifestError, TransferError) as error:
        if isinstance(error, CancelledError) or (isinstance(error, TransferError) and error.transient):
            raise
        newer = ask()
        if newer.record() == source.record():
            raise
        _log.info("%s: it changed while it was fetched, and %s is taken instead", redacted(source.url), newer.version)
    _refuse_older(newer, job.installed)
    return bring(job, newer)


def bring(job: Job, source: Source) -> SyncReport:
    """The tree as this source has it: look, decide, fetch, commit."""
    tree, installed = job.tree, job.installed
    probe = own(tree.root, "clock")
    look = _look(tree.root, installed, now_ns=clock_ns(probe), progress=job.progress)
    assembly = Assembly(tree.stage, progress=job.progress, standing=look.path)
    wanted = _wanted(source, installed, look, assembly)
    plan = _decide(tree.root, source, wanted, installed, look, job.policy)
    _log.debug(
        "%s: %s offers %s: %d files to keep, %d from here, %d to fetch, %d to remove",
        tree.root,
        source.kind,
        source.version,
        plan.unchanged,
        len(plan.local) + len(plan.stored),
        len(plan.fetch),
        len(plan.remove),
    )
    if not plan.empty:
        give_back()  # what it took to decide, before decoders want their part
    routes = _fetch(tree, source, wanted, plan, assembly)
    _log.debug(
        "%s: %d bytes came in %d requests, by %s",
        tree.root,
        job.fetcher.bytes_received,
        job.fetcher.requests,
        "+".join(routes) or "no route",
    )
    cache = look.cache
    report = SyncReport(
        version=source.version, generation=tree.generation, previous_version=installed.version, unchanged=plan.unchanged
    )
    if not plan.empty or _is_news(source, wanted, installed):
        installed.note(installed.source, installed.serial)
        done = carry_out(
            tree, plan, installed.manifest, wanted, look, assembly, source, probe=probe, progress=job.progress
        )
        report = _counted(report, plan, done, "+".join(routes) or plan.route)
        del plan, assembly  # megabytes, where files are many
        cache = look.cache_for(wanted)
        stamp(
            cache,
            tree.root,
            done.commit.changes,
            but=report.aside.values(),
            probe=probe,
            certain_ns=lambda name: look.now_ns if name in done.moved else done.written_ns,
        )
    elif source.serial > installed.highest(source.url):
        installed.note(source.url, source.serial)
    if cache.dirty:
        with contextlib.suppress(OSError):  # a cache: without it files are read again
            cache.save(own(tree.root, "statcache"))
    _tidy(tree.stage, source.keeps)
    return replace(report, requests=job.fetcher.requests, bytes_received=job.fetcher.bytes_received)


def _look(root: str, installed: Installed, *, now_ns: int, progress: Progress | None) -> Look:
    """The tree beside what is installed."""

    def earlier(digest: str) -> Manifest | None:
        with contextlib.suppress(OSError, ManifestError), open(own(root, f"objects/{digest}"), "rb") as file:
            return Manifest.parse(file.read(), sha256=bytes.fromhex(digest), known=True)
        return None

    cache = StatCache.load(own(root, "statcache"), installed.manifest, earlier)
    return Look(root, cache, now_ns=now_ns, progress=progress)


def _wanted(source: Source, installed: Installed, look: Look, assembly: Assembly) -> Manifest:
    """The manifest to be brought about."""
    return installed.manifest if source.unchanged() else source.manifest(look, look.where, assembly)


def _decide(
    root: str, source: Source, wanted: Manifest, installed: Installed, look: Look, policy: LocalChanges
) -> Plan:
    """Only what differs from one manifest to the other, or in the tree, is decided upon, and what has its content."""
    if wanted.sha256 == installed.manifest.sha256 and look.as_installed:
        return Plan(version=source.version, installed_version=installed.version, unchanged=len(wanted))
    before, after = _differing(installed.manifest, wanted, look)
    stored = set()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        stored = {bytes.fromhex(name) for name in os.listdir(own(root, "objects")) if len(name) == 64}
    plan = decide(
        version=source.version,
        wanted=after,
        installed=look.of(before, after),
        before=before,
        installed_version=installed.version,
        stored=stored,
        taken=lambda name: os.path.lexists(os.path.join(root, name)),
        local_changes=policy,
    )
    return replace(plan, unchanged=len(wanted) - len(plan.added) - len(plan.changed))


def _differing(installed: Manifest, wanted: Manifest, look: Look) -> tuple[Part, Part]:
    """The entries of both that differ, or that the tree does not have as they were; and one that has each content."""

    def stays(here: int | None, there: int | None) -> bool:
        return here is not None and there is not None and look.is_as_said(here) and installed.same(here, wanted, there)

    sources: set[int] = set()
    if len(installed):
        pairs = side_by_side(installed, wanted)
        sought = ContentSet.at(
            wanted, (there for _, here, there in pairs if there is not None and not stays(here, there))
        )
        sources.update(at for digest in sought for at in islice(look.having(digest), 1))
    before, after = Part(installed), Part(wanted)
    for _, here, there in side_by_side(installed, wanted):
        if here in sources or not stays(here, there):
            if here is not None:
                before.add(here)
            if there is not None:
                after.add(there)
    return before, after


def _fetch(tree: Tree, source: Source, wanted: Manifest, plan: Plan, assembly: Assembly) -> tuple[str, ...]:
    """Have all contents that the tree does not have; returns the routes taken."""
    needed = _contents(wanted, chain(plan.stored, plan.fetch))
    assembly.expect(needed.contents)
    assembly.take_up(needed)
    for digest in assembly.lacking(_contents(wanted, plan.stored)):
        assembly.copy(digest, os.path.join(own(tree.root, "objects"), digest.hex()))  # if it is still what it was
    missing = assembly.lacking(needed)
    tree.need_space(needed.contents.bytes_of(missing))
    routes = source.fetch(missing, wanted, assembly)
    if lacking := assembly.lacking(missing):
        raise TransferError(source.url, f"{len(lacking)} contents could not be had as they should be; nothing was done")
    return routes


def _contents(wanted: Manifest, names: Iterable[str]) -> ContentSet:
    """The contents of these files; empty ones left out."""
    found = (wanted.find(name) for name in names)
    return ContentSet.at(wanted, (at for at in found if at is not None and wanted.size(at)))


def _is_news(source: Source, wanted: Manifest, installed: Installed) -> bool:
    """Whether the tree's own files have something else to say, though no file changes."""
    return (source.kind, source.url, source.version, wanted.sha256.hex()) != (
        installed.kind,
        installed.source,
        installed.version,
        installed.manifest_sha256,
    )


def _counted(report: SyncReport, plan: Plan, done: Done, route: str) -> SyncReport:
    removed = len(plan.remove) + sum(each.move for each in plan.local)
    return replace(
        report,
        generation=done.commit.generation,
        route=route,
        bytes_written=done.bytes_written,
        added=len(plan.added),
        changed=len(plan.changed),
        removed=removed,
        aside=plan.aside,
        overwritten=plan.overwritten,
    )


def _tidy(stage: str, keep: frozenset[str]) -> None:
    """Nothing of what was fetched is needed any more, but what the next sync asks about."""
    with contextlib.suppress(OSError):  # the change is made; what stays is removed after the next one
        for name in os.listdir(stage):
            if name not in keep:
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(stage, name))


def own(root: str, name: str) -> str:
    """The path of one of perfkit's own files."""
    return os.path.join(root, OWN, name)


def rollback(config: Config, dest: str, to: int | None) -> SyncReport:
    """Go back, or forward again, without the network. See `Toolkit.rollback`."""
    began_s = time.monotonic()
    must_be_managed(dest)
    with Tree(dest, keep_generations=config.keep_generations) as tree:
        before = read_installed(tree.root)
        before.note(before.source, before.serial)
        probe = own(tree.root, "clock")
        began_ns = clock_ns(probe)
        unchecked = {f"{OWN}/{MANIFEST}": before.manifest_sha256} if before.kind else {}
        commit = tree.switch(to, edits=_policy(config), unchecked=unchecked)
        after = _read_afterwards(tree.root)
        with contextlib.suppress(OSError):  # a cache, again
            patch = Patch()
            stamp(
                patch,
                tree.root,
                commit.changes,
                but=commit.aside.values(),
                probe=probe,
                certain_ns=lambda name: began_ns,
            )
            append(patch, own(tree.root, "statcache"))
        mine = [change for change in commit.changes if not change.name.startswith(f"{OWN}/")]
        added = sum(change.before is None for change in mine)
        removed = sum(change.after is None for change in mine)
        return SyncReport(
            version=after.version or "",
            generation=commit.generation,
            previous_version=before.version,
            route="rollback" if commit.changes else "none",
            bytes_written=sum(change.after.size for change in mine if change.after is not None),
            added=added,
            removed=removed,
            changed=len(mine) - added - removed,
            unchanged=max(0, after.files - len(mine) + removed),
            aside=commit.aside,
            overwritten=commit.overwritten,
            as_found=commit.as_found,
            seconds=time.monotonic() - began_s,
        )


def _read_afterwards(root: str) -> Installed:
    """What is installed now; the change is made, and that this can't be read must not look as if it were not."""
    try:
        return read_installed(root)
    except OSError as error:
        _log.warning("%s: rolled back, but what is installed now can't be read: %s", root, error)
        return Installed(root)


def history(dest: str) -> list[Generation]:
    """The generations that `rollback` can reach, oldest first."""
    must_be_managed(dest)
    with Tree(dest) as tree:
        return tree.history()


def must_be_managed(dest: str) -> None:
    """See that there is something to go back in, or to look at.

    Raises:
        UpdateError: there is not.
    """
    if not os.path.isdir(os.path.join(dest, OWN)):
        raise UpdateError(f"{dest} is not a tree that perfkit manages; sync makes one")
