"""The pack route: use an index of the release to make blobs from frames of packs and from pieces of old files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Sequence, Set
from functools import cache

from perfkit.errors import ManifestError
from perfkit.filesystem.compact import pack_numbers
from perfkit.filesystem.own_files import open_own
from perfkit.libc import trim_heap
from perfkit.releases.format.frames import CUT_ABOVE_BYTES, decode_range, split_parts, split_pieces, tag
from perfkit.releases.format.index import Index, PackRange
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.format.pointer import PackedRef
from perfkit.updates.local_tree import LocalTree
from perfkit.updates.routes import Offer
from perfkit.updates.sources.site_client import SiteClient
from perfkit.updates.staging import StagingArea

_INDEX = "the index"  # what progress displays call it
_RANGE_BYTES = 1 << 20  # minimum of a request, if there is that much to fetch: a connection starts slowly
_MAX_RANGES = 24  # of that size; if there is more to fetch, the ranges are larger
# Unused bytes that are fetched to save a request: what arrives in the time of one, but a small part of the total.
_LEAST_GAP_BYTES, _MAX_GAP_BYTES, _MAX_GAPS = 4 << 10, 24 << 10, 128
_AHEAD_BYTES, _AHEAD_FRAMES = 32 << 20, 4096  # maximum of what is fetched before the manifest has come
_AHEAD_SPACE = 16  # times the bytes that must be free for that: it is not known yet how much they are unpacked


class PackRoute:
    """Makes blobs from the packs of one index.

    Args:
        index: the index of the packs.
        variant: the name of the index, for `Offer`.
        local: files to take pieces from.

    Raises:
        ManifestError, TransferError, OSError: the index can't be fetched, or is damaged.
    """

    def __init__(
        self, site: SiteClient, index: PackedRef, manifest: Manifest, local: LocalTree, *, variant: str
    ) -> None:
        self._site = site
        self._local = local
        self._seeds: Seeds | None = None
        self._manifest = manifest
        self._index = Index.parse(site.get_packed(index, _INDEX), manifest)
        self._variant = variant
        self._offered: tuple[Set[bytes], Sequence[int]] = frozenset(), ()  # blobs, and the pieces that they need

    def offer(self, missing: Set[bytes]) -> Offer:
        """What it costs to make these blobs."""
        pieces = self._pieces(missing)
        self._offered = missing, pieces
        seeds = self._find_seeds(pieces)
        ranges = _ranges(self._index, _filtered(pieces, lambda number: number not in seeds))
        staged = self._site.staged_ranges()
        unstaged = [each for each in ranges if staged.find(self._index, each) is None]
        dictionaries = self._site.not_staged(packed.object for packed in self._dictionaries(ranges).values())
        return Offer(
            "blocks",
            missing,
            variant=self._variant,
            requests=len(unstaged) + len(dictionaries),
            bytes=sum(each.end - each.start for each in unstaged) + sum(ref.bytes for ref in dictionaries),
            decoded_bytes=sum(self._index.sizes[frame] for each in ranges for frame in each.frames),
        )

    def fetch(self, missing: Set[bytes], staging: StagingArea) -> None:
        """Make these blobs; those with a wrong digest are not staged.

        Raises:
            ManifestError: a frame is damaged; all others were used.
            TransferError, OSError: as `SiteClient.fetch_ranges`.
        """
        pieces = self._pieces(missing)
        seeds = self._find_seeds(pieces)
        local = _filtered(pieces, seeds.__contains__)
        remote = _filtered(pieces, lambda number: number not in seeds) if local else pieces
        self._fetch(remote, local, missing, staging)
        if local and (left := staging.missing(missing)):
            seeds.clear()
            self._fetch(self._pieces(left), (), left, staging)

    def _find_seeds(self, pieces: Collection[int]) -> Seeds:
        """The pieces that the tree has. It is searched once: later calls need a subset of the first call's pieces."""
        if self._seeds is None:
            self._seeds = Seeds(self._index, self._manifest, pieces, self._local)
        return self._seeds

    def _fetch(self, remote: Sequence[int], local: Collection[int], missing: Set[bytes], staging: StagingArea) -> None:
        """Fetch the remote pieces, and make the missing blobs from them and from the local ones."""
        ranges = _ranges(self._index, remote)
        failures: list[ManifestError] = []
        dictionaries = self._dictionaries(ranges)
        needed = [packed.object for packed in dictionaries.values()]
        fetched = self._site.fetch_ranges(self._index, ranges, self._label, before=needed)

        @cache
        def dictionary_of(pack: int) -> bytes | None:
            return self._site.get_packed(dictionaries[pack], "a dictionary")[:] if pack in dictionaries else None

        trim_heap()  # free what choosing ranges used before decoders need memory
        try:
            with contextlib.closing(fetched):
                for each in fetched:  # decoded while others come
                    try:
                        self._decode(each, remote, staging, dictionary_of(each.pack))
                    except ManifestError as error:
                        failures.append(error)
            left = staging.missing(missing)
            with staging.show_progress(files=len(left), total_bytes=staging.expected.index.bytes_of(left)):
                self._find_seeds(local).write(local, self._manifest, staging)
        finally:
            staging.discard_partial()
        trim_heap()
        if failures or staging.missing(missing):
            self._delete(ranges)
        if failures:
            raise failures[-1]

    def _label(self, each: PackRange) -> str:
        """What progress displays call a range: the first of its files."""
        first, last = self._index.pieces_of(each.frames[0])[0], self._index.pieces_of(each.frames[-1])[-1]
        entries = [self._index.piece(number).entry for number in (first, last)]
        return self._manifest.name(entries[0]) + (" and others" if entries[0] != entries[1] else "")

    def _pieces(self, missing: Set[bytes]) -> Sequence[int]:
        if missing is self._offered[0]:
            return self._offered[1]
        return self._index.pieces(lambda entry: self._manifest.digest(entry) in missing)

    def _dictionaries(self, ranges: Collection[PackRange]) -> dict[int, PackedRef]:
        packs = {each.pack: self._index.packs[each.pack] for each in ranges}
        return {number: pack.dictionary for number, pack in packs.items() if pack.dictionary is not None}

    def _decode(self, each: PackRange, pieces: Sequence[int], staging: StagingArea, shared: bytes | None) -> None:
        if (found := self._site.find_range(self._index, each)) is None:
            raise ManifestError("a range of a pack is missing from the staging area")
        path, start = found
        with open(path, "rb") as file:
            file.seek(each.start - start)
            decode_range(self._index, each, file, staging.writer(self._manifest), wanted=pieces, shared=shared)

    def _delete(self, ranges: Collection[PackRange]) -> None:
        """Delete all of these ranges: it is not known which of them is damaged."""
        staged = self._site.staged_ranges()
        for each in ranges:
            if (found := staged.find(self._index, each)) is not None:
                with contextlib.suppress(OSError):
                    os.unlink(found[0])


