"""Publishing again whenever files change: the changed names come from the kernel, and only they are read again."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Generator

from perfkit.errors import PerfkitError
from perfkit.filesystem.watch import ALL, DirtySet, watch
from perfkit.releases.format.manifest import Manifest
from perfkit.releases.publish.publisher import Release, check_arguments, publish_manifest
from perfkit.releases.publish.source_tree import SourceTree

__all__ = ["publish_on_change"]

_log = logging.getLogger(__name__)

_QUIET_S = 0.5  # without changes, until what has changed is published
_LONGEST_S = 10.0  # a tree that never comes to rest is published as it is
_PATIENCE_S = 1.0  # one wait; Ctrl-C ends the next one at the latest


def publish_on_change(
    src: str, site: str, *, version: str, keep_deltas: int = 3, exclude: Collection[str] = (), quiet_s: float = _QUIET_S
) -> Generator[Release, None, None]:
    """Publish a tree now, and again after each change; yields every release that is made. It goes on until closed.

    The tree is hashed once; then only files whose names the kernel reported are, or all of them after it lost events.
    What can't be published, such as a file that is being written or a symbolic link, is logged and tried again at the
    next change; only the first time it is raised.

    Args:
        version, keep_deltas, exclude: as `publish` takes them.
        quiet_s: how long nothing may have changed before a change is published.

    Raises:
        As `publish`, for the first release; OSError: `src` can't be watched.
    """
    check_arguments(src, site, version, keep_deltas)
    survey = SourceTree(src, exclude)

    def publish() -> Release:
        manifest = Manifest.of(survey.entries.values())
        return publish_manifest(src, site, manifest, version=version, keep_deltas=keep_deltas)

    with watch(src) as dirty:
        survey.read_all()
        yield publish()
        waiting: set[str] | None = set()  # names that changed and are not published yet; None: it may be all
        while True:
            if not dirty.wait(_PATIENCE_S):
                continue
            names = _gather(dirty, quiet_s)
            waiting = None if names is None or waiting is None else waiting | names
            try:
                if waiting is None:
                    survey.read_all()
                else:
                    survey.read(waiting)
                release = publish()
            except (PerfkitError, OSError) as error:
                _log.warning("%s: not published: %s", src, error)
                continue
            waiting = set()
            if not release.unchanged:
                yield release


def _gather(dirty: DirtySet, quiet_s: float) -> set[str] | None:
    """All names that change until nothing has for a while; None if some were lost."""
    names: set[str] | None = set()
    deadline_s = time.monotonic() + _LONGEST_S
    while True:
        taken = dirty.take()
        names = None if taken is ALL or names is None else names | taken
        if not dirty.wait(max(0.0, min(quiet_s, deadline_s - time.monotonic()))) or time.monotonic() > deadline_s:
            return names
