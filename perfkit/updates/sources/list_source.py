"""A list of URLs, or a Metalink document: each file is revalidated on its own, and all change at once."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import replace
from typing import Any, BinaryIO

from perfkit.downloads.http.semantics import Version
from perfkit.downloads.request import Request
from perfkit.errors import ConfigError, IntegrityError, ManifestError
from perfkit.filesystem.compact import Digests, LazySequence, Lookup, Texts, sort_numbers, unpack_texts
from perfkit.filesystem.paths import is_url
from perfkit.libc import mmap_large_allocations, trim_heap
from perfkit.releases.format.manifest import Manifest
from perfkit.updates.installed import Installed, as_recorded
from perfkit.updates.local_tree import LocalTree
from perfkit.updates.routes import Offer
from perfkit.updates.source_types import SourceType
from perfkit.updates.sources.pieces import mend
from perfkit.updates.sources.remote_file import version_label
from perfkit.updates.sources.single_file import adopt_download
from perfkit.updates.sources.url_lists import LIST_BYTES, Listed, ListedFile, parse_metalink, parse_urls
from perfkit.updates.staging import Fetcher, StagingArea

_READ_CHARACTERS = 128 << 10
_OPTIONS = ("checksum", "mirrors", "size")  # of a request, that are recorded
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
        opened = open(path, "rb")  # noqa: SIM115
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(f"{source}: {error.strerror}; a source is an http or https URL, or a list of URLs") from error
    with opened as file:
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
    assert installed.type is not None
    with _reporting_damage(installed):
        listed = Listed(
            ListedFile(Request(row["url"], row["name"], **{key: row[key] for key in _OPTIONS if key in row}))
            for row in _recorded(installed)
        )
    return ListSource(installed.source, installed.type, listed, fetcher, installed, reopened=True)


@contextlib.contextmanager
def _reporting_damage(installed: Installed) -> Iterator[None]:
    """Inside this block, errors mean that the tree's record of the list is damaged."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ManifestError(
            f"{installed.root}: the record of what was installed from {installed.source} is damaged: {error}"
        ) from error


