"""Where a downloaded file came from, kept with the file, so that the next download can ask whether it changed.

A URL is kept as a digest only: its user, password and query may be secret, and others may read the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os

from perfkit.downloads.http.semantics import Version
from perfkit.downloads.http.urls import unsigned

_ATTRIBUTE = "user.perfkit.origin"


def digest_of(url: str, key: str | None = None) -> str:
    """What stands for a URL on disk: the SHA-256 of the URL without secrets, or of the caller's key for the file."""
    return hashlib.sha256((unsigned(url) if key is None else f"key {key}").encode(errors="surrogatepass")).hexdigest()


def read_origin(path: str, source: str) -> Version | None:
    """The version of the file at `path`, if it came from the URL with this digest and was not changed since."""
    try:
        record, status = json.loads(os.getxattr(path, _ATTRIBUTE)), os.stat(path)
        same = (record["source"], record["size"], record["mtime_ns"]) == (source, status.st_size, status.st_mtime_ns)
        return Version.of(record) if same else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def write_origin(descriptor: int, source: str, version: Version) -> None:
    """Store the origin with a complete open file; without extended attributes, the next download fetches it all.

    Args:
        source: `digest_of` its URL.
    """
    status = os.fstat(descriptor)
    record = {"source": source, **version.record, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    with contextlib.suppress(OSError, AttributeError):
        os.setxattr(descriptor, _ATTRIBUTE, json.dumps(record).encode())
