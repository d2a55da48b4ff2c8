"""One tree in step with a site: look, decide, fetch, commit; and the way back, without the network."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace

from perfkit.config import Config
from perfkit.downloads.manager import DownloadManager
from perfkit.errors import ConfigError, ManifestError, TransferError, UpdateError
from perfkit.filesystem.hashing import hash_file
from perfkit.filesystem.scan import ScanEntry, scan
from perfkit.filesystem.tree import Generation, Tree
from perfkit.incremental.fetch import Assembly, Fetcher, fetch_blocks, fetch_deltas
from perfkit.incremental.manifest import Entry, Manifest
from perfkit.incremental.plan import Held, LocalChanges, Plan, decide
from perfkit.incremental.release import POINTER_NAME, Pointer
from perfkit.incremental.report import SyncReport, VerifyReport
from perfkit.incremental.statcache import Patch, StatCache, clock_ns

__all__ = ["history", "plan", "rollback", "sync", "verify"]

_log = logging.getLogger(__name__)
_OWN = ".perfkit"
_NOTHING = Manifest.of(())


class _Installed:
    """What the tree's own files say of it."""

    def __init__(self, root: str) -> None:
        self._own = os.path.join(root, _OWN)
        self.pointer: Pointer | None = None
        self.source = ""
        self.manifest = _NOTHING
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            with open(os.path.join(self._own, "release"), "rb") as file:
                record = json.load(file)
            self.pointer = Pointer.parse(record["pointer"].encode())
            self.source = record["source"]
            with open(os.path.join(self._own, "manifest"), "rb") as file:
                self.manifest = Manifest.parse(file.read(), sha256=bytes.fromhex(self.pointer.manifest_sha256))

    @property
    def version(self) -> str | None:
        return self.pointer.version if self.pointer else None

    def highest(self, source: str) -> int:
        """The highest serial of this site that was ever installed here; a rollback does not lower it."""
        installed = self.pointer.serial if self.pointer and self.source == source else 0
        return max(installed, self._serials().get(source, 0))

    def note(self, source: str, serial: int) -> None:
        path = os.path.join(self._own, "serials")
        with open(f"{path}~", "w", encoding="utf-8") as file:
            json.dump({**self._serials(), source: serial}, file)
        os.replace(f"{path}~", path)

    def _serials(self) -> dict[str, int]:
        path = os.path.join(self._own, "serials")
        try:
            with open(path, encoding="utf-8") as file:
                return {str(source): int(serial) for source, serial in json.load(file).items()}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (ValueError, TypeError, AttributeError) as error:
            reason = "damaged: it tells which old pointers are not to be followed; remove it to follow any"
            raise UpdateError(f"{path} is {reason}") from error


def _look(root: str, names: set[str], cache: StatCache, patch: Patch, now_ns: int) -> dict[str, Held]:
    """What stands under these names; a file is read only if its row doesn't fit."""
    found: dict[str, Held] = {}
    for entry in _entries(root):
        if entry.name not in names:
            continue
        if entry.kind != "file":
            found[entry.name] = Held(b"", entry.size)
            continue
        digest = cache.sha256(entry.name, entry)
        if digest is None:
            seen = hash_file(os.path.join(root, entry.name))
            digest = seen.sha256 or ""
            if (seen.size, seen.mtime_ns, seen.ctime_ns) == (entry.size, entry.mtime_ns, entry.ctime_ns):
                patch.record(entry.name, entry, digest, content_ns=now_ns, seen_ns=now_ns)
        found[entry.name] = Held(bytes.fromhex(digest), entry.size, bool(entry.mode & 0o100))
    return found


def _entries(root: str) -> Iterator[ScanEntry]:
    for entry in scan(root, without=(_OWN,)):
        if entry.error is not None and not isinstance(entry.error, FileNotFoundError):
            raise entry.error
        if entry.error is None:
            yield entry


def _decide(
    root: str, version: str, wanted: Manifest, installed: _Installed, held: dict[str, Held], policy: LocalChanges
) -> Plan:
    stored = set()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        stored = {bytes.fromhex(name) for name in os.listdir(os.path.join(root, _OWN, "objects")) if len(name) == 64}
    return decide(
        version=version, wanted={entry.name: entry for entry in wanted}, installed=held,
        before={entry.name: entry for entry in installed.manifest}, installed_version=installed.version,
        stored=stored, taken=lambda name: os.path.lexists(os.path.join(root, name)), local_changes=policy,
    )  # fmt: skip


def _policy(config: Config) -> LocalChanges:
    for policy in ("keep", "overwrite", "refuse"):
        if policy == config.local_changes:
            return policy
    raise ConfigError(f"Config.local_changes can't be {config.local_changes!r}")


def _names(*manifests: Manifest) -> set[str]:
    return {manifest.name(at) for manifest in manifests for at in range(len(manifest))}


