"""What all archives have in common: one version of one file at the origin, and a selection of its members."""

from __future__ import annotations

from collections.abc import Set

from perfkit.archives.members import Selection
from perfkit.releases.format.manifest import Manifest
from perfkit.updates.planner import Offer
from perfkit.updates.sources.remote_file import Origin, label

__all__ = ["ArchiveSource"]


class ArchiveSource:
    """One version of an archive; a kind of archive adds `kind`, `manifest` and `fetch`. See `Source`."""

    serial = 0
    keeps: frozenset[str] = frozenset()

    def __init__(self, origin: Origin, selection: Selection) -> None:
        self.url = origin.url
        self._origin = origin
        self._selection = selection

    @property
    def version(self) -> str:
        return f"{label(self.url, self._origin.version)} {self._selection}".rstrip()

    def unchanged(self) -> bool:
        return self._origin.unchanged

    def record(self) -> dict[str, object]:
        return {"origin": self._origin.record(), "selection": self._selection.record()}

    def offers(self, missing: Set[bytes], manifest: Manifest) -> tuple[Offer, ...]:
        return ()
