"""Find out the type of a source, and open it. An unknown type is an error, never a guess.

The modules of the types, and of their detection, are imported when they are needed: a sync is a short run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from perfkit.downloads.probe import Probe
from perfkit.errors import ConfigError, HTTPStatusError, UpdateError
from perfkit.redact import masked
from perfkit.releases.format import POINTER_NAME
from perfkit.updates.installed import Installed
from perfkit.updates.signers import Trust
from perfkit.updates.source_types import SourceSpec, SourceType
from perfkit.updates.sources import Source
from perfkit.updates.sources.remote_file import RemoteFile, known_version
from perfkit.updates.staging import Fetcher

if TYPE_CHECKING:
    pass

__all__ = ["open_source", "reopen_source"]

_ARCHIVES = (SourceType.ZIP, SourceType.TAR)
_LISTS = (SourceType.URLS, SourceType.METALINK)
_PROBE_BYTES = {  # where the type is known: what is probed beyond need is fetched twice
    SourceType.ZIP: 1024,
    SourceType.TAR: 1024,
    SourceType.ZSYNC: 16 << 10,
}


def open_source(fetcher: Fetcher, spec: SourceSpec, installed: Installed, *, dry_run: bool = False) -> Source:
    """Open a source, with one request, which is conditional where something is installed from there.

    Args:
        dry_run: fetch no content, unless the manifest requires it.

    Raises:
        ConfigError: the type is unknown, or does not fit the selection.
        ManifestError, TransferError, OSError: as the methods of `Source`.
    """
    location, type, probed = spec.location, spec.type, None
    if not location.startswith(("http://", "https://")):
        type = _local_type(location, type)
    elif type is None:
        type = _installed_type(location, installed)
    if type is None and location.endswith(("/", POINTER_NAME)):
        type = SourceType.RELEASE
    if type is None:
        type, probed = _detect(fetcher, location)
    if spec.selection is not None and type not in _ARCHIVES:
        raise ConfigError(f"{location} is of type {type}: members can be selected from archives (zip, tar) only")
    if type is SourceType.RELEASE:
        from perfkit.updates.sources.release_source import open_release

        return open_release(fetcher, location, spec.demands, installed, dry_run=dry_run)
    Trust.read(installed.root).refuse_unsigned(spec.demands.signers, location, type)
    return _open(fetcher, spec, type, installed, probed)


def _local_type(path: str, type: SourceType | None) -> SourceType:
    """The type of a local list."""
    from perfkit.updates.sources.detect import FIRST_BYTES, detect_type

    try:
        with open(path, "rb") as file:
            found = type or detect_type(path, file.read(FIRST_BYTES))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        shown = path if path.startswith(("/", ".")) else masked(path)  # it may be meant for a URL, with a password
        raise ConfigError(f"{shown}: {error.strerror}; a source is a URL, or the path of a list of URLs") from error
    if found is None or found not in _LISTS:
        what = "neither a list of URLs nor a Metalink 4 document" if found is None else f"of type {found}, not a list"
        raise ConfigError(f"{path} is {what}; give sources other than lists by their URL")
    return found


def _installed_type(url: str, installed: Installed) -> SourceType | None:
    same = installed.is_from(url) or installed.is_from(f"{url.removesuffix(POINTER_NAME).rstrip('/')}/")
    return installed.type if same else None


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
    return (SourceType.RELEASE, None) if type is None else (type, probed)


def _open(fetcher: Fetcher, spec: SourceSpec, type: SourceType, installed: Installed, probed: Probe | None) -> Source:
    url = spec.location
    if type in _LISTS:
        from perfkit.updates.sources.list_source import open_list

        return open_list(fetcher, url, type, installed)
    before = installed.state if installed.type == type and installed.is_from(url) else {}
    if type is SourceType.ZSYNC:
        from perfkit.updates.sources.zsync_source import ZsyncSource

        return ZsyncSource(_remote_file(fetcher, url, type, before, probed), fetcher, installed)
    from perfkit.archives.members import Selection

    selection = spec.selection or Selection()
    if selection != Selection.of(before.get("selection", {})):
        before = {}
    archive = _remote_file(fetcher, url, type, before, probed)
    if type is SourceType.ZIP:
        from perfkit.updates.sources.zip_source import ZipSource

        return ZipSource(archive, selection, installed)
    from perfkit.updates.sources.tar_source import TarSource

    return TarSource(archive, selection)


def _remote_file(
    fetcher: Fetcher, url: str, type: SourceType, before: Mapping[str, Any], probed: Probe | None
) -> RemoteFile:
    """The file at a URL.

    Args:
        before: the state that was recorded for the installed version, if it need not be fetched again; else empty.
    """
    most = _PROBE_BYTES[type]
    if probed is None:
        probed = fetcher.probe(url, most=most, known=known_version(before.get("origin", {})))
    return RemoteFile(fetcher, probed, lambda: fetcher.probe(url, most=most))


def reopen_source(fetcher: Fetcher, installed: Installed) -> Source:
    """The installed version of the source, to repair the tree from it.

    Raises:
        UpdateError: the source has changed since.
        ManifestError, TransferError, OSError: as the methods of `Source`.
    """
    type = installed.type
    assert type is not None
    if type is SourceType.RELEASE:
        from perfkit.updates.sources.release_source import reopen_release

        return reopen_release(fetcher, installed)
    if type in _LISTS:
        from perfkit.updates.sources.list_source import reopen_list

        return reopen_list(fetcher, installed)
    from perfkit.archives.members import Selection

    selection = Selection.of(installed.state.get("selection", {}))
    found = _open(fetcher, SourceSpec(installed.source, type, selection), type, installed, None)
    if not found.unchanged():
        raise UpdateError(f"{installed.source} has changed since it was installed; sync, which also repairs the tree")
    return found
