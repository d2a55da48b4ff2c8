"""One version of a remote file, fetched into the staging area in parts or whole."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping
from itertools import chain, repeat
from typing import Any
from urllib.parse import unquote, urlsplit

from perfkit.downloads.checksums import Checksum
from perfkit.downloads.http.semantics import Version, parse_date
from perfkit.downloads.probe import Probe
from perfkit.downloads.request import Request
from perfkit.errors import CancelledError, RemoteChangedError, TransferError
from perfkit.filesystem.own_files import replace_own
from perfkit.filesystem.paths import is_url
from perfkit.progress.text import printable
from perfkit.redact import redacted
from perfkit.updates.installed import as_recorded
from perfkit.updates.signers import FileSigners
from perfkit.updates.source_types import SourceSpec
from perfkit.updates.staging import Fetcher

_TAG_CHARACTERS = 40

_log = logging.getLogger(__name__)


def version_label(url: str, version: Version = Version()) -> str:
    """What to call a version of a file: its name, and its date and ETag if it has them. Others can read it, so secrets
    in the URL and control characters from the server are left out.
    """
    name = unquote(urlsplit(url).path).rstrip("/").rpartition("/")[2] or redacted(url)
    modified = parse_date(version.last_modified)
    date = modified and modified.strftime("%Y-%m-%dT%H:%M:%SZ")
    tag = (version.etag or "").removeprefix("W/").strip('"')[:_TAG_CHARACTERS]
    return printable(" ".join(part for part in (name, date, tag) if part))


class RemoteFile:
    """One version of the file at a URL. What is staged already is not fetched again.

    Args:
        signers: who has to sign the file; if anybody, it is fetched whole and verified.
        before: what `record` returned for the installed version; empty: fetch the file again.
        most: how many of its first bytes to request.
        probed: the response to that request, if it was made already; else it is made here, with the condition that the
            file is not the version `before`.

    Raises:
        TransferError: no usable response.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        url: str,
        signers: FileSigners,
        before: Mapping[str, Any],
        *,
        most: int,
        probed: Probe | None = None,
    ) -> None:
        if probed is None:
            probed = fetcher.probe(url, most=most, known=Version.of(before) or None)
        self.url = url
        self.signers = signers
        self.unchanged = probed.unchanged
        self.version = probed.version
        self._lasting = probed.version.lasting
        self._fetcher = fetcher
        self._probed = probed
        self._most = most
        self._checked = False  # whether this run has accepted the whole file in the staging area

    def probe(self) -> Probe:
        """The metadata and the first bytes of the file.

        Raises:
            TransferError: no usable response.
            RemoteChangedError: the file is no longer the version of the first request.
        """
        if self._probed.unchanged:
            self._probed = self._fetcher.probe(self.url, most=self._most)  # a 304 has less metadata
            if not self.version.is_same_as(self._probed.version):
                raise RemoteChangedError(self.url, "it changed between two requests")
        return self._probed

    def record(self) -> dict[str, object]:
        """JSON for `before`."""
        return self._lasting.record

    @property
    def description(self) -> str:
        """What to call this version."""
        return version_label(self.url, self.version)

    @property
    def ranges(self) -> bool:
        """Whether ranges can be fetched that are certain to come from one version."""
        probed = self.probe()
        return (
            probed.ranges
            and probed.version.proves
            and probed.size is not None
            and not self.signers.keys
            and not self.has_whole
        )

    @property
    def has_whole(self) -> bool:
        """Whether the whole file is in the staging area."""
        return os.path.exists(self._whole_path)

    @property
    def size(self) -> int:
        """The size of the file in bytes; if ranges can't be fetched, that of the whole download."""
        size = self.probe().size
        return os.path.getsize(self.whole()) if size is None or not self.ranges else size

    def parts(
        self, ranges: Iterable[tuple[int, int]], labels: Iterable[str] = (), *, phase: str = "fetching"
    ) -> list[tuple[str, int]]:
        """For each of these ranges, the path of a file with its bytes, which are not verified yet, and their offset in
        it. Where ranges can't be fetched, that is the whole file.

        Args:
            labels, phase: what progress displays call each range (by default like the file), and the work.

        Raises:
            RemoteChangedError: the file is no longer this version.
            TransferError: it can't be fetched.
        """
        ranges = list(ranges)
        if self.ranges:
            try:
                return [(path, 0) for path in self._parts(ranges, labels, phase)]
            except (RemoteChangedError, CancelledError):
                raise
            except TransferError as error:
                _log.warning("%s: falling back to a whole download: %s", redacted(self.url), error)
        path = self.whole()
        return [(path, start) for start, _ in ranges]

    def _parts(self, ranges: Iterable[tuple[int, int]], labels: Iterable[str], phase: str) -> list[str]:
        probed = self.probe()
        requests, paths = [], []
        for (start, end), label in zip(ranges, chain(labels, repeat(self._label)), strict=False):
            name = f"{self._name}.{start}-{end}"
            paths.append(self._fetcher.path(name))
            try:
                staged = os.path.getsize(paths[-1]) == end - start
            except FileNotFoundError:
                staged = False
            if not staged and end <= len(probed.first):
                _write(paths[-1], probed.first[start:end])
            elif not staged:
                part = (start, end)
                requests.append(Request(self.url, name, byte_range=part, only=probed.version, label=label))
        self._fetcher.get(requests, phase=phase)
        return paths

    def read(self, start: int, end: int) -> bytes:
        """Some bytes of the file. Raises as `parts`."""
        ((path, offset),) = self.parts([(start, end)], phase="reading the table of contents")
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(end - start)

    def whole(self) -> str:
        """The path of the whole file.

        Raises:
            RemoteChangedError: the file is no longer this version.
            SignatureError: it lacks a required signature.
            TransferError: it can't be fetched.
        """
        probed = self.probe()
        path = self._whole_path
        if not self.has_whole or not (self._checked or self.version):
            self._fetch_whole(probed, path)
        if not self._checked:
            self._checked = True
            self.signers.remember()
        return path

    def _fetch_whole(self, probed: Probe, path: str) -> None:
        if probed.whole and not self.signers.keys:
            _write(path, probed.first)
            return
        request = Request(
            self.url,
            os.path.basename(path),
            only=probed.version.lasting,  # a date that is that of the response may differ in the next one
            size=probed.size,
            label=self._label,
            public_keys=self.signers.keys,
        )
        (found,) = self._fetcher.get([request])
        self.version = found.version or self.version  # without a validator it may be a newer version
        self._lasting = found.version

    @property
    def _label(self) -> str:
        return version_label(self.url)

    @property
    def _whole_path(self) -> str:
        return self._fetcher.path(f"{self._name}.whole")

    @property
    def _name(self) -> str:
        probed = self._probed
        version = probed.version.etag, probed.version.last_modified, probed.size
        key = repr((as_recorded(self.url), *version, *self.signers.keys))  # an unverified file has another name
        return f"origin-{hashlib.sha256(key.encode()).hexdigest()[:32]}"


