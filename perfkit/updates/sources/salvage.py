"""Pieces of large files that an older file of the same name has: they need not be fetched again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection

from perfkit.releases.format.frames import cut, tag
from perfkit.releases.format.index import Index
from perfkit.releases.format.manifest import Manifest
from perfkit.updates.staging import Assembly

__all__ = ["Salvage"]


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