def _ranges(index: Index, pieces: Sequence[int]) -> list[PackRange]:
    """The ranges to fetch for these pieces: several if there is much to fetch, since none is split later."""
    total = sum(each.end - each.start for each in index.ranges(pieces))
    max_gap = min(_MAX_GAP_BYTES, max(_LEAST_GAP_BYTES, total // _MAX_GAPS))
    return index.ranges(pieces, max_gap=max_gap, max_bytes=max(_RANGE_BYTES, total // _MAX_RANGES))


def begin_packs(site: SiteClient, packed: PackedRef) -> None:
    """Begin to fetch the packs of an index before the manifest tells what is in them, unless that is much.

    Raises:
        ManifestError, TransferError, OSError: the index can't be fetched, or is damaged.
    """
    index = Index.without_pieces(site.get_packed(packed, _INDEX))
    size = sum(index.packed)
    if len(index) <= _AHEAD_FRAMES and size <= _AHEAD_BYTES and size * _AHEAD_SPACE <= site.free_space():
        site.begin_ranges(index, _ranges(index, range(len(index))))


def _filtered(pieces: Iterable[int], wanted: Callable[[int], bool]) -> Sequence[int]:
    return pack_numbers(filter(wanted, pieces))


class Seeds:
    """The pieces that the tree's files already have. A matching tag proves nothing: the staging area checks the digest.

    Only files with the names of the wanted ones are searched.

    Args:
        pieces: their numbers in the index.
    """

    def __init__(self, index: Index, manifest: Manifest, pieces: Collection[int], local: LocalTree) -> None:
        self._index = index
        self._found: dict[int, tuple[str, int]] = {}  # piece: the path of a file, and its offset there
        wanted: dict[tuple[int, int], list[int]] = {}
        names: dict[str, None] = {}
        for number in pieces if index.tags else ():
            piece = index.piece(number)
            if piece.tag:
                wanted.setdefault((piece.tag, piece.length), []).append(number)
                names[manifest.name(piece.entry)] = None
        for name in names:
            path = local.path_of(name)
            if path is not None:
                with contextlib.suppress(OSError):
                    self._search(path, wanted)

    def _search(self, path: str, wanted: dict[tuple[int, int], list[int]]) -> None:
        offset = 0
        with open(path, "rb", opener=open_own) as file:
            small = os.fstat(file.fileno()).st_size <= CUT_ABOVE_BYTES
            for data in (file.read(),) if small else split_pieces(file):
                parts = (data,) if (tag(data), len(data)) in wanted else split_parts(data, len(data))
                for part in parts:
                    for number in wanted.get((tag(part), len(part)), ()):
                        self._found[number] = path, offset
                    offset += len(part)

    def __contains__(self, number: int) -> bool:
        return number in self._found

    def clear(self) -> None:
        """Forget all pieces: some turned out to be wrong."""
        self._found.clear()

    def write(self, pieces: Collection[int], manifest: Manifest, staging: StagingArea) -> None:
        """Copy those of the pieces that were found to the staging area; files that have changed since are skipped."""
        write = staging.writer(manifest)
        for number in pieces:
            if number not in self._found:
                continue
            piece = self._index.piece(number)
            path, offset = self._found[number]
            data = b""
            with contextlib.suppress(OSError), open(path, "rb", opener=open_own) as file:
                data = os.pread(file.fileno(), piece.length, offset)
            if len(data) == piece.length:
                write(piece.entry, piece.offset, memoryview(data))
