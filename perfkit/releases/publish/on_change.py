"""Publish again whenever files change: the kernel reports the changed names, and only these are hashed again."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from typing import Any

from perfkit.errors import PerfkitError
from perfkit.filesystem.watch import ALL, DirtySet
from perfkit.libc import mmap_large_allocations
from perfkit.releases.publish.options import PublishOptions
from perfkit.releases.publish.publisher import Release, check_places, publish_manifest
from perfkit.releases.publish.source_tree import SourceTree

_log = logging.getLogger(__name__)

_QUIET_S = 0.5  # without changes, before changes are published
_LONGEST_S = 10.0  # a tree that never stops changing is published after this time


def publish_on_change(
    src: str, site: str, *, quiet_s: float = _QUIET_S, **options: Any
) -> Generator[Release, None, None]:
    """Publish a tree now, and again after each change. See `Toolkit.publish_on_change`.

    The tree is hashed once; then only files that the kernel reports, or all of them if it lost events or `src` was
    replaced. A file that is open for writing stays as in the last release until it is closed, as far as the kernel can
    tell. A failure, such as a symbolic link, is logged, and publishing is tried again at the next change; a failure of
    the first release is raised. A release that expires is renewed when half of its time is over.

    Args:
        quiet_s: how long nothing must change before a change is published.
        options: those of `PublishOptions`.
    """
    chosen = PublishOptions(**options)
    check_places(src, site)
    mmap_large_allocations()
    tree = SourceTree(src, chosen.exclude, links=chosen.links, closed_only=True)
    renew_s = None if chosen.expires_s is None else chosen.expires_s / 2

    def publish() -> Release:
        return publish_manifest(src, site, tree.manifest, chosen)

    with DirtySet(src) as dirty:
        tree.read_all()
        yield publish()
        waiting: set[str] | None = set()  # changed names that are not published yet; None: any may have changed
        while True:
            renew = not dirty.wait(renew_s)
            names = _gather(dirty, quiet_s)
            waiting = None if names is None or waiting is None else waiting | names
            if waiting is not None and not waiting and not renew:
                continue
            try:
                if waiting is None:
                    tree.read_all()
                else:
                    tree.read(waiting)
                if not dirty.same_root():  # it was replaced while it was read: don't mix the two
                    continue
                release = publish()
            except (PerfkitError, OSError) as error:
                _log.warning("%s: not published, will try again at the next change: %s", src, error)
                continue
            waiting = set()
            if not release.unchanged:
                yield release


def _gather(dirty: DirtySet, quiet_s: float) -> set[str] | None:
    """The names that change, until nothing has changed for a while; None: events were lost."""
    names: set[str] | None = set()
    deadline_s = time.monotonic() + _LONGEST_S
    while True:
        taken = dirty.drain()
        names = None if taken is ALL or names is None else names | taken
        if not dirty.wait(max(0.0, min(quiet_s, deadline_s - time.monotonic()))) or time.monotonic() > deadline_s:
            return names