class PromisedFile:
    """The file at a URL, with a known checksum, which tells whether the file changed and whether it is intact.

    Args:
        before: what `record` returned for the installed version; empty: fetch the file again.
        signers: who has to sign the file, or the checksum file if that is fetched.
    """

    def __init__(
        self, fetcher: Fetcher, spec: SourceSpec, signers: FileSigners, before: Mapping[str, Any], checksum: Checksum
    ) -> None:
        self.url = spec.location
        self.unchanged = before.get("checksum") == str(checksum)
        self._fetcher = fetcher
        self._mirrors = spec.mirrors
        self._checksum = checksum
        self.signers = signers
        self._keys = () if is_url(spec.checksums or "") else signers.keys  # else that file has to be signed

    @property
    def description(self) -> str:
        """What to call this version."""
        return f"{version_label(self.url)} {self._checksum.hex[:12]}"

    def record(self) -> dict[str, object]:
        """JSON for `before`."""
        return {"checksum": str(self._checksum)}

    def whole(self) -> str:
        """The path of the file, which has the checksum.

        Raises:
            IntegrityError: it has another checksum.
            SignatureError: it lacks a required signature.
            TransferError: it can't be fetched.
        """
        label = version_label(self.url)
        name, promised = f"file-{self._checksum.hex}", str(self._checksum)
        request = Request(
            self.url,
            name,
            checksum=promised,
            mirrors=self._mirrors,
            home=self.url,
            label=label,
            public_keys=self._keys,
        )
        (found,) = self._fetcher.get([request])
        self.signers.remember()
        return found.path


def _write(path: str, data: bytes) -> None:
    with replace_own(path) as file:
        file.write(data)
