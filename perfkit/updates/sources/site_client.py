"""Fetch the objects of a release site; what is staged already is not fetched again."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from perfkit.downloads.http.semantics import RANGE_REFUSALS, Version
from perfkit.downloads.http.urls import origin_of
from perfkit.downloads.request import Request
from perfkit.errors import CancelledError, HTTPStatusError
from perfkit.filesystem.spilled import Bytes
from perfkit.minisign.public_keys import MAX_FILE_BYTES
from perfkit.redact import redacted
from perfkit.releases.format import POINTER_NAME, channel_name
from perfkit.releases.format.index import Index, PackRange
from perfkit.releases.format.pointer import MAX_POINTER_BYTES, ObjectRef, PackedRef
from perfkit.releases.format.zstd import decompress_stream
from perfkit.updates.routes import LATENCY_S
from perfkit.updates.staging import Fetcher

_log = logging.getLogger(__name__)

# Opened in addition to the first, for a list of files, an index, and packs. Over TLS, a range that has to wait for a
# connection comes two or three round trips after the others.
_CONNECTIONS = {"http": 3, "https": 5}
_READ_BYTES = 64 << 10
_WHOLE_BYTES = 4 << 20  # up to this size one connection is used: it ends by the time that others would have begun
_RANGE = re.compile("([0-9a-f]{64})[.]([0-9]+)-([0-9]+)", re.ASCII)


def _range_name(sha256: str, start: int, end: int) -> str:
    return f"{sha256}.{start}-{end}"  # what _RANGE matches


def _segments(size: int) -> int | None:
    """The maximum number of connections for an object or a range; None: as configured."""
    return 1 if size <= _WHOLE_BYTES else None


class StagedRanges(NamedTuple):
    """The staged ranges of packs, by the pack's digest; an interrupted run may have left wider ones than wanted."""

    directory: str
    ranges: Mapping[str, list[tuple[int, int]]]

    def find(self, index: Index, wanted: PackRange) -> tuple[str, int] | None:
        """A file with the bytes of this range, and the offset in the pack of its first byte."""
        sha256 = index.packs[wanted.pack].object.sha256
        for start, end in self.ranges.get(sha256, ()):
            if start <= wanted.start and wanted.end <= end:
                return os.path.join(self.directory, _range_name(sha256, start, end)), start
        return None


