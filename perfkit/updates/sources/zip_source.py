"""A zip archive on any web server: its central directory, and the members that differ, by range requests."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Set

from perfkit.archives.members import Selection
from perfkit.archives.zip import FetchRange, matches_file, plan_ranges, read_directory, read_members
from perfkit.archives.zip_directory import ZipMember
from perfkit.errors import ManifestError
from perfkit.releases.format.manifest import Entry, Manifest
from perfkit.updates.installed import Installed
from perfkit.updates.local_tree import LocalTree
from perfkit.updates.source_types import SourceType
from perfkit.updates.sources.archive_source import ArchiveSource
from perfkit.updates.sources.remote_file import RemoteFile
from perfkit.updates.staging import StagingArea

_GAP_BYTES = 64 << 10  # shorter gaps between members are fetched too; `coalesce` limits their sum
_WHOLE_FROM = 0.8  # of the archive: if more is wanted, all of it is downloaded


class ZipSource(ArchiveSource):
    """One version of a zip archive. See `Source` for the methods.

    The CRC-32 of each installed file is recorded in the tree, in the order of the manifest: together with the size it
    tells which members are installed already, without reading a file. A CRC-32 can be forged: it counts only if what is
    installed was verified with the same keys, or if no keys are needed.
    """

    type = SourceType.ZIP

    def __init__(self, archive: RemoteFile, selection: Selection, installed: Installed) -> None:
        super().__init__(archive, selection)
        self._installed = installed
        self._directory: dict[str, ZipMember] | None = None
        self._checksums = str(installed.state.get("crc32", "")) if archive.unchanged else ""
        self._routes: list[str] = []
        self._by_crc = installed.state.get("signers", []) == archive.signers.names

    def record(self) -> dict[str, object]:
        return {**super().record(), "crc32": self._checksums}

    def resolve(self, local: LocalTree, staging: StagingArea) -> Manifest:
        members = self._members()
        installed = self._installed_digests() if self._by_crc else {}
        digests: dict[str, bytes] = {}
        missing = []
        for name, member in members.items():
            digest = installed.get((member.size, member.crc32))
            if digest is None and self._by_crc:
                digest = _existing_digest(member, local)
            if digest is None:
                missing.append(member)
            else:
                digests[name] = digest
        fetched = self._fetch(missing, staging)
        digests.update((member.name, fetched[member.start]) for member in missing)
        manifest = Manifest.of(Entry(name, each.size, digests[name], each.executable) for name, each in members.items())
        self._checksums = "".join(f"{members[entry.name].crc32:08x}" for entry in manifest)
        return manifest

    def fetch(self, missing: Set[bytes], manifest: Manifest, local: LocalTree, staging: StagingArea) -> tuple[str, ...]:
        if missing:
            members = self._members()
            self._fetch([members[e.name] for e in manifest if e.sha256 in missing and e.name in members], staging)
        return tuple(dict.fromkeys(self._routes))

    def _members(self) -> dict[str, ZipMember]:
        if self._directory is None:
            members = read_directory(self._archive.read, self._archive.size, selection=self._selection)
            self._directory = {member.name: member for member in members}
        return self._directory

    def _installed_digests(self) -> dict[tuple[int, int], bytes]:
        """The SHA-256 of the installed files, by size and CRC-32."""
        checksums = str(self._installed.state.get("crc32", ""))
        manifest = self._installed.manifest
        if self._installed.type is not SourceType.ZIP or len(checksums) != 8 * len(manifest):
            return {}
        return {(e.size, int(checksums[8 * at : 8 * at + 8], 16)): e.sha256 for at, e in enumerate(manifest)}

    def _fetch(self, members: Iterable[ZipMember], staging: StagingArea) -> dict[int, bytes]:
        """Fetch these members into the staging area; returns their digests, by their offsets.

        Raises:
            ManifestError: one is damaged.
        """
        ranges = plan_ranges({member.start: member for member in members}.values(), gap=_GAP_BYTES)
        if not ranges:
            return {}
        wanted = sum(each.end - each.start for each in ranges)
        paths = None
        if wanted <= _WHOLE_FROM * self._archive.size:
            labels = (each.members[0].name + " and others" * (len(each.members) > 1) for each in ranges)
            paths = self._archive.parts(((each.start, each.end) for each in ranges), labels)
        self._routes.append("zip" if paths is not None else "whole")
        if paths is None:
            paths = [self._archive.whole()] * len(ranges)
        digests = {}
        members = [member for each in ranges for member in each.members]
        size = sum(member.size for member in members)
        try:
            with staging.show_progress(files=len(members), total_bytes=size):
                for each, path in zip(ranges, paths, strict=True):
                    for member, content in self._contents(each, path):
                        digests[member.start], _ = staging.add(content)
        except ManifestError:
            staging.discard_partial()
            for path in set(paths):  # or the next sync would use them again
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            raise
        return digests

    def _contents(self, each: FetchRange, path: str) -> Iterator[tuple[ZipMember, Iterator[bytes]]]:
        with self._archive.open_range(path, each.start) as source:
            yield from read_members(each, source)


def _existing_digest(member: ZipMember, local: LocalTree) -> bytes | None:
    """The SHA-256 of the file with a member's name, if size and CRC-32 match the member."""
    if member.name not in local:
        return None
    existing = local[member.name]
    file = local.open_blob(existing.sha256) if existing.sha256 and existing.size == member.size else None
    if file is None:
        return None
    with file:
        return existing.sha256 if matches_file(member, file) else None
