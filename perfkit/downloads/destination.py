"""Where downloads go: each has a path of its own, which the caller or the server names."""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Iterable

from perfkit.downloads.file_origin import digest_of, read_origin
from perfkit.downloads.partial_file import PartialFile, check_replaceable
from perfkit.downloads.request import Request
from perfkit.errors import TransferError
from perfkit.filesystem.compact import Lookup
from perfkit.filesystem.paths import check_name, fold_name, ignores_case, is_reserved, safe_basename

_DEFAULT_NAME = "download"


def path_in(directory: str, request: Request) -> str:
    """The path of a request's file in a directory, as far as it is known before there is a response.

    Raises:
        UnsafePathError: its name leads out of the directory, or is not a file's.
    """
    if request.name is not None:
        return os.path.join(directory, check_name(request.name))
    return os.path.join(directory, safe_basename(request.url_name) or _DEFAULT_NAME)


class BatchPaths:
    """The paths of a batch's files, those done included: no two files of a batch get the same one."""

    def __init__(self) -> None:
        self._hashes = array("q")  # among a million, two collide in 1 of 10^7 batches
        self._rows = Lookup()  # a set of numbers would take five times the memory

    def _has(self, key: int) -> bool:
        return self._rows.find(key, lambda row: self._hashes[row] == key) is not None

    def _add(self, key: int) -> None:
        self._hashes.append(key)
        self._rows.add(len(self._hashes) - 1, key)

    def take(self, url: str, path: str) -> None:
        """Take a path for a URL.

        Raises:
            TransferError: another file of this batch has it, or its name in other letters on a disk that ignores case.
        """
        folded = fold_name(path)
        if self._has(hash(path)):
            raise TransferError(url, f"{path} is the destination of another file of this batch too")
        similar = self._has(hash((folded,))) or (folded != path and self._has(hash(folded)))
        if similar and ignores_case(os.path.dirname(path)):
            raise TransferError(
                url,
                f"{path} differs only in case from the destination of another file of this batch, "
                "and this disk ignores case; give each its own name",
            )
        self._add(hash(path))
        if folded != path:
            self._add(hash((folded,)))


class PathClaims:
    """The paths of all downloads that have not ended, of any number of batches."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owners: dict[str, Destination] = {}

    def claim(self, path: str, destination: Destination) -> None:
        """Reserve a path for a download until it ends.

        Raises:
            TransferError: another one has it, or perfkit itself uses such names.
        """
        name, url = os.path.basename(path), destination.request.url
        if is_reserved(name):
            raise TransferError(url, f"{name!r} is a name that perfkit itself uses; give another name")
        destination.claimed.add(path)
        with self._lock:
            other = self._owners.setdefault(path, destination)
        if other is not destination:
            raise TransferError(url, f"{path} is the destination of {other.request.url} too; give each its own")

    def release(self, destination: Destination) -> None:
        """Give up the paths of a download that has ended."""
        with self._lock:
            for path in destination.claimed:
                if self._owners.get(path) is destination:
                    del self._owners[path]


class Destination:
    """The path of one download.

    Args:
        path: the path, unless the server names the file.
        named: whether the caller chose the name; otherwise the server may.

    Attributes:
        first_path: as given; the partial file is beside it.
        path: the final path: as given, or in the same directory under a name of the server's.
        claimed: all paths that it has asked for; a server may name another one when it is asked again.
    """

    def __init__(self, request: Request, path: str, claims: PathClaims, *, named: bool) -> None:
        self.request = request
        self.first_path = self.path = path
        self.claimed: set[str] = set()
        self._claims = claims
        self._named = named
        self._name_source: str | None = None  # the URL whose server gave the name

    def is_file(self) -> bool:
        """Whether a file exists already.

        Raises:
            IsADirectoryError, FileExistsError: a directory or a device does.
        """
        try:
            check_replaceable(os.stat(self.first_path), self.first_path)
        except FileNotFoundError:
            return False
        return True

    def take_name(self, source: str, sent: Iterable[str]) -> None:
        """Use the first safe name that the server of a URL gives, if the caller chose none.

        Raises:
            TransferError: a file from elsewhere, or another download, has it.
        """
        name = None if self._named else next(filter(None, map(safe_basename, sent)), None)
        if name is None or name == os.path.basename(self.first_path):
            return
        path = os.path.join(os.path.dirname(self.first_path), name)
        self._check_free(path, source)
        self._claims.claim(path, self)
        self.path, self._name_source = path, source

    def _check_free(self, path: str, source: str) -> bool:
        """Check that a path the server names is free (True), or has an earlier download from `source` (False)."""
        free = not os.path.lexists(path)
        if not free and read_origin(path, digest_of(source, self.request.key_of(source))) is None:
            name = os.path.basename(path)
            reason = f"the server names the file {name!r}, but a file from elsewhere has that name; choose another name"
            raise TransferError(self.request.url, reason)
        return free

    def publish(self, partial: PartialFile) -> None:
        """Give the file its name; never replaces a file that has appeared under the server's name. Raises as
        `PartialFile.publish`.
        """
        new = self._name_source is not None and self._check_free(self.path, self._name_source)
        try:
            partial.publish(self.path, replace=not new)
        except FileExistsError:
            if self._name_source is not None:
                self._check_free(self.path, self._name_source)
            raise