class SiteClient:
    """Fetches the pointer, objects and ranges of one site."""

    def __init__(self, fetcher: Fetcher, url: str, channel: str | None = None) -> None:
        self.url = url  # the site's URL, with a trailing slash
        self.max_files = fetcher.max_files  # how many files a release may have
        self.keep = fetcher.keep
        self.channel = channel  # the channel whose release is offered; None: the current release is
        self._pointer_name = POINTER_NAME if channel is None else channel_name(channel)
        self.latency_s = LATENCY_S  # how long the pointer took to fetch
        self._fetcher = fetcher

    def pointer(self, before: tuple[bytes, Version] | None = None) -> tuple[bytes, Version]:
        """The bytes of the current pointer, not verified yet, and its validators.

        Args:
            before: an earlier pointer and its validators, in case none is staged.
        """
        known = before[1] if before else None
        request = Request(self.url + self._pointer_name, POINTER_NAME, max_bytes=MAX_POINTER_BYTES, known=known)
        try:
            (found,) = self._fetcher.get([request], phase="reading the release")
        except HTTPStatusError as error:
            if error.status in (404, 410):
                what = "no site of releases" if self.channel is None else f"no site with a channel {self.channel!r}"
                error.reason += f": there is {what} at {redacted(self.url)}"
            raise
        self.latency_s = found.seconds
        if before is not None and found.unchanged and found.version == known:
            return before
        with open(found.path, "rb") as file:
            return file.read(MAX_POINTER_BYTES + 1), found.version

    def expect_much(self) -> None:
        """Open connections for what follows the pointer: the list of files, an index and packs."""
        self._fetcher.warm(self.url, _CONNECTIONS[origin_of(self.url)[0]])

    def forget_pointer(self) -> None:
        """Make the next sync fetch the pointer again, whatever its validators are."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._fetcher.path(POINTER_NAME))

    def signature(self, path: str) -> bytes:
        """The signature at this path, relative to the pointer; not verified yet."""
        request = Request(self.url + path, path.rpartition("/")[2], max_bytes=MAX_FILE_BYTES)
        (found,) = self._fetcher.get([request], phase="reading the signature")
        with open(found.path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        os.unlink(found.path)
        return data

    def begin(self, refs: Iterable[ObjectRef], label: str) -> None:
        """Begin to fetch these objects, for which `get` then waits.

        Args:
            label: what progress displays call each of them.
        """
        self._fetcher.begin([self._request(ref, label) for ref in self.not_staged(refs)])

    def get(self, refs: Iterable[ObjectRef], label: str, *, phase: str = "fetching") -> list[str]:
        """The paths of these objects, fetched and verified.

        Args:
            label, phase: what progress displays call each of them, and the work.
        """
        wanted = list(refs)
        self._fetcher.get([self._request(ref, label) for ref in dict.fromkeys(wanted)], phase=phase)
        return [self._fetcher.path(ref.sha256) for ref in wanted]

    def _request(self, ref: ObjectRef, label: str) -> Request:
        return Request(
            self.url + ref.path,
            ref.sha256,
            checksum=f"sha256:{ref.sha256}",
            max_bytes=ref.bytes,
            segments=_segments(ref.bytes),
            size=ref.bytes,
            label=label,
        )

    def get_packed(self, packed: PackedRef, label: str) -> Bytes:
        """The decompressed bytes of an object, such as `a dictionary`."""
        (path,) = self.get([packed.object], label, phase=f"reading {label}")
        with open(path, "rb") as file:
            return self.keep(decompress_stream(iter(partial(file.read, _READ_BYTES), b""), packed.size))

    def not_staged(self, refs: Iterable[ObjectRef]) -> list[ObjectRef]:
        """Those of the objects that have to be fetched."""
        return [ref for ref in refs if self._size(ref.sha256) != ref.bytes]

    def free_space(self) -> int:
        """How many bytes are free in the staging area."""
        found = os.statvfs(self._fetcher.directory)
        return found.f_bavail * found.f_frsize

    def staged_ranges(self) -> StagedRanges:
        """The ranges that are staged now."""
        found: dict[str, list[tuple[int, int]]] = {}
        for name in os.listdir(self._fetcher.directory):
            match = _RANGE.fullmatch(name)
            if match and self._size(name) == int(match[3]) - int(match[2]):
                found.setdefault(match[1], []).append((int(match[2]), int(match[3])))
        return StagedRanges(self._fetcher.directory, found)

    def find_range(self, index: Index, wanted: PackRange) -> tuple[str, int] | None:
        """A staged file with the bytes of this range, and the offset in the pack of its first byte."""
        name = _range_name(index.packs[wanted.pack].object.sha256, wanted.start, wanted.end)
        if self._size(name) == wanted.end - wanted.start:
            return self._fetcher.path(name), wanted.start
        return self.staged_ranges().find(index, wanted)

    def begin_ranges(self, index: Index, ranges: Iterable[PackRange]) -> None:
        """Begin to fetch these ranges, the largest first (ADR 5), and the dictionaries of their packs, for which
        `fetch_ranges` then waits.
        """
        staged, wanted = self.staged_ranges(), sorted(ranges, key=lambda each: each.start - each.end)
        packs = [index.packs[each.pack] for each in wanted]
        shared = dict.fromkeys(pack.dictionary.object for pack in packs if pack.dictionary is not None)
        parts = (self._part(index, each, "files of the release") for each in wanted if not staged.find(index, each))
        self._fetcher.begin([*parts, *(self._request(ref, "a dictionary") for ref in self.not_staged(shared))])

    def fetch_ranges(
        self,
        index: Index,
        ranges: Iterable[PackRange],
        label: Callable[[PackRange], str],
        *,
        before: Iterable[ObjectRef] = (),
    ) -> Generator[PackRange, None, None]:
        """Fetch these ranges, or whole packs where the server refuses ranges, all at the same time; yields each when it
        is staged. Their bytes are not verified yet.

        Args:
            label: what progress displays call a range.
            before: objects to fetch at the same time; no range is yielded before all of these are there.
        """
        staged = self.staged_ranges()
        # The file of one that was begun may be there although its download has not ended, and its path is still taken.
        unstaged = {ref.sha256: ref for ref in before if self._fetcher.has_begun(ref.sha256) or self.not_staged([ref])}
        first = [self._request(ref, "a dictionary") for ref in unstaged.values()]
        ready, wanted = list[PackRange](), list[PackRange]()
        for each in ranges:
            begun = self._fetcher.has_begun(_range_name(index.packs[each.pack].object.sha256, each.start, each.end))
            (ready if staged.find(index, each) and not begun else wanted).append(each)
        failed: list[tuple[PackRange, Exception]] = []
        awaited = len(first)
        for number, download in self._fetcher.each(
            [*first, *(self._part(index, each, label(each)) for each in wanted)]
        ):
            if number < len(first):
                awaited -= 1
                if download.error is not None:
                    raise download.error
            elif download.error is not None:
                failed.append((wanted[number - len(first)], download.error))
            else:
                ready.append(wanted[number - len(first)])
            if not awaited:
                yield from ready
                ready.clear()
        yield from ready
        if failed:
            self._fetch_packs(index, failed)
            yield from (each for each, _ in failed)

    def _part(self, index: Index, each: PackRange, label: str) -> Request:
        ref = index.packs[each.pack].object
        name, part = _range_name(ref.sha256, each.start, each.end), (each.start, each.end)
        if part == (0, ref.bytes):  # not as a range, which some shared caches don't keep
            return replace(self._request(ref, label), name=name)
        return Request(
            self.url + ref.path, name, byte_range=part, segments=_segments(each.end - each.start), label=label
        )

    def _fetch_packs(self, index: Index, failed: Iterable[tuple[PackRange, Exception]]) -> None:
        """Fetch whole packs in place of the ranges that the server refused.

        Raises:
            TransferError, OSError: a range failed for another reason.
        """
        packs: dict[int, ObjectRef] = {}
        for each, error in failed:
            status = error.status if isinstance(error, HTTPStatusError) else None
            refused = status in {416, *RANGE_REFUSALS} or (status is None and not getattr(error, "transient", True))
            if isinstance(error, CancelledError) or not refused:
                raise error
            if not packs:
                _log.warning("%s: falling back to whole packs: %s", redacted(self.url), error)
            packs[each.pack] = index.packs[each.pack].object
        for ref, path in zip(packs.values(), self.get(packs.values(), "files of the release"), strict=True):
            os.rename(path, self._fetcher.path(_range_name(ref.sha256, 0, ref.bytes)))

    def _size(self, name: str) -> int | None:
        with contextlib.suppress(FileNotFoundError):
            return os.path.getsize(self._fetcher.path(name))
        return None
