"""A site made by `perfkit publish`: its pointer, and the cheapest routes to the blobs of its release."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Set
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from perfkit.downloads.http.semantics import Version
from perfkit.errors import (
    CancelledError,
    ExpiredError,
    HTTPStatusError,
    ManifestError,
    PerfkitError,
    SignatureError,
    StaleSourceError,
    TransferError,
    UpdateError,
)
from perfkit.filesystem.compact import DigestSet, pack_numbers
from perfkit.filesystem.own_files import open_own
from perfkit.filesystem.spilled import file_bytes
from perfkit.libc import mmap_large_allocations
from perfkit.progress.text import printable
from perfkit.redact import redacted
from perfkit.releases.format import MAX_AHEAD_MS, POINTER_NAME
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.format.pointer import BaseManifest, PackedRef, Pointer
from perfkit.transactions import layout
from perfkit.updates.installed import Installed
from perfkit.updates.local_tree import LocalTree
from perfkit.updates.routes import Offer, choose_routes
from perfkit.updates.signers import Signers, Trust
from perfkit.updates.source_types import SourceSpec, SourceType, site_url
from perfkit.updates.sources.site_client import SiteClient
from perfkit.updates.staging import Fetcher, StagingArea

if TYPE_CHECKING:
    from perfkit.archives.members import Selection
    from perfkit.updates.sources.pack_route import PackRoute

_log = logging.getLogger(__name__)

_LIST = "the list of files"  # what progress displays call a manifest
_FINE, _SOLID = "fine", "solid"  # small frames and large ones
_INDEX_SHARE = 0.05  # of a chain's bytes: where an index costs less, it is fetched to see whether blocks are cheaper
_SOLID_FROM = 0.5  # of the tree's bytes: where less is missing, large frames hold too much that is not wanted
_CLOCK_IS_SET_MS = 1_760_000_000_000  # a clock that shows an earlier time is not set yet: it limits nothing
_LISTED_BYTES = 128  # maximum per file in a list of files, on average: 41 and the name
_FINE_UP_TO = 0.85  # where more is missing, small frames, which compress less, are not considered


def open_release(fetcher: Fetcher, spec: SourceSpec, installed: Installed, *, dry_run: bool = False) -> ReleaseSource:
    """Fetch the pointer of a site, conditionally if an earlier one is staged or was installed.

    Args:
        spec: its location is the URL of the site, or of its pointer.
        dry_run: fetch no content: fetch the manifest itself, not the delta that makes it; remember nothing.

    Raises:
        SignatureError: it lacks a signature that the caller or the tree requires.
        ExpiredError, StaleSourceError: it has expired; it is older than one that the tree has had.
        ManifestError, TransferError, OSError: there is no usable pointer.
        UpdateError: the site does not have the wanted release, or offers one from the future.
    """
    site = SiteClient(fetcher, site_url(spec.location), spec.channel)
    before = Trust.read(installed.root)
    if not installed.files and not dry_run:
        site.expect_much()
    offered, trust = _fetch_pointer(site, before, spec.signers, _recorded(installed, site))
    _refuse_future(site, offered.pointer)
    _refuse_outdated(site, offered.pointer, trust, spec)
    if not dry_run:
        trust._replace(serial=offered.pointer.serial).remember(before)
    if spec.release is not None and spec.release != offered.pointer.version:
        from perfkit.updates.sources.earlier_releases import pointer_to

        pointer = pointer_to(site, offered.pointer, spec.release)
        offered = _Offered(pointer.encode(), pointer, Version())  # the validators are the current pointer's
    return ReleaseSource(site, offered, installed, selection=spec.selection, dry_run=dry_run)


def _refuse_future(site: SiteClient, pointer: Pointer) -> None:
    """Refuse a release from the future, before anything of it is remembered.

    A serial is at most the time of its release. One far in the future would stay the highest for years, and the tree
    would refuse everything that the site offers afterwards.
    """
    now_ms = time.time() * 1000
    if now_ms >= _CLOCK_IS_SET_MS and pointer.serial > now_ms + MAX_AHEAD_MS:
        raise UpdateError(
            f"{site.url} offers version {pointer.version} with serial {pointer.serial}, which as a time in "
            "milliseconds is more than a day ahead: the clock of its publisher or of this machine is wrong, or the "
            "site was tampered with; set the clock, or publish to a new site directory"
        )


def _refuse_outdated(site: SiteClient, pointer: Pointer, trust: Trust, spec: SourceSpec) -> None:
    """Refuse a pointer that has expired, or that is older than one that was verified before."""
    if 0 < pointer.expires_s < time.time() and not spec.allow_expired:
        until = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(pointer.expires_s))
        reason = (
            f"version {pointer.version} was valid until {until}: a cache or mirror may be behind, somebody may be "
            "holding back a newer release, or the publisher is late, so try again later. To install it anyway, allow "
            "expired releases (--allow-expired)"
        )
        raise ExpiredError(site.url, reason, transient=True)
    if pointer.serial < trust.serial and not spec.allow_older:
        reason = (
            f"it offers version {pointer.version}, an older release (serial {pointer.serial}) than this tree has had "
            f"with the same signature (serial {trust.serial}): a cache or mirror may be behind, so try again later. "
            "To install it, allow older releases (--allow-older)"
        )
        raise StaleSourceError(site.url, reason, transient=True)


def reopen_release(fetcher: Fetcher, installed: Installed) -> ReleaseSource:
    """The release that is installed, even if the site offers another one now.

    Raises:
        ManifestError, TransferError, OSError: as `open_release`; the tree's record of the release is damaged.
    """
    site = SiteClient(fetcher, installed.source, installed.state.get("channel"))
    recorded = _recorded(installed, site)
    offered, _ = _fetch_pointer(site, Trust.read(installed.root), None, recorded)
    if offered.pointer.manifest_sha256 != installed.manifest_sha256:
        if recorded is None:
            raise ManifestError(f"{installed.root}: the record of the installed release is damaged; sync repairs it")
        offered = recorded
    return ReleaseSource(site, offered, installed)


class _Offered(NamedTuple):
    """A pointer, as bytes and parsed, and its validators."""

    data: bytes
    pointer: Pointer
    version: Version


def _recorded(installed: Installed, site: SiteClient) -> _Offered | None:
    """The pointer of the installed release; None: it is not of this site and channel, or can't be read."""
    if not installed.is_from(site.url) or installed.state.get("channel") != site.channel:
        return None
    try:
        data = installed.state["pointer"].encode()
        return _Offered(data, Pointer.parse(data), Version.of(installed.state["origin"]))
    except (KeyError, TypeError, AttributeError, ValueError, ManifestError):
        return None


