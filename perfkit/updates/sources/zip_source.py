"""A zip archive on any web server: its central directory, and the members that differ, by range requests."""

from __future__ import annotations

import contextlib
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence, Set

from perfkit.archives.members import Selection
from perfkit.archives.zip import matches_file, plan_ranges, read_directory, read_members
from perfkit.archives.zip_directory import ZipMember, ZipMembers
from perfkit.filesystem.compact import DigestIndex, Digests, LazySequence
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
        self._directory: ZipMembers | None = None
        self._checksums = str(installed.state.get("crc32", "")) if archive.unchanged else ""
        self._by_crc = installed.state.get("signers", []) == archive.signers.names

    def record(self) -> dict[str, object]:
        return {**super().record(), "crc32": self._checksums}

    def resolve(self, local: LocalTree, staging: StagingArea) -> Manifest:
        members, installed = self._members(), self._installed_digests()
        digests, missing = bytearray(32 * len(members)), array("I")
        for row, member in enumerate(members):
            if members.is_copy(row):
                continue
            digest = None
            if self._by_crc:
                digest = installed(member) or _existing_digest(member, local)
            if digest is None:
                missing.append(row)
            else:
                digests[32 * row : 32 * row + 32] = digest
        del installed
        for row, digest in zip(missing, self._fetch(missing, staging), strict=True):
            digests[32 * row : 32 * row + 32] = digest
        crcs = array("I")

        def entries() -> Iterator[Entry]:
            start = 0
            for row, member in enumerate(members):
                crcs.append(member.crc32)
                start = start if members.is_copy(row) else 32 * row
                yield Entry(member.name, member.size, bytes(digests[start : start + 32]), member.executable)

        manifest = Manifest.of(entries())
        checksums = bytearray(4 * len(manifest))
        for row, crc in enumerate(crcs):
            at = manifest.find(members.names[row])
            assert at is not None
            checksums[4 * at : 4 * at + 4] = crc.to_bytes(4, "big")
        self._checksums = checksums.hex()
        return manifest

    def _stage(self, missing: Set[bytes], manifest: Manifest, local: LocalTree, staging: StagingArea) -> None:
        members, rows = self._members(), array("I")
        for row in range(len(members)):
            at = manifest.find(members.names[row])
            if at is not None and manifest.digest(at) in missing and not members.is_copy(row):
                rows.append(row)
        self._fetch(rows, staging)

    def _members(self) -> ZipMembers:
        if self._directory is None:
            self._directory = read_directory(self._archive.read, self._archive.size, selection=self._selection)
        return self._directory

    def _installed_digests(self) -> Callable[[ZipMember], bytes | None]:
        """Finds the SHA-256 of an installed file with the size and the CRC-32 of a member."""
        checksums = str(self._installed.state.get("crc32", ""))
        manifest = self._installed.manifest
        if self._installed.type is not SourceType.ZIP or len(checksums) != 8 * len(manifest):
            return lambda member: None
        index = DigestIndex(
            _key(int(checksums[8 * at : 8 * at + 8], 16), size) for at, size in enumerate(manifest.sizes)
        )

        def find(member: ZipMember) -> bytes | None:
            found = index.candidates(_key(member.crc32, member.size))
            return next((manifest.digest(at) for at in found if manifest.size(at) == member.size), None)

        return find

    def _fetch(self, rows: Sequence[int], staging: StagingArea) -> Digests:
        """Fetch these members, none of which is a copy, into the staging area; returns their digests.

        Raises:
            ManifestError: one is damaged.
        """
        members, digests = self._members(), Digests()
        ranges = plan_ranges(LazySequence(members.__getitem__, rows), gap=_GAP_BYTES)
        if not ranges:
            return digests
        if sum(each.end - each.start for each in ranges) > _WHOLE_FROM * self._archive.size:
            self._archive.whole()
        labels = (each.members[0].name + " and others" * (len(each.members) > 1) for each in ranges)
        parts = self._archive.parts(((each.start, each.end) for each in ranges), labels)
        self._routes.append("whole" if self._archive.has_whole else "zip")
        size = sum(map(members.sizes.__getitem__, rows))
        with (
            refetched_if_damaged(staging, [path for path, _ in parts]),
            staging.show_progress(files=len(rows), total_bytes=size),
        ):
            for each, (path, offset) in zip(ranges, parts, strict=True):
                with open(path, "rb", buffering=0) as source:
                    source.seek(offset)
                    for _, content in read_members(each, source):
                        digests.append(staging.add(content)[0])
        return digests


def _key(crc32: int, size: int) -> bytes:
    return struct.pack(">2I", crc32, size & 0xFFFFFFFF)


def _existing_digest(member: ZipMember, local: LocalTree) -> bytes | None:
    """The SHA-256 of the file with a member's name, if size and CRC-32 match the member."""
    existing = local.get(member.name)
    if existing is None or not existing.sha256 or existing.size != member.size:
        return None
    file = local.open_blob(existing.sha256)
    with file or contextlib.nullcontext():
        return existing.sha256 if file is not None and matches_file(member, file) else None
