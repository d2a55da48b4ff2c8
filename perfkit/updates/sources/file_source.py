"""One plain file as a tree: fetched whole when it changes, and decompressed on request."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Set

from perfkit.archives.decompress import MAGIC_BYTES, decompressed, detect_compression
from perfkit.downloads.checksum_files import CHECKSUM_FILE_BYTES, ChecksumFile, read_checksum_file
from perfkit.downloads.checksums import Checksum, parse_checksum
from perfkit.downloads.probe import Probe
from perfkit.downloads.request import Request
from perfkit.errors import ConfigError, ManifestError
from perfkit.filesystem.paths import is_url, safe_basename
from perfkit.redact import redacted
from perfkit.releases.format.manifest import Entry, Manifest
from perfkit.updates.local_tree import LocalTree
from perfkit.updates.signers import FileSigners
from perfkit.updates.source_types import SourceSpec, SourceType
from perfkit.updates.sources.detect import is_html
from perfkit.updates.sources.remote_file import PromisedFile, RemoteFile
from perfkit.updates.sources.single_file import SingleFileSource, adopt_download, refetched_if_damaged
from perfkit.updates.staging import Fetcher, StagingArea

_COMPRESSED = re.compile(r"(?<=.)\.(?:gz|bz2|xz|zst)$", re.IGNORECASE)
_HTML_NAME = re.compile(r"\.x?html?$", re.IGNORECASE)


def file_name(url: str, *, decompress: bool) -> str:
    """The name in the tree of the file at a URL.

    Raises:
        ConfigError: the URL ends in no file name.
    """
    name = safe_basename(Request(url).url_name)
    if name is None:
        raise ConfigError(f"{redacted(url)} ends in no file name; a source of type file needs one")
    return _COMPRESSED.sub("", name) if decompress else name


class FileSource(SingleFileSource):
    """One version of a plain file.

    Args:
        decompress: whether to decompress the file, and to drop `.gz`, `.bz2`, `.xz` or `.zst` from its name.
    """

    type = SourceType.FILE

    def __init__(self, file: RemoteFile | PromisedFile, *, decompress: bool) -> None:
        super().__init__(file)
        self._name = file_name(file.url, decompress=decompress)
        self._decompress = decompress

    def record(self) -> dict[str, object]:
        return {**super().record(), "decompress": self._decompress}

    def resolve(self, local: LocalTree, staging: StagingArea) -> Manifest:
        digest, size = self._fetch(staging)
        existing = local.get(self._name)
        return Manifest.of([Entry(self._name, size, digest, existing is not None and existing.executable)])

    def _stage(self, missing: Set[bytes], manifest: Manifest, local: LocalTree, staging: StagingArea) -> None:
        self._fetch(staging)

    def _fetch(self, staging: StagingArea) -> tuple[bytes, int]:
        """Fetch the file; returns the SHA-256 and the size of what the tree gets.

        Raises:
            ManifestError: the server sends a page in place of the file; or the file is not compressed, is damaged, or
                is a decompression bomb.
        """
        if isinstance(self._file, RemoteFile):
            _refuse_page(self._file.probe())
        path = self._file.whole()
        self._routes = ["file"]
        if not self._decompress:
            return adopt_download(path, staging)
        with refetched_if_damaged(staging, [path]), open(path, "rb", buffering=0) as packed, staging.show_progress():
            if detect_compression(packed.read(MAGIC_BYTES)) is None:
                raise ManifestError(f"{redacted(self.url)} is not compressed; sync it without --decompress")
            packed.seek(0)
            return staging.add(decompressed(packed))


def find_checksum(fetcher: Fetcher, spec: SourceSpec, signers: FileSigners) -> Checksum:
    """The checksum of a source, from where the caller says that it is.

    Raises:
        ConfigError: the checksum file has no entry for it.
        SignatureError: the checksum file is fetched, and lacks a required signature.
        TransferError: the checksum file can't be fetched.
    """
    where = spec.checksums or ""
    if is_url(where):
        most, home = CHECKSUM_FILE_BYTES, spec.location
        request = Request(where, "checksums", max_bytes=most, home=home, public_keys=signers.keys)
        path = fetcher.get([request], phase="reading the checksums")[0].path
        with open(path, "rb") as file:
            return ChecksumFile(file.read().decode(errors="replace"), where).find(spec.location)
    if not os.path.exists(where):
        with contextlib.suppress(ConfigError):
            return parse_checksum(where)
    return read_checksum_file(where).find(spec.location)


def _refuse_page(probed: Probe) -> None:
    """Refuse an HTML page, such as of a login, an error or a captive portal, that is served with status 200."""
    if is_html(probed.content_type, probed.first) and not _HTML_NAME.search(Request(probed.url).url_name):
        raise ManifestError(f"{redacted(probed.url)}: the server sends an HTML page in place of the file")
