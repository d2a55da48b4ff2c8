"""A tar archive, compressed or not: downloaded as one file, which can be resumed, and read once from start to end."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Set

from perfkit.archives.members import Limits, Member, Selection, stage_if_changed
from perfkit.archives.tar import Content, read_members
from perfkit.errors import ManifestError, UnsafePathError
from perfkit.releases.format.manifest import Entry, Manifest
from perfkit.updates.local_tree import LocalTree
from perfkit.updates.source_types import SourceType
from perfkit.updates.sources.archive_source import ArchiveSource
from perfkit.updates.sources.remote_file import RemoteFile
from perfkit.updates.staging import StagingArea

_SMALL_BYTES = 1 << 20  # members up to this size are kept in memory until their digest is known


class TarSource(ArchiveSource):
    """One version of a tar archive. See `Source` for the methods."""

    type = SourceType.TAR

    def __init__(self, archive: RemoteFile, selection: Selection) -> None:
        super().__init__(archive, selection)
        self._routes: tuple[str, ...] = ()

    def resolve(self, local: LocalTree, staging: StagingArea) -> Manifest:
        entries: dict[str, Entry] = {}
        with self._members(staging) as members:
            for member, content in members:
                if member.copy_of is not None:
                    entries[member.name] = entries[member.copy_of]._replace(name=member.name)
                    continue
                digest = _digest(member, content, local, staging)
                entries[member.name] = Entry(member.name, member.size, digest, member.executable)
            Limits().check_ratio(sum(entry.size for entry in entries.values()), self._archive.size)
        return Manifest.of(entries.values())

    def fetch(self, missing: Set[bytes], manifest: Manifest, local: LocalTree, staging: StagingArea) -> tuple[str, ...]:
        names = {entry.name for entry in manifest if entry.sha256 in missing}
        if names:
            with self._members(staging) as members:
                for member, content in members:
                    if member.name in names and member.copy_of is None:
                        staging.add(content)
        return self._routes

    @contextlib.contextmanager
    def _members(self, staging: StagingArea) -> Iterator[Iterator[tuple[Member, Content]]]:
        """The wanted members. A damaged archive is deleted, so that the next sync downloads it again."""
        path = self._archive.whole()
        self._routes = ("tar",)
        try:
            with open(path, "rb", buffering=0) as source, staging.show_progress():
                yield read_members(source, selection=self._selection)
        except (ManifestError, UnsafePathError):
            staging.discard_partial()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            raise


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