def plan(config: Config, downloads: DownloadManager, source: str, dest: str) -> Plan:
    """What `sync` would do; nothing is written to `dest`. See `Toolkit.plan`."""
    root = os.path.abspath(dest)
    with tempfile.TemporaryDirectory(prefix="perfkit-") as stage:
        fetcher = Fetcher(downloads, source, stage)
        pointer = fetcher.pointer()
        installed = _Installed(root)
        _check_serial(pointer, installed, fetcher.source)
        wanted = Manifest.parse(fetcher.packed(pointer.manifest), sha256=bytes.fromhex(pointer.manifest_sha256))
        cache = StatCache.load(os.path.join(root, _OWN, "statcache"))
        names = _names(wanted, installed.manifest)
        held = _look(root, names, cache, Patch(), 0) if os.path.isdir(root) else {}
        return _decide(root, pointer.version, wanted, installed, held, _policy(config))


def _check_serial(pointer: Pointer, installed: _Installed, source: str) -> None:
    if pointer.serial < (highest := installed.highest(source)):
        raise UpdateError(f"{source} offers release {pointer.serial} ({pointer.version}), and {highest} was installed "
                          "from it before: an old pointer is not followed; rollback goes back")  # fmt: skip


def sync(config: Config, downloads: DownloadManager, source: str, dest: str) -> SyncReport:
    """Bring `dest` to the release that `source` offers. See `Toolkit.sync`."""
    began_s = time.monotonic()
    with Tree(dest, keep_generations=config.keep_generations) as tree:
        fetcher = Fetcher(downloads, source, tree.stage)
        pointer = fetcher.pointer()
        installed = _Installed(tree.root)
        _check_serial(pointer, installed, fetcher.source)
        report = _bring(tree, fetcher, pointer, installed, _policy(config))
        if installed.highest(fetcher.source) < pointer.serial or report.route != "none":
            installed.note(fetcher.source, pointer.serial)
    return replace(report, seconds=time.monotonic() - began_s)


def _bring(
    tree: Tree, fetcher: Fetcher, pointer: Pointer, installed: _Installed, policy: LocalChanges
) -> SyncReport:
    """The tree as this pointer's release has it: look, decide, fetch, commit."""
    root, statcache = tree.root, os.path.join(tree.root, _OWN, "statcache")
    cache, patch = StatCache.load(statcache), Patch()
    probe = os.path.join(root, _OWN, "clock")
    now_ns = clock_ns(probe)
    assembly = Assembly(tree.stage)
    route: list[str] = []
    same = installed.pointer is not None and installed.pointer.manifest_sha256 == pointer.manifest_sha256
    wanted = installed.manifest if same else None
    held = _look(root, _names(installed.manifest), cache, patch, now_ns)
    if wanted is None and installed.pointer is not None and pointer.chain(installed.manifest.sha256.hex()):
        holders = {each.sha256: name for name, each in held.items() if each.sha256}

        def where(digest: bytes) -> str | None:
            name = holders.get(digest)
            return None if name is None else os.path.join(root, name)

        try:
            wanted = fetch_deltas(fetcher, pointer, installed.manifest, where, assembly)
            route.append("delta")
        except (ManifestError, TransferError) as error:
            _log.warning("%s: the delta does not serve: %s", fetcher.source, error)
    if wanted is None:
        wanted = Manifest.parse(fetcher.packed(pointer.manifest), sha256=bytes.fromhex(pointer.manifest_sha256))
    if new := _names(wanted).difference(_names(installed.manifest)):
        held.update(_look(root, new, cache, patch, now_ns))
    plan = _decide(root, pointer.version, wanted, installed, held, policy)
    entries = {entry.name: entry for entry in wanted}
    sizes = {entries[name].sha256: entries[name].size for name in plan.fetch if entries[name].size}
    assembly.take_up({digest: size for digest, size in sizes.items() if digest not in assembly.done})
    missing = set(sizes).difference(assembly.done)
    if missing:
        tree.need_space(sum(sizes[digest] for digest in missing))
        fetch_blocks(fetcher, pointer, wanted, missing, assembly)
        route.append("blocks")
    report = SyncReport(version=pointer.version, generation=tree.generation, previous_version=installed.version,
                        unchanged=len(plan.keep))  # fmt: skip
    if not plan.empty or not same or installed.source != fetcher.source or installed.version != pointer.version:
        report = _commit(tree, plan, entries, held, assembly, wanted, pointer, fetcher.source, report)
        report = replace(report, route="+".join(route) or plan.route)
        for name in {*plan.remove, *plan.changed, *plan.added, *(each.source for each in plan.local if each.move)}:
            if name is not None:
                patch.forget(name)
    if patch.rows or patch.gone or cache.manifest != pointer.manifest_sha256:
        with contextlib.suppress(OSError):  # a cache: without it files are read again
            cache.apply(patch, statcache, manifest=pointer.manifest_sha256)
    _tidy(tree.stage)
    return replace(report, requests=fetcher.requests, bytes_received=fetcher.bytes_received)


