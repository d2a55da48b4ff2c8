"""A list of URLs, or a Metalink document: each file is asked about by its validator, and all change at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perfkit.downloads.protocol import Version
from perfkit.downloads.request import Download, Request
from perfkit.errors import IntegrityError, ManifestError
from perfkit.filesystem.hashing import hash_file
from perfkit.incremental.fetch import Assembly, Fetcher
from perfkit.incremental.installed import Installed
from perfkit.incremental.lists import LIST_BYTES, Listed, parse_metalink, parse_urls
from perfkit.incremental.manifest import Entry, Manifest
from perfkit.incremental.plan import Held, Offer
from perfkit.incremental.recognise import Kind
from perfkit.incremental.sources.origin import Origin, known_version, label

__all__ = ["ListSource", "LocalList"]

Where = Callable[[bytes], str | None]


@dataclass(frozen=True, slots=True)
class LocalList:
    """A list that is a file of this machine. Like `Origin`, as far as a list goes."""

    path: str  # absolute
    unchanged: bool = False  # it is read anew each time
    version: Version = Version()  # noqa: RUF009

    @property
    def url(self) -> str:
        return self.path

    @property
    def base(self) -> str | None:
        return None

    def whole(self) -> str:
        return self.path

    def record(self) -> dict[str, object]:
        return {}


class ListSource:
    """The files that a list names, as their servers have them. See `Source` for what the methods do.

    The list's entries are kept in the tree with the version of each file: while the list itself is unchanged (304), it
    is not read again.
    """

    serial = 0
    keeps: frozenset[str] = frozenset()

    def __init__(self, origin: Origin | LocalList, kind: Kind, fetcher: Fetcher, installed: Installed) -> None:
        self.kind = kind
        self.url = origin.url
        self._origin = origin
        self._fetcher = fetcher
        self._installed = installed
        self._versions: dict[str, tuple[str, Version]] = {}  # by name: the URL, and what it has
        self._list_sha256 = ""
        self._fetched = False
