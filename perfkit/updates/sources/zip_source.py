"""A zip archive on any web server: its central directory, and the members that differ, by ranges."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Set

from perfkit.archives.members import Selection
from perfkit.archives.zip import (
    FetchRange,
    ZipMember,
    is_current,
    plan_ranges,
    read_directory,
    read_members,
)
from perfkit.errors import FileChangedError, ManifestError
from perfkit.releases.format.manifest import Entry, Manifest
from perfkit.updates.installed import Installed
from perfkit.updates.planner import Held
from perfkit.updates.source_types import Kind
from perfkit.updates.sources import Where
from perfkit.updates.sources.archive_source import ArchiveSource
from perfkit.updates.sources.remote_file import Origin
from perfkit.updates.staging import Assembly

__all__ = ["ZipSource"]

_GAP_BYTES = 64 << 10  # what is rather fetched than stepped over; `coalesce` bounds the sum
_MOST = 0.8  # of an archive: whoever wants more of it takes all


class ZipSource(ArchiveSource):
    """One version of a zip archive. See `Source` for what the methods do.

    The CRC-32 of each installed file is kept in the tree, in the order of the manifest: with name and size it tells
    which members are there already, and no file is read for it.
    """

    kind = Kind.ZIP

    def __init__(self, origin: Origin, selection: Selection, installed: Installed) -> None:
        super().__init__(origin, selection)
        self._installed = installed
        self._members: dict[str, ZipMember] | None = None
        self._sums = str(installed.state.get("crc32", "")) if origin.unchanged else ""
        self._routes: list[str] = []

    def record(self) -> dict[str, object]:
        return {**super().record(), "crc32": self._sums}

    def manifest(self, held: Mapping[str, Held], where: Where, assembly: Assembly) -> Manifest:
        members = self._directory()
        installed = self._installed_sums()
        digests: dict[str, bytes] = {}
        missing = []
        for name, member in members.items():
            digest = installed.get((member.size, member.crc32)) or _held_digest(member, held, where)
            if digest is None:
                missing.append(member)
            else:
                digests[name] = digest
        digests.update(self._read(missing, assembly))
        manifest = Manifest.of(Entry(name, each.size, digests[name], each.executable) for name, each in members.items())
        self._sums = "".join(f"{members[entry.name].crc32:08x}" for entry in manifest)
        return manifest

    def fetch(self, missing: Set[bytes], manifest: Manifest, assembly: Assembly) -> tuple[str, ...]:
        if missing:
            members = self._directory()
            self._read([members[e.name] for e in manifest if e.sha256 in missing and e.name in members], assembly)
        return tuple(dict.fromkeys(self._routes))

    def _directory(self) -> dict[str, ZipMember]:
        if self._members is None:
            members = read_directory(self._origin.read, self._origin.size, selection=self._selection)
            self._members = {member.name: member for member in members}
        return self._members

    def _installed_sums(self) -> dict[tuple[int, int], bytes]:
        """The SHA-256 of what is installed, by size and CRC-32."""
        sums = str(self._installed.state.get("crc32", ""))
        manifest = self._installed.manifest
        if self._installed.kind is not Kind.ZIP or len(sums) != 8 * len(manifest):
            return {}
        return {(entry.size, int(sums[8 * at : 8 * at + 8], 16)): entry.sha256 for at, entry in enumerate(manifest)}

    def _read(self, members: Iterable[ZipMember], assembly: Assembly) -> dict[str, bytes]:
        """Fetch these members into the assembly; returns their digests, by name.

        Raises:
            ManifestError: one is damaged.
        """
        ranges = plan_ranges(members, gap=_GAP_BYTES)
        if not ranges:
            return {}
        wanted = sum(each.end - each.start for each in ranges)
        paths = None
        if wanted <= _MOST * self._origin.size:
            paths = self._origin.try_parts((each.start, each.end) for each in ranges)
        self._routes.append("zip" if paths is not None else "whole")
        if paths is None:
            paths = [self._origin.whole()] * len(ranges)
        digests = {}
        try:
            for each, path in zip(ranges, paths, strict=True):
                for member, content in self._contents(each, path):
                    digests[member.name], _ = assembly.add(content)
        except ManifestError:
            assembly.forget_parts()
            for path in set(paths):  # or the next sync would find the same
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            raise
        return digests

    def _contents(self, each: FetchRange, path: str) -> Iterator[tuple[ZipMember, Iterator[bytes]]]:
        with self._origin.open_range(path, each.start) as source:
            yield from read_members(each, source)


def _held_digest(member: ZipMember, held: Mapping[str, Held], where: Where) -> bytes | None:
    """The SHA-256 of the file under a member's name, if size and CRC-32 say that it is the member."""
    if member.name not in held:
        return None
    there = held[member.name]
    path = where(there.sha256) if there.sha256 and there.size == member.size else None
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            return there.sha256 if is_current(member, file) else None
    except FileNotFoundError as error:
        raise FileChangedError(path, "it was removed while it was compared with the archive") from error
