"""The files of a release site, by their URLs; what is in the stage already is not fetched again."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from perfkit.downloads.protocol import Version
from perfkit.downloads.request import Request
from perfkit.errors import ManifestError
from perfkit.releases.format import POINTER_NAME
from perfkit.releases.format.index import Index, PackRange
from perfkit.releases.format.pointer import MAX_POINTER_BYTES, ObjectRef, PackedRef, Pointer
from perfkit.releases.format.zstd import expand
from perfkit.updates.staging import Fetcher

__all__ = ["Objects", "Staged"]

_RANGE = re.compile("([0-9a-f]{64})[.]([0-9]+)-([0-9]+)", re.ASCII)


def _range_name(sha256: str, start: int, end: int) -> str:
    return f"{sha256}.{start}-{end}"  # what _RANGE reads


@dataclass(frozen=True, slots=True)
class Staged:
    """Parts of packs in the stage, by the pack's digest; an interrupted run may have left wider ones than wanted."""

    stage: str
    ranges: Mapping[str, list[tuple[int, int]]]

    def find(self, index: Index, wanted: PackRange) -> tuple[str, int] | None:
        """A file with the bytes of this range, and where in the pack it begins."""
        sha256 = index.packs[wanted.pack].object.sha256
        for start, end in self.ranges.get(sha256, ()):
            if start <= wanted.start and wanted.end <= end:
                return os.path.join(self.stage, _range_name(sha256, start, end)), start
        return None


class Objects:
    """What a site has.

    Requests are made for just what is wanted, and are not split under way: what a server has sent beyond the split by
    then is lost, which on a fast link was a fifth of all bytes.

    Attributes:
        url: of the site, with a slash at its end.
        latency_s: how long the pointer took to come; a guess where it was not asked for.
    """

    def __init__(self, fetcher: Fetcher, url: str) -> None:
        self.url = url
        self.latency_s = 0.05
        self._fetcher = fetcher

    def pointer(self, before: tuple[Pointer, Version] | None = None) -> tuple[Pointer, Version]:
        """The pointer as it is now, and what the origin calls this version of it.

        Args:
            before: the same of an earlier one, for where the stage has none, or can't keep its version with it.
        """
        known = before[1] if before else None
        (found,) = self._fetcher.get(
            [Request(self.url + POINTER_NAME, POINTER_NAME, max_bytes=MAX_POINTER_BYTES, known=known)]
        )
        self.latency_s = found.seconds
        if before is not None and found.unchanged and found.version == known:
            return before
        try:
            with open(found.path, "rb") as file:
                return Pointer.parse(file.read(MAX_POINTER_BYTES + 1)), found.version
        except ManifestError:
            os.unlink(found.path)
            raise

    def get(self, refs: Iterable[ObjectRef]) -> list[str]:
        """Paths of these objects, verified."""
        wanted = list(refs)
        unique = {ref.sha256: ref for ref in wanted}.values()
        self._fetcher.get(
            [
                Request(
                    self.url + ref.path, ref.sha256, checksum=f"sha256:{ref.sha256}", max_bytes=ref.bytes, segments=1
                )
                for ref in unique
            ]
        )
        return [self._fetcher.path(ref.sha256) for ref in wanted]

    def packed(self, packed: PackedRef) -> bytes:
        """What a compressed object holds."""
        (path,) = self.get([packed.object])
        with open(path, "rb") as file:
            return expand(file.read(packed.object.bytes + 1), packed.size)

    def lacks(self, refs: Iterable[ObjectRef]) -> list[ObjectRef]:
        """Those of the objects that are not in the stage."""
        return [ref for ref in refs if self._size(ref.sha256) != ref.bytes]

    def staged(self) -> Staged:
        """The ranges that are in the stage now."""
        found: dict[str, list[tuple[int, int]]] = {}
        for name in os.listdir(self._fetcher.stage):
            match = _RANGE.fullmatch(name)
            if match and self._size(name) == int(match[3]) - int(match[2]):
                found.setdefault(match[1], []).append((int(match[2]), int(match[3])))
        return Staged(self._fetcher.stage, found)

    def fetch_ranges(self, index: Index, ranges: Iterable[PackRange]) -> Staged:
        """Have all of these in the stage; nothing says yet that their bytes are right."""
        staged = self.staged()
        requests = []
        for each in ranges:
            if staged.find(index, each) is None:
                ref = index.packs[each.pack].object
                name = _range_name(ref.sha256, each.start, each.end)
                requests.append(Request(self.url + ref.path, name, byte_range=(each.start, each.end), segments=1))
        self._fetcher.get(requests)
        return self.staged()

    def _size(self, name: str) -> int | None:
        with contextlib.suppress(FileNotFoundError):
            return os.path.getsize(self._fetcher.path(name))
        return None
