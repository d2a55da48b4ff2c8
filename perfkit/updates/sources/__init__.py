"""The Source protocol: where the files of a tree come from.

`open_source` in `open` makes the source for a URL or a list, with one conditional request. The updater then calls
`resolve` for the manifest of the wanted files, decides what is missing, and calls `fetch` for that. A source uses the
network through its `Fetcher`, writes blobs into the `StagingArea`, and never touches the tree.

A release lists every digest. An archive, a list or a zsync file does not: its `resolve` fetches what may differ from
the local tree into the staging area to get the digests, which leaves little or nothing to do for `fetch`.

To add a type of source, write a class with these members, and add it to `SourceType` and to `open`.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Protocol

from perfkit.releases.format.manifest import Manifest
from perfkit.updates.local_tree import LocalTree
from perfkit.updates.routes import Offer
from perfkit.updates.source_types import SourceType
from perfkit.updates.staging import StagingArea


class Source(Protocol):
    """One version of a tree's files, at its origin.

    Every method may raise:
        ManifestError, UnsafePathError: something is damaged or hostile.
        TransferError: something can't be fetched.
        OSError: the local disk.
    """

    @property
    def type(self) -> SourceType: ...

    @property
    def url(self) -> str:
        """As recorded in the tree; the absolute path of a local list."""

    @property
    def version(self) -> str:
        """What to call this version: that of a release, or else a name with a validator or a date."""

    @property
    def serial(self) -> int:
        """Increases with each release; one below the highest ever installed is refused. 0: the source has none."""

    @property
    def keep_staged(self) -> frozenset[str]:
        """Names in the staging area that the next sync revalidates; all others are removed after a sync."""

    def unchanged(self) -> bool:
        """Whether the origin still has what is installed, by the conditional request that opened the source."""

    def resolve(self, local: LocalTree, staging: StagingArea) -> Manifest:
        """The wanted files, each with its SHA-256; not called if the source is `unchanged`.

        Args:
            local: the files of the tree. Looking up an unmanaged file hashes it; iterating over the names does not.
            staging: takes what has to be fetched to get the digests.
        """

    def offers(self, missing: Set[bytes], manifest: Manifest, local: LocalTree) -> tuple[Offer, ...]:
        """The routes that `fetch` would take for these blobs, in order; for a dry run."""

    def fetch(self, missing: Set[bytes], manifest: Manifest, local: LocalTree, staging: StagingArea) -> tuple[str, ...]:
        """Fetch these blobs into the staging area; returns the names of the routes taken.

        The sync fails if a blob is still missing afterwards.
        """

    def record(self) -> dict[str, object]:
        """JSON that is stored in the tree, and becomes `Installed.state`: validators, and what a repair needs.

        It is committed and rolled back with the files, so it always describes the files that are there.
        """
