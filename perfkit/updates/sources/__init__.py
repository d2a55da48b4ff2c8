"""Where a tree's content comes from: one module a kind of source, all behind one Protocol.

The updater tells the same story for each: it opens the source (one conditional request), looks at the tree, asks for
the manifest of what is wanted, decides what is missing (`planner.decide`, pure), has the source fetch that, and commits
it all at once. A source talks to the network through its `Fetcher`, writes contents into the `Assembly`, and never
touches the tree. What it needs to know the next time, such as validators, it gives to `record`, and finds in
`Installed.state`: these are committed and rolled back with the files, so they always speak of what is there.

A release knows every digest beforehand. An archive or a list does not: its `manifest` fetches what may differ from
what is `held` into the assembly, takes the digests there, and so finds little or nothing left to do in `fetch`.

A new kind of source is a class with these members, and a line in `open`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Protocol

from perfkit.releases.format.manifest import Manifest
from perfkit.updates.planner import Held, Offer
from perfkit.updates.source_types import Kind
from perfkit.updates.staging import Assembly

__all__ = ["Source", "Where"]

Where = Callable[[bytes], str | None]


class Source(Protocol):
    """Where a tree's content comes from.

    Errors of all methods: `ManifestError`, `UnsafePathError` for what is damaged or hostile, `TransferError` for what
    can't be fetched, `OSError` for the local disk. The tree is untouched then.
    """

    @property
    def kind(self) -> Kind: ...

    @property
    def url(self) -> str:
        """As it is recorded in the tree; the absolute path of a local list."""
        ...

    @property
    def version(self) -> str:
        """What the tree is called after it: a release's version, else a validator, a date or a name."""
        ...

    @property
    def serial(self) -> int:
        """Grows from release to release; one below the highest ever installed is refused. 0: the source has none."""
        ...

    @property
    def keeps(self) -> frozenset[str]:
        """Names in the stage that the next sync has use for; all others are removed after a sync."""
        ...

    def unchanged(self) -> bool:
        """Whether the origin has just what is installed, as the conditional request of the opening told."""
        ...

    def manifest(self, held: Mapping[str, Held], where: Where, assembly: Assembly) -> Manifest:
        """The files that are wanted, every one with its SHA-256; not called if the source is `unchanged`.

        A source that can't tell digests without the bytes fetches what differs from `held` into the assembly here.

        Args:
            held: what stands in the tree, by name. Asking for a name that isn't known yet reads its file; iterating
                gives the names of all files, managed or not, and reads none.
            where: the path of a file of the tree that has this content, as far as is known; read it while it is needed
                and check what was read, since others may write to it.
        """
        ...

    def offers(self, missing: Set[bytes], manifest: Manifest) -> tuple[Offer, ...]:
        """What `fetch` would do for these contents, in order; for a dry run."""
        ...

    def fetch(self, missing: Set[bytes], manifest: Manifest, assembly: Assembly) -> tuple[str, ...]:
        """Bring these contents into the assembly; returns the routes taken, in a word each.

        What is not there afterwards could not be had, and the updater gives up.
        """
        ...

    def record(self) -> dict[str, object]:
        """JSON kept in the tree as `Installed.state`: what `unchanged`, the next sync and a repair need."""
        ...
