"""Where a downloaded file came from, kept with the file, so that the next download can ask whether it changed.

A URL is kept as a digest only: its user, password and query may be secret, and others may read the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from typing import NamedTuple

from perfkit.downloads.http.semantics import Version
from perfkit.downloads.http.urls import unsigned

_ATTRIBUTE = "user.perfkit.origin"


def digest_of(url: str, key: str | None = None) -> str:
    """What stands for a URL on disk: the SHA-256 of the URL without secrets, or of the caller's key for the file."""
    return hashlib.sha256((unsigned(url) if key is None else f"key {key}").encode(errors="surrogatepass")).hexdigest()


class Origin(NamedTuple):
    """Where a published file came from."""

    source: str  # `digest_of` its URL
    etag: str | None
    last_modified: str | None
    size: int = 0
    mtime_ns: int = 0

    @property
    def version(self) -> Version:
        return Version(self.etag, self.last_modified)


def read_origin(path: str, source: str) -> Origin | None:
    """The origin of the file at `path`, if it came from the URL with this digest and was not changed since."""
    try:
        record = json.loads(os.getxattr(path, _ATTRIBUTE))
        origin = Origin(**record)
        status = os.stat(path)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    same = origin.source == source and origin.size == status.st_size and origin.mtime_ns == status.st_mtime_ns
    return origin if same else None


def write_origin(descriptor: int, origin: Origin) -> None:
    """Store the origin with a complete open file; without extended attributes, the next download fetches it all."""
    status = os.fstat(descriptor)
    record = origin._replace(size=status.st_size, mtime_ns=status.st_mtime_ns)._asdict()
    with contextlib.suppress(OSError, AttributeError):
        os.setxattr(descriptor, _ATTRIBUTE, json.dumps(record).encode())
