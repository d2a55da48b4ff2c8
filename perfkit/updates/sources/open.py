"""Determine the type of a source, and open it. An unknown type is an error, never a guess.

The modules for each type, and for detection, are imported only when needed: a sync is a short run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from perfkit.downloads.checksums import parse_checksum
from perfkit.downloads.http.urls import split_url
from perfkit.downloads.probe import Probe
from perfkit.errors import (
    CancelledError,
    ConfigError,
    ExpiredError,
    HTTPStatusError,
    PerfkitError,
    SignatureError,
    TransferError,
    UpdateError,
)
from perfkit.filesystem.paths import is_url
from perfkit.redact import masked, redacted
from perfkit.releases.format import POINTER_NAME
from perfkit.updates.installed import Installed
from perfkit.updates.signers import FileSigners, Trust
from perfkit.updates.source_types import SourceSpec, SourceType, site_url
from perfkit.updates.sources import Source
from perfkit.updates.sources.remote_file import RemoteFile, known_version
from perfkit.updates.staging import Fetcher

if TYPE_CHECKING:
    from perfkit.updates.sources.release_source import ReleaseSource

_log = logging.getLogger(__name__)

_ARCHIVES = (SourceType.ZIP, SourceType.TAR)
_LISTS = (SourceType.URLS, SourceType.METALINK)
_SIGNED = (*_ARCHIVES, SourceType.FILE)  # these can be signed, as releases can
_PROBE_BYTES = {  # if the type is known: what is probed beyond need is fetched twice
    SourceType.ZIP: 1024,
    SourceType.TAR: 1024,
    SourceType.ZSYNC: 16 << 10,
    SourceType.FILE: 16 << 10,
}


def open_source(fetcher: Fetcher, spec: SourceSpec, installed: Installed, *, dry_run: bool = False) -> Source:
    """Open a source with one request, which is conditional if something is installed from that source.

    Args:
        dry_run: fetch no content, unless the manifest requires it.

    Raises:
        ConfigError: the type is unknown, or does not fit the selection.
        ManifestError, TransferError, OSError: as the methods of `Source`.
    """
    location, type, probed = spec.location, spec.type, None
    fetcher.use_mirrors(location, ())
    if not is_url(location):
        type = _local_type(location, type)
    elif type is None:
        type = _installed_type(location, installed)
    if type is None and (
        spec.release is not None or spec.channel is not None or location.endswith(("/", POINTER_NAME))
    ):
        type = SourceType.RELEASE
    if type is None:
        type, probed = _detect_any(fetcher, spec)
    if spec.selection is not None and type not in _ARCHIVES:
        if type is not SourceType.RELEASE:
            raise ConfigError(f"{location} is of type {type}: only parts of releases and archives can be selected")
        if spec.selection.strip_components or spec.selection.links != "refuse":
            raise ConfigError(f"{location} is a release: only include and exclude select its files")
    if spec.decompress and type is not SourceType.FILE:
        raise ConfigError(f"{location} is of type {type}: only plain files can be decompressed (type file)")
    if spec.checksums and type is not SourceType.FILE:
        raise ConfigError(f"{location} is of type {type}: checksums are for plain files (type file)")
    _refuse_mirrors(spec, type)
    if type is SourceType.RELEASE:
        return _open_release(fetcher, spec, installed, dry_run=dry_run)
    if spec.release is not None or spec.channel is not None:
        raise ConfigError(f"{location} is of type {type}: only release sites have earlier releases and channels")
    return _open(fetcher, spec, type, installed, probed, dry_run=dry_run)


def _refuse_mirrors(spec: SourceSpec, type: SourceType) -> None:
    if spec.mirrors and type is not SourceType.RELEASE and not (type is SourceType.FILE and spec.checksums):
        raise ConfigError(
            f"{spec.location} is of type {type}: mirrors are for sites, and for plain files with --checksums, "
            "which show that two servers have the same file; a Metalink document lists its own mirrors"
        )


def _each_release(
    fetcher: Fetcher,
    source: str,
    mirrors: Iterable[str],
    opened: Callable[[], ReleaseSource],
    failures: list[PerfkitError],
) -> Iterator[ReleaseSource]:
    """The release of a site, and of each of its mirrors; the fetcher tries the site of the one yielded last first.

    Args:
        failures: if there are mirrors, receives the error of each site that offers no release.
    """
    sites = [site_url(url) for url in (source, *mirrors)]
    for url in fetcher.failed_last(sites):
        if len(sites) > 1:
            fetcher.use_mirrors(sites[0], [url, *(each for each in sites if each != url)])
        try:
            found = opened()
        except PerfkitError as error:
            if len(sites) == 1 or isinstance(error, CancelledError):
                raise
            failures.append(error)
            _log.warning("%s: trying the next mirror: %s", redacted(url), error)
        else:
            yield found


def _open_release(fetcher: Fetcher, spec: SourceSpec, installed: Installed, *, dry_run: bool) -> Source:
    """The release of the first site whose release is not older than what was installed; else an older one.

    Raises:
        ExpiredError: no site offers a current one, and one of them offers an expired one.
        PerfkitError: no site offers any; the error of the first.
    """
    from perfkit.updates.sources.release_source import open_release

    def opened() -> ReleaseSource:
        return open_release(fetcher, spec, installed, dry_run=dry_run)

    behind: Source | None = None
    failures: list[PerfkitError] = []
    for found in _each_release(fetcher, spec.location, spec.mirrors, opened, failures):
        if spec.release is not None or found.serial >= installed.highest_serial(found.url):
            return found
        behind = behind or found
    expired = [error for error in failures if isinstance(error, ExpiredError)]
    if behind is None or expired:  # a release that is behind must not hide that the newest one has expired
        raise (expired or failures)[0]
    return behind


def _local_type(path: str, type: SourceType | None) -> SourceType:
    """The type of a local list."""
    from perfkit.updates.sources.detect import FIRST_BYTES, detect_type

    try:
        with open(path, "rb") as file:
            found = type or detect_type(path, file.read(FIRST_BYTES))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        shown = path if path.startswith(("/", ".")) else masked(path)  # it may be a mistyped URL with a password
        raise ConfigError(f"{shown}: {error.strerror}; a source is an http or https URL, or a list of URLs") from error
    if found is None or found not in _LISTS:
        what = "neither a list of URLs nor a Metalink 4 document" if found is None else f"of type {found}, not a list"
        raise ConfigError(f"{path} is {what}; give sources other than lists by their URL")
    return found


def _installed_type(url: str, installed: Installed) -> SourceType | None:
    return installed.type if installed.is_from(url) or installed.is_from(site_url(url)) else None


def _detect_any(fetcher: Fetcher, spec: SourceSpec) -> tuple[SourceType, Probe | None]:
    """The type of a source, or else of the first of its mirrors that responds."""
    for url in spec.mirrors:
        try:
            return _detect(fetcher, spec.location)
        except CancelledError:
            raise
        except TransferError as error:
            _log.warning("%s: trying the next mirror: %s", redacted(spec.location), error)
            spec = replace(spec, location=url)
    return _detect(fetcher, spec.location)


def _detect(fetcher: Fetcher, url: str) -> tuple[SourceType, Probe | None]:
    """The type of a remote source, by its content; the URL of a site may lack its trailing slash."""
    from perfkit.updates.sources.detect import FIRST_BYTES, detect_type

    try:
        probed = fetcher.probe(url, most=FIRST_BYTES)
    except HTTPStatusError as error:
        if error.transient:
            raise
        return SourceType.RELEASE, None  # a site needs no index page: its pointer decides
    type = detect_type(url, probed.first, probed.content_type)
    if type is None and _is_file(fetcher, probed):
        type = SourceType.FILE
    return (SourceType.RELEASE, None) if type is None else (type, probed)


def _is_file(fetcher: Fetcher, probed: Probe) -> bool:
    """Whether a URL of no other type has a plain file: it is not a page, and there is no pointer of a site below it."""
    from perfkit.updates.sources.detect import is_html

    path, query, _ = split_url(probed.url)[2].partition("?")
    if not probed.first or is_html(probed.content_type) or path.endswith("/"):
        return False
    if query:
        return True  # the URL of a site has none
    try:
        pointer = fetcher.probe(f"{probed.url}/{POINTER_NAME}", most=1)
    except HTTPStatusError as error:
        return not error.transient
    return pointer.first != b"{"  # some servers respond to a path below a file with the file


def _open(
    fetcher: Fetcher,
    spec: SourceSpec,
    type: SourceType,
    installed: Installed,
    probed: Probe | None,
    *,
    dry_run: bool = False,
) -> Source:
    url = spec.location
    if spec.demands.signers is not None and type not in _SIGNED:
        raise ConfigError(
            f"{redacted(url)} is of type {type}: only releases, plain files and archives can be signed; "
            "perfkit get --public-key verifies single files"
        )
    signers = Trust.read(installed.root).for_file(spec.demands.signers, url, type, remember=not dry_run)
    if signers.keys and type not in _SIGNED:
        raise SignatureError(url, f"this tree accepts only signed sources; one of type {type} has no signature")
    if type in _LISTS:
        from perfkit.updates.sources.list_source import open_list

        return open_list(fetcher, url, type, installed)
    before = installed.state if installed.type == type and installed.is_from(url) else {}
    if signers.are_new or before.get("signers", []) != signers.names:
        before = {}  # what is installed was not verified with these keys
    if type is SourceType.ZSYNC:
        from perfkit.updates.sources.zsync_source import ZsyncSource

        return ZsyncSource(_remote_file(fetcher, url, type, before, probed, signers), fetcher, installed)
    if type is SourceType.FILE:
        return _open_file(fetcher, spec, before, probed, signers)
    from perfkit.archives.members import Selection

    recorded = Selection.of(before.get("selection", {}))
    selection = spec.selection or recorded
    if selection != recorded:
        before = {}
    archive = _remote_file(fetcher, url, type, before, probed, signers)
    if type is SourceType.ZIP:
        from perfkit.updates.sources.zip_source import ZipSource

        return ZipSource(archive, selection, installed)
    from perfkit.updates.sources.tar_source import TarSource

    return TarSource(archive, selection)


def _open_file(
    fetcher: Fetcher, spec: SourceSpec, before: Mapping[str, Any], probed: Probe | None, signers: FileSigners
) -> Source:
    from perfkit.updates.sources.file_source import FileSource, PromisedFile, file_name, find_checksum

    recorded = bool(before.get("decompress"))
    decompress = recorded if spec.decompress is None else spec.decompress
    file_name(spec.location, decompress=decompress)  # raises before anything is requested
    known = before if decompress == recorded else {}
    file: RemoteFile | PromisedFile
    if spec.checksums is not None:
        file = PromisedFile(fetcher, spec, find_checksum(fetcher, spec, signers), known.get("origin", {}), signers)
    else:
        file = _remote_file(fetcher, spec.location, SourceType.FILE, known, probed, signers)
    return FileSource(file, decompress=decompress)


def _remote_file(
    fetcher: Fetcher,
    url: str,
    type: SourceType,
    before: Mapping[str, Any],
    probed: Probe | None,
    signers: FileSigners,
) -> RemoteFile:
    """The file at a URL.

    Args:
        before: the recorded state of the installed version; empty: fetch the file again.
    """
    most = _PROBE_BYTES[type]
    if probed is None:
        probed = fetcher.probe(url, most=most, known=known_version(before.get("origin", {})))
    return RemoteFile(fetcher, probed, lambda: fetcher.probe(url, most=most), signers)


def reopen_source(fetcher: Fetcher, installed: Installed, mirrors: tuple[str, ...] = ()) -> Source:
    """The installed version of the source, to repair the tree from it.

    Args:
        mirrors: other URLs of the same source.

    Raises:
        ConfigError: this type has no mirrors.
        UpdateError: the source has changed since.
        ManifestError, TransferError, OSError: as the methods of `Source`.
    """
    type = installed.type
    assert type is not None
    promised = installed.state.get("origin", {}).get("checksum")
    checksums = promised and str(parse_checksum(promised))
    spec = SourceSpec(installed.source, type, checksums=checksums, mirrors=mirrors)
    _refuse_mirrors(spec, type)
    if type is SourceType.RELEASE:
        return _reopen_release(fetcher, installed, mirrors)
    if type in _LISTS:
        from perfkit.updates.sources.list_source import reopen_list

        return reopen_list(fetcher, installed)
    found = _open(fetcher, spec, type, installed, None)
    if not found.unchanged():
        raise UpdateError(f"{installed.source} has changed since it was installed; run sync, which repairs the tree")
    return found


def _reopen_release(fetcher: Fetcher, installed: Installed, mirrors: tuple[str, ...]) -> Source:
    """The installed release, from the first site that responds.

    Raises:
        PerfkitError: none does; the error of the first.
    """
    from perfkit.updates.sources.release_source import reopen_release

    failures: list[PerfkitError] = []
    for found in _each_release(
        fetcher, installed.source, mirrors, lambda: reopen_release(fetcher, installed), failures
    ):
        return found
    raise failures[0]
