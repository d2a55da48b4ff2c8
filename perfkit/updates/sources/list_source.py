"""A list of URLs, or a Metalink document: each file is asked about by its validator, and all change at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence, Set
from typing import Any

from perfkit.downloads.protocol import Version
from perfkit.downloads.request import Download, Request
from perfkit.downloads.verify import parse_checksum
from perfkit.errors import ConfigError, IntegrityError, ManifestError
from perfkit.filesystem.hashing.hash_file import hash_file
from perfkit.releases.format.manifest import Entry, Manifest
from perfkit.updates.installed import Installed
from perfkit.updates.planner import Held, Offer
from perfkit.updates.source_types import Kind
from perfkit.updates.sources import Where
from perfkit.updates.sources.url_lists import LIST_BYTES, Listed, parse_metalink, parse_urls
from perfkit.updates.staging import Assembly, Fetcher

__all__ = ["ListSource", "open_list", "reopen_list"]

_NAME = "list"  # in the stage, where it stays: the next sync asks whether it changed


def open_list(fetcher: Fetcher, source: str, kind: Kind, installed: Installed) -> ListSource:
    """Read a list: a local one, or that of a URL, conditionally where an earlier one is in the stage.

    Raises:
        ConfigError: there is no such file.
        ManifestError, UnsafePathError: it is not such a list, or has names that can't be.
        TransferError, OSError: it can't be had.
    """
    base = None
    path = os.path.abspath(source)
    if source.startswith(("http://", "https://")):
        base = source
        (found,) = fetcher.get([Request(source, _NAME, max_bytes=LIST_BYTES)])
        path = found.path
    try:
        with open(path, "rb") as file:
            data = file.read(LIST_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise ConfigError(f"{source}: {error.strerror}; a source is a URL, or the path of a list of URLs") from error
    if len(data) > LIST_BYTES:
        raise ManifestError(f"{source}: a list of more than {LIST_BYTES} bytes")
    listed = parse_metalink(data) if kind is Kind.METALINK else parse_urls(_text(data, source), base=base)
    return ListSource(base or path, kind, listed, fetcher, installed)


def _text(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{source}: a list of URLs is UTF-8 text, and this is not: {error}") from error


def reopen_list(fetcher: Fetcher, installed: Installed) -> ListSource:
    """The list as it was when `installed` was made; its files may be other ones by now.

    Raises:
        ManifestError: what the tree says of it is damaged.
    """
    try:
        items: dict[str, dict[str, Any]] = dict(installed.state["files"])
        listed = [
            Listed(
                Request(item["url"], name, checksum=item["checksum"], mirrors=tuple(item["mirrors"])),
                name,
                item["size"],
            )
            for name, item in items.items()
        ]
        assert installed.kind is not None
    except (KeyError, TypeError, ValueError) as error:
        raise ManifestError(f"what the tree says of {installed.source} is damaged: {error}") from error
    return ListSource(installed.source, installed.kind, listed, fetcher, installed, reopened=True)


class ListSource:
    """The files of a list, as their servers have them. See `Source` for what the methods do.

    What the list said of each file is kept in the tree, with the version that its server told. A file is not asked for
    if it has the SHA-256 that the list says, and only conditionally if it is as it was installed.
    """

    serial = 0
    keeps = frozenset({_NAME})

    def __init__(
        self,
        url: str,
        kind: Kind,
        listed: Sequence[Listed],
        fetcher: Fetcher,
        installed: Installed,
        *,
        reopened: bool = False,
    ) -> None:
        self.kind = kind
        self.url = url
        self.version = installed.version or ""
        self._listed = listed
        self._fetcher = fetcher
        self._installed = installed
        self._reopened = reopened
        self._record: dict[str, object] = dict(installed.state)
        self._fetched = False

    def unchanged(self) -> bool:
        return self._reopened  # otherwise only each file's own server can tell

    def record(self) -> dict[str, object]:
        return self._record

    def manifest(self, held: Mapping[str, Held], where: Where, assembly: Assembly) -> Manifest:
        entries: dict[str, Entry] = {}
        versions: dict[str, Version] = {}
        asked = []
        for each in self._listed:
            there = held.get(each.name)
            known = self._known(each, there)
            if there is not None and _promised_sha256(each) == there.sha256.hex():
                entries[each.name] = Entry(each.name, there.size, there.sha256, there.executable)
                versions[each.name] = known
            else:
                asked.append((each, known))
        for (each, known), found in zip(asked, self._get(asked), strict=True):
            there = held.get(each.name)
            if found.unchanged and not os.path.exists(found.path):
                assert there is not None
                digest, size, versions[each.name] = there.sha256, there.size, known
            else:
                digest, size = self._take(each, found, assembly)
                versions[each.name] = found.version
            entries[each.name] = Entry(each.name, size, digest, there is not None and there.executable)
        manifest = Manifest.of(entries.values())
        self.version = f"{self.url.rstrip('/').rpartition('/')[2]} {manifest.sha256.hex()[:12]}"
        self._record = {"files": {each.name: _record_of(each, versions[each.name]) for each in self._listed}}
        return manifest

    def offers(self, missing: Set[bytes], manifest: Manifest) -> tuple[Offer, ...]:
        return ()

    def fetch(self, missing: Set[bytes], manifest: Manifest, assembly: Assembly) -> tuple[str, ...]:
        names = {entry.name for entry in manifest if entry.sha256 in missing}
        asked = [(each, Version()) for each in self._listed if each.name in names]
        for (each, _), found in zip(asked, self._get(asked), strict=True):
            self._take(each, found, assembly)
        return (str(self.kind),) if self._fetched else ()

    def _known(self, each: Listed, there: Held | None) -> Version:
        """What is installed under a name, if it still stands there and came of what the list says now."""
        if there is None or not there.sha256 or self._installed.kind != self.kind:
            return Version()
        record = self._installed.state.get("files", {}).get(each.name, {})
        at = self._installed.manifest.find(each.name)
        if at is None or self._installed.manifest.digest(at) != there.sha256:
            return Version()
        same = record == _record_of(each, version := Version(record.get("etag"), record.get("last_modified")))
        return version if same else Version()

    def _get(self, asked: Sequence[tuple[Listed, Version]]) -> list[Download]:
        requests = []
        for each, known in asked:
            name = f"item-{hashlib.sha256(f'{each.request.url} {each.name}'.encode()).hexdigest()[:32]}"
            requests.append(
                Request(
                    each.request.url,
                    name,
                    checksum=each.request.checksum,
                    mirrors=each.request.mirrors,
                    max_bytes=each.size,
                    known=known,
                )
            )
        return self._fetcher.get(requests)

    def _take(self, each: Listed, found: Download, assembly: Assembly) -> tuple[bytes, int]:
        """Have a file that was fetched in the assembly; returns its SHA-256 and its size."""
        size = os.path.getsize(found.path)
        if each.size is not None and size != each.size:
            os.unlink(found.path)
            raise IntegrityError(each.request.url, "the list says another size", f"{each.size} bytes", f"{size} bytes")
        digest = bytes.fromhex(hash_file(found.path).sha256 or "")
        assembly.adopt(found.path, digest)
        self._fetched = True
        return digest, size


def _promised_sha256(each: Listed) -> str | None:
    checksum = parse_checksum(each.request.checksum) if each.request.checksum else None
    return checksum.hex if checksum is not None and checksum.algorithm == "sha256" else None


def _record_of(each: Listed, version: Version) -> dict[str, object]:
    """What the list says of a file, and what its server calls it."""
    return {
        "url": each.request.url,
        "mirrors": [*each.request.mirrors],
        "checksum": each.request.checksum,
        "size": each.size,
        "etag": version.etag,
        "last_modified": version.last_modified,
    }
