"""Determine the type of a source, and open it. An unknown type is an error, never a guess.

The modules for each type, and for detection, are imported only when needed: a sync is a short run.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterable, Mapping
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
from perfkit.updates.sources.remote_file import PromisedFile, RemoteFile
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
    fetcher.use_mirrors(spec.location, ())
    type, probed = _type_of(fetcher, spec, installed)
    _refuse_misfits(spec, type)
    if type is SourceType.RELEASE:
        return _open_release(fetcher, spec, installed, dry_run=dry_run)
    return _open(fetcher, spec, type, installed, probed, dry_run=dry_run)


def _type_of(fetcher: Fetcher, spec: SourceSpec, installed: Installed) -> tuple[SourceType, Probe | None]:
    """The type of a source, and the response to a request if one was needed to determine it."""
    url = spec.location
    if not is_url(url):
        return _local_type(url, spec.type), None
    same = installed.is_from(url) or installed.is_from(site_url(url))
    if (type := spec.type or (installed.type if same else None)) is not None:
        return type, None
    if spec.release is not None or spec.channel is not None or url.endswith(("/", POINTER_NAME)):
        return SourceType.RELEASE, None
    return _detect_any(fetcher, spec)


def _refuse_misfits(spec: SourceSpec, type: SourceType) -> None:
    """Refuse what the caller says that does not fit the type of the source."""
    release, file, archive = type is SourceType.RELEASE, type is SourceType.FILE, type in _ARCHIVES
    selection = spec.selection
    for refused, reason in (
        (selection and not (archive or release), "only parts of releases and archives can be selected"),
        (
            selection and release and (selection.strip_components or selection.links != "refuse"),
            "only include and exclude select files of a release",
        ),
        (spec.decompress and not file, "only plain files can be decompressed (type file)"),
        (spec.checksums and not file, "checksums are for plain files (type file)"),
        (
            spec.mirrors and not release and not (file and spec.checksums),
            "mirrors are for sites, and for plain files with --checksums; a Metalink document lists its own mirrors",
        ),
        (
            not release and (spec.release is not None or spec.channel is not None),
            "only release sites have earlier releases and channels",
        ),
        (
            spec.signers and not release and type not in _SIGNED,
            "only releases, plain files and archives can be signed; perfkit get --public-key verifies single files",
        ),
    ):
        if refused:
            raise ConfigError(f"{redacted(spec.location)} is of type {type}: {reason}")


def _first_release(
    fetcher: Fetcher,
    source: str,
    mirrors: Iterable[str],
    opened: Callable[[], ReleaseSource],
    current: Callable[[ReleaseSource], bool],
) -> ReleaseSource:
    """The first current release that a site or its mirrors offer, else the first one; the fetcher tries the site that
    was asked last first.

    Raises:
        ExpiredError: no site offers a current one, and one of them offers an expired one.
        PerfkitError: no site offers any; the error of the first.
    """
    sites = [site_url(url) for url in (source, *mirrors)]
    behind: ReleaseSource | None = None
    failures: list[PerfkitError] = []
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
            continue
        if current(found):
            return found
        behind = behind or found
    expired = [error for error in failures if isinstance(error, ExpiredError)]
    if behind is None or expired:  # a release that is behind must not hide that the newest one has expired
        raise (expired or failures)[0]
    return behind


def _open_release(fetcher: Fetcher, spec: SourceSpec, installed: Installed, *, dry_run: bool) -> Source:
    """The release of the first site whose release is not older than what was installed; else an older one."""
    from perfkit.updates.sources.release_source import open_release

    def opened() -> ReleaseSource:
        return open_release(fetcher, spec, installed, dry_run=dry_run)

    def current(found: ReleaseSource) -> bool:
        return spec.release is not None or found.serial >= installed.highest_serial(found.url)

    return _first_release(fetcher, spec.location, spec.mirrors, opened, current)


def _local_type(path: str, type: SourceType | None) -> SourceType:
    """The type of a local list."""
    from perfkit.updates.sources.detect import FIRST_BYTES, detect_type

    found = type
    try:
        pipe = stat.S_ISFIFO(os.stat(path).st_mode)
        if type is None and not pipe:
            with open(path, "rb") as file:
                found = detect_type(path, file.read(FIRST_BYTES))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        shown = path if path.startswith(("/", ".")) else masked(path)  # it may be a mistyped URL with a password
        hint = "a source is a list of URLs, or an http or https URL, such as `perfkit serve` gives to a local directory"
        raise ConfigError(f"{shown}: {error.strerror}; {hint}") from error
    if found is None and pipe:
        raise ConfigError(f"{path} is a pipe, which can be read only once; give its type, urls or metalink")
    if found is None or found not in _LISTS:
        what = "neither a list of URLs nor a Metalink 4 document" if found is None else f"of type {found}, not a list"
        raise ConfigError(f"{path} is {what}; give sources other than lists by their URL")
    return found


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
    signers = Trust.read(installed.root).for_file(spec.signers, url, type, remember=not dry_run)
    if signers.keys and type not in _SIGNED:
        raise SignatureError(url, f"this tree accepts only signed sources; one of type {type} has no signature")
    if type in _LISTS:
        from perfkit.updates.sources.list_source import open_list

        return open_list(fetcher, url, type, installed)
    before = installed.state if installed.type == type and installed.is_from(url) else {}
    if signers.are_new or before.get("signers", []) != signers.names:
        before = {}  # what is installed was not verified with these keys

    def remote_file(before: Mapping[str, Any]) -> RemoteFile:
        return RemoteFile(fetcher, url, signers, before.get("origin", {}), most=_PROBE_BYTES[type], probed=probed)

    if type is SourceType.ZSYNC:
        from perfkit.updates.sources.zsync_source import ZsyncSource

        return ZsyncSource(remote_file(before), fetcher, installed)
    if type is SourceType.FILE:
        return _open_file(fetcher, spec, signers, before, remote_file)
    return _open_archive(spec, type, installed, before, remote_file)


def _open_file(
    fetcher: Fetcher,
    spec: SourceSpec,
    signers: FileSigners,
    before: Mapping[str, Any],
    remote_file: Callable[[Mapping[str, Any]], RemoteFile],
) -> Source:
    from perfkit.updates.sources.file_source import FileSource, file_name, find_checksum

    recorded = bool(before.get("decompress"))
    decompress = recorded if spec.decompress is None else spec.decompress
    before = before if decompress == recorded else {}
    file_name(spec.location, decompress=decompress)  # raises before anything is requested
    if spec.checksums is None:
        return FileSource(remote_file(before), decompress=decompress)
    checksum = find_checksum(fetcher, spec, signers)
    file = PromisedFile(fetcher, spec, signers, before.get("origin", {}), checksum)
    return FileSource(file, decompress=decompress)


def _open_archive(
    spec: SourceSpec,
    type: SourceType,
    installed: Installed,
    before: Mapping[str, Any],
    remote_file: Callable[[Mapping[str, Any]], RemoteFile],
) -> Source:
    from perfkit.archives.members import Selection

    recorded = Selection.of(before.get("selection", {}))
    selection = spec.selection or recorded
    archive = remote_file(before if selection == recorded else {})
    if type is SourceType.ZIP:
        from perfkit.updates.sources.zip_source import ZipSource

        return ZipSource(archive, selection, installed)
    from perfkit.updates.sources.tar_source import TarSource

    return TarSource(archive, selection)


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
    _refuse_misfits(spec, type)
    if type is SourceType.RELEASE:
        from perfkit.updates.sources.release_source import reopen_release

        return _first_release(
            fetcher, installed.source, mirrors, lambda: reopen_release(fetcher, installed), lambda found: True
        )
    if type in _LISTS:
        from perfkit.updates.sources.list_source import reopen_list

        return reopen_list(fetcher, installed)
    found = _open(fetcher, spec, type, installed, None)
    if not found.unchanged():
        raise UpdateError(f"{installed.source} has changed since it was installed; run sync, which repairs the tree")
    return found
