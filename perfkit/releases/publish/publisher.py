"""Publish a directory as a release on a static site.

The steps: hash the tree; write what the site lacks into packs; write the indexes; make deltas from the last releases;
replace the pointer. Until that last step, nothing that a client reads has changed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import islice, repeat
from typing import Any, BinaryIO

from perfkit.errors import ConfigError, ManifestError
from perfkit.libc import mmap_large_allocations
from perfkit.progress.meter import Progress
from perfkit.progress.stage import Stage
from perfkit.releases.format import MAX_AHEAD_MS
from perfkit.releases.format.delta import Delta
from perfkit.releases.format.index import Index
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.format.pointer import BaseManifest, DeltaRef, PackedRef, Pointer, short_digest
from perfkit.releases.format.release_history import History, ReleaseRecord, cheapest_hops
from perfkit.releases.publish.blob_reader import BlobReader
from perfkit.releases.publish.delta_encoder import Comparison, encode_delta, new_blobs
from perfkit.releases.publish.frame_table import Copies, FrameTable, Gaps
from perfkit.releases.publish.large_files import HashedPieces, LastRelease
from perfkit.releases.publish.manifest_patch import manifest_patch
from perfkit.releases.publish.options import PublishOptions, expiry
from perfkit.releases.publish.packing import (
    FINE_LEVEL,
    PackWriter,
    merge_packs,
    pool,
    solid_order,
    train_dictionary,
    write_fine,
    write_solid,
)
from perfkit.releases.publish.site import ObjectWriter, Site, referenced
from perfkit.releases.publish.source_tree import SourceTree, open_source
from perfkit.releases.publish.work_cache import WorkCache
from perfkit.releases.statcache import StatCache

_log = logging.getLogger(__name__)

_FILES_NAME = ".perfkit-publish.files"  # what the last publisher knew of the files of the tree
_OFFERED = 10  # maximum of earlier releases with a delta in the pointer
_LATER_LEVEL = 18  # of large frames of further releases: 20 % faster than 19, and 0.2 to 1.5 % larger
_LIVE_SHARE = 0.8  # of a large frame: if less of it is in use, it is dropped
_SOLID_GAP = 0.2  # maximum share of the tree that first installs, too, get from small frames
_WORTH_RATIO = 0.75  # content that small frames compress less than this gets no large ones
_FEW_BYTES = 1 << 20  # if no more lacks large frames, all of it gets them: another pack costs first installs more
_LARGE_MANIFEST_BYTES = 256 << 10  # if the object of a manifest has as many, later releases store changes to it
_PATCH_SHARE = 1 / 16  # of that object: if the changes are larger, the whole manifest is written


@dataclass(frozen=True, slots=True)
class Release:
    """What was published.

    Attributes:
        version: as given.
        serial: increases with each release; clients refuse a lower one than they have had. The first one of a site is
            the Unix time in milliseconds, so that a new site continues from the one that it replaces.
        number: how many releases the site has had, including this one.
        manifest_sha256: hexadecimal; identifies the tree.
        files: how many files the tree has.
        bytes: the total size of the tree.
        objects_written: new files in the site.
        bytes_written: the total size of these.
        deltas: how many earlier releases can be updated by deltas.
        unchanged: the site already offered this tree as this version, and at most its expiry and signatures are new.
        seconds: how long it took.
    """

    version: str
    serial: int
    number: int
    manifest_sha256: str
    files: int
    bytes: int
    objects_written: int = 0
    bytes_written: int = 0
    deltas: int = 0
    unchanged: bool = False
    seconds: float = 0.0


def publish(src: str, site: str, *, progress: Progress | None = None, **options: Any) -> Release:
    """Publish the tree `src` on `site`, with these `PublishOptions`. See `Toolkit.publish`."""
    chosen = PublishOptions(**options)
    check_places(src, site)
    mmap_large_allocations()
    tree = SourceTree(src, tuple(chosen.exclude), links=chosen.links)
    began_s = time.monotonic()
    clock_ns = _clock_ns(src, site)
    known = _known_files(site) if clock_ns else None
    with contextlib.ExitStack() as stack:
        before = stack.enter_context(contextlib.closing(LastRelease(Site(site), known.manifest))) if known else None
        tree.read_all(progress, known, before.hash if before else None)
        known = None
        manifest = tree.manifest
        release = publish_manifest(src, site, manifest, chosen, progress=progress, before=before)
    if clock_ns:
        rows = StatCache(manifest)
        rows.record_columns(tree.columns, content_ns=clock_ns)
        try:
            rows.save(path := os.path.join(site, _FILES_NAME))
            os.chmod(path, 0o644)  # like all files of a site
        except OSError as error:  # the release is published
            _log.warning("%s: the record of the files that were read could not be written: %s", site, error)
    return replace(release, seconds=time.monotonic() - began_s)


def _clock_ns(src: str, site: str) -> int:
    """The file system's time; 0: it is not known, since the tree is not on the site's file system."""
    place = os.path.realpath(site)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=place) as file:
        found = os.fstat(file.fileno())
        return found.st_mtime_ns if found.st_dev == os.stat(src).st_dev else 0
    return 0


def _known_files(root: str) -> StatCache | None:
    """What the last publisher knew of the files; None: nothing, so all files are read."""
    site = Site(root)
    with contextlib.suppress(ManifestError, OSError):
        if (pointer := site.pointer()) is not None:
            manifest = _read_manifest(site, pointer)
            return StatCache.load(os.path.join(root, _FILES_NAME), manifest, lambda _: None)
    return None


def _read_manifest(site: Site, release: Pointer | ReleaseRecord) -> Manifest:
    if release.base is None:
        return _read_whole(site, release.manifest_sha256, release.manifest)
    patch = Delta.open(BytesIO(site.get(release.manifest.object)))
    return patch.new_manifest(_read_whole(site, release.base.sha256, release.base.packed), known=True)


def _read_whole(site: Site, sha256: str, packed: PackedRef) -> Manifest:
    return Manifest.parse(site.get_packed(packed), sha256=bytes.fromhex(sha256), known=True)


def check_places(src: str, site: str) -> None:
    """Check that `src` is a directory, and that `site` is not in it.

    Raises:
        ConfigError: `src` is not a directory, or `site` is in it.
    """
    if not os.path.isdir(src):
        raise ConfigError(f"{src} is not a directory; give the directory to publish")
    if os.path.realpath(site).startswith(os.path.join(os.path.realpath(src), "")):
        raise ConfigError(f"the site {site} lies in the tree {src} that is published; choose another directory")


def publish_manifest(
    src: str,
    site: str,
    manifest: Manifest,
    options: PublishOptions,
    *,
    progress: Progress | None = None,
    before: LastRelease | None = None,
) -> Release:
    """As `publish`, for a tree with a known manifest. Only files that the site lacks are read.

    Args:
        before: a release of the site, of which nothing that was read is read again.

    Raises:
        FileChangedError: a file does not match the manifest; the site is as it was.
        Otherwise as `publish`.
    """
    began_s = time.monotonic()
    with contextlib.closing(Site(site, wait_s=options.wait_s)) as place, place, contextlib.ExitStack() as stack:
        release = _Publisher(src, place, manifest, options, stack, progress, before).run()
    return replace(release, seconds=time.monotonic() - began_s)


def _versioned(template: str, number: int) -> str:
    """Fill in `{n}` and `{time}` in a version."""
    return template.replace("{n}", str(number)).replace("{time}", time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))


class _Publisher:
    """Publishes one release."""

    def __init__(
        self,
        src: str,
        site: Site,
        manifest: Manifest,
        options: PublishOptions,
        stack: contextlib.ExitStack,
        progress: Progress | None,
        before: LastRelease | None,
    ) -> None:
        self._src = src
        self._options = options
        self._progress = progress
        self._site = site
        self._manifest = manifest
        self._stack = stack
        pointer = site.pointer()
        self._least_serial = pointer.serial + 1 if pointer else 1
        self._previous = None if site.is_empty() else pointer  # a pointer alone is kept for its serial
        self._history = site.history(self._previous) if self._previous else History()
        self._readers: dict[PackedRef, BlobReader] = {}
        self._manifests: dict[str, Manifest] = {}  # those that were read, by digest
        self._hashed: Mapping[str, HashedPieces] = {}
        self._cache = WorkCache()
        if before is not None:
            self._manifests[before.manifest.sha256.hex()] = before.manifest
            if before.reader is not None and self._previous is not None and self._previous.fine == before.fine:
                self._readers[self._previous.fine], self._hashed = before.reader, before.pieces
        self._first: dict[bytes, int] = {}  # blob: the first entry with it
        for entry, digest in enumerate(manifest.digests()):
            if manifest.size(entry):
                self._first.setdefault(digest, entry)

    def run(self) -> Release:
        options, previous, manifest = self._options, self._previous, self._manifest
        version = options.version
        expires_s = expiry(options.expires_s)
        same = previous is not None and previous.manifest_sha256 == manifest.sha256.hex()
        now_ms = time.time_ns() // 1_000_000
        number = previous.serial - self._history.first + 2 if previous else 1
        # The time, so that sooner or later it exceeds a serial that somebody else has published for this site.
        serial = options.serial or max(self._least_serial, now_ms)
        if serial < self._least_serial:
            raise ConfigError(f"serial {serial} is too low: the last release of the site has {self._least_serial - 1}")
        if serial > now_ms + MAX_AHEAD_MS:
            reason = f"serial {serial} is too high: clients refuse one that is more than a day ahead, as a time"
            if options.serial:
                raise ConfigError(reason)
            _log.warning("%s: %s; set this clock, or publish to a new site directory", self._site.root, reason)
        first = serial - number + 1
        deltas = {(delta.origin, delta.target): delta for delta in self._history.deltas}
        if previous is not None and same:
            if previous.version == version or version != _versioned(version, number):
                self._site.replace_pointer(previous._replace(expires_s=expires_s), options.sign_keys)
                return self._release(previous, number - 1, unchanged=True)
            packed, base, solid, fine = previous.manifest, previous.base, previous.solid, previous.fine
            packs, solid_packs = self._history.records[-1].packs, self._history.solid_packs
        else:
            with pool() as threads:
                copies = self._copies()
                small, new_bytes = self._small_frames(copies, threads)
                fine = self._site.put_packed(small.index(manifest, tags=True).encode(manifest))
                packed, base = self._put_manifest()
                most = new_bytes + packed.object.bytes + fine.object.bytes
                with self._large_frames(small, copies, threads) as large:  # compressed meanwhile
                    for delta in self._deltas(threads, small, most):
                        deltas[delta.origin, delta.target] = delta
                solid = self._site.put_packed(large.index(manifest, tags=False).encode(manifest))
            packs, solid_packs = small.objects(), large.objects()
        sha256 = manifest.sha256.hex()
        version = _versioned(version, number)
        record = ReleaseRecord(version, serial, sha256, packed, fine, packs, base)
        records = [*(each for each in self._history.records if each.manifest_sha256 != sha256), record]
        channels = {each.manifest_sha256 for each in self._site.channels()}
        oldest = len(records) - options.keep_releases
        records = [each for at, each in enumerate(records) if at >= oldest or each.manifest_sha256 in channels]
        known = {short_digest(each.manifest_sha256) for each in records}
        kept = tuple(delta for ends, delta in sorted(deltas.items()) if known.issuperset(ends))
        offered = cheapest_hops(kept, [short_digest(each.manifest_sha256) for each in records[-_OFFERED - 1 :]])
        listed = History(tuple(records), kept, solid_packs, first)
        history = self._site.put(listed.encode())
        pointer = Pointer(version, serial, sha256, packed, solid, fine, history, offered, expires_s, base=base)
        needed = {history.sha256, *(ref.sha256 for ref in referenced(listed, solid))}
        if previous is not None:
            before = {previous.history.sha256, *(ref.sha256 for ref in referenced(self._history, previous.solid))}
            self._site.retire(before - needed)
        self._site.replace_pointer(pointer, options.sign_keys)
        try:
            self._site.prune(needed, grace_s=options.grace_s)
        except OSError as error:  # the release is published; the next one removes them
            _log.warning("%s: files that are no longer used could not be removed: %s", self._site.root, error)
        return self._release(pointer, number)

    def _release(self, pointer: Pointer, number: int, *, unchanged: bool = False) -> Release:
        return Release(
            version=pointer.version,
            serial=pointer.serial,
            number=number,
            manifest_sha256=pointer.manifest_sha256,
            files=len(self._manifest),
            bytes=self._manifest.total_bytes,
            objects_written=len(self._site.written),
            bytes_written=sum(ref.bytes for ref in self._site.written),
            deltas=len(pointer.deltas),
            unchanged=unchanged,
        )

    def _open(self, entry: int) -> BinaryIO:
        return open_source(self._src, self._manifest.name(entry), self._options.links)

    def _put_manifest(self) -> tuple[PackedRef, BaseManifest | None]:
        """The object with the manifest; or with the changes to an earlier release's manifest, if that is large."""
        before = self._previous
        if before is not None:
            base = before.base or BaseManifest(before.manifest_sha256, before.manifest)
            if base.packed.object.bytes >= _LARGE_MANIFEST_BYTES:
                known = self._manifests.get(base.sha256)
                patch = manifest_patch(known or _read_whole(self._site, base.sha256, base.packed), self._manifest)
                if len(patch) <= _PATCH_SHARE * base.packed.object.bytes:
                    return PackedRef(self._site.put(patch), len(self._manifest.raw)), base
        return self._site.put_packed(self._manifest.raw), None

    def _reader(self, release: Pointer, packed: PackedRef) -> BlobReader:
        """A reader of the last release's packs through one of its indexes; it is closed when publishing ends."""
        if packed not in self._readers:
            self._readers[packed] = self._stack.enter_context(contextlib.closing(self._opened(release, packed)))
            self._manifests[release.manifest_sha256] = self._readers[packed].manifest
        return self._readers[packed]

    def _opened(self, release: Pointer | ReleaseRecord, packed: PackedRef) -> BlobReader:
        manifest = self._manifests.get(release.manifest_sha256) or _read_manifest(self._site, release)
        return BlobReader(self._site, manifest, Index.parse(self._site.get_packed(packed), manifest, known=True))

    def _copies(self) -> Copies:
        """What the last release has, too."""
        if self._previous is None:
            return Copies(())
        before = self._reader(self._previous, self._previous.fine).manifest
        return Copies(map(self._first.get, before.digests(), repeat(-1)))

    def _small_frames(self, copies: Copies, threads: ThreadPoolExecutor) -> tuple[FrameTable, int]:
        """Write new packs of small frames; returns the table, and the bytes of new frames.

        Args:
            copies: receives the equal ranges of changed files.
        """
        old, table = None, FrameTable()
        if self._previous is not None:
            old = self._reader(self._previous, self._previous.fine)
            table = FrameTable.kept(old.index, copies)
        fresh = solid_order(self._manifest, set(self._first.values()).difference(table.entries))
        shared = self._dictionary(table, fresh)
        level = min(self._options.level, FINE_LEVEL)
        with self._writer(threads, table, level, "packing", self._size(fresh), shared=shared) as writer:
            write_fine(self._manifest, fresh, self._open, writer, copies, old, self._hashed)
            new_bytes = writer.flush()
            if old is not None:
                merge_packs(table, old, writer)
        return table, new_bytes

    @contextlib.contextmanager
    def _large_frames(self, small: FrameTable, copies: Copies, threads: ThreadPoolExecutor) -> Iterator[FrameTable]:
        """Write new packs of large frames. Threads compress the last ones during the `with` block; after it, the table
        is complete.
        """
        old, table, level = None, FrameTable(), self._options.level
        if self._previous is not None:
            old = self._reader(self._previous, self._previous.solid)
            stand_in = {pack.object for pack in self._reader(self._previous, self._previous.fine).index.packs}
            table = FrameTable.kept(old.index, copies, share=_LIVE_SHARE, parts=True)
            table.drop(lambda frame: table.packs[table.packs_of[frame]].object in stand_in)
            level = min(level, _LATER_LEVEL)
        gaps = table.gaps(self._manifest, self._first.values())
        if self._size(gaps.entries()) > _FEW_BYTES:
            gaps = small.compressible(gaps, _WORTH_RATIO)
        if gaps.bytes <= _SOLID_GAP * (gaps.bytes + sum(table.lengths)):
            gaps = Gaps()
        with self._writer(threads, table, level, "packing for first installs", gaps.bytes) as writer:
            write_solid(self._manifest, gaps, self._open, writer)
            yield table
            if old is not None:
                merge_packs(table, old, writer)
        table.add_from(small, table.gaps(self._manifest, self._first.values()))

    @contextlib.contextmanager
    def _writer(
        self,
        threads: ThreadPoolExecutor,
        table: FrameTable,
        level: int,
        phase: str,
        size: int,
        shared: PackedRef | None = None,
    ) -> Iterator[PackWriter]:
        with Stage(self._progress, phase, total_bytes=size) as shown:
            writer = PackWriter(self._site, threads, table, shown, level=level, shared=shared)
            with contextlib.closing(writer):
                yield writer
                writer.finish()

    def _size(self, entries: Iterable[int]) -> int:
        return sum(map(self._manifest.size, entries))

    def _dictionary(self, kept: FrameTable, fresh: Sequence[int]) -> PackedRef | None:
        """The latest dictionary, or a new one if most of the tree is new."""
        latest = kept.dictionary()
        if latest is not None and len(fresh) < len(self._first) // 2:
            return latest
        content = train_dictionary(self._manifest, fresh, self._open)
        return self._site.put_packed(content) if content else latest

    def _deltas(self, threads: ThreadPoolExecutor, fine: FrameTable, most: int) -> Iterator[DeltaRef]:
        """Deltas from the last releases, each only if it is smaller than what comes by blocks.

        Args:
            most: the bytes that come by blocks from the last release; the same is assumed for each release before it.
        """
        target = short_digest(self._manifest.sha256.hex())
        origins = [each for each in self._history.records if each.manifest_sha256 != self._manifest.sha256.hex()]
        for age, record in enumerate(islice(reversed(origins), self._options.keep_deltas), 1):
            with self._site.create() as writer:
                size = self._encode_delta(record, fine, writer, threads)
                if writer.bytes < age * most or not size:
                    yield DeltaRef(short_digest(record.manifest_sha256), target, self._site.finish(writer))

    def _encode_delta(
        self, record: ReleaseRecord, fine: FrameTable, writer: ObjectWriter, threads: ThreadPoolExecutor
    ) -> int:
        """Write a delta from a release, of which nothing stays in memory; returns the size of the content it makes."""
        with contextlib.ExitStack() as stack:
            old = self._readers.get(record.fine)
            if old is None:
                old = stack.enter_context(contextlib.closing(self._opened(record, record.fine)))
            wanted = new_blobs(old.manifest, self._first)
            size = self._size(wanted)
            with Stage(self._progress, f"comparing with {record.version}", total_bytes=size) as shown:
                between = Comparison(old, self._manifest, fine, wanted, self._open, self._cache)
                encode_delta(between, writer, threads, shown)
        return size
