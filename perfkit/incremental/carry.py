"""A plan carried out: one transaction, in which the files and what the tree says of itself change together."""

from __future__ import annotations

import os
from dataclasses import dataclass

from perfkit.errors import UpdateError
from perfkit.filesystem.commit import OWN
from perfkit.filesystem.records import Content
from perfkit.filesystem.transaction import Meant, Transaction
from perfkit.filesystem.tree import Tree
from perfkit.incremental.fetch import Assembly
from perfkit.incremental.installed import MANIFEST, RELEASE, record_of
from perfkit.incremental.look import Look
from perfkit.incremental.manifest import Entry, Manifest
from perfkit.incremental.plan import Plan
from perfkit.incremental.sources import Source

__all__ = ["Done", "carry_out"]


@dataclass(frozen=True, slots=True)
class Done:
    """What came of it. `touched` are all names that may hold something else now."""

    generation: int
    bytes_written: int
    touched: frozenset[str]


def carry_out(
    tree: Tree, plan: Plan, installed: Manifest, wanted: Manifest, look: Look, assembly: Assembly, source: Source
) -> Done:
    """Change the tree as planned, all of it or nothing.

    Args:
        installed: what the tree was meant to be until now, which is where the way back leads.

    Raises:
        UpdateError, FileChangedError, LockedError, RecoveryError, OSError: as `Tree.transaction`.
    """
    entries = {entry.name: entry for entry in wanted}
    label = {"version": source.version, "source": source.url}
    with tree.transaction(label, known=look.known(), meant=_meant(installed)) as tx:
        work = _Work(tree.root, tx, entries, assembly)
        for name, fresh in plan.aside.items():
            tx.set_aside(name, fresh)
        for name in plan.noted:
            tx.note(name)
        work.place_local(plan)
        for name in plan.modes:
            work.copy(name, os.path.join(tree.root, name))
        work.place_fetched(plan)
        for name in plan.remove:
            tx.remove(name, missing_ok=True)
        tx.write_private(MANIFEST, wanted.raw)
        tx.write_private(RELEASE, record_of(kind=source.kind, source=source.url, version=source.version,
                                            manifest=wanted, state=source.record()))  # fmt: skip
    assert tx.result is not None
    return Done(tx.result.generation, work.bytes_written, _touched(plan))


def _meant(installed: Manifest) -> Meant:
    """What the installed release has under a name."""

    def meant(name: str) -> Content | None:
        at = installed.find(name)
        if at is None:
            return None
        entry = installed[at]
        return Content(entry.sha256.hex(), entry.size, _mode(entry))

    return meant


def _touched(plan: Plan) -> frozenset[str]:
    moved = (each.source for each in plan.local if each.move and each.source is not None)
    return frozenset((*plan.remove, *plan.changed, *plan.added, *moved))


class _Work:
    """The files of one transaction, put in place."""

    def __init__(self, root: str, tx: Transaction, entries: dict[str, Entry], assembly: Assembly) -> None:
        self.bytes_written = 0
        self._root = root
        self._tx = tx
        self._entries = entries
        self._assembly = assembly

    def place_local(self, plan: Plan) -> None:
        """What is made of contents that are here already."""
        for each in plan.local:
            entry = self._entries[each.name]
            if each.move and each.source is not None:
                self._tx.move(each.source, each.name)
            elif each.source is not None:
                self.copy(each.name, os.path.join(self._root, each.source))
            elif not entry.size:
                self._tx.write(each.name, b"", mode=_mode(entry))
            else:
                self.copy(each.name, os.path.join(self._root, OWN, "objects", entry.sha256.hex()))

    def place_fetched(self, plan: Plan) -> None:
        """What was fetched: the first file of each content is adopted, others are copies."""
        first: dict[bytes, str] = {}
        for name in plan.fetch:
            entry = self._entries[name]
            if not entry.size:
                self._tx.write(name, b"", mode=_mode(entry))
            elif first.setdefault(entry.sha256, name) != name:
                self.copy(name, self._assembly.done[entry.sha256])
        for digest, name in first.items():
            entry = self._entries[name]
            self._tx.adopt(name, self._assembly.done[digest], sha256=digest.hex(), mode=_mode(entry))
            self.bytes_written += entry.size

    def copy(self, name: str, path: str) -> None:
        """The content of another file, if it is the right one."""
        entry = self._entries[name]
        content = self._tx.replace(name, path, mode=_mode(entry))
        if content.sha256 != entry.sha256.hex():
            raise UpdateError(f"{path} was changed while it was used for {name}; nothing was done, try again")
        self.bytes_written += content.size


def _mode(entry: Entry) -> int:
    return 0o755 if entry.executable else 0o644
