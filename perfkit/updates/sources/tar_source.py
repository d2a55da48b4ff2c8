"""A tar archive, compressed or not: fetched as one file, which can be resumed, and read once, forwards."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Set

from perfkit.archives.members import Member, Selection, refresh
from perfkit.archives.tar import Content, read_members
from perfkit.errors import ManifestError, UnsafePathError
from perfkit.releases.format.manifest import Entry, Manifest
from perfkit.updates.planner import Held
from perfkit.updates.source_types import Kind
from perfkit.updates.sources import Where
from perfkit.updates.sources.archive_source import ArchiveSource
from perfkit.updates.sources.remote_file import Origin
from perfkit.updates.staging import Assembly

__all__ = ["TarSource"]

_SMALL_BYTES = 1 << 20  # members up to this size are held in memory until their digest is known


class TarSource(ArchiveSource):
    """One version of a tar archive. See `Source` for what the methods do."""

    kind = Kind.TAR

    def __init__(self, origin: Origin, selection: Selection) -> None:
        super().__init__(origin, selection)
        self._routes: tuple[str, ...] = ()

    def manifest(self, held: Mapping[str, Held], where: Where, assembly: Assembly) -> Manifest:
        with self._archive(assembly) as members:
            entries = []
            for member, content in members:
                there = held.get(member.name)
                digest = _digest(member, content, there, where, assembly)
                entries.append(Entry(member.name, member.size, digest, member.executable))
        return Manifest.of(entries)

    def fetch(self, missing: Set[bytes], manifest: Manifest, assembly: Assembly) -> tuple[str, ...]:
        names = {entry.name for entry in manifest if entry.sha256 in missing}
        if names:
            with self._archive(assembly) as members:
                for member, content in members:
                    if member.name in names:
                        assembly.add(content)
        return self._routes

    @contextlib.contextmanager
    def _archive(self, assembly: Assembly) -> Iterator[Iterator[tuple[Member, Content]]]:
        """The wanted members. A damaged archive is removed from the stage, and fetched anew the next time."""
        path = self._origin.whole()
        self._routes = ("tar",)
        try:
            with open(path, "rb", buffering=0) as source:
                yield read_members(source, selection=self._selection)
        except (ManifestError, UnsafePathError):
            assembly.forget_parts()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            raise


def _digest(member: Member, content: Content, held: Held | None, where: Where, assembly: Assembly) -> bytes:
    """The SHA-256 of a member, which is in the assembly then unless the tree has it under this name."""
    if member.size <= _SMALL_BYTES:
        data = b"".join(content)
        digest = hashlib.sha256(data).digest()
        if held is None or held.sha256 != digest:
            assembly.add((data,))
        return digest
    path = where(held.sha256) if held is not None and held.sha256 and held.size == member.size else None
    with contextlib.ExitStack() as stack:
        old = None if path is None else stack.enter_context(open(path, "rb", buffering=0))
        result = refresh(member, content, old, assembly.begin)
    digest = bytes.fromhex(result.sha256)
    if result.changed:
        assembly.end(digest)
    return digest
