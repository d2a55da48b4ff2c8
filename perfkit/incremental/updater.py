"""One tree in step with a source: open, look, decide, fetch, commit; and the way back, without the network."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from perfkit.config import Config
from perfkit.downloads.manager import DownloadManager
from perfkit.errors import ConfigError, TransferError, UpdateError
from perfkit.filesystem.commit import OWN
from perfkit.filesystem.hashing import hash_file
from perfkit.filesystem.tree import Generation, Tree
from perfkit.incremental.carry import carry_out
from perfkit.incremental.fetch import Assembly, Fetcher
from perfkit.incremental.installed import Installed, read_installed, read_summary
from perfkit.incremental.look import Look, entries
from perfkit.incremental.manifest import Manifest
from perfkit.incremental.plan import LocalChanges, Plan, decide
from perfkit.incremental.recognise import Kind
from perfkit.incremental.report import SyncReport, VerifyReport
from perfkit.incremental.routes.members import Selection
from perfkit.incremental.sources import Source, open_source, reopen_source
from perfkit.incremental.statcache import StatCache, clock_ns

__all__ = ["history", "plan", "rollback", "sync", "verify"]


def sync(
    config: Config, downloads: DownloadManager, origin: str, dest: str, *,
    kind: Kind | None = None, selection: Selection | None = None,
) -> SyncReport:  # fmt: skip
    """Bring `dest` to what `origin` offers. See `Toolkit.sync`."""
    began_s = time.monotonic()
    with Tree(dest, keep_generations=config.keep_generations) as tree:
        installed = read_installed(tree.root)
        fetcher = Fetcher(downloads, tree.stage)
        source = open_source(fetcher, origin, installed, kind=kind, selection=selection)
        _refuse_older(source, installed)
        report = _bring(tree, fetcher, source, installed, _policy(config))
        installed.note(source.url, source.serial)
    return replace(report, seconds=time.monotonic() - began_s)


def plan(
    config: Config, downloads: DownloadManager, origin: str, dest: str, *,
    kind: Kind | None = None, selection: Selection | None = None,
) -> Plan:  # fmt: skip
    """What `sync` would do; nothing is written to `dest`. See `Toolkit.plan`."""
    root = os.path.abspath(dest)
    with tempfile.TemporaryDirectory(prefix="perfkit-") as stage:
        installed = read_installed(root)
        source = open_source(Fetcher(downloads, stage), origin, installed, kind=kind, selection=selection)
        _refuse_older(source, installed)
        look = Look(root, StatCache.load(_own(root, "statcache")), now_ns=0)
        wanted = _wanted(source, installed, look, Assembly(stage))
        return _decide(root, source, wanted, installed, look, _policy(config))


def _refuse_older(source: Source, installed: Installed) -> None:
    if source.serial < (highest := installed.highest(source.url)):
        raise UpdateError(f"{source.url} offers release {source.serial} ({source.version}), and {highest} was "
                          "installed from it before: an old pointer is not followed; rollback goes back")  # fmt: skip


def _policy(config: Config) -> LocalChanges:
    for policy in ("keep", "overwrite", "refuse"):
        if policy == config.local_changes:
            return policy
    raise ConfigError(f"Config.local_changes can't be {config.local_changes!r}")


def _bring(tree: Tree, fetcher: Fetcher, source: Source, installed: Installed, policy: LocalChanges) -> SyncReport:
    """The tree as this source has it: look, decide, fetch, commit."""
    statcache = _own(tree.root, "statcache")
    cache = StatCache.load(statcache)
    look = Look(tree.root, cache, now_ns=clock_ns(_own(tree.root, "clock")))
    assembly = Assembly(tree.stage)
    wanted = _wanted(source, installed, look, assembly)
    plan = _decide(tree.root, source, wanted, installed, look, policy)
    routes = _fetch(tree, source, wanted, plan, assembly)
    report = SyncReport(version=source.version, generation=tree.generation, previous_version=installed.version,
                        unchanged=len(plan.keep))  # fmt: skip
    if not plan.empty or _is_news(source, wanted, installed):
        done = carry_out(tree, plan, installed.manifest, wanted, look, assembly, source)
        report = _counted(report, plan, done.generation, done.bytes_written, "+".join(routes) or plan.route)
        for name in done.touched:
            look.patch.forget(name)
    _remember(cache, look, statcache, wanted)
    _tidy(tree.stage, source.keeps)
    return replace(report, requests=fetcher.requests, bytes_received=fetcher.bytes_received)


def _wanted(source: Source, installed: Installed, look: Look, assembly: Assembly) -> Manifest:
    """The manifest to be brought about."""
    look.of(_names(installed.manifest))  # so that the source finds what the tree has by its content
    if source.unchanged():
        return installed.manifest
    return source.manifest(look, look.where, assembly)


def _names(manifest: Manifest) -> Iterator[str]:
    return (manifest.name(at) for at in range(len(manifest)))


def _decide(
    root: str, source: Source, wanted: Manifest, installed: Installed, look: Look, policy: LocalChanges
) -> Plan:
    stored = set()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        stored = {bytes.fromhex(name) for name in os.listdir(_own(root, "objects")) if len(name) == 64}
    return decide(
        version=source.version, wanted={entry.name: entry for entry in wanted},
        installed=look.of({*_names(wanted), *_names(installed.manifest)}),
        before={entry.name: entry for entry in installed.manifest}, installed_version=installed.version,
        stored=stored, taken=lambda name: os.path.lexists(os.path.join(root, name)), local_changes=policy,
    )  # fmt: skip


def _fetch(tree: Tree, source: Source, wanted: Manifest, plan: Plan, assembly: Assembly) -> tuple[str, ...]:
    """Have all contents that are not here; returns the routes taken."""
    sizes = _sizes(wanted, plan.fetch)
    assembly.take_up({digest: size for digest, size in sizes.items() if digest not in assembly.done})
    missing = frozenset(sizes).difference(assembly.done)
    tree.need_space(sum(sizes[digest] for digest in missing))
    routes = source.fetch(missing, wanted, assembly)
    if lacking := missing.difference(assembly.done):
        raise TransferError(source.url, f"{len(lacking)} contents could not be had as they should be; nothing was done")
    return routes


def _sizes(wanted: Manifest, names: tuple[str, ...]) -> dict[bytes, int]:
    """The contents of these files, and how large they are; empty ones left out."""
    chosen = frozenset(names)
    return {entry.sha256: entry.size for entry in wanted if entry.size and entry.name in chosen}


def _is_news(source: Source, wanted: Manifest, installed: Installed) -> bool:
    """Whether the tree's own files have something else to say, though no file changes."""
    return (source.kind, source.url, source.version, wanted.sha256) != (
        installed.kind, installed.source, installed.version, installed.manifest.sha256
    )  # fmt: skip


