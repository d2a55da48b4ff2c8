"""A file of a web server that a tree is made of: one version of it, in parts or whole, in the stage."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from perfkit.downloads.http.semantics import Version, parse_date
from perfkit.downloads.probe import Probe as Peek
from perfkit.downloads.request import Request
from perfkit.errors import CancelledError, RemoteChangedError, TransferError
from perfkit.redact import redacted
from perfkit.transactions.object_store import write_all
from perfkit.updates.staging import Fetcher

__all__ = ["Origin", "known_version", "label"]

_TAG_CHARACTERS = 40

_log = logging.getLogger(__name__)


def known_version(state: Mapping[str, Any]) -> Version | None:
    """The version of the file that `Origin.record` told of; None if it told of none."""
    version = Version(state.get("etag"), state.get("last_modified"))
    return version or None


def label(url: str, version: Version) -> str:
    """What to call a version of a file: its name, and its date and ETag, as far as there are any."""
    name = unquote(urlsplit(url).path).rstrip("/").rpartition("/")[2] or url
    modified = parse_date(version.last_modified)
    date = modified and modified.strftime("%Y-%m-%dT%H:%M:%SZ")
    tag = (version.etag or "").removeprefix("W/").strip('"')[:_TAG_CHARACTERS]
    return " ".join(part for part in (name, date, tag) if part)


class Origin:
    """One version of a file, by its URL. What is in the stage already is not fetched again.

    Args:
        seen: what a peek at it told.
        again: peeks without a condition, for what a 304 does not tell.
    """

    def __init__(self, fetcher: Fetcher, seen: Peek, again: Callable[[], Peek]) -> None:
        self.url = seen.url
        self.version = seen.version
        self.unchanged = seen.unchanged
        self._fetcher = fetcher
        self._seen = seen
        self._again = again
        self._mine = False  # this run has seen to the whole file in the stage

    def told(self) -> Peek:
        """What the origin says of the file.

        Raises:
            TransferError: no answer that can be used.
            RemoteChangedError: it is another version than it was a moment ago.
        """
        if self._seen.unchanged:
            self._seen = self._again()
            if self._seen.version != self.version:
                raise RemoteChangedError(self.url, "it changed while it was looked at")
        return self._seen

    def record(self) -> dict[str, object]:
        """JSON that `known_version` reads."""
        return {"etag": self.version.etag, "last_modified": self.version.last_modified}

    @property
    def ranges(self) -> bool:
        """Whether parts can be had that are certain to be of one version."""
        seen = self.told()
        return seen.ranges and bool(seen.validator) and seen.size is not None and not os.path.exists(self._whole_path)

    @property
    def size(self) -> int:
        """Of the file, in bytes; where parts can't be had, that of the whole download."""
        size = self.told().size
        return os.path.getsize(self.whole()) if size is None or not self.ranges else size

    def parts(self, ranges: Iterable[tuple[int, int]]) -> list[str]:
        """Paths of files with the bytes of these ranges; nothing says yet that they are right.

        Raises:
            RemoteChangedError: the file is another version by now.
            TransferError: they can't be had; the whole file may.
        """
        seen = self.told()
        requests, paths = [], []
        for start, end in ranges:
            name = f"{self._name}.{start}-{end}"
            paths.append(self._fetcher.path(name))
            try:
                there = os.path.getsize(paths[-1]) == end - start
            except FileNotFoundError:
                there = False
            if not there and end <= len(seen.first):
                _write(paths[-1], seen.first[start:end])
            elif not there:
                requests.append(Request(self.url, name, byte_range=(start, end), only=seen.validator))
        self._fetcher.get(requests)
        return paths

    def try_parts(self, ranges: Iterable[tuple[int, int]]) -> list[str] | None:
        """As `parts`; None if they can't be had, and the whole file has to do.

        Raises:
            RemoteChangedError: the file is another version by now.
            CancelledError: cancelled.
        """
        try:
            return self.parts(ranges) if self.ranges else None
        except (RemoteChangedError, CancelledError):
            raise
        except TransferError as error:
            _log.warning("%s: ranges do not serve, the whole file is fetched: %s", redacted(self.url), error)
            return None

    def read(self, start: int, end: int) -> bytes:
        """Some bytes, by a range if there are ranges, and else from the whole file.

        Raises:
            TransferError, RemoteChangedError: as `parts`.
        """
        paths = self.try_parts([(start, end)])
        if paths is not None:
            with open(paths[0], "rb") as part:
                return part.read()
        with open(self.whole(), "rb") as file:
            file.seek(start)
            return file.read(end - start)

    @contextlib.contextmanager
    def open_range(self, path: str, start: int) -> Iterator[BinaryIO]:
        """The file at `path`, from `parts` or `whole`, standing at what is byte `start` of the origin's file."""
        with open(path, "rb", buffering=0) as file:
            if path == self._whole_path:
                file.seek(start)
            yield file

    def whole(self) -> str:
        """The path of the whole file.

        Raises:
            RemoteChangedError: the file is another version by now.
            TransferError: it can't be had.
        """
        seen = self.told()
        path = self._whole_path
        if os.path.exists(path) and (self._mine or self.version):
            return path
        self._mine = True
        if seen.whole:
            _write(path, seen.first)
            return path
        (found,) = self._fetcher.get([Request(self.url, os.path.basename(path), only=seen.validator)])
        self.version = found.version or self.version  # without a validator to insist on it may be a newer one
        return path

    @property
    def _whole_path(self) -> str:
        return self._fetcher.path(f"{self._name}.whole")

    @property
    def _name(self) -> str:
        seen = self._seen
        key = repr((self.url, seen.version.etag, seen.version.last_modified, seen.size))
        return f"origin-{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def _write(path: str, data: bytes) -> None:
    descriptor = os.open(path + "~", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_TRUNC, 0o600)
    try:
        write_all(descriptor, data)
    finally:
        os.close(descriptor)
    os.rename(path + "~", path)
