"""The files of a release site, by their URLs; what is in the stage already is not fetched again."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable

from perfkit.downloads.request import Request
from perfkit.errors import ManifestError
from perfkit.incremental.codec import expand
from perfkit.incremental.fetch import Fetcher
from perfkit.incremental.index import Index, PackRange
from perfkit.incremental.release import MAX_POINTER_BYTES, POINTER_NAME, ObjectRef, PackedRef, Pointer

__all__ = ["Objects"]

_RANGE = re.compile("([0-9a-f]{64})[.]([0-9]+)-([0-9]+)", re.ASCII)  # how ranges are called in the stage


class Objects:
    """What a site has.

    Attributes:
        url: of the site, with a slash at its end.
        latency_s: how long the pointer took to come; a guess where it was not asked for.
    """

    def __init__(self, fetcher: Fetcher, url: str) -> None:
        self.url = url
        self.latency_s = 0.05
        self._fetcher = fetcher

    def pointer(self) -> Pointer:
        """The pointer as it is now."""
        (found,) = self._fetcher.get([Request(self.url + POINTER_NAME, POINTER_NAME, max_bytes=MAX_POINTER_BYTES)])
        self.latency_s = found.seconds
        try:
            with open(found.path, "rb") as file:
                return Pointer.parse(file.read(MAX_POINTER_BYTES + 1))
        except ManifestError:
            os.unlink(found.path)
            raise

    def get(self, refs: Iterable[ObjectRef]) -> list[str]:
        """Paths of these objects, verified."""
        wanted = list(refs)
        unique = {ref.sha256: ref for ref in wanted}.values()
        self._fetcher.get([Request(self.url + ref.path, ref.sha256, checksum=f"sha256:{ref.sha256}",
                                   max_bytes=ref.bytes) for ref in unique])  # fmt: skip
        return [self._fetcher.path(ref.sha256) for ref in wanted]

    def packed(self, packed: PackedRef) -> bytes:
        """What a compressed object holds."""
        (path,) = self.get([packed.object])
        with open(path, "rb") as file:
            return expand(file.read(packed.object.bytes + 1), packed.size)

    def lacks(self, refs: Iterable[ObjectRef]) -> list[ObjectRef]:
        """Those of the objects that are not in the stage."""
        return [ref for ref in refs if self._size(ref.sha256) != ref.bytes]

    def staged(self, index: Index, wanted: PackRange) -> tuple[str, int] | None:
        """A file in the stage with the bytes of this range, and where in the pack it begins.

        What an interrupted run left may be wider than what is wanted of it now.
        """
        sha256 = index.packs[wanted.pack].object.sha256
        for name in os.listdir(self._fetcher.stage):
            found = _RANGE.fullmatch(name)
            if found and found[1] == sha256:
                start, end = int(found[2]), int(found[3])
                if start <= wanted.start and wanted.end <= end and self._size(name) == end - start:
                    return self._fetcher.path(name), start
        return None

    def ranges(self, index: Index, ranges: Iterable[PackRange]) -> None:
        """Have all of these in the stage; nothing says yet that their bytes are right."""
        requests = []
        for each in ranges:
            if self.staged(index, each) is None:
                ref = index.packs[each.pack].object
                name = f"{ref.sha256}.{each.start}-{each.end}"
                requests.append(Request(self.url + ref.path, name, byte_range=(each.start, each.end)))
        self._fetcher.get(requests)

    def _size(self, name: str) -> int | None:
        with contextlib.suppress(FileNotFoundError):
            return os.path.getsize(self._fetcher.path(name))
        return None
