"""One file that a `.zsync` control file describes: made of the one that stands in the tree, and ranges of the new."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Set
from typing import BinaryIO

from perfkit.downloads.http.semantics import Version
from perfkit.downloads.request import Download, Request
from perfkit.errors import CancelledError, ConfigError, ManifestError, TransferError
from perfkit.redact import redacted
from perfkit.releases.format.manifest import Entry, Manifest
from perfkit.updates.installed import Installed
from perfkit.updates.planner import Held, Offer
from perfkit.updates.source_types import Kind
from perfkit.updates.sources import Where
from perfkit.updates.sources.remote_file import Origin, label
from perfkit.updates.staging import Assembly, Fetcher
from perfkit.zsync.control import (
    CONTROL_BYTES,
    Control,
    Recipe,
    assemble,
    make_recipe,
    parse_control,
    unpack_whole,
)

__all__ = ["ZsyncSource"]

_log = logging.getLogger(__name__)
_GAP_BYTES = 4 << 10


class ZsyncSource:
    """One version of a file, as its control file says. See `Source` for what the methods do."""

    kind = Kind.ZSYNC
    serial = 0
    keeps: frozenset[str] = frozenset()

    def __init__(self, origin: Origin, fetcher: Fetcher, installed: Installed) -> None:
        self.url = origin.url
        self._origin = origin
        self._fetcher = fetcher
        self._installed = installed
        self._control: Control | None = None
        self._sha1 = str(installed.state.get("sha1", "")) if origin.unchanged else ""
        self._routes: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        return label(self.url, Version(etag=self._sha1[:12]))

    def unchanged(self) -> bool:
        return self._origin.unchanged

    def record(self) -> dict[str, object]:
        return {"origin": self._origin.record(), "sha1": self._sha1}

    def manifest(self, held: Mapping[str, Held], where: Where, assembly: Assembly) -> Manifest:
        control = self._read_control()
        name = control.filename
        entry = self._installed_entry(control)
        if entry is None:  # else the control file was made anew, for the same file
            seed = held[name] if name in held else self._former(held)
            path = where(seed.sha256) if seed is not None and seed.sha256 else None
            digest, size = self._make(control, path, assembly)
            entry = Entry(name, size, digest, seed is not None and seed.executable)
        self._sha1 = control.sha1
        return Manifest.of([entry])

    def offers(self, missing: Set[bytes], manifest: Manifest) -> tuple[Offer, ...]:
        return ()

    def fetch(self, missing: Set[bytes], manifest: Manifest, assembly: Assembly) -> tuple[str, ...]:
        if missing:
            self._make(self._read_control(), None, assembly)
        return self._routes

    def _read_control(self) -> Control:
        if self._control is None:
            with open(self._origin.whole(), "rb") as file:
                data = file.read(CONTROL_BYTES + 1)
            if len(data) > CONTROL_BYTES:
                raise ManifestError(f"{self.url}: a control file of more than {CONTROL_BYTES} bytes")
            self._control = parse_control(data, url=self._origin.told().at)
        return self._control

    def _installed_entry(self, control: Control) -> Entry | None:
        """The file that is installed, if it is the one that is wanted."""
        installed = self._installed
        same = installed.kind is Kind.ZSYNC and installed.state.get("sha1") == control.sha1
        entry = installed.manifest[0] if same and len(installed.manifest) == 1 else None
        return entry if entry is not None and entry.name == control.filename else None

    def _former(self, held: Mapping[str, Held]) -> Held | None:
        """What an earlier control file had, under another name."""
        if self._installed.kind is not Kind.ZSYNC:
            return None
        return next((held[entry.name] for entry in self._installed.manifest if entry.name in held), None)

    def _make(self, control: Control, seed: str | None, assembly: Assembly) -> tuple[bytes, int]:
        """The file, into the assembly; returns its SHA-256 and its size."""
        if seed is not None and not control.gzip:
            try:
                return self._by_ranges(control, seed, assembly)
            except CancelledError:
                raise
            except (ManifestError, TransferError, ConfigError) as error:
                assembly.forget_parts()
                _log.warning("%s: ranges do not serve, the whole file is fetched: %s", redacted(self.url), error)
        self._routes = ("whole",)
        return self._whole(control, assembly)

    def _by_ranges(self, control: Control, seed: str, assembly: Assembly) -> tuple[bytes, int]:
        with open(seed, "rb", buffering=0) as old:
            recipe = make_recipe(control, old, gap=_GAP_BYTES)
            try:
                digest = self._assembled(control, recipe, old, assembly)
            except ManifestError:
                checked = make_recipe(control, old, gap=_GAP_BYTES, strict=True)
                if checked == recipe:
                    raise
                digest = self._assembled(control, checked, old, assembly)
        self._routes = ("zsync",)
        assembly.end(digest)
        return digest, control.size

    def _assembled(self, control: Control, recipe: Recipe, old: BinaryIO, assembly: Assembly) -> bytes:
        parts = iter(self._parts(control, recipe))
        with assembly.begin() as file:
            made = _Digesting(file)
            assemble(control, recipe, old, lambda step: _Part(next(parts).path), made)
        return made.digest

    def _parts(self, control: Control, recipe: Recipe) -> list[Download]:
        """The bytes that the old file doesn't have, as files. SHA-1 will tell whether they are of one version."""
        requests = []
        for step in recipe.fetches:
            name = f"zsync-{control.sha1}.{step.start}-{step.end}"
            requests.append(Request(control.urls[0], name, mirrors=control.urls[1:], byte_range=(step.start, step.end)))
        return self._fetcher.get(requests)

    def _whole(self, control: Control, assembly: Assembly) -> tuple[bytes, int]:
        name = f"zsync-{control.sha1}.whole"
        most = None if control.gzip else control.size
        request = Request(control.urls[0], name, mirrors=control.urls[1:], max_bytes=most)
        (found,) = self._fetcher.get([request])
        path = found.path
        try:
            with open(path, "rb", buffering=0) as file:
                read = _Digesting(file)
                if control.gzip and not control.keep_gzip:
                    with assembly.begin() as out:
                        made = _Digesting(out)
                        unpack_whole(control, read, made)
                    assembly.end(made.digest)
                    return made.digest, control.size
                unpack_whole(control, read, None)
                size = os.fstat(file.fileno()).st_size
        except ManifestError:
            os.unlink(path)
            raise
        assembly.adopt(path, read.digest)
        return read.digest, size


class _Digesting:
    """A file, read or written once from its beginning to its end, and the SHA-256 of that."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        data = self._file.read(size)
        self._sha256.update(data)
        return data

    def write(self, data: bytes, /) -> int:
        self._sha256.update(data)
        return self._file.write(data)

    @property
    def digest(self) -> bytes:
        return self._sha256.digest()


class _Part:
    """A file that is open only while it is read: there may be more of them than a process may have open."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._position = 0

    def read(self, size: int, /) -> bytes:
        with open(self._path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, self._position)
        self._position += len(data)
        return data
