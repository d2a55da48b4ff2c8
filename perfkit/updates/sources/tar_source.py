"""A tar archive, compressed or not: downloaded as one file, which can be resumed, and read once from start to end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Set
from itertools import chain
from typing import BinaryIO

from perfkit.archives.decompress import CHUNK_BYTES
from perfkit.archives.limits import check_ratio
from perfkit.archives.members import Member
from perfkit.archives.tar import Content, read_members
from perfkit.errors import FileChangedError
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
        copies: list[Member] = []

        def entries() -> Iterator[Entry]:
            for member, content in read_members(source, selection=self._selection):
                if member.copy_of is not None:
                    copies.append(member)
                    continue
                digest = _digest(member, content, local, staging)
                yield Entry(member.name, member.size, digest, member.executable)

        path = self._archive.whole()
        self._routes = ["tar"]
        with (
            refetched_if_damaged(staging, [path]),
            open(path, "rb", buffering=0) as source,
            staging.show_progress(),
        ):
            manifest = Manifest.of(entries())
            if copies:
                manifest = Manifest.of(chain(manifest, _copied(copies, manifest)))
            check_ratio(manifest.total_bytes, self._archive.size)
        return manifest

    def _stage(self, missing: Set[bytes], manifest: Manifest, local: LocalTree, staging: StagingArea) -> None:
        self.resolve(local, staging)  # stages whatever the tree has not under the same name


def _copied(copies: Iterable[Member], manifest: Manifest) -> Iterator[Entry]:
    for copy in copies:
        at = manifest.find(copy.copy_of or "")
        assert at is not None
        yield manifest[at]._replace(name=copy.name)


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
    if old is None:
        return staging.add(content)[0]
    with old:
        return add_unless_equal(content, old, staging.add)


def add_unless_equal(
    content: Iterable[bytes | memoryview],
    old: BinaryIO,
    add: Callable[[Iterable[bytes | memoryview]], tuple[bytes, int]],
) -> bytes:
    """The SHA-256 of a member's content, which is added to the staging area unless the installed file has it. What
    comes before the first difference is copied from that file.

    Args:
        old: the installed file, of the same size, open for reading and unbuffered.
        add: as `StagingArea.add`.

    Raises:
        ManifestError: the archive is damaged (raised by `content`); discard what was staged.
        FileChangedError: the installed file changed during the comparison.
        OSError: the local disk failed.
    """
    digest, same, chunks = hashlib.sha256(), 0, iter(content)
    for chunk in chunks:
        if old.read(len(chunk)) != chunk:
            return add(chain(_first_bytes(old, same, digest.digest()), (chunk,), chunks))[0]
        digest.update(chunk)
        same += len(chunk)
    return digest.digest()


def _first_bytes(old: BinaryIO, size: int, sha256: bytes) -> Iterator[bytes]:
    """The first bytes of a file, which nobody must have changed."""
    digest = hashlib.sha256()
    old.seek(0)
    while size and (chunk := old.read(min(size, CHUNK_BYTES))):
        digest.update(chunk)
        size -= len(chunk)
        yield chunk
    if digest.digest() != sha256:
        raise FileChangedError(str(old.name), "it changed while it was compared with the archive")
