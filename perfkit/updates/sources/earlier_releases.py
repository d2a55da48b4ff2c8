"""The earlier releases that a site still has: list them, and get the pointer to one of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from perfkit.downloads.http.urls import origin_of
from perfkit.downloads.manager import DownloadManager
from perfkit.errors import ManifestError, UpdateError
from perfkit.progress.text import printable
from perfkit.releases.format.pointer import Pointer
from perfkit.releases.format.release_history import MAX_HISTORY_BYTES, History
from perfkit.updates.source_types import site_url
from perfkit.updates.sources.site_client import SiteClient
from perfkit.updates.staging import Fetcher


@dataclass(frozen=True, slots=True)
class OfferedRelease:
    """A release that a site has.

    Attributes:
        version: as the publisher calls it.
        serial: higher than those of earlier releases.
        current: whether `sync` installs it by default.
    """

    version: str
    serial: int
    current: bool


def list_releases(downloads: DownloadManager, url: str) -> list[OfferedRelease]:
    """The releases of a site that can be installed. See `Toolkit.releases`."""
    origin_of(url)  # an error names the URL as the caller spelt it
    with tempfile.TemporaryDirectory(prefix="perfkit-") as directory:
        site = SiteClient(Fetcher(downloads, directory, max_files=0), site_url(url))  # no list of files is read
        current = Pointer.parse(site.pointer()[0])
        found = [
            OfferedRelease(each.version, each.serial, each.serial == current.serial) for each in _all(site, current)
        ]
    return sorted(found, key=lambda each: -each.serial)


def pointer_to(site: SiteClient, current: Pointer, version: str) -> Pointer:
    """The pointer of the latest release with this version.

    Raises:
        UpdateError: the site has no such release.
        ManifestError, TransferError, OSError: the history is damaged, or can't be fetched.
    """
    found = sorted(_all(site, current), key=lambda each: -each.serial)
    for each in found:
        if each.version == version:
            return each
    known = ", ".join(printable(each.version) for each in found)
    raise UpdateError(f"{site.url} has no release {version!r}; it has {known}")


def _all(site: SiteClient, current: Pointer) -> Iterator[Pointer]:
    if current.history.bytes > MAX_HISTORY_BYTES:
        raise ManifestError(f"the history of {site.url} is larger than {MAX_HISTORY_BYTES} bytes")
    (path,) = site.get([current.history], "the history", phase="reading the history")
    with open(path, "rb") as file:
        history = History.parse(file.read())
    yield current
    for record in history.records:
        if record.serial != current.serial:
            yield history.pointer_to(record, current.history)
