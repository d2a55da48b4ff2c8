"""A zip archive on any web server: its central directory, and the members that differ, by range requests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Set

from perfkit.archives.members import Selection
from perfkit.archives.zip import matches_file, plan_ranges, read_directory, read_members
from perfkit.archives.zip_directory import ZipMember
from perfkit.releases.format.manifest import Entry, Manifest
from perfkit.updates.installed import Installed
from perfkit.updates.local_tree import LocalTree
from perfkit.updates.source_types import SourceType
from perfkit.updates.sources.remote_file import RemoteFile
from perfkit.updates.sources.single_file import ArchiveSource, refetched_if_damaged
from perfkit.updates.staging import StagingArea

_GAP_BYTES = 64 << 10  # shorter gaps between members are fetched too; `coalesce` limits their sum
_WHOLE_FROM = 0.8  # of the archive: if more is wanted, all of it is downloaded


class ZipSource(ArchiveSource):
    """One version of a zip archive.

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

    def _stage(self, missing: Set[bytes], manifest: Manifest, local: LocalTree, staging: StagingArea) -> None:
        members = self._members()
        self._fetch([members[e.name] for e in manifest if e.sha256 in missing and e.name in members], staging)

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
        if sum(each.end - each.start for each in ranges) > _WHOLE_FROM * self._archive.size:
            self._archive.whole()
        labels = (each.members[0].name + " and others" * (len(each.members) > 1) for each in ranges)
        parts = self._archive.parts(((each.start, each.end) for each in ranges), labels)
        self._routes.append("whole" if self._archive.has_whole else "zip")
        digests = {}
        members = [member for each in ranges for member in each.members]
        size = sum(member.size for member in members)
        with (
            refetched_if_damaged(staging, [path for path, _ in parts]),
            staging.show_progress(files=len(members), total_bytes=size),
        ):
            for each, (path, offset) in zip(ranges, parts, strict=True):
                with open(path, "rb", buffering=0) as source:
                    source.seek(offset)
                    for member, content in read_members(each, source):
                        digests[member.start], _ = staging.add(content)
        return digests


def _existing_digest(member: ZipMember, local: LocalTree) -> bytes | None:
    """The SHA-256 of the file with a member's name, if size and CRC-32 match the member."""
    existing = local.get(member.name)
    if existing is None or not existing.sha256 or existing.size != member.size:
        return None
    file = local.open_blob(existing.sha256)
    with file or contextlib.nullcontext():
        return existing.sha256 if file is not None and matches_file(member, file) else None
