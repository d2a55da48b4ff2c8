"""One version of a remote file, fetched into the staging area in parts or whole."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, repeat
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from perfkit.downloads.http.semantics import Version, parse_date
from perfkit.downloads.probe import Probe
from perfkit.downloads.request import Request
from perfkit.errors import CancelledError, RemoteChangedError, TransferError
from perfkit.filesystem.own_files import replace_own
from perfkit.progress.text import printable
from perfkit.redact import redacted
from perfkit.updates.installed import as_recorded
from perfkit.updates.signers import FileSigners
from perfkit.updates.staging import Fetcher

_TAG_CHARACTERS = 40

_log = logging.getLogger(__name__)


def known_version(state: Mapping[str, Any]) -> Version | None:
    """The version that `RemoteFile.record` recorded; None: it has no validators."""
    version = Version(state.get("etag"), state.get("last_modified"))
    return version or None


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
        probed: the result of the first, conditional request.
        probe: makes the request again without the condition, since a 304 has less metadata.
        signers: who has to sign the file; if anybody, it is fetched whole and verified.
    """

    def __init__(self, fetcher: Fetcher, probed: Probe, probe: Callable[[], Probe], signers: FileSigners) -> None:
        self.url = probed.url
        self.version = probed.version
        self._lasting = probed.version.lasting
        self.unchanged = probed.unchanged
        self._fetcher = fetcher
        self._probed = probed
        self._probe = probe
        self.signers = signers
        self._checked = False  # whether this run has accepted the whole file in the staging area

    def probe(self) -> Probe:
        """The metadata and the first bytes of the file.

        Raises:
            TransferError: no usable response.
            RemoteChangedError: the file is no longer the version of the first request.
        """
        if self._probed.unchanged:
            self._probed = self._probe()
            if self._probed.version != self.version:
                raise RemoteChangedError(self.url, "it changed between two requests")
        return self._probed

    def record(self) -> dict[str, object]:
        """JSON that `known_version` reads."""
        return {"etag": self._lasting.etag, "last_modified": self._lasting.last_modified}

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
            and not os.path.exists(self._whole_path)
        )

    @property
    def size(self) -> int:
        """The size of the file in bytes; if ranges can't be fetched, that of the whole download."""
        size = self.probe().size
        return os.path.getsize(self.whole()) if size is None or not self.ranges else size

    def parts(
        self, ranges: Iterable[tuple[int, int]], labels: Iterable[str] = (), *, phase: str = "fetching"
    ) -> list[str] | None:
        """Paths of files with the bytes of these ranges, which are not verified yet; None: they can't be fetched, so
        fetch the whole file.

        Args:
            labels, phase: what progress displays call each range (by default like the file), and the work.

        Raises:
            RemoteChangedError: the file is no longer this version.
            CancelledError: cancelled.
        """
        try:
            return self._parts(ranges, labels, phase) if self.ranges else None
        except (RemoteChangedError, CancelledError):
            raise
        except TransferError as error:
            _log.warning("%s: falling back to a whole download: %s", redacted(self.url), error)
            return None

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
        """Some bytes of the file, by a range request if supported, else from the whole file.

        Raises:
            TransferError, RemoteChangedError: as `whole`.
        """
        paths = self.parts([(start, end)], phase="reading the table of contents")
        if paths is not None:
            with open(paths[0], "rb") as part:
                return part.read()
        with open(self.whole(), "rb") as file:
            file.seek(start)
            return file.read(end - start)

    @contextlib.contextmanager
    def open_range(self, path: str, start: int) -> Iterator[BinaryIO]:
        """Open a path that `parts` or `whole` returned, at byte `start` of the remote file."""
        with open(path, "rb", buffering=0) as file:
            if path == self._whole_path:
                file.seek(start)
            yield file

    def whole(self) -> str:
        """The path of the whole file.

        Raises:
            RemoteChangedError: the file is no longer this version.
            SignatureError: it lacks a required signature.
            TransferError: it can't be fetched.
        """
        probed = self.probe()
        path = self._whole_path
        if not os.path.exists(path) or not (self._checked or self.version):
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
            only=probed.version,
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


def _write(path: str, data: bytes) -> None:
    with replace_own(path) as file:
        file.write(data)
