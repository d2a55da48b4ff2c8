"""Which kind a source is of, and its opening. What can't be told for certain is an error, and not guessed.

Modules of a kind, and what tells kinds apart, are imported when they are needed: a sync is a short run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from perfkit.downloads.probe import Probe as Peek
from perfkit.errors import ConfigError, HTTPStatusError, UpdateError
from perfkit.releases.format import POINTER_NAME
from perfkit.updates.installed import Installed
from perfkit.updates.source_types import Kind
from perfkit.updates.sources import Source
from perfkit.updates.sources.remote_file import Origin, known_version
from perfkit.updates.staging import Fetcher

if TYPE_CHECKING:
    from perfkit.archives.members import Selection

__all__ = ["open_source", "reopen_source"]

_ARCHIVES = (Kind.ZIP, Kind.TAR)
_LISTS = (Kind.URLS, Kind.METALINK)
_PEEK_BYTES = {Kind.ZIP: 1024, Kind.TAR: 1024, Kind.ZSYNC: 16 << 10}  # where the kind is known: more comes twice


def open_source(
    fetcher: Fetcher,
    source: str,
    installed: Installed,
    *,
    kind: Kind | None = None,
    selection: Selection | None = None,
    dry_run: bool = False,
) -> Source:
    """Ask the origin what it has now, in one conditional request where something is installed from it.

    Args:
        source: a URL, or the path of a list.
        kind: what it is; by default what it was when it was installed from before, or else what its content says.
        selection: which files of an archive are wanted, and their names in the tree.
        dry_run: content is not wanted, if the manifest can be had without.

    Raises:
        ConfigError: it is of no kind that is known, or `kind` and `selection` don't fit.
        ManifestError, TransferError, OSError: as the methods of `Source`.
    """
    seen = None
    if not source.startswith(("http://", "https://")):
        kind = _local_kind(source, kind)
    elif kind is None:
        kind = _kind_before(source, installed)
    if kind is None and source.endswith(("/", POINTER_NAME)):
        kind = Kind.RELEASE
    if kind is None:
        kind, seen = _recognised(fetcher, source)
    if selection is not None and kind not in _ARCHIVES:
        raise ConfigError(f"{source} is {kind}: only archives (zip, tar) have members to choose from")
    if kind is Kind.RELEASE:
        from perfkit.updates.sources.release_source import open_release

        return open_release(fetcher, source, installed, dry_run=dry_run)
    return _open(fetcher, source, installed, kind, selection, seen)


def _local_kind(source: str, kind: Kind | None) -> Kind:
    """The kind of a list in a file of this machine."""
    from perfkit.updates.sources.detect import FIRST_BYTES, recognise

    try:
        with open(source, "rb") as file:
            found = kind or recognise(source, file.read(FIRST_BYTES))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise ConfigError(f"{source}: {error.strerror}; a source is a URL, or the path of a list of URLs") from error
    if found is None or found not in _LISTS:
        what = "neither a list of URLs nor a Metalink 4 document" if found is None else f"{found}, and no list"
        raise ConfigError(f"{source} is {what}; other sources than lists are given by their URL")
    return found


def _kind_before(source: str, installed: Installed) -> Kind | None:
    same = source == installed.source or f"{source.removesuffix(POINTER_NAME).rstrip('/')}/" == installed.source
    return installed.kind if same else None


def _recognised(fetcher: Fetcher, source: str) -> tuple[Kind, Peek | None]:
    """The kind of what is at a URL, by its content; a site's URL need not end in a slash."""
    from perfkit.updates.sources.detect import FIRST_BYTES, recognise

    try:
        seen = fetcher.peek(source, most=FIRST_BYTES)
    except HTTPStatusError as error:
        if error.transient:
            raise
        return Kind.RELEASE, None  # the pointer tells: a site needs no index
    kind = recognise(source, seen.first, seen.content_type)
    return (Kind.RELEASE, None) if kind is None else (kind, seen)


def _open(
    fetcher: Fetcher, source: str, installed: Installed, kind: Kind, selection: Selection | None, seen: Peek | None
) -> Source:
    if kind in _LISTS:
        from perfkit.updates.sources.list_source import open_list

        return open_list(fetcher, source, kind, installed)
    before = installed.state if (installed.kind, installed.source) == (kind, source) else {}
    if kind is Kind.ZSYNC:
        from perfkit.updates.sources.zsync_source import ZsyncSource

        return ZsyncSource(_origin(fetcher, source, kind, before, seen), fetcher, installed)
    from perfkit.archives.members import Selection

    selection = selection or Selection()
    if selection != Selection.of(before.get("selection", {})):
        before = {}
    origin = _origin(fetcher, source, kind, before, seen)
    if kind is Kind.ZIP:
        from perfkit.updates.sources.zip_source import ZipSource

        return ZipSource(origin, selection, installed)
    from perfkit.updates.sources.tar_source import TarSource

    return TarSource(origin, selection)


def _origin(fetcher: Fetcher, source: str, kind: Kind, before: Mapping[str, Any], seen: Peek | None) -> Origin:
    """The file at a URL; `before` is what was recorded of it, if that version would do."""
    most = _PEEK_BYTES[kind]
    if seen is None:
        seen = fetcher.peek(source, most=most, known=known_version(before.get("origin", {})))
    return Origin(fetcher, seen, lambda: fetcher.peek(source, most=most))


def reopen_source(fetcher: Fetcher, installed: Installed) -> Source:
    """The source as it was when `installed` was made, to repair the tree from it.

    Raises:
        UpdateError: it has something else now.
        ManifestError, TransferError, OSError: as the methods of `Source`.
    """
    kind = installed.kind
    assert kind is not None
    if kind is Kind.RELEASE:
        from perfkit.updates.sources.release_source import reopen_release

        return reopen_release(fetcher, installed)
    if kind in _LISTS:
        from perfkit.updates.sources.list_source import reopen_list

        return reopen_list(fetcher, installed)
    from perfkit.archives.members import Selection

    selection = Selection.of(installed.state.get("selection", {}))
    found = _open(fetcher, installed.source, installed, kind, selection, None)
    if not found.unchanged():
        raise UpdateError(f"{installed.source} has something else by now; sync brings that, and mends what is damaged")
    return found
