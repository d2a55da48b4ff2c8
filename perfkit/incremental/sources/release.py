"""A site that `perfkit publish` made: its pointer, and deltas and blocks by what the pointer says."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import BinaryIO

from perfkit.downloads.request import Request
from perfkit.errors import ManifestError, TransferError
from perfkit.incremental.codec import expand
from perfkit.incremental.fetch import Assembly, Fetcher
from perfkit.incremental.index import Index, PackRange
from perfkit.incremental.installed import Installed
from perfkit.incremental.manifest import Manifest
from perfkit.incremental.plan import Held, Offer
from perfkit.incremental.recognise import Kind
from perfkit.incremental.release import MAX_POINTER_BYTES, POINTER_NAME, ObjectRef, PackedRef, Pointer
from perfkit.incremental.routes.blocks import unpack
from perfkit.incremental.routes.delta import Delta, Span

__all__ = ["ReleaseSource", "open_release", "reopen_release"]

_log = logging.getLogger(__name__)


def open_release(fetcher: Fetcher, url: str, installed: Installed) -> ReleaseSource:
    """Ask a site for its pointer, conditionally where an earlier one is in the stage.

    Args:
        url: of the site, or of its pointer.

    Raises:
        ManifestError, TransferError, OSError: there is no pointer that can be used.
    """
    site = _Site(fetcher, url.removesuffix(POINTER_NAME).rstrip("/") + "/")
    return ReleaseSource(site, site.pointer(), installed)


def reopen_release(fetcher: Fetcher, installed: Installed) -> ReleaseSource:
    """The release that is installed, whatever the site offers now.

    Raises:
        ManifestError: what the tree says of it is damaged.
    """
    pointer = Pointer.parse(str(installed.state.get("pointer", "")).encode())
    return ReleaseSource(_Site(fetcher, installed.source), pointer, installed)


class ReleaseSource:
    """One release of a site. See `Source` for what the methods do."""

    kind = Kind.RELEASE
    keeps = frozenset({POINTER_NAME})

    def __init__(self, site: _Site, pointer: Pointer, installed: Installed) -> None:
        self.url = site.url
        self.version = pointer.version
        self.serial = pointer.serial
        self._site = site
        self._pointer = pointer
        self._installed = installed
        self._by_delta = False

    def unchanged(self) -> bool:
        """Whether the very files are installed that the pointer speaks of, under whatever version."""
        return self._installed.manifest.sha256.hex() == self._pointer.manifest_sha256

    def record(self) -> dict[str, object]:
        return {"pointer": self._pointer.encode().decode()}

    def manifest(self, held: Mapping[str, Held], where: Callable[[bytes], str | None], assembly: Assembly) -> Manifest:
        if hops := self._pointer.chain(self._installed.manifest.sha256.hex()):
            try:
                manifest = self._follow([hop.object for hop in hops], where, assembly)
            except (ManifestError, TransferError) as error:
                _log.warning("%s: the delta does not serve: %s", self.url, error)
            else:
                self._by_delta = True
                return manifest
        raw = self._site.packed(self._pointer.manifest)
        return Manifest.parse(raw, sha256=bytes.fromhex(self._pointer.manifest_sha256))

    def offers(self, missing: frozenset[bytes], manifest: Manifest) -> tuple[Offer, ...]:
        return ()

    def fetch(self, missing: frozenset[bytes], manifest: Manifest, assembly: Assembly) -> tuple[str, ...]:
        route = ("delta",) if self._by_delta else ()
        if not missing:
            return route
        self._unpack(missing, manifest, assembly)
        return (*route, "blocks")

    def _follow(self, objects: list[ObjectRef], where: Callable[[bytes], str | None], assembly: Assembly) -> Manifest:
        """The release's manifest, and its new contents, by the deltas that lead from what is installed."""
        old = self._installed.manifest
        for path in self._site.objects(objects):
            old = _apply(path, old, where, assembly)
        if old.sha256.hex() != self._pointer.manifest_sha256:
            raise ManifestError("delta: it does not lead to this release")
        return old

    def _unpack(self, missing: frozenset[bytes], manifest: Manifest, assembly: Assembly) -> None:
        """Make the missing contents from frames of packs."""
        entries = [entry for entry, digest in enumerate(manifest.digests()) if digest in missing]
        most = 2 * sum(map(manifest.size, entries)) > manifest.total_bytes
        index = Index.parse(self._site.packed(self._pointer.solid if most else self._pointer.fine), manifest)
        pieces = index.pieces(entries)
        ranges = index.ranges(pieces)
        shared = {number: self._site.packed(packed) for number in {each.pack for each in ranges}
                  if (packed := index.packs[number].dictionary) is not None}  # fmt: skip
        write = assembly.writer(manifest)
        try:
            for each, path in zip(ranges, self._site.ranges(index, ranges), strict=True):
                file: BinaryIO
                with open(path, "rb") as file:
                    try:
                        unpack(index, each, file, write, wanted=pieces, shared=shared.get(each.pack))
                    except ManifestError:
                        os.unlink(path)
                        raise
        finally:
            assembly.forget_parts()
        if lacking := missing.difference(assembly.done):
            for path in self._site.ranges(index, ranges):
                os.unlink(path)
            raise TransferError(self.url, f"{len(lacking)} contents are not what the manifest says; nothing was done")


