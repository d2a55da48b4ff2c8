"""What zip, tar, zsync and plain file sources have in common: one version of one remote file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Set
from typing import TYPE_CHECKING

from perfkit.errors import ManifestError, UnsafePathError
from perfkit.filesystem.hashing.hash_file import hash_file
from perfkit.releases.format.manifest import Manifest
from perfkit.updates.local_tree import LocalTree
from perfkit.updates.routes import Offer
from perfkit.updates.sources.remote_file import PromisedFile, RemoteFile
from perfkit.updates.staging import StagingArea

if TYPE_CHECKING:
    from perfkit.archives.members import Selection


class SingleFileSource:
    """One version of a file. Subclasses add `type`, `resolve` and `_stage`. See `Source` for the other methods."""

    serial = 0
    keep_staged: frozenset[str] = frozenset()

    def __init__(self, file: RemoteFile | PromisedFile) -> None:
        self.url = file.url
        self._file = file
        self._routes: list[str] = []

    @property
    def version(self) -> str:
        return self._file.description

    def unchanged(self) -> bool:
        return self._file.unchanged

    def record(self) -> dict[str, object]:
        return {"origin": self._file.record(), "signers": self._file.signers.names}

    def offers(self, missing: Set[bytes], manifest: Manifest, local: LocalTree) -> tuple[Offer, ...]:
        return ()

    def fetch(self, missing: Set[bytes], manifest: Manifest, local: LocalTree, staging: StagingArea) -> tuple[str, ...]:
        if missing:
            self._stage(missing, manifest, local, staging)
        return tuple(dict.fromkeys(self._routes))

    def _stage(self, missing: Set[bytes], manifest: Manifest, local: LocalTree, staging: StagingArea) -> None:
        """Stage these blobs, which the tree no longer has, and others if need be."""
        raise NotImplementedError


class ArchiveSource(SingleFileSource):
    """One version of an archive, and a selection of its members."""

    def __init__(self, archive: RemoteFile, selection: Selection) -> None:
        super().__init__(archive)
        self._archive = archive
        self._selection = selection

    @property
    def version(self) -> str:
        return f"{super().version} {self._selection}".rstrip()

    def record(self) -> dict[str, object]:
        return {**super().record(), "selection": self._selection.record()}


@contextlib.contextmanager
def refetched_if_damaged(staging: StagingArea, paths: Collection[str]) -> Iterator[None]:
    """Delete these downloads if the block finds that they are damaged, so that the next sync fetches them again."""
    try:
        yield
    except (ManifestError, UnsafePathError):
        staging.discard_partial()
        for path in {*paths}:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        raise


def adopt_download(path: str, staging: StagingArea) -> tuple[bytes, int]:
    """Move a downloaded file into the staging area; returns its SHA-256 and its size."""
    found = hash_file(path)
    digest = bytes.fromhex(found.sha256 or "")
    staging.adopt(path, digest)
    return digest, found.size
