"""What zip and tar sources have in common: one version of one remote file, and a selection of its members."""

from __future__ import annotations

from collections.abc import Set

from perfkit.archives.members import Selection
from perfkit.releases.format.manifest import Manifest
from perfkit.updates.local_tree import LocalTree
from perfkit.updates.routes import Offer
from perfkit.updates.sources.remote_file import RemoteFile


class ArchiveSource:
    """One version of an archive; subclasses add `type`, `resolve` and `fetch`. See `Source`."""

    serial = 0
    keep_staged: frozenset[str] = frozenset()

    def __init__(self, archive: RemoteFile, selection: Selection) -> None:
        self.url = archive.url
        self._archive = archive
        self._selection = selection

    @property
    def version(self) -> str:
        return f"{self._archive.description} {self._selection}".rstrip()

    def unchanged(self) -> bool:
        return self._archive.unchanged

    def record(self) -> dict[str, object]:
        signers = self._archive.signers.names
        return {"origin": self._archive.record(), "selection": self._selection.record(), "signers": signers}

    def offers(self, missing: Set[bytes], manifest: Manifest, local: LocalTree) -> tuple[Offer, ...]:
        return ()