def _apply(path: str, old: Manifest, where: Callable[[bytes], str | None], assembly: Assembly) -> Manifest:
    """Follow one delta; returns the manifest that it leads to.

    Raises:
        ManifestError: it is damaged, or the tree has not the old content.
    """

    def read(span: Span) -> bytes:
        digest = old.digest(span.entry)
        source = assembly.done.get(digest) or where(digest)
        if source is None:
            raise ManifestError(f"delta: the tree does not have the old content of {old.name(span.entry)}")
        with open(source, "rb") as content:
            return os.pread(content.fileno(), span.length, span.offset)

    with open(path, "rb") as file:
        delta = Delta.open(file)
        new = delta.new_manifest(old)
        try:
            delta.apply(delta.groups(old, new), read, assembly.writer(new))
        finally:
            assembly.forget_parts()
    return new


class _Site:
    """The files of a site, by their URLs; what is in the stage already is not fetched again."""

    def __init__(self, fetcher: Fetcher, url: str) -> None:
        self.url = url
        self._fetcher = fetcher

    def pointer(self) -> Pointer:
        """The pointer as it is now."""
        (found,) = self._fetcher.get([Request(self.url + POINTER_NAME, POINTER_NAME)])
        try:
            with open(found.path, "rb") as file:
                return Pointer.parse(file.read(MAX_POINTER_BYTES + 1))
        except ManifestError:
            os.unlink(found.path)
            raise

    def objects(self, refs: Iterable[ObjectRef]) -> list[str]:
        """Paths of these objects, verified."""
        wanted = list(refs)
        unique = {ref.sha256: ref for ref in wanted}.values()
        self._fetcher.get([Request(self.url + r.path, r.sha256, checksum=f"sha256:{r.sha256}") for r in unique])
        return [self._fetcher.path(ref.sha256) for ref in wanted]

    def packed(self, packed: PackedRef) -> bytes:
        """What a compressed object holds."""
        (path,) = self.objects([packed.object])
        with open(path, "rb") as file:
            return expand(file.read(packed.object.bytes + 1), packed.size)

    def ranges(self, index: Index, ranges: list[PackRange]) -> list[str]:
        """Paths of these ranges; nothing says yet that their bytes are right."""
        requests, paths = [], []
        for each in ranges:
            ref = index.packs[each.pack].object
            name = f"{ref.sha256}.{each.start}-{each.end}"
            paths.append(self._fetcher.path(name))
            try:
                there = os.path.getsize(paths[-1]) == each.end - each.start
            except FileNotFoundError:
                there = False
            if not there:
                requests.append(Request(self.url + ref.path, name, byte_range=(each.start, each.end)))
        self._fetcher.get(requests)
        return paths
