"""The route by blocks: contents made from frames of packs, as one index of a release tells."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Sequence, Set

from perfkit.errors import ManifestError
from perfkit.filesystem.compact import pack_numbers
from perfkit.libc import give_back
from perfkit.releases.format.frames import cut, tag, unpack
from perfkit.releases.format.index import Index, PackRange
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.format.pointer import PackedRef
from perfkit.updates.planner import Offer
from perfkit.updates.sources.site_client import Objects, Staged
from perfkit.updates.staging import Assembly

__all__ = ["Packs", "Salvage"]

_RANGE_BYTES = 4 << 20  # what is worth a connection of its own
_MOST_RANGES = 24  # of this size or larger: whoever fetches more makes larger ones

Standing = Callable[[str], str | None]


class Packs:
    """The packs that one index tells of.

    Args:
        standing: the path of what stands in the tree under a name, to take pieces of.

    Raises:
        ManifestError, TransferError, OSError: the index can't be had, or is damaged.
    """

    def __init__(
        self, objects: Objects, index: PackedRef, manifest: Manifest, *, variant: str, standing: Standing
    ) -> None:
        self._objects = objects
        self._standing = standing
        self._salvage: Salvage | None = None
        self._manifest = manifest
        self._index = Index.parse(objects.packed(index), manifest)
        self._variant = variant

    def offer(self, missing: Set[bytes]) -> Offer:
        """What it takes to make these contents from frames."""
        pieces = self._pieces(missing)
        salvage = self._salvaged(pieces)
        ranges = self._ranges(_chosen(pieces, lambda number: number not in salvage))
        staged = self._objects.staged()
        lacking = [each for each in ranges if staged.find(self._index, each) is None]
        dictionaries = self._objects.lacks(packed.object for packed in self._dictionaries(ranges).values())
        decoded = sum(self._index.content_bytes(frame) for each in ranges for frame in each.frames)
        return Offer(
            "blocks",
            missing,
            variant=self._variant,
            requests=len(lacking) + len(dictionaries),
            decoded_bytes=decoded,
            bytes=sum(each.end - each.start for each in lacking) + sum(ref.bytes for ref in dictionaries),
        )

    def fetch(self, missing: Set[bytes], assembly: Assembly) -> None:
        """Make these contents; those that come out wrong are not in the assembly then.

        Raises:
            ManifestError: a frame is damaged; all others were used.
            TransferError, OSError: as they are fetched.
        """
        pieces = self._pieces(missing)
        salvage = self._salvaged(pieces)
        kept = _chosen(pieces, salvage.__contains__)
        fresh = _chosen(pieces, lambda number: number not in salvage) if kept else pieces
        self._fetch(fresh, kept, missing, assembly)
        if kept and (lacking := assembly.lacking(missing)):
            salvage.give_up()
            self._fetch(self._pieces(lacking), (), lacking, assembly)

    def _ranges(self, pieces: Sequence[int]) -> list[PackRange]:
        """What to fetch for these pieces: several requests for much, since none of them is split under way."""
        total = sum(each.end - each.start for each in self._index.ranges(pieces))
        return self._index.ranges(pieces, max_bytes=max(_RANGE_BYTES, total // _MOST_RANGES))

    def _salvaged(self, pieces: Collection[int]) -> Salvage:
        """What the tree has of them, looked for once: what is asked for later is some of the same."""
        if self._salvage is None:
            self._salvage = Salvage(self._index, self._manifest, pieces, self._standing)
        return self._salvage

    def _fetch(self, pieces: Sequence[int], kept: Collection[int], missing: Set[bytes], assembly: Assembly) -> None:
        """Fetch these pieces, and with what the tree has of others make the missing contents."""
        ranges = self._ranges(pieces)
        dictionaries = self._dictionaries(ranges)
        shared = {number: self._objects.packed(packed) for number, packed in dictionaries.items()}
        staged = self._objects.fetch_ranges(self._index, ranges)
        failure: ManifestError | None = None
        with assembly.making(files=len(missing)):
            self._salvaged(kept).write(kept, self._manifest, assembly)
            for each in ranges:
                try:
                    self._unpack(each, staged, pieces, assembly, shared.get(each.pack))
                except ManifestError as error:
                    failure = error
        assembly.forget_parts()
        give_back()
        if failure is not None or assembly.lacking(missing):
            self._discard(ranges, staged)
        if failure is not None:
            raise failure

    def _pieces(self, missing: Set[bytes]) -> Sequence[int]:
        return self._index.pieces(lambda entry: self._manifest.digest(entry) in missing)

    def _dictionaries(self, ranges: Collection[PackRange]) -> dict[int, PackedRef]:
        packs = {each.pack: self._index.packs[each.pack] for each in ranges}
        return {number: pack.dictionary for number, pack in packs.items() if pack.dictionary is not None}

    def _unpack(
        self, each: PackRange, staged: Staged, pieces: Sequence[int], assembly: Assembly, shared: bytes | None
    ) -> None:
        if (found := staged.find(self._index, each)) is None:
            raise ManifestError("a range of a pack is gone from the stage")
        path, start = found
        with open(path, "rb") as file:
            file.seek(each.start - start)
            unpack(self._index, each, file, assembly.writer(self._manifest), wanted=pieces, shared=shared)

    def _discard(self, ranges: Collection[PackRange], staged: Staged) -> None:
        """Nobody can tell which of them is damaged: none is to be used again."""
        for each in ranges:
            if (found := staged.find(self._index, each)) is not None:
                with contextlib.suppress(OSError):
                    os.unlink(found[0])


def _chosen(pieces: Iterable[int], fits: Callable[[int], bool]) -> Sequence[int]:
    return pack_numbers(filter(fits, pieces))


class Salvage:
    """What the files that stand in the tree have of some pieces. A tag proves nothing: the assembly has the last word.

    Args:
        pieces: their numbers in the index.
        standing: the path of what stands under a name.
    """

    def __init__(
        self, index: Index, manifest: Manifest, pieces: Collection[int], standing: Callable[[str], str | None]
    ) -> None:
        self._index = index
        self._found: dict[int, tuple[str, int]] = {}  # the path of a file, and where in it the piece is
        wanted: dict[tuple[int, int], list[int]] = {}
        names: dict[str, None] = {}
        for number in pieces:
            piece = index.piece(number)
            if piece.tag:
                wanted.setdefault((piece.tag, piece.length), []).append(number)
                names[manifest.name(piece.entry)] = None
        for name in names:
            path = standing(name)
            if path is not None:
                with contextlib.suppress(OSError):
                    self._search(path, wanted)

    def _search(self, path: str, wanted: dict[tuple[int, int], list[int]]) -> None:
        place = 0
        with open(path, "rb") as file:
            for data in cut(file):
                for number in wanted.get((tag(data), len(data)), ()):
                    self._found[number] = path, place
                place += len(data)

    def __contains__(self, number: int) -> bool:
        return number in self._found

    def give_up(self) -> None:
        """Have nothing any more: what was found turned out to be wrong."""
        self._found.clear()

    def write(self, pieces: Collection[int], manifest: Manifest, assembly: Assembly) -> None:
        """Bring those of the pieces that were found into the assembly; what changed meanwhile is left out."""
        write = assembly.writer(manifest)
        for number in pieces:
            if number not in self._found:
                continue
            piece = self._index.piece(number)
            path, place = self._found[number]
            with contextlib.suppress(OSError), open(path, "rb") as file:
                data = os.pread(file.fileno(), piece.length, place)
                if len(data) == piece.length:
                    write(piece.entry, piece.offset, memoryview(data))