def _recorded_selection(state: Mapping[str, Any]) -> Selection | None:
    """The part of the release that is installed; None: all of it."""
    if "selection" not in state:
        return None
    from perfkit.archives.members import Selection

    return Selection.of(state["selection"])


def _fetch_pointer(
    site: SiteClient, trust: Trust, signers: Signers | None, recorded: _Offered | None
) -> tuple[_Offered, Trust]:
    """The current pointer, verified before it is parsed; and what to remember of it.

    Args:
        recorded: the pointer of the installed release.
    """
    data, version = site.pointer((recorded.data, recorded.version) if recorded else None)
    try:
        trust = trust.verify(data, signers, site.url, site.signature)
        pointer = Pointer.parse(data)
        if pointer.channel != (site.channel or ""):
            wanted, found = (f"channel {each}" if each else "site" for each in (site.channel, pointer.channel))
            raise ManifestError(f"the pointer of its {wanted} is that of the {found}; promote it again")
        return _Offered(data, pointer, version), trust
    except (ManifestError, SignatureError) as error:
        site.forget_pointer()
        if isinstance(error, SignatureError):
            raise
        raise ManifestError(f"{redacted(site.url)}: {error}") from error


class ReleaseSource:
    """One release of a site. See `Source` for the methods.

    Three routes lead to a blob: deltas from the installed release, which also produce the new manifest; packs of small
    frames; and packs of large ones. All are priced; if one fails, the next is taken.

    Args:
        selection: the wanted files; None: the selection of the last sync. Deltas are for whole releases, so selected
            files are always made from packs.
    """

    type = SourceType.RELEASE
    keep_staged = frozenset({POINTER_NAME})

    def __init__(
        self,
        site: SiteClient,
        offered: _Offered,
        installed: Installed,
        *,
        selection: Selection | None = None,
        dry_run: bool = False,
    ) -> None:
        pointer = offered.pointer
        self.url = site.url
        self.version = pointer.version
        self.serial = pointer.serial
        self._site = site
        self._pointer = pointer
        self._offered = offered
        self._installed = installed
        self._dry_run = dry_run
        recorded = installed.state if installed.type is self.type and installed.is_from(site.url) else {}
        self._recorded = _recorded_selection(recorded)
        self._installed_release = recorded.get("release", installed.manifest_sha256)
        self._all: Manifest | None = None  # all files of the release, of which some are selected
        self._selection = self._recorded if selection is None else selection if str(selection) else None
        chain = pointer.chain(installed.manifest_sha256) if self._selection is None else ()
        self._deltas = [delta.object for delta in chain]
        self._pack_route: tuple[str, PackRoute] | None = None  # the last one: each takes megabytes for many files
        self._exhausted: set[tuple[str, str]] = set()  # routes and variants that supplied what they can, or failed
        self._error: PerfkitError | None = None  # the last failure
        self._taken: list[str] = []

    def unchanged(self) -> bool:
        """Whether the files of the pointer are installed, whatever their version is called."""
        return self._installed_release == self._pointer.manifest_sha256 and self._selection == self._recorded

    def record(self) -> dict[str, object]:
        record: dict[str, object] = {"pointer": self._offered.data.decode(), "origin": self._offered.version.record}
        if self._site.channel is not None:
            record["channel"] = self._site.channel
        if self._selection is not None:
            record |= {"selection": self._selection.record(), "release": self._pointer.manifest_sha256}
        return record

    def resolve(self, local: LocalTree, staging: StagingArea) -> Manifest:
        release = self._read_release(local, staging)
        if self._selection is None:
            return release
        self._all = release
        return Manifest.of(entry for entry in release if self._selection.wants(entry.name))

    def _read_release(self, local: LocalTree, staging: StagingArea | None) -> Manifest:
        """All files of the release.

        Args:
            staging: takes the new blobs of a delta; None: use no delta.

        Raises:
            ManifestError: there are more than `Config.max_files`; raised before they take memory.
        """
        if self._pointer.manifest.size > self._most_bytes:
            self._refuse_size(f"a list of files of {self._pointer.manifest.size:,} bytes, too long for")
        manifest = self._read_manifest(local, staging)
        if len(manifest) > self._site.max_files:
            self._refuse_size(f"{len(manifest):,} files, more than")
        return manifest

    @property
    def _most_bytes(self) -> int:
        return _LISTED_BYTES * self._site.max_files

    def _refuse_size(self, what: str) -> NoReturn:
        raise ManifestError(
            f"{redacted(self.url)}: {printable(self.version)} has {what} max_files, which is {self._site.max_files:,}. "
            "If it is meant to be so large, raise that (PERFKIT_MAX_FILES): a sync takes 20 MB for each 100,000 files"
        )

    def _read_manifest(self, local: LocalTree, staging: StagingArea | None) -> Manifest:
        mmap_large_allocations()
        sha256 = bytes.fromhex(self._pointer.manifest_sha256)
        with contextlib.suppress(OSError, ManifestError):  # after a rollback the history has it
            stored = os.path.join(self._installed.root, layout.object_path(sha256.hex()))
            return Manifest.parse(file_bytes(open_own(stored)), sha256=sha256)
        if staging is not None and self._delta_is_best():
            with self._trying("delta", ""):
                if (made := self._apply_deltas(local, staging)) is not None:
                    return made
        base = self._pointer.base
        if base is not None and self._installed.manifest.sha256.hex() != base.sha256:
            self._site.begin([base.packed.object], _LIST)
        self._site.begin([self._pointer.manifest.object], _LIST)
        if staging is not None:
            self._begin_content(local)
        if base is not None:
            return self._changed_manifest(base)
        return Manifest.parse(self._site.get_packed(self._pointer.manifest, _LIST), sha256=sha256)

    def _begin_content(self, local: LocalTree) -> None:
        """Begin to fetch what is likely to be wanted next: an index, as `_indexes` will choose it, and for a first
        install the packs.
        """
        likely = self._pointer.fine if len(local) else self._pointer.solid
        self._site.begin([likely.object], "the index")
        if not (len(local) or self._installed.files or self._selection or self._dry_run):
            from perfkit.updates.sources.pack_route import begin_packs  # loaded while the index comes

            with self._trying("blocks", _SOLID):
                begin_packs(self._site, likely)

    def _changed_manifest(self, base: BaseManifest) -> Manifest:
        """The manifest that is made from another one, which the tree may have."""
        from perfkit.releases.format.delta import Delta  # loaded while its objects come

        changes, old = self._pointer.manifest.object, self._installed.manifest
        if old.sha256.hex() != base.sha256:
            raw = self._site.get_packed(base.packed, _LIST)
            old = Manifest.parse(raw, sha256=bytes.fromhex(base.sha256))
        (path,) = self._site.get([changes], _LIST, phase=f"reading {_LIST}")
        with open(path, "rb") as file:
            manifest = Delta.open(file).new_manifest(old, most_bytes=self._most_bytes, keep=self._site.keep)
        if manifest.sha256.hex() != self._pointer.manifest_sha256:
            raise ManifestError("delta: it does not lead to this release")
        return manifest

    def _delta_is_best(self) -> bool:
        """Whether to take the delta route, judging by the pointer alone.

        The publisher offers a delta only if it is smaller than the blocks, but a chain of several may not be. What is
        missing, and its price in blocks, is known only with the manifest and an index: these are fetched first if they
        cost little.
        """
        index_bytes = self._pointer.manifest_bytes + self._pointer.fine.object.bytes
        clear = len(self._deltas) == 1 or index_bytes > _INDEX_SHARE * sum(delta.bytes for delta in self._deltas)
        return bool(self._deltas) and clear and not self._dry_run

    def _apply_deltas(self, local: LocalTree, staging: StagingArea) -> Manifest | None:
        """Make new blobs with the deltas from the installed release; returns the new manifest if all were made."""
        label = f"changes since {self._installed.version}"
        self._exhausted.add(("delta", ""))
        self._site.begin(self._deltas, label)
        from perfkit.updates.sources.delta_route import apply_deltas  # loaded while they come

        paths = self._site.get(self._deltas, label)
        self._taken.append("delta")
        manifest = apply_deltas(
            paths, self._installed.manifest, local, staging, most_bytes=self._most_bytes, keep=self._site.keep
        )
        if manifest is not None and manifest.sha256.hex() != self._pointer.manifest_sha256:
            raise ManifestError("delta: it does not lead to this release")
        return manifest

    def _indexed(self, manifest: Manifest, local: LocalTree) -> Manifest:
        """The manifest of the whole release, to which its indexes refer, given that of the selected files."""
        if self._selection is None:
            return manifest
        self._all = self._all or self._read_release(local, None)
        return self._all

    def offers(self, missing: Set[bytes], manifest: Manifest, local: LocalTree) -> tuple[Offer, ...]:
        if not missing:
            return ()
        manifest = self._indexed(manifest, local)
        latency_s = self._site.latency_s
        while True:
            exhausted = len(self._exhausted)
            try:
                return choose_routes(missing, lambda left: list(self._offers(left, manifest, local)), latency_s)
            except UpdateError:
                if exhausted == len(self._exhausted):
                    raise
            # an index could not be fetched: the other one may have what is missing

    def fetch(self, missing: Set[bytes], manifest: Manifest, local: LocalTree, staging: StagingArea) -> tuple[str, ...]:
        while left := staging.missing(missing):
            offer = self._best_offer(left, manifest, local)
            with self._trying(offer.route, offer.variant):
                self._take(offer, manifest, local, staging)
        self._pack_route = None
        return tuple(dict.fromkeys(self._taken))

    def _best_offer(self, missing: Set[bytes], manifest: Manifest, local: LocalTree) -> Offer:
        """The route to take first.

        Raises:
            PerfkitError: no route is left; the last failure.
        """
        try:
            return self.offers(missing, manifest, local)[0]
        except PerfkitError as error:
            reason = f"{len(missing)} file contents can't be fetched by any route; the tree was not changed"
            raise self._error or TransferError(self.url, reason) from error

    @contextlib.contextmanager
    def _trying(self, route: str, variant: str) -> Iterator[None]:
        """Exclude a route that fails, and continue; but raise if the server does not respond at all."""
        try:
            yield
        except (ManifestError, TransferError) as error:
            silent = isinstance(error, TransferError) and error.transient and not isinstance(error, HTTPStatusError)
            if silent or isinstance(error, CancelledError):
                raise
            self._exhausted.add((route, variant))
            self._error = error
            _log.warning("%s: the route %s failed: %s", redacted(self.url), variant or route, error)

    def _take(self, offer: Offer, manifest: Manifest, local: LocalTree, staging: StagingArea) -> None:
        if offer.route == "delta":
            self._apply_deltas(local, staging)
            return
        self._open_packs(offer.variant, self._indexed(manifest, local), local).fetch(offer.blobs, staging)
        self._taken.append(offer.route)
        if missing := staging.missing(offer.blobs):
            raise ManifestError(f"{len(missing)} file contents do not have the digest in the manifest")

    def _offers(self, missing: Set[bytes], manifest: Manifest, local: LocalTree) -> Iterator[Offer]:
        """The offers of the remaining routes; fetches the indexes that are worth their cost."""
        delta = self._delta_offer(missing)
        if delta is not None:
            yield delta
            if delta.blobs == missing and delta.bytes <= self._pointer.fine.object.bytes:
                return  # the index alone would cost more
        for variant in self._indexes(missing, manifest, local):
            with self._trying("blocks", variant):
                yield self._open_packs(variant, manifest, local).offer(missing)

    def _open_packs(self, variant: str, manifest: Manifest, local: LocalTree) -> PackRoute:
        """The route of one index, which is fetched if necessary."""
        if self._pack_route is None or self._pack_route[0] != variant:
            from perfkit.updates.sources.pack_route import PackRoute

            self._pack_route = None
            route = PackRoute(self._site, self._packed(variant), manifest, local, variant=variant)
            self._pack_route = variant, route
        return self._pack_route[1]

    def _packed(self, variant: str) -> PackedRef:
        return self._pointer.fine if variant == _FINE else self._pointer.solid

    def _delta_offer(self, missing: Set[bytes]) -> Offer | None:
        """The offer of the deltas, which supply all blobs that the installed release does not have."""
        if not self._deltas or ("delta", "") in self._exhausted:
            return None
        blobs = missing - DigestSet(filter(missing.__contains__, self._installed.manifest.digests()))
        deltas = self._site.not_staged(self._deltas)
        size = sum(delta.bytes for delta in deltas)
        return Offer("delta", blobs, bytes=size, requests=len(deltas)) if blobs else None

    def _indexes(self, missing: Set[bytes], manifest: Manifest, local: LocalTree) -> Iterator[str]:
        """The indexes that are worth fetching for what is missing, and those that are staged already.

        A file that the tree has in another version may need only some small frames.
        """
        entries = pack_numbers(at for at, digest in enumerate(manifest.digests()) if digest in missing)
        total, new_bytes = max(1, manifest.total_bytes), sum(map(manifest.size, entries))
        share = new_bytes / total
        if local:
            new_bytes = sum(manifest.size(at) for at in entries if local.path_of(manifest.name(at)) is None)
        new_share = new_bytes / total
        left = [variant for variant in (_FINE, _SOLID) if ("blocks", variant) not in self._exhausted]
        for variant in left:
            suits = new_share < _FINE_UP_TO if variant == _FINE else share >= _SOLID_FROM
            if suits or len(left) == 1 or not self._site.not_staged([self._packed(variant).object]):
                yield variant
