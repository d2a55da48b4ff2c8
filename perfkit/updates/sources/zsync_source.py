"""One file described by a `.zsync` control file: made from the existing file, and ranges of the new one."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Set
from typing import Any, BinaryIO

from perfkit.downloads.http.redirects import may_have_secrets
from perfkit.downloads.http.semantics import Version
from perfkit.downloads.request import Download, Request
from perfkit.errors import CancelledError, ConfigError, ManifestError, TransferError
from perfkit.redact import redacted
from perfkit.releases.format.manifest import Entry, Manifest
from perfkit.updates.installed import Installed
from perfkit.updates.local_tree import LocalTree
from perfkit.updates.planner import ExistingFile
from perfkit.updates.routes import Offer
from perfkit.updates.source_types import SourceType
from perfkit.updates.sources.remote_file import RemoteFile, version_label
from perfkit.updates.staging import Fetcher, StagingArea
from perfkit.zsync.control import CONTROL_BYTES, Control, Recipe, assemble, make_recipe, parse_control, unpack_whole

_log = logging.getLogger(__name__)
_GAP_BYTES = 4 << 10


class ZsyncSource:
    """One version of a file, as its control file describes it. See `Source` for the methods."""

    type = SourceType.ZSYNC
    serial = 0
    keep_staged: frozenset[str] = frozenset()

    def __init__(self, control_file: RemoteFile, fetcher: Fetcher, installed: Installed) -> None:
        self.url = control_file.url
        self._control_file = control_file
        self._fetcher = fetcher
        self._installed = installed
        self._control: Control | None = None
        self._sha1 = str(installed.state.get("sha1", "")) if control_file.unchanged else ""
        self._routes: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        return version_label(self.url, Version(etag=self._sha1[:12]))

    def unchanged(self) -> bool:
        return self._control_file.unchanged

    def record(self) -> dict[str, object]:
        return {"origin": self._control_file.record(), "sha1": self._sha1}

    def resolve(self, local: LocalTree, staging: StagingArea) -> Manifest:
        control = self._read_control()
        name = control.filename
        entry = self._installed_entry(control)
        if entry is None:  # else only the control file is new, for the same file
            seed = local[name] if name in local else self._renamed_seed(local)
            old = local.open_blob(seed.sha256) if seed is not None and seed.sha256 else None
            with old or contextlib.nullcontext():
                digest, size = self._make(control, old, staging)
            entry = Entry(name, size, digest, seed is not None and seed.executable)
        self._sha1 = control.sha1
        return Manifest.of([entry])

    def offers(self, missing: Set[bytes], manifest: Manifest, local: LocalTree) -> tuple[Offer, ...]:
        return ()

    def fetch(self, missing: Set[bytes], manifest: Manifest, local: LocalTree, staging: StagingArea) -> tuple[str, ...]:
        if missing:
            self._make(self._read_control(), None, staging)
        return self._routes

    def _read_control(self) -> Control:
        if self._control is None:
            with open(self._control_file.whole(), "rb") as file:
                data = file.read(CONTROL_BYTES + 1)
            if len(data) > CONTROL_BYTES:
                raise ManifestError(f"{self.url}: the control file is larger than {CONTROL_BYTES} bytes")
            asked, at = self.url, self._control_file.probe().at
            bases = (at, asked) if may_have_secrets(at, home=asked) else (asked, at)
            control = parse_control(data, bases=bases)
            self._control = control if asked == at else control._replace(urls=self._working_first(control))
        return self._control

    def _working_first(self, control: Control) -> tuple[str, ...]:
        """The URLs, with one that has the file first; otherwise each range would first be requested from one without.

        After a redirect a relative URL is ambiguous. RFC 3986 section 5.1.3 resolves it against the target of the
        redirect. At GitHub that is a link on another host, signed for the control file alone; there zsync2 and others
        resolve it against the requested URL.
        """
        urls = control.urls
        for url in urls[:-1]:
            try:
                size = self._fetcher.probe(url, most=1, home=self.url).size
            except CancelledError:
                raise
            except TransferError:
                continue
            if control.gzip or size in (None, control.size):
                return tuple(dict.fromkeys((url, *urls)))
        return tuple(dict.fromkeys((urls[-1], *urls)))

    def _installed_entry(self, control: Control) -> Entry | None:
        """The installed file, if it is the wanted one."""
        installed = self._installed
        same = installed.type is SourceType.ZSYNC and installed.state.get("sha1") == control.sha1
        entry = installed.manifest[0] if same and len(installed.manifest) == 1 else None
        return entry if entry is not None and entry.name == control.filename else None

    def _renamed_seed(self, local: LocalTree) -> ExistingFile | None:
        """The file that was installed under another name, by an earlier control file."""
        if self._installed.type is not SourceType.ZSYNC:
            return None
        return next((local[entry.name] for entry in self._installed.manifest if entry.name in local), None)

    def _make(self, control: Control, old: BinaryIO | None, staging: StagingArea) -> tuple[bytes, int]:
        """Make the file in the staging area; returns its SHA-256 and its size."""
        if old is not None and not control.gzip:
            try:
                return self._by_ranges(control, old, staging)
            except CancelledError:
                raise
            except (ManifestError, TransferError, ConfigError) as error:
                staging.discard_partial()
                _log.warning("%s: falling back to a whole download: %s", redacted(self.url), error)
        self._routes = ("whole",)
        return self._whole(control, staging)

    def _by_ranges(self, control: Control, old: BinaryIO, staging: StagingArea) -> tuple[bytes, int]:
        recipe = make_recipe(control, old, gap=_GAP_BYTES)
        try:
            digest = self._assemble(control, recipe, old, staging)
        except ManifestError:
            checked = make_recipe(control, old, gap=_GAP_BYTES, strict=True)
            if checked == recipe:
                raise
            digest = self._assemble(control, checked, old, staging)
        self._routes = ("zsync",)
        staging.finish(digest)
        return digest, control.size

    def _assemble(self, control: Control, recipe: Recipe, old: BinaryIO, staging: StagingArea) -> bytes:
        parts = iter(self._parts(control, recipe))
        with staging.create() as file:
            made = _HashedFile(file)
            assemble(control, recipe, old, lambda step: _Part(next(parts).path), made)
        return made.digest

    def _parts(self, control: Control, recipe: Recipe) -> list[Download]:
        """Fetch the ranges that the old file lacks; the SHA-1 of the result shows whether they are of one version."""
        requests = []
        for step in recipe.fetches:
            name = f"zsync-{control.sha1}.{step.start}-{step.end}"
            requests.append(self._request(control, name, byte_range=(step.start, step.end)))
        return self._fetcher.get(requests)

    def _request(self, control: Control, name: str, **options: Any) -> Request:
        return Request(
            control.urls[0], name, mirrors=control.urls[1:], home=self.url, label=control.filename, **options
        )

    def _whole(self, control: Control, staging: StagingArea) -> tuple[bytes, int]:
        name = f"zsync-{control.sha1}.whole"
        options = (
            {}
            if control.gzip
            else {"max_bytes": control.size, "size": control.size, "checksum": f"sha1:{control.sha1}"}
        )
        (found,) = self._fetcher.get([self._request(control, name, **options)])
        path = found.path
        try:
            with open(path, "rb", buffering=0) as file:
                read = _HashedFile(file)
                if control.gzip and not control.keep_gzip:
                    with staging.create() as out:
                        made = _HashedFile(out)
                        unpack_whole(control, read, made)
                    staging.finish(made.digest)
                    return made.digest, control.size
                unpack_whole(control, read, None)
                size = os.fstat(file.fileno()).st_size
        except ManifestError:
            os.unlink(path)
            raise
        staging.adopt(path, read.digest)
        return read.digest, size


class _HashedFile:
    """A file that is read or written once, from start to end, and the SHA-256 of that."""

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
    """A file that is open only while it is read: there may be more parts than a process may have open files."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._position = 0

    def read(self, size: int, /) -> bytes:
        with open(self._path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, self._position)
        self._position += len(data)
        return data
