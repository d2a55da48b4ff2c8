"""The history of a site: its latest releases, which a client can list and install. No I/O.

`docs/format.md` has the fields.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from perfkit.errors import ManifestError
from perfkit.releases.format.pointer import (
    BASED_FORMAT,
    FORMAT,
    BaseManifest,
    DeltaRef,
    ObjectRef,
    PackedRef,
    Pointer,
    short_digest,
)

MAX_HISTORY_BYTES = 16 << 20
_DELTA_REQUEST_BYTES = 2048  # the cost of one more request, when chains of deltas are compared


class ReleaseRecord(NamedTuple):
    """A release, as the history records it."""

    version: str
    serial: int
    manifest_sha256: str
    manifest: PackedRef
    fine: PackedRef
    packs: tuple[ObjectRef, ...] = ()  # the packs of the index of small frames, and their dictionaries
    base: BaseManifest | None = None  # the manifest that this one is made from, if its object is a delta


class History(NamedTuple):
    """The latest releases, and what the publisher keeps from one to the next. The pointer refers to the history, so
    both change together.
    """

    records: tuple[ReleaseRecord, ...] = ()  # the latest releases, oldest first
    deltas: tuple[DeltaRef, ...] = ()  # all deltas between them
    solid_packs: tuple[ObjectRef, ...] = ()  # the packs of the pointer's index of large frames, and their dictionaries
    first: int = 1  # the serial of the last release, minus the number of releases before it

    def encode(self) -> bytes:
        """The JSON that `parse` reads."""
        return json.dumps(
            {
                "format": BASED_FORMAT if any(record.base for record in self.records) else FORMAT,
                "releases": [
                    [
                        record.version,
                        record.serial,
                        record.manifest_sha256,
                        *_flat(record.manifest),
                        *_flat(record.fine),
                        _listed(record.packs),
                        *([record.base.sha256, *_flat(record.base.packed)] if record.base else []),
                    ]
                    for record in self.records
                ],
                "deltas": [
                    [delta.origin, delta.target, delta.object.sha256, delta.object.bytes] for delta in self.deltas
                ],
                "solid": _listed(self.solid_packs),
                "first": self.first,
            },
            separators=(",", ":"),
        ).encode()

    @classmethod
    def parse(cls, data: bytes) -> History:
        """Read what `encode` wrote; its digest has been verified. Values are not checked: `pointer_to` does that.

        Raises:
            ManifestError: it is damaged, or another version of perfkit wrote it.
        """
        try:
            found: dict[str, Any] = json.loads(data)
            if found["format"] not in (FORMAT, BASED_FORMAT):
                raise ManifestError(
                    f"history: unknown format {found['format']}; this perfkit reads {FORMAT} and {BASED_FORMAT}"
                )
            records = tuple(map(_record, found["releases"]))
            deltas = tuple(DeltaRef(row[0], row[1], ObjectRef(row[2], row[3])) for row in found["deltas"])
            return cls(records, deltas, _objects(found["solid"]), found["first"])
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise ManifestError(f"history: damaged: {error}") from error

    def pointer_to(self, record: ReleaseRecord, history: ObjectRef) -> Pointer:
        """The pointer of one of the releases, with the deltas that lead directly to it. The index of its large frames
        is not kept, so the index of the small ones takes its place.

        Args:
            history: the object with this history.

        Raises:
            ManifestError: a value is not valid in a pointer.
        """
        if not isinstance(record.manifest_sha256, str):
            raise ManifestError("history: a digest is not text")
        deltas = [each for each in self.deltas if each.target == short_digest(record.manifest_sha256)]
        made = Pointer(
            record.version,
            record.serial,
            record.manifest_sha256,
            record.manifest,
            solid=record.fine,
            fine=record.fine,
            history=history,
            deltas=tuple(deltas),
            base=record.base,
        )
        try:
            return Pointer.parse(made.encode())
        except UnicodeEncodeError as error:  # a lone surrogate
            raise ManifestError(f"history: not text: {error}") from error


def cheapest_hops(deltas: Iterable[DeltaRef], releases: list[str]) -> tuple[DeltaRef, ...]:
    """For each earlier release, the first delta of the cheapest chain to the last one."""
    target = releases[-1]
    into: dict[str, list[DeltaRef]] = {}
    for delta in deltas:
        into.setdefault(delta.target, []).append(delta)
    best: dict[str, DeltaRef] = {}
    order = itertools.count()
    queue: list[tuple[int, int, str, DeltaRef | None]] = [(0, next(order), target, None)]
    done: set[str] = set()
    while queue:
        cost, _, at, first = heapq.heappop(queue)
        if at in done:
            continue
        done.add(at)
        if first is not None:
            best[at] = first
        for back in into.get(at, ()):
            heapq.heappush(queue, (cost + back.object.bytes + _DELTA_REQUEST_BYTES, next(order), back.origin, back))
    wanted = set()
    for release in releases[:-1]:
        at = release
        while at in best and at not in wanted:
            wanted.add(at)
            at = best[at].target
    return tuple(best[release] for release in sorted(wanted))


def _record(row: list[Any]) -> ReleaseRecord:
    base = BaseManifest(row[10], _packed(row[11:14])) if len(row) > 10 else None
    return ReleaseRecord(row[0], row[1], row[2], _packed(row[3:6]), _packed(row[6:9]), _objects(row[9]), base)


def _listed(objects: tuple[ObjectRef, ...]) -> list[tuple[str, int]]:
    return [(each.sha256, each.bytes) for each in objects]


def _objects(rows: list[Any]) -> tuple[ObjectRef, ...]:
    return tuple(ObjectRef(name, size) for name, size in rows)


def _flat(packed: PackedRef) -> tuple[str, int, int]:
    return packed.object.sha256, packed.object.bytes, packed.size


def _packed(row: list[Any]) -> PackedRef:
    return PackedRef(ObjectRef(row[0], row[1]), row[2])