def _recorded(installed: Installed) -> Iterator[dict[str, Any]]:
    """What the tree's record says of each file: the fields that `_record_of` gives it."""
    state = installed.state
    if "files" in state:  # as an earlier perfkit recorded it: an object by name
        for name, fields in state["files"].items():
            yield {"name": name, **{key: value for key, value in fields.items() if value not in (None, [])}}
    else:
        for block in state["listed"]:
            yield from map(json.loads, unpack_texts(base64.b64decode(block)))


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
        listed: Listed,
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
        mmap_large_allocations()
        listed = self._listed
        known = _Known(self._installed, self.type, local)
        wanted = array("I", (at for at, each in enumerate(listed) if not _is_as_listed(each, local)))
        ended = self._get(wanted, known.version)
        sizes, executable, digests, record = array("Q"), bytearray(), Digests(), Texts()
        results = zip(wanted, ended, strict=True)
        at_next, result = next(results, (-1, ""))
        for at, each in enumerate(listed):
            existing, fetched = local.get(each.name), ""
            if at == at_next:
                fetched, (at_next, result) = result, next(results, (-1, ""))
            if fetched:
                (digest, size), version = self._stage(each, staging), Version(*json.loads(fetched))
            else:
                assert existing is not None  # as it is in the list, or as it was installed
                digest, size, version = existing.sha256, existing.size, known.version(each)
            sizes.append(size)
            digests.append(digest)
            executable.append(existing is not None and existing.executable)
            record.append(json.dumps(_record_of(each, version)))
        self._record = {"listed": [base64.b64encode(block).decode() for block in record.blocks()]}
        del known, results, ended, record
        trim_heap()  # free what downloading used
        order = array("I", sort_numbers(range(len(listed)), listed.names.encoded))
        manifest = Manifest.of_columns(
            LazySequence(listed.names.__getitem__, order),
            map(sizes.__getitem__, order),
            map(bool, map(executable.__getitem__, order)),
            map(digests.__getitem__, order),
        )
        self.version = f"{version_label(self.url)} {manifest.sha256.hex()[:12]}"
        return manifest

    def offers(self, missing: Set[bytes], manifest: Manifest, local: LocalTree) -> tuple[Offer, ...]:
        return ()

    def fetch(self, missing: Set[bytes], manifest: Manifest, local: LocalTree, staging: StagingArea) -> tuple[str, ...]:
        names = {entry.name for entry in manifest if entry.sha256 in missing}
        wanted = array("I", (at for at in range(len(self._listed)) if self._listed.names[at] in names))
        self._get(wanted, lambda each: Version())
        for at in wanted:
            self._stage(self._listed[at], staging)
        return (str(self.type),) if self._fetched else ()

    def _get(self, wanted: Sequence[int], known: Callable[[ListedFile], Version]) -> Iterable[str]:
        """Download these files of the list; returns the validators of each as JSON, or nothing if it is unchanged.

        Raises:
            TransferError, OSError: the first failure in the order of the list, after all others have ended.
        """
        ended = Texts()
        early: dict[int, str] = {}  # those that ended before others that are listed before them
        failed: tuple[int, Exception] | None = None
        requests = (self._request(each, known(each)) for each in map(self._listed.__getitem__, wanted))
        for index, found in self._fetcher.stream(requests, [*map(self._listed.size, wanted)]):
            same = found.unchanged and not os.path.exists(found.path)
            early[index] = "" if same else json.dumps((found.version.etag, found.version.last_modified))
            while len(ended) in early:
                ended.append(early.pop(len(ended)))
            if found.error is not None and (failed is None or index < failed[0]):
                failed = index, found.error
        if failed is not None:
            raise failed[1]
        return map(ended.__getitem__, range(len(ended)))

    def _request(self, each: ListedFile, known: Version) -> Request:
        size, label = each.request.size, each.name
        name = os.path.basename(self._path(each))
        return replace(each.request, name=name, max_bytes=size, known=known, home=self._home, label=label)

    def _path(self, each: ListedFile) -> str:
        """Where the file is downloaded; an interrupted sync leaves it there for the next."""
        digest = hashlib.sha256(f"{as_recorded(each.request.url)} {each.name}".encode()).hexdigest()
        return self._fetcher.path(f"item-{digest[:32]}")

    def _stage(self, each: ListedFile, staging: StagingArea) -> tuple[bytes, int]:
        """Move a downloaded file into the staging area; returns its SHA-256 and its size."""
        listed, path = each.request.size, self._path(each)
        if each.pieces is not None and listed is not None:
            os.truncate(path, listed)  # the pieces show what is wrong, and another mirror may have it
        size = os.path.getsize(path)
        if listed not in (None, size):
            os.unlink(path)
            raise IntegrityError(each.request.url, "not the size in the list", f"{listed} bytes", f"{size} bytes")
        if each.pieces is not None:
            mend(path, each.pieces, replace(each.request, home=self._home), self._fetcher)
        self._fetched = True
        return adopt_download(path, staging)


class _Known:
    """The validators of the installed files."""

    def __init__(self, installed: Installed, type: SourceType, local: LocalTree) -> None:
        self._installed = installed
        self._local = local
        self._rows = Texts()
        self._by_name = Lookup()
        if installed.type == type:
            with _reporting_damage(installed):
                for number, row in enumerate(_recorded(installed)):
                    self._rows.append(json.dumps(row))
                    self._by_name.add(number, hash(row["name"]))

    def version(self, each: ListedFile) -> Version:
        """Those of a file, if neither it nor its line in the list has changed since; else none."""
        existing = self._local.get(each.name)
        if existing is None or not existing.sha256:
            return Version()
        at = self._installed.manifest.find(each.name)
        if at is None or self._installed.manifest.digest(at) != existing.sha256:
            return Version()
        row = self._by_name.find(hash(each.name), lambda row: json.loads(self._rows[row])["name"] == each.name)
        record = {} if row is None else json.loads(self._rows[row])
        version = Version.of(record)
        return version if record == _record_of(each, version) else Version()


def _is_as_listed(each: ListedFile, local: LocalTree) -> bool:
    """Whether the tree has the file with the SHA-256 in the list."""
    checksum, existing = each.request.promised, local.get(each.name)
    if existing is None or checksum is None or checksum.algorithm != "sha256":
        return False
    return checksum.hex == existing.sha256.hex()


def _record_of(each: ListedFile, version: Version) -> dict[str, object]:
    """What the list says of a file, and its validators."""
    fields = {
        "name": each.name,
        "url": as_recorded(each.request.url),
        "mirrors": [as_recorded(url) for url in each.request.mirrors],
        "checksum": each.request.checksum and as_recorded(each.request.checksum),
        "size": each.request.size,
        **version.record,
        "pieces": each.pieces and each.pieces.digest,
    }
    return {key: value for key, value in fields.items() if value not in (None, [])}
