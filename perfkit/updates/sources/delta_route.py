"""The delta route: apply deltas one after the other, each to the manifest that the one before produced."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable
from typing import BinaryIO

from perfkit.errors import ManifestError
from perfkit.filesystem.spilled import Keep
from perfkit.libc import trim_heap
from perfkit.releases.format.delta import Delta, Span
from perfkit.releases.format.draft import DIGEST_BYTES, complete
from perfkit.releases.format.manifest import Manifest
from perfkit.updates.local_tree import LocalTree
from perfkit.updates.staging import StagingArea

_log = logging.getLogger(__name__)


def apply_deltas(
    paths: Iterable[str], old: Manifest, local: LocalTree, staging: StagingArea, *, most_bytes: int, keep: Keep
) -> Manifest | None:
    """Apply deltas, and return the manifest that they lead to; None: some old content is missing.

    Args:
        paths: the paths of the deltas, which are verified.
        old: the manifest that the first one applies to.
        most_bytes: maximum size of each manifest that they lead to.
        keep: joins parts of a manifest's bytes.

    Raises:
        ManifestError: a delta is damaged, or old content is not what the tree's record says.

    In every case, `staging` has what could be made.
    """
    chain = list(paths)
    for number, path in enumerate(chain, 1):
        phase = "unpacking" if len(chain) == 1 else f"unpacking change {number} of {len(chain)}"
        with open(path, "rb") as file:
            delta = Delta.open(file)
            draft = delta.draft(old, most_bytes=most_bytes, keep=keep)
            made = _apply(delta, old, draft, local, staging, phase=phase)
        if made is None:
            return None
        old = complete(draft, made, delta.target_sha256, keep)
    return old


def _apply(
    delta: Delta, old: Manifest, new: Manifest, local: LocalTree, staging: StagingArea, *, phase: str
) -> bytearray | None:
    """Make the contents of a draft; returns the SHA-256 of each entry that was made; None: not all could be made."""
    groups, made = delta.groups(old, new), bytearray(DIGEST_BYTES * len(new))
    try:
        with (
            staging.show_progress(phase, total_bytes=groups.total_bytes),
            contextlib.closing(_Sources(old, new, local, staging)) as sources,
        ):
            skipped = delta.apply(groups, sources.read, staging.writer(new, made))
        if not skipped:
            return made
        _log.info("%s: skipped %d of %d groups whose old files are gone", phase, skipped, len(groups))
    except ManifestError as error:
        _log.warning("%s: applied only in part: %s", phase, error)
    finally:
        staging.discard_partial()
        trim_heap()
    return None


class _Sources:
    """Reads what a delta needs of old and new files. The last file stays open, since most spans are in the same one as
    the span before.
    """

    def __init__(self, old: Manifest, new: Manifest, local: LocalTree, staging: StagingArea) -> None:
        self._old, self._new, self._local, self._staging = old, new, local, staging
        self._entry = -1
        self._file: BinaryIO | None = None

    def read(self, span: Span) -> bytes | None:
        """The bytes of a span, fewer where the file is shorter; None: it is missing."""
        if self._file is None or span.entry != self._entry:
            self.close()
            self._entry, self._file = span.entry, self._open(span.entry)
        return None if self._file is None else os.pread(self._file.fileno(), span.length, span.offset)

    def _open(self, entry: int) -> BinaryIO | None:
        if entry >= len(self._old):
            return self._staging.open_so_far(self._new.digest(entry - len(self._old)))
        digest = self._old.digest(entry)
        return self._staging.open_so_far(digest) if digest in self._staging else self._local.open_blob(digest)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
