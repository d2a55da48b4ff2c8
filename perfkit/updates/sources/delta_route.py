"""The route by deltas: followed one after the other, each from the manifest that the one before led to."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable

from perfkit.errors import ManifestError
from perfkit.libc import trim_heap
from perfkit.releases.format.delta import Delta, Span
from perfkit.releases.format.manifest import Manifest
from perfkit.updates.staging import Assembly

__all__ = ["follow"]

_log = logging.getLogger(__name__)


def follow(paths: Iterable[str], old: Manifest, where: Callable[[bytes], str | None], assembly: Assembly) -> Manifest:
    """Apply deltas, and return the manifest that they lead to; what could not be made is not in the assembly.

    Args:
        paths: the deltas, verified.
        old: the manifest that the first starts from.
        where: the path of a file that should have this content.

    Raises:
        ManifestError: a delta is damaged so that the manifest it leads to can't be told.
    """
    with assembly.making():
        for path in paths:
            old = _apply(path, old, where, assembly)
    return old


def _apply(path: str, old: Manifest, where: Callable[[bytes], str | None], assembly: Assembly) -> Manifest:
    def read(span: Span) -> bytes | None:
        digest = old.digest(span.entry)
        source = assembly.done[digest] if digest in assembly.done else where(digest)
        if source is None:
            return None
        try:
            with open(source, "rb") as content:
                return os.pread(content.fileno(), span.length, span.offset)
        except FileNotFoundError:
            return None

    with open(path, "rb") as file:
        delta = Delta.open(file)
        new = delta.new_manifest(old)
        groups = delta.groups(old, new)
        try:
            lacking = delta.apply(groups, read, assembly.writer(new))
            if lacking:
                _log.info("%s: the old contents that %d of %d groups need are not here", path, lacking, len(groups))
        except ManifestError as error:
            _log.warning("%s: made in part only: %s", path, error)
        finally:
            assembly.forget_parts()
            trim_heap()
    return new