def _counted(report: SyncReport, plan: Plan, generation: int, bytes_written: int, route: str) -> SyncReport:
    removed = len(plan.remove) + sum(each.move for each in plan.local)
    return replace(report, generation=generation, route=route, bytes_written=bytes_written, added=len(plan.added),
                   changed=len(plan.changed), removed=removed, aside=plan.aside,
                   overwritten=plan.overwritten)  # fmt: skip


def _remember(cache: StatCache, look: Look, statcache: str, wanted: Manifest) -> None:
    """Write down what was found out about files."""
    manifest = wanted.sha256.hex()
    if look.patch.rows or look.patch.gone or cache.manifest != manifest:
        with contextlib.suppress(OSError):  # a cache: without it files are read again
            cache.apply(look.patch, statcache, manifest=manifest)


def _tidy(stage: str, keep: frozenset[str]) -> None:
    """Nothing of what was fetched is needed any more, but what the next sync asks about."""
    for name in os.listdir(stage):
        if name not in keep:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(stage, name))


def _own(root: str, name: str) -> str:
    return os.path.join(root, OWN, name)


def rollback(config: Config, dest: str, to: int | None) -> SyncReport:
    """Go back, or forward again, without the network. See `Toolkit.rollback`."""
    began_s = time.monotonic()
    _must_be_managed(dest)
    with Tree(dest, keep_generations=config.keep_generations) as tree:
        before = read_summary(tree.root)
        commit = tree.switch(to, edits=_policy(config))
        after = read_summary(tree.root)
        mine = [change for change in commit.changes if not change.name.startswith(f"{OWN}/")]
        added = sum(change.before is None for change in mine)
        removed = sum(change.after is None for change in mine)
        return SyncReport(
            version=after.version or "", generation=commit.generation, previous_version=before.version,
            route="rollback" if commit.changes else "none",
            bytes_written=sum(change.after.size for change in mine if change.after is not None),
            added=added, removed=removed, changed=len(mine) - added - removed,
            unchanged=max(0, after.files - len(mine) + removed), aside=commit.aside,
            seconds=time.monotonic() - began_s,
        )  # fmt: skip


def history(dest: str) -> list[Generation]:
    """The generations that `rollback` can reach, oldest first."""
    _must_be_managed(dest)
    with Tree(dest) as tree:
        return tree.history()


def verify(config: Config, downloads: DownloadManager, dest: str, repair: bool) -> VerifyReport:
    """Hash everything again. See `Toolkit.verify`."""
    began_s = time.monotonic()
    _must_be_managed(dest)
    with Tree(dest, keep_generations=config.keep_generations) as tree:
        installed = read_installed(tree.root)
        if installed.kind is None:
            raise UpdateError(f"{dest}: nothing is installed here; sync first")
        found = _compare(tree.root, installed.manifest)
        repaired = None
        if repair and (found.missing or found.changed):
            with contextlib.suppress(FileNotFoundError):  # damage may hide from stat: no row is believed
                os.unlink(_own(tree.root, "statcache"))
            policy: LocalChanges = "overwrite" if config.local_changes == "overwrite" else "keep"
            fetcher = Fetcher(downloads, tree.stage)
            repaired = _bring(tree, fetcher, reopen_source(fetcher, installed), installed, policy)
        return VerifyReport(
            version=installed.version or "", generation=tree.generation, files=len(installed.manifest),
            bytes=found.hashed, missing=tuple(sorted(found.missing)), changed=tuple(sorted(found.changed)),
            extra=tuple(sorted(found.extra)), repaired=repaired, seconds=time.monotonic() - began_s,
        )  # fmt: skip


@dataclass(slots=True)
class _Compared:
    """What every file was found to be; `hashed` is in bytes."""

    missing: set[str]
    changed: list[str]
    extra: list[str]
    hashed: int = 0


def _compare(root: str, manifest: Manifest) -> _Compared:
    """Read every file of the manifest."""
    expected = {entry.name: entry for entry in manifest}
    found = _Compared(set(expected), [], [])
    for each in entries(root):
        entry = expected.get(each.name)
        if entry is None:
            found.extra.append(each.name)
            continue
        found.missing.discard(each.name)
        right = stat.S_ISREG(each.mode) and bool(each.mode & 0o100) == entry.executable
        if stat.S_ISREG(each.mode):
            found.hashed += each.size
            right = hash_file(os.path.join(root, each.name)).sha256 == entry.sha256.hex() and right
        if not right:
            found.changed.append(each.name)
    return found


def _must_be_managed(dest: str) -> None:
    if not os.path.isdir(os.path.join(dest, OWN)):
        raise UpdateError(f"{dest} is not a tree that perfkit manages; sync makes one")
