"""A list of URLs, or a Metalink document: each file is revalidated on its own, and all change at once."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from typing import Any, BinaryIO

from perfkit.downloads.http.semantics import Version
from perfkit.downloads.request import Download, Request
from perfkit.errors import ConfigError, IntegrityError, ManifestError
from perfkit.filesystem.paths import is_url
from perfkit.releases.format.manifest import Entry, Manifest
from perfkit.updates.installed import Installed, as_recorded
from perfkit.updates.local_tree import LocalTree
from perfkit.updates.routes import Offer
from perfkit.updates.source_types import SourceType
from perfkit.updates.sources.pieces import mend
from perfkit.updates.sources.remote_file import version_label
from perfkit.updates.sources.single_file import adopt_download
from perfkit.updates.sources.url_lists import LIST_BYTES, ListedFile, parse_metalink, parse_urls
from perfkit.updates.staging import Fetcher, StagingArea

_READ_CHARACTERS = 128 << 10
_NAME = "list"  # in the staging area, where the next sync revalidates it


def open_list(fetcher: Fetcher, source: str, type: SourceType, installed: Installed) -> ListSource:
    """Read a list from a local file or a URL; the request is conditional if an earlier list is staged.

    Raises:
        ConfigError: there is no such file.
        ManifestError, UnsafePathError: it is not a list of this type, or has unsafe names.
        TransferError, OSError: it can't be read.
    """
    base = None
    path = os.path.abspath(source)
    if is_url(source):
        base = source
        (found,) = fetcher.get([Request(source, _NAME, max_bytes=LIST_BYTES)], phase="reading the list")
        path = found.path
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise ConfigError(f"{source}: {error.strerror}; a source is an http or https URL, or a list of URLs") from error
    with open(descriptor, "rb") as file:
        if os.fstat(file.fileno()).st_size > LIST_BYTES:
            raise ManifestError(f"{source}: the list is larger than {LIST_BYTES} bytes")
        if type is SourceType.METALINK:
            listed = parse_metalink(file, most=fetcher.max_files)
        else:
            listed = parse_urls(_lines(file, source), base=base, most=fetcher.max_files)
    return ListSource(base or path, type, listed, fetcher, installed)


def _lines(file: BinaryIO, source: str) -> Iterator[str]:
    """The lines of a list; a line that is too long, in pieces that are still too long."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n")
    try:
        yield from iter(lambda: text.readline(_READ_CHARACTERS), "")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{source}: a list of URLs must be UTF-8 text: {error}") from error


def reopen_list(fetcher: Fetcher, installed: Installed) -> ListSource:
    """The list that is installed; its files may have changed on their servers since.

    Raises:
        ManifestError: the tree's record of it is damaged.
    """
    try:
        items: dict[str, dict[str, Any]] = dict(installed.state["files"])
        listed = [
            ListedFile(Request(item["url"], name, **{key: item[key] for key in ("checksum", "mirrors", "size")}))
            for name, item in items.items()
        ]
        assert installed.type is not None
    except (KeyError, TypeError, ValueError) as error:
        raise ManifestError(
            f"{installed.root}: the record of what was installed from {installed.source} is damaged: {error}"
        ) from error
    return ListSource(installed.source, installed.type, listed, fetcher, installed, reopened=True)


