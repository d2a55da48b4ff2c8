"""One file described by a `.zsync` control file: made from the existing file, and ranges of the new one."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Iterator, Set
from functools import partial
from typing import Any, BinaryIO

from perfkit.downloads.http.redirects import may_have_secrets
from perfkit.downloads.http.semantics import Version
from perfkit.downloads.request import Request
from perfkit.errors import CancelledError, ConfigError, ManifestError, TransferError
from perfkit.redact import redacted
from perfkit.releases.format.manifest import Entry, Manifest
from perfkit.updates.installed import Installed
from perfkit.updates.local_tree import LocalTree
from perfkit.updates.source_types import SourceType
from perfkit.updates.sources.remote_file import RemoteFile, version_label
from perfkit.updates.sources.single_file import SingleFileSource, adopt_download, refetched_if_damaged
from perfkit.updates.staging import Fetcher, StagingArea
from perfkit.zsync.control import CONTROL_BYTES, Control, parse_control
from perfkit.zsync.recipe import Fetch, Recipe, assemble, make_recipe, unpack_whole

_log = logging.getLogger(__name__)
_GAP_BYTES = 4 << 10
_READ_BYTES = 256 << 10


class ZsyncSource(SingleFileSource):
    """One version of a file, as its control file describes it."""

    type = SourceType.ZSYNC

    def __init__(self, control_file: RemoteFile, fetcher: Fetcher, installed: Installed) -> None:
        super().__init__(control_file)
        self._control_file = control_file
        self._fetcher = fetcher
        self._installed = installed
        self._control: Control | None = None
        self._sha1 = str(installed.state.get("sha1", "")) if control_file.unchanged else ""

    @property
    def version(self) -> str:
        return version_label(self.url, Version(etag=self._sha1[:12]))

    def record(self) -> dict[str, object]:
        return {"origin": self._control_file.record(), "sha1": self._sha1}

    def resolve(self, local: LocalTree, staging: StagingArea) -> Manifest:
        control = self._read_control()
        name = control.filename
        entry = self._installed_entry(control)
        if entry is None:  # else only the control file is new, for the same file
            seed = local.get(name) or self._renamed_seed(local)
            old = local.open_blob(seed.sha256) if seed is not None and seed.sha256 else None
            with old or contextlib.nullcontext():
                digest, size = self._make(control, old, staging)
            entry = Entry(name, size, digest, seed is not None and seed.executable)
        self._sha1 = control.sha1
        return Manifest.of([entry])

    def _stage(self, missing: Set[bytes], manifest: Manifest, local: LocalTree, staging: StagingArea) -> None:
        self._make(self._read_control(), None, staging)

    def _read_control(self) -> Control:
        if self._control is None:
            with open(self._control_file.whole(), "rb") as file:
                data = file.read(CONTROL_BYTES + 1)
            if len(data) > CONTROL_BYTES:
                raise ManifestError(f"{self.url}: the control file is larger than {CONTROL_BYTES} bytes")
            asked, at = self.url, self._control_file.probe().at
            bases = (at, asked) if may_have_secrets(at, home=asked) else (asked, at)
            control = parse_control(data, bases=bases)
            ambiguous = asked != at and control.urls
            self._control = control._replace(urls=self._working_first(control)) if ambiguous else control
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
            if size in (None, control.size):
                return tuple(dict.fromkeys((url, *urls)))
        return tuple(dict.fromkeys((urls[-1], *urls)))

    def _installed_entry(self, control: Control) -> Entry | None:
        """The installed file, if it is the wanted one."""
        installed = self._installed
        same = installed.type is SourceType.ZSYNC and installed.state.get("sha1") == control.sha1
        entry = installed.manifest[0] if same and len(installed.manifest) == 1 else None
        return entry if entry is not None and entry.name == control.filename else None

    def _renamed_seed(self, local: LocalTree) -> Entry | None:
        """The file that was installed under another name, by an earlier control file."""
        known = self._installed.manifest if self._installed.type is SourceType.ZSYNC else ()
        return next(filter(None, (local.get(entry.name) for entry in known)), None)

    def _make(self, control: Control, old: BinaryIO | None, staging: StagingArea) -> tuple[bytes, int]:
        """Make the file in the staging area; returns its SHA-256 and its size."""
        if old is not None and control.urls:
            try:
                return self._by_ranges(control, old, staging)
            except CancelledError:
                raise
            except (ManifestError, TransferError, ConfigError) as error:
                staging.discard_partial()
                _log.warning("%s: falling back to a whole download: %s", redacted(self.url), error)
        self._routes = ["whole"]
        return self._whole(control, staging)

    def _by_ranges(self, control: Control, old: BinaryIO, staging: StagingArea) -> tuple[bytes, int]:
        recipe = make_recipe(control, old, gap=_GAP_BYTES)
        try:
            made = staging.add(self._assembled(control, recipe, old))
        except ManifestError:
            checked = make_recipe(control, old, gap=_GAP_BYTES, strict=True)
            if checked == recipe:
                raise
            made = staging.add(self._assembled(control, checked, old))
        self._routes = ["zsync"]
        return made

    def _assembled(self, control: Control, recipe: Recipe, old: BinaryIO) -> Iterator[bytes]:
        """Fetch the ranges that the old file lacks; the SHA-1 of the result shows whether they are of one version."""
        requests = []
        for step in recipe:
            if isinstance(step, Fetch):
                name = f"zsync-{control.sha1}.{step.start}-{step.end}"
                requests.append(self._request(control, control.urls, name, byte_range=(step.start, step.end)))
        parts = iter(self._fetcher.get(requests))
        return assemble(control, recipe, old, lambda step: _contents(next(parts).path))

    def _request(self, control: Control, urls: tuple[str, ...], name: str, **options: Any) -> Request:
        return Request(urls[0], name, mirrors=urls[1:], home=self.url, label=control.filename, **options)

    def _whole(self, control: Control, staging: StagingArea) -> tuple[bytes, int]:
        if control.urls:
            options = {"max_bytes": control.size, "size": control.size, "checksum": f"sha1:{control.sha1}"}
            request = self._request(control, control.urls, f"zsync-{control.sha1}.whole", **options)
            try:
                return adopt_download(self._fetcher.get([request])[0].path, staging)
            except CancelledError:
                raise
            except TransferError as error:
                if not control.gzip_urls:
                    raise
                _log.warning("%s: falling back to the gzip file: %s", redacted(self.url), error)
        path = self._fetcher.get([self._request(control, control.gzip_urls, f"zsync-{control.sha1}.gzip")])[0].path
        with refetched_if_damaged(staging, [path]), open(path, "rb", buffering=0) as file:
            unpacked = unpack_whole(control, file)
            if not control.keep_gzip:
                return staging.add(unpacked)
            deque(unpacked, maxlen=0)  # the end of it verifies it
        return adopt_download(path, staging)


def _contents(path: str) -> Iterator[bytes]:
    """The content of a file that is open only while it is read: a process may have fewer open files than parts."""
    with open(path, "rb", buffering=0) as file:
        yield from iter(partial(file.read, _READ_BYTES), b"")
