"""Checksum files: `SHA256SUMS`, and `.sha256` or `.md5` files beside the file that they describe."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple
from urllib.parse import unquote

from perfkit.downloads.checksums import Checksum, parse_checksum
from perfkit.downloads.http.urls import origin_of, split_url
from perfkit.downloads.request import Request
from perfkit.errors import ConfigError
from perfkit.filesystem.paths import is_url
from perfkit.minisign.public_keys import AnyKey
from perfkit.redact import masked

CHECKSUM_FILE_BYTES = 16 << 20  # the largest that is read
# As coreutils writes them (sha256sum(1)); a line that begins with a backslash has escapes in its name.
_GNU = r"\s*(\\?)([0-9a-fA-F]{32,128})(?:(?: [ *]|[ \t]+)(.*))?"
_BSD = r"(\\?)([a-zA-Z0-9/-]+) ?\((.+)\) ?= ?([0-9a-fA-F]{32,128})"  # also openssl-dgst(1)
_ALGORITHMS = {32: "md5", 40: "sha1", 56: "sha224", 64: "sha256", 96: "sha384", 128: "sha512"}  # by digits
_ESCAPED = {"n": "\n", "r": "\r", "\\": "\\"}


class ListedChecksum(NamedTuple):
    """An entry of a checksum file."""

    name: str  # of the file, usually relative to the checksum file; empty: the line has none
    checksum: Checksum


def parse_line(line: str) -> ListedChecksum | None:
    """Read a line in GNU format (`HEX  NAME`, where the number of digits gives the algorithm) or BSD format (`SHA256
    (NAME) = HEX`), or a digest alone. None for anything else, such as a comment or a signature, and for an algorithm
    that this Python does not have.
    """
    line = line.rstrip("\r\n").removeprefix("\ufeff")
    if found := re.fullmatch(_GNU, line):
        escaped, digest, name = found.groups(default="")
        algorithm = _ALGORITHMS.get(len(digest), "")
    elif found := re.fullmatch(_BSD, line):
        escaped, algorithm, name, digest = found.groups()
    else:
        return None
    if escaped:
        name = re.sub(r"\\([nr\\])", lambda match: _ESCAPED[match[1]], name)
    try:
        return ListedChecksum(name, parse_checksum(f"{algorithm.upper().replace('SHA2-', 'SHA')}:{digest}"))
    except ConfigError:
        return None


class ChecksumFile:
    """The entries of a checksum file.

    Args:
        text: its contents.
        where: its path or URL, for messages, and to tell which file it is beside.

    Raises:
        ConfigError: it has no checksums.
    """

    def __init__(self, text: str, where: str) -> None:
        self._where = where
        self._listed: dict[str, list[ListedChecksum]] = {}  # by the last component of the name
        for listed in filter(None, map(parse_line, text.split("\n"))):
            self._listed.setdefault(_basename(listed.name), []).append(listed)
        if not self._listed:
            raise ConfigError(f"{masked(where)} has no checksums in GNU or BSD format")

    def find(self, url: str) -> Checksum:
        """The strongest checksum of the file at a URL.

        If the URL ends in several of the names, the longest one counts. A checksum file with a single name in it
        applies to the file at the URL, whatever the name, if its own name begins with that file's; so does one with a
        digest alone.

        Raises:
            ConfigError: there is no entry for it, or there are several.
        """
        path = unquote(split_url(url)[2].partition("?")[0])
        name = _basename(path)
        found = self._listed.get(name, [])
        beside = bool(name) and unquote(_basename(self._where.partition("?")[0])).startswith(name)
        if not found and len(self._listed) == 1 and (beside or "" in self._listed):
            (found,) = self._listed.values()
        exact = [each for each in found if path.endswith(f"/{each.name.removeprefix('./')}")]
        longest = max((len(each.name) for each in exact), default=0)
        found = [each for each in exact if len(each.name) == longest] or found
        strongest = max((len(each.checksum.hex) for each in found), default=0)
        checksums = {each.checksum for each in found if len(each.checksum.hex) == strongest}
        if len(checksums) == 1:
            return checksums.pop()
        problem = "several checksums" if checksums else "no checksum"
        raise ConfigError(f"{masked(self._where)} has {problem} for {name!r}")


def _basename(name: str) -> str:
    return name.rpartition("/")[2]


def read_checksum_file(path: str) -> ChecksumFile:
    """Read a local checksum file.

    Raises:
        ConfigError: it can't be read, is too large, or has no checksums.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(CHECKSUM_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{masked(path)}: {error.strerror}; give a checksum file, or its URL") from error
    if len(data) > CHECKSUM_FILE_BYTES:
        raise ConfigError(f"{path}: the checksum file is larger than {CHECKSUM_FILE_BYTES} bytes")
    return ChecksumFile(data.decode(errors="replace"), path)


class SharedChecksumFiles:
    """The checksum files of a batch, each of which is fetched once, by the first transfer that needs it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[tuple[str, tuple[AnyKey, ...]], tuple[threading.Lock, list[ChecksumFile]]] = {}

    def get(self, url: str, signers: tuple[AnyKey, ...], fetch: Callable[[], bytes]) -> ChecksumFile:
        """The file at `url`. Other threads that need it wait; if `fetch` raises, the next one tries.

        Args:
            signers: keys, one of which signed what `fetch` returns; calls with other keys do not share it.

        Raises:
            ConfigError: as `ChecksumFile`.
        """
        with self._lock:
            lock, files = self._files.setdefault((url, signers), (threading.Lock(), []))
        with lock:
            if not files:
                files.append(ChecksumFile(fetch().decode(errors="replace"), url))
            return files[0]


def with_checksums(source: str | None) -> Callable[[Request], Request]:
    """A function that gives requests without a checksum the one in a checksum file.

    Args:
        source: the file's URL or path; None leaves requests as they are.

    Raises:
        ConfigError: the file can't be read, or has no checksums; a URL is invalid.
    """
    if source is None:
        return lambda request: request
    found = None
    if is_url(source):
        origin_of(source)
    else:
        found = read_checksum_file(source)

    def add(request: Request) -> Request:
        if request.checksum is not None:
            return request
        return replace(request, checksum=source if found is None else str(found.find(request.url)))

    return add
