"""The types of sources, and what a caller says about the source to sync from."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from perfkit.downloads.http.urls import origin_of
from perfkit.errors import ConfigError, ManifestError
from perfkit.redact import redacted
from perfkit.releases.format import POINTER_NAME
from perfkit.updates.signers import Signers

if TYPE_CHECKING:
    from perfkit.archives.members import Selection
    from perfkit.minisign.public_keys import AnyKey


class SourceType(StrEnum):
    """The types of sources, by the names that `--type` accepts."""

    RELEASE = "release"
    ZIP = "zip"
    TAR = "tar"
    ZSYNC = "zsync"
    FILE = "file"
    URLS = "urls"
    METALINK = "metalink"


@dataclass(frozen=True)
class SourceSpec:
    """A source as the caller names it.

    Raises:
        ConfigError: a mirror is not an http or https URL.
    """

    location: str  # a URL, or the path of a local list
    # the type of the source; None: that installed from this location before, else detected from the content
    type: SourceType | None = None
    # which files of a release or members of an archive are wanted, and the names of these in the tree; None: as
    # it was installed from this location before, else all
    selection: Selection | None = None
    # whether to decompress a plain file; None: as it was installed from this location before, else no
    decompress: bool | None = None
    # the checksum of a plain file, as `algorithm:hex`, or the URL or path of a checksum file
    checksums: str | None = None
    mirrors: tuple[str, ...] = ()  # other URLs of the same site or plain file
    # the version of the wanted release of a site; None: the current one of the site or channel
    release: str | None = None
    channel: str | None = None  # the channel of a site; None: the site's current release
    signers: Signers | None = None  # who has to sign it; None: whoever the tree remembers
    allow_expired: bool = False  # install a release even if it has expired
    allow_older: bool = False  # install a release even if the tree has had a later one

    def __post_init__(self) -> None:
        for url in self.mirrors:
            origin_of(url)

    @classmethod
    def of(
        cls,
        source: str | os.PathLike[str],
        *,
        type: str | None,
        selection: Selection | None,
        checksums: str | os.PathLike[str] | None,
        mirrors: Iterable[str],
        public_keys: Iterable[AnyKey],
        threshold: int,
        **others: Any,
    ) -> SourceSpec:
        """A source in the words of `Toolkit.sync`, which describes these arguments.

        Raises:
            ConfigError: one of them is invalid.
        """
        return cls(
            os.fspath(source),
            parse_source_type(type),
            selection,
            checksums=None if checksums is None else os.fspath(checksums),
            mirrors=tuple(mirrors),
            signers=Signers.of(public_keys, threshold),
            **others,
        )


@contextlib.contextmanager
def damage_named(location: str) -> Iterator[None]:
    """Have an error about damaged content in the block name the source that it came from."""
    try:
        yield
    except ManifestError as error:
        if (name := redacted(location)) not in str(error):
            error.args = (f"{name}: {error}",)
        raise


def parse_source_type(name: str | None) -> SourceType | None:
    """The source type with this name; None for None.

    Raises:
        ConfigError: there is no such type.
    """
    if name is None:
        return None
    try:
        return SourceType(name)
    except ValueError as error:
        raise ConfigError(f"unknown source type {name!r}; use one of {', '.join(SourceType)}") from error


def site_url(url: str) -> str:
    """The URL of a site, with a trailing slash, from that or from the URL of its pointer."""
    return url.removesuffix(POINTER_NAME).rstrip("/") + "/"