class ListSource:
    """The files of a list, as their servers have them now. See `Source` for the methods.

    What the list says of each file is recorded in the tree, with its validators. A file that has the listed SHA-256
    needs no request; a file that is as it was installed needs a conditional one.
    """

    serial = 0
    keep_staged = frozenset({_NAME})

    def __init__(
        self,
        url: str,
        type: SourceType,
        listed: Sequence[ListedFile],
        fetcher: Fetcher,
        installed: Installed,
        *,
        reopened: bool = False,
    ) -> None:
        self.type = type
        self.url = url
        self.version = installed.version or ""
        self._listed = listed
        self._fetcher = fetcher
        self._installed = installed
        self._reopened = reopened
        self._record: dict[str, object] = dict(installed.state)
        self._fetched = False
        self._home = url if is_url(url) else None  # a local list is the caller's own

    def unchanged(self) -> bool:
        return self._reopened  # otherwise each file has to be revalidated

    def record(self) -> dict[str, object]:
        return self._record

    def resolve(self, local: LocalTree, staging: StagingArea) -> Manifest:
        entries: dict[str, Entry] = {}
        versions: dict[str, Version] = {}
        requested = []
        for each in self._listed:
            existing = local.get(each.name)
            known = self._known(each, existing)
            if existing is not None and _listed_sha256(each) == existing.sha256.hex():
                entries[each.name] = Entry(each.name, existing.size, existing.sha256, existing.executable)
                versions[each.name] = known
            else:
                requested.append((each, known))
        for (each, known), found in zip(requested, self._get(requested), strict=True):
            existing = local.get(each.name)
            if found.unchanged and not os.path.exists(found.path):
                assert existing is not None
                digest, size, versions[each.name] = existing.sha256, existing.size, known
            else:
                digest, size = self._stage(each, found, staging)
                versions[each.name] = found.version
            entries[each.name] = Entry(each.name, size, digest, existing is not None and existing.executable)
        manifest = Manifest.of(entries.values())
        self.version = f"{version_label(self.url)} {manifest.sha256.hex()[:12]}"
        self._record = {"files": {each.name: _record_of(each, versions[each.name]) for each in self._listed}}
        return manifest

    def offers(self, missing: Set[bytes], manifest: Manifest, local: LocalTree) -> tuple[Offer, ...]:
        return ()

    def fetch(self, missing: Set[bytes], manifest: Manifest, local: LocalTree, staging: StagingArea) -> tuple[str, ...]:
        names = {entry.name for entry in manifest if entry.sha256 in missing}
        requested = [(each, Version()) for each in self._listed if each.name in names]
        for (each, _), found in zip(requested, self._get(requested), strict=True):
            self._stage(each, found, staging)
        return (str(self.type),) if self._fetched else ()

    def _known(self, each: ListedFile, existing: Entry | None) -> Version:
        """The validators of the installed file, if neither it nor its line in the list has changed; else none."""
        if existing is None or not existing.sha256 or self._installed.type != self.type:
            return Version()
        record = self._installed.state.get("files", {}).get(each.name, {})
        at = self._installed.manifest.find(each.name)
        if at is None or self._installed.manifest.digest(at) != existing.sha256:
            return Version()
        same = record == _record_of(each, version := Version(record.get("etag"), record.get("last_modified")))
        return version if same else Version()

    def _get(self, requested: Sequence[tuple[ListedFile, Version]]) -> list[Download]:
        requests = []
        for each, known in requested:
            name = f"item-{hashlib.sha256(f'{as_recorded(each.request.url)} {each.name}'.encode()).hexdigest()[:32]}"
            size, label = each.request.size, each.name
            requests.append(replace(each.request, name=name, max_bytes=size, known=known, home=self._home, label=label))
        return self._fetcher.get(requests)

    def _stage(self, each: ListedFile, found: Download, staging: StagingArea) -> tuple[bytes, int]:
        """Move a downloaded file into the staging area; returns its SHA-256 and its size."""
        listed = each.request.size
        if each.pieces is not None and listed is not None:
            os.truncate(found.path, listed)  # the pieces show what is wrong, and another mirror may have it
        size = os.path.getsize(found.path)
        if listed not in (None, size):
            os.unlink(found.path)
            raise IntegrityError(each.request.url, "not the size in the list", f"{listed} bytes", f"{size} bytes")
        if each.pieces is not None:
            mend(found.path, each.pieces, replace(each.request, home=self._home), self._fetcher)
        self._fetched = True
        return adopt_download(found.path, staging)


def _listed_sha256(each: ListedFile) -> str | None:
    checksum = each.request.promised
    return checksum.hex if checksum is not None and checksum.algorithm == "sha256" else None


def _record_of(each: ListedFile, version: Version) -> dict[str, object]:
    """What the list says of a file, and its validators."""
    return {
        "url": as_recorded(each.request.url),
        "mirrors": [as_recorded(url) for url in each.request.mirrors],
        "checksum": each.request.checksum and as_recorded(each.request.checksum),
        "size": each.request.size,
        "etag": version.etag,
        "last_modified": version.last_modified,
        **({"pieces": each.pieces.digest} if each.pieces else {}),
    }
