"""A site that `perfkit publish` made: its pointer, and what that has on offer, the cheapest first."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Set

from perfkit.downloads.protocol import Version
from perfkit.errors import CancelledError, HTTPStatusError, ManifestError, PerfkitError, TransferError, UpdateError
from perfkit.libc import map_large_blocks
from perfkit.redact import redacted
from perfkit.releases.format import POINTER_NAME
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.format.pointer import PackedRef, Pointer
from perfkit.updates.installed import Installed
from perfkit.updates.planner import Held, Link, Offer, choose
from perfkit.updates.source_types import Kind
from perfkit.updates.sources.delta_route import follow
from perfkit.updates.sources.pack_route import Packs
from perfkit.updates.sources.site_client import Objects
from perfkit.updates.staging import Assembly, Fetcher

__all__ = ["ReleaseSource", "open_release", "reopen_release"]

_log = logging.getLogger(__name__)

_Where = Callable[[bytes], str | None]
_FINE, _SOLID = "fine", "solid"  # small frames and large ones
_ASKING = 0.05  # of a chain's bytes: where an index costs less, it is asked whether blocks are cheaper
_SOLID_FROM = 0.5  # of the tree's bytes: where less is missing, large frames have too much that is not wanted
_FINE_UP_TO = 0.85  # where more is missing, small frames, which compress less, are not asked about


def open_release(fetcher: Fetcher, url: str, installed: Installed, *, dry_run: bool = False) -> ReleaseSource:
    """Ask a site for its pointer, conditionally where an earlier one is in the stage, or was installed.

    Args:
        url: of the site, or of its pointer.
        dry_run: content is not to be fetched: the manifest comes by itself.

    Raises:
        ManifestError, TransferError, OSError: there is no pointer that can be used.
    """
    objects = Objects(fetcher, url.removesuffix(POINTER_NAME).rstrip("/") + "/")
    before = _recorded(installed) if installed.source == objects.url else None
    return ReleaseSource(objects, *objects.pointer(before), installed, dry_run=dry_run)


def reopen_release(fetcher: Fetcher, installed: Installed) -> ReleaseSource:
    """The release that is installed, even if the site offers another one now.

    Raises:
        ManifestError, TransferError, OSError: as `open_release`; what the tree says of the release is damaged.
    """
    objects = Objects(fetcher, installed.source)
    before = _recorded(installed)
    pointer, version = objects.pointer(before)
    if pointer.manifest_sha256 != installed.manifest_sha256:
        if before is None:
            raise ManifestError(f"{installed.root}: what it records of its release is damaged; sync mends it")
        pointer, version = before
    return ReleaseSource(objects, pointer, version, installed)


def _recorded(installed: Installed) -> tuple[Pointer, Version] | None:
    """The pointer that led to what is installed, and its version; None if none can be read."""
    try:
        origin = installed.state["origin"]
        return Pointer.parse(installed.state["pointer"].encode()), Version(origin["etag"], origin["last_modified"])
    except (KeyError, TypeError, AttributeError, ManifestError):
        return None


class ReleaseSource:
    """One release of a site. See `Source` for what the methods do.

    There are three ways to contents: deltas from the installed release, which bring the new manifest with them; blocks
    of small frames; and blocks of large ones. All are priced, and one that fails is followed by the next.
    """

    kind = Kind.RELEASE
    keeps = frozenset({POINTER_NAME})

    def __init__(
        self, objects: Objects, pointer: Pointer, version: Version, installed: Installed, *, dry_run: bool = False
    ) -> None:
        self.url = objects.url
        self.version = pointer.version
        self.serial = pointer.serial
        self._objects = objects
        self._pointer = pointer
        self._origin = version  # of the pointer, by the origin's word
        self._installed = installed
        self._dry_run = dry_run
        self._link = Link(latency_s=objects.latency_s)
        self._hops = [hop.object for hop in pointer.chain(installed.manifest_sha256)]
        self._packs: dict[str, Packs] = {}
        self._where: _Where = lambda digest: None
        self._standing: Callable[[str], str | None] = lambda name: None
        self._over: set[tuple[str, str]] = set()  # routes and variants that have brought what they can, or failed
        self._error: PerfkitError | None = None  # the last failure
        self._taken: list[str] = []

    def unchanged(self) -> bool:
        """Whether the very files are installed that the pointer speaks of, under whatever version."""
        return self._installed.manifest_sha256 == self._pointer.manifest_sha256

    def record(self) -> dict[str, object]:
        origin = {"etag": self._origin.etag, "last_modified": self._origin.last_modified}
        return {"pointer": self._pointer.encode().decode(), "origin": origin}

    def manifest(self, held: Mapping[str, Held], where: _Where, assembly: Assembly) -> Manifest:
        map_large_blocks()
        self._where = where
        self._standing = assembly.standing
        sha256 = bytes.fromhex(self._pointer.manifest_sha256)
        if (path := where(sha256)) is not None:  # after a rollback the history has it
            with contextlib.suppress(OSError, ManifestError), open(path, "rb") as file:
                return Manifest.parse(file.read(), sha256=sha256)
        if self._delta_is_best():
            with self._trying("delta", ""):
                return self._follow(assembly)
        return Manifest.parse(self._objects.packed(self._pointer.manifest), sha256=sha256)

    def _delta_is_best(self) -> bool:
        """Whether the pointer alone tells.

        The publisher offers a delta only if it beats the blocks, but a chain of several may not. What is missing, and
        its price in blocks, is known only with the manifest and an index: these are asked for where they cost little.
        """
        asking = self._pointer.manifest.object.bytes + self._pointer.fine.object.bytes
        alone = len(self._hops) == 1 or asking > _ASKING * sum(hop.bytes for hop in self._hops)
        return bool(self._hops) and alone and not self._dry_run

    def _follow(self, assembly: Assembly) -> Manifest:
        """The release's manifest, and what is new in it, by the deltas that lead from what is installed."""
        self._over.add(("delta", ""))
        made = follow(self._objects.get(self._hops), self._installed.manifest, self._where, assembly)
        if made.sha256.hex() != self._pointer.manifest_sha256:
            raise ManifestError("delta: it does not lead to this release")
        self._taken.append("delta")
        return made

    def offers(self, missing: Set[bytes], manifest: Manifest) -> tuple[Offer, ...]:
        while True:
            over = len(self._over)
            try:
                return choose(missing, lambda left: list(self._offers(left, manifest)), self._link)
            except UpdateError:
                if over == len(self._over):
                    raise
            # an index could not be had: the other one may have what is missing

    def fetch(self, missing: Set[bytes], manifest: Manifest, assembly: Assembly) -> tuple[str, ...]:
        self._standing = assembly.standing
        while left := assembly.lacking(missing):
            offers = self._offers_or_error(left, manifest)
            with self._trying(offers[0].route, offers[0].variant):
                self._take(offers[0], manifest, assembly)
        self._packs.clear()  # megabytes, where files are many
        return tuple(dict.fromkeys(self._taken))

    def _offers_or_error(self, missing: Set[bytes], manifest: Manifest) -> tuple[Offer, ...]:
        """At least one; where all routes are at their end, what was wrong with the last."""
        try:
            return self.offers(missing, manifest)
        except PerfkitError as error:
            reason = f"{len(missing)} contents are not to be had as the manifest has them; nothing was done"
            raise self._error or TransferError(self.url, reason) from error

    @contextlib.contextmanager
    def _trying(self, route: str, variant: str) -> Iterator[None]:
        """A route whose failure leads to the next; but that nothing answers at all is no route's fault."""
        try:
            yield
        except (ManifestError, TransferError) as error:
            silent = isinstance(error, TransferError) and error.transient and not isinstance(error, HTTPStatusError)
            if silent or isinstance(error, CancelledError):
                raise
            self._over.add((route, variant))
            self._error = error
            _log.warning("%s: the route by %s fails: %s", redacted(self.url), variant or route, error)

    def _take(self, offer: Offer, manifest: Manifest, assembly: Assembly) -> None:
        if offer.route == "delta":
            self._follow(assembly)
            return
        self._packs[offer.variant].fetch(offer.contents, assembly)
        self._taken.append(offer.route)
        if lacking := assembly.lacking(offer.contents):
            raise ManifestError(f"{len(lacking)} contents are not what the manifest says")

    def _offers(self, missing: Set[bytes], manifest: Manifest) -> Iterator[Offer]:
        """What the routes that are left ask for these contents; indexes are fetched for it where they matter."""
        delta = self._delta_offer(missing)
        if delta is not None:
            yield delta
            if delta.contents == missing and delta.bytes <= self._pointer.fine.object.bytes:
                return  # the index alone would cost more
        for variant, packed in self._variants(missing, manifest):
            if variant not in self._packs:
                with self._trying("blocks", variant):
                    self._packs[variant] = Packs(
                        self._objects, packed, manifest, variant=variant, standing=self._standing
                    )
            if variant in self._packs:
                yield self._packs[variant].offer(missing)

    def _delta_offer(self, missing: Set[bytes]) -> Offer | None:
        """A delta makes all that the old tree does not have."""
        if not self._hops or ("delta", "") in self._over:
            return None
        contents = missing - frozenset(self._installed.manifest.digests())
        hops = self._objects.lacks(self._hops)
        size = sum(hop.bytes for hop in hops)
        return Offer("delta", contents, bytes=size, requests=len(hops)) if contents else None

    def _variants(self, missing: Set[bytes], manifest: Manifest) -> Iterator[tuple[str, PackedRef]]:
        """The indexes worth asking: by how much is missing, or since they are here already.

        Of a file that stands in the tree with other content, small frames may be needed only in part.
        """
        entries = [at for at, digest in enumerate(manifest.digests()) if digest in missing]
        fresh = sum(manifest.size(at) for at in entries if self._standing(manifest.name(at)) is None)
        total = max(1, manifest.total_bytes)
        fresh_share, share = fresh / total, sum(map(manifest.size, entries)) / total
        left = [variant for variant in (_FINE, _SOLID) if ("blocks", variant) not in self._over]
        for variant in left:
            packed = self._pointer.fine if variant == _FINE else self._pointer.solid
            suits = fresh_share < _FINE_UP_TO if variant == _FINE else share >= _SOLID_FROM
            if suits or len(left) == 1 or not self._objects.lacks([packed.object]):
                yield variant, packed
