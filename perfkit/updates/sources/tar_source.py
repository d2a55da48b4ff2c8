"""A tar archive, compressed or not: downloaded as one file, which can be resumed, and read once from start to end."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Set

from perfkit.archives.limits import check_ratio
from perfkit.archives.members import Member, stage_if_changed
from perfkit.archives.tar import Content, read_members
from perfkit.releases.format.manifest import Entry, Manifest
from perfkit.updates.local_tree import LocalTree
from perfkit.updates.source_types import SourceType
from perfkit.updates.sources.single_file import ArchiveSource, refetched_if_damaged
from perfkit.updates.staging import StagingArea

_SMALL_BYTES = 1 << 20  # members up to this size are kept in memory until their digest is known


class TarSource(ArchiveSource):
    """One version of a tar archive."""

    type = SourceType.TAR

    def resolve(self, local: LocalTree, staging: StagingArea) -> Manifest:
        entries: dict[str, Entry] = {}
        path = self._archive.whole()
        self._routes = ["tar"]
        with (
            refetched_if_damaged(staging, [path]),
            open(path, "rb", buffering=0) as source,
            staging.show_progress(),
        ):
            for member, content in read_members(source, selection=self._selection):
                if member.copy_of is not None:
                    entries[member.name] = entries[member.copy_of]._replace(name=member.name)
                    continue
                digest = _digest(member, content, local, staging)
                entries[member.name] = Entry(member.name, member.size, digest, member.executable)
            check_ratio(sum(entry.size for entry in entries.values()), self._archive.size)
        return Manifest.of(entries.values())

    def _stage(self, missing: Set[bytes], manifest: Manifest, local: LocalTree, staging: StagingArea) -> None:
        self.resolve(local, staging)  # stages whatever the tree has not under the same name


def _digest(member: Member, content: Content, local: LocalTree, staging: StagingArea) -> bytes:
    """The SHA-256 of a member; its content is staged unless the tree has it under the same name."""
    existing = local.get(member.name)
    if member.size <= _SMALL_BYTES:
        data = b"".join(content)
        digest = hashlib.sha256(data).digest()
        if existing is None or existing.sha256 != digest:
            staging.add((data,))
        return digest
    old = None
    if existing is not None and existing.sha256 and existing.size == member.size:
        old = local.open_blob(existing.sha256)
    with old or contextlib.nullcontext():
        digest, staged = stage_if_changed(member, content, old, staging.create)
    if staged:
        staging.finish(digest)
    return digest
