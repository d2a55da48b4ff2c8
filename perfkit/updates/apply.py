"""A plan carried out: one transaction, in which the files and what the tree says of itself change together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from itertools import chain
from typing import NamedTuple

from perfkit.errors import UpdateError
from perfkit.progress.meter import Progress
from perfkit.progress.stage import Stage
from perfkit.redact import redacted
from perfkit.releases.format.manifest import Entry, Manifest
from perfkit.transactions.prepare import Known
from perfkit.transactions.records import Content
from perfkit.transactions.transaction import Commit, Transaction
from perfkit.transactions.tree import Tree
from perfkit.updates.installed import MANIFEST, RELEASE, record_of
from perfkit.updates.local_tree import Look
from perfkit.updates.planner import Local, Plan
from perfkit.updates.sources import Source
from perfkit.updates.staging import Assembly
from perfkit.updates.statcache import next_tick_ns

__all__ = ["Done", "carry_out"]


class Done(NamedTuple):
    """What came of it.

    Attributes:
        commit: every name that changed.
        written_ns: the file system's clock after all new files were written, and before they got their names.
        moved: the names of files that were not written, but moved.
    """

    commit: Commit
    bytes_written: int
    written_ns: int
    moved: frozenset[str]


def carry_out(
    tree: Tree,
    plan: Plan,
    installed: Manifest,
    wanted: Manifest,
    look: Look,
    assembly: Assembly,
    source: Source,
    *,
    probe: str,
    progress: Progress | None = None,
) -> Done:
    """Change the tree as planned, all of it or nothing.

    Args:
        installed: what the tree was meant to be until now, which is where the way back leads.
        probe: the file for `clock_ns`.

    Raises:
        UpdateError, FileChangedError, LockedError, RecoveryError, OSError: as `Tree.transaction`.
    """
    label = {"version": source.version, "source": redacted(source.url)}  # history is shown, and logged
    known = Known(meant=_meant(installed), seen=look.seen, holder=look.holder)
    transaction = tree.transaction(label, known=known)
    todo = len(plan.local) + len(plan.modes) + len(plan.stored) + len(plan.fetch) + len(plan.remove)
    with Stage(progress, "commit", files=todo) as shown, transaction as tx:
        tx.write_private(MANIFEST, wanted.raw)
        tx.write_private(
            RELEASE,
            record_of(
                kind=source.kind,
                source=source.url,
                version=source.version,
                serial=source.serial,
                manifest=wanted,
                state=source.record(),
            ),
        )
        work = _Work(tree.root, tx, wanted, assembly, shown)
        work.carry(plan)
        written_ns = next_tick_ns(probe)
    assert tx.result is not None
    moved = frozenset(each.name for each in plan.local if each.move)
    return Done(tx.result, work.bytes_written, written_ns, moved)


def _meant(installed: Manifest) -> Callable[[str], Content | None]:
    """What the installed release has under a name."""

    def meant(name: str) -> Content | None:
        at = installed.find(name)
        if at is None:
            return None
        entry = installed[at]
        return Content(entry.sha256.hex(), entry.size, _mode(entry))

    return meant


class _Work:
    """The files of one transaction, put in place."""

    def __init__(self, root: str, tx: Transaction, wanted: Manifest, assembly: Assembly, shown: Stage) -> None:
        self.bytes_written = 0
        self._shown = shown
        self._root = root
        self._tx = tx
        self._wanted = wanted
        self._assembly = assembly

    def carry(self, plan: Plan) -> None:
        """All of the plan."""
        for name, fresh in plan.aside.items():
            self._tx.set_aside(name, fresh)
        for name in plan.noted:
            self._tx.note(name)
        self._place_local(plan.local)
        for name in plan.modes:
            self._copy(name, os.path.join(self._root, name))
        self._place_assembled(chain(plan.stored, plan.fetch))
        for name in plan.remove:
            self._tx.remove(name, missing_ok=True)
            self._shown.count(files=1)

    def _place_local(self, local: Iterable[Local]) -> None:
        """What is made of contents that the tree has already."""
        for each in local:
            if each.move:
                self._tx.move(each.source, each.name)
                self._shown.count(files=1)
            else:
                self._copy(each.name, os.path.join(self._root, each.source))

    def _place_assembled(self, names: Iterable[str]) -> None:
        """What was fetched or kept: the first file of each content is adopted, others are copies."""
        for name in names:
            at, entry = self._find(name)
            if not entry.size:
                self._tx.write(name, b"", mode=_mode(entry))
                self._shown.count(files=1)
            elif self._assembly.expected.first(entry.sha256) == at:
                path = self._assembly.done[entry.sha256]
                self._tx.adopt(name, path, sha256=entry.sha256.hex(), mode=_mode(entry))
                self._done(entry)
            else:
                self._copy(name, self._assembly.done[entry.sha256])

    def _find(self, name: str) -> tuple[int, Entry]:
        at = self._wanted.find(name)
        assert at is not None, name
        return at, self._wanted[at]

    def _copy(self, name: str, path: str) -> None:
        """The content of another file, if it is the right one."""
        _, entry = self._find(name)
        content = self._tx.replace(name, path, mode=_mode(entry))
        if content.sha256 != entry.sha256.hex():
            raise UpdateError(f"{path} was changed while it was used for {name}; nothing was done, try again")
        self._done(entry)

    def _done(self, entry: Entry) -> None:
        self.bytes_written += entry.size
        self._shown.count(files=1, count_bytes=entry.size)


def _mode(entry: Entry) -> int:
    return 0o755 if entry.executable else 0o644