def _commit(
    tree: Tree, plan: Plan, entries: dict[str, Entry], held: dict[str, Held], assembly: Assembly,
    wanted: Manifest, pointer: Pointer, source: str, report: SyncReport,
) -> SyncReport:  # fmt: skip
    written = 0
    known = {name: each.sha256.hex() for name, each in held.items() if each.sha256}
    with tree.transaction({"version": pointer.version, "source": source}, known=known) as tx:

        def copy(name: str, path: str) -> None:
            nonlocal written
            content = tx.replace(name, path, mode=_mode(entries[name]))
            if content.sha256 != entries[name].sha256.hex():
                raise UpdateError(f"{path} was changed while it was used for {name}; nothing was done, try again")
            written += content.size

        for name, fresh in plan.aside.items():
            tx.move(name, fresh)
        for each in plan.local:
            if each.move and each.source is not None:
                tx.move(each.source, each.name)
            elif each.source is not None:
                copy(each.name, os.path.join(tree.root, each.source))
            elif not entries[each.name].size:
                tx.write(each.name, b"", mode=_mode(entries[each.name]))
            else:
                copy(each.name, os.path.join(tree.root, _OWN, "objects", entries[each.name].sha256.hex()))
        for name in plan.modes:
            copy(name, os.path.join(tree.root, name))
        first: dict[bytes, str] = {}
        for name in plan.fetch:
            entry = entries[name]
            if not entry.size:
                tx.write(name, b"", mode=_mode(entry))
            elif first.setdefault(entry.sha256, name) != name:
                copy(name, assembly.done[entry.sha256])
        for digest, name in first.items():
            tx.adopt(name, assembly.done[digest], sha256=digest.hex(), mode=_mode(entries[name]))
            written += entries[name].size
        for name in plan.remove:
            tx.remove(name, missing_ok=True)
        tx.write_private("manifest", wanted.raw)
        record = {"source": source, "pointer": pointer.encode().decode()}
        tx.write_private("release", json.dumps(record).encode())
    assert tx.result is not None
    return replace(report, generation=tx.result.generation, bytes_written=written, added=len(plan.added),
                   changed=len(plan.changed), removed=len(plan.remove) + sum(each.move for each in plan.local),
                   aside=plan.aside, overwritten=plan.overwritten)  # fmt: skip


def _mode(entry: Entry) -> int:
    return 0o755 if entry.executable else 0o644


def _tidy(stage: str) -> None:
    """Nothing of what was fetched is needed any more, but the pointer, which the next sync asks about."""
    for name in os.listdir(stage):
        if name != POINTER_NAME:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(stage, name))


def rollback(config: Config, dest: str, to: int | None) -> SyncReport:
    """Go back, or forward again, without the network. See `Toolkit.rollback`."""
    began_s = time.monotonic()
    _must_be_managed(dest)
    with Tree(dest, keep_generations=config.keep_generations) as tree:
        before = _Installed(tree.root)
        if before.pointer is not None:  # what was installed stays the mark below which no pointer is followed
            before.note(before.source, before.highest(before.source))
        commit = tree.switch(to, edits=_policy(config))
        after = _Installed(tree.root)
        mine = [change for change in commit.changes if not change.name.startswith(f"{_OWN}/")]
        added = sum(change.before is None for change in mine)
        removed = sum(change.after is None for change in mine)
        return SyncReport(
            version=after.version or "", generation=commit.generation, previous_version=before.version,
            route="rollback" if commit.changes else "none",
            bytes_written=sum(change.after.size for change in mine if change.after is not None),
            added=added, removed=removed, changed=len(mine) - added - removed,
            unchanged=max(0, len(after.manifest) - len(mine) + removed), seconds=time.monotonic() - began_s,
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
        installed = _Installed(tree.root)
        if installed.pointer is None:
            raise UpdateError(f"{dest}: no release is installed here; sync first")
        entries = {entry.name: entry for entry in installed.manifest}
        changed, extra, hashed = [], [], 0
        missing = set(entries)
        for found in _entries(tree.root):
            entry = entries.get(found.name)
            if entry is None:
                extra.append(found.name)
                continue
            missing.discard(found.name)
            right = stat.S_ISREG(found.mode) and bool(found.mode & 0o100) == entry.executable
            if stat.S_ISREG(found.mode):
                hashed += found.size
                right = hash_file(os.path.join(tree.root, found.name)).sha256 == entry.sha256.hex() and right
            if not right:
                changed.append(found.name)
        repaired = None
        if repair and (missing or changed):
            with contextlib.suppress(FileNotFoundError):  # damage may hide from stat: no row is believed
                os.unlink(os.path.join(tree.root, _OWN, "statcache"))
            policy: LocalChanges = "overwrite" if config.local_changes == "overwrite" else "keep"
            fetcher = Fetcher(downloads, installed.source, tree.stage)
            repaired = _bring(tree, fetcher, installed.pointer, installed, policy)
        return VerifyReport(
            version=installed.pointer.version, generation=tree.generation, files=len(entries), bytes=hashed,
            missing=tuple(sorted(missing)), changed=tuple(sorted(changed)), extra=tuple(sorted(extra)),
            repaired=repaired, seconds=time.monotonic() - began_s,
        )  # fmt: skip


def _must_be_managed(dest: str) -> None:
    if not os.path.isdir(os.path.join(dest, _OWN)):
        raise UpdateError(f"{dest} is not a tree that perfkit manages; sync makes one")


