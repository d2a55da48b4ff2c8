"""The commands as functions, for views, Celery tasks, cron scripts and tests.

Each call creates its own Toolkit and closes it, so nothing is shared across forks, threads or greenlets.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from django.db import close_old_connections

from perfkit.config import Config
from perfkit.contrib.django.conf import TreeSettings, tree_settings
from perfkit.contrib.django.locking import one_at_a_time, when_free
from perfkit.contrib.django.signals import ReceiverError, receiver_name, tree_updated
from perfkit.errors import UpdateError
from perfkit.filesystem.own_files import open_own, replace_own
from perfkit.progress.meter import Progress
from perfkit.redact import redacted
from perfkit.toolkit import Toolkit
from perfkit.transactions.layout import NOTIFIED, PRIVATE_DIR
from perfkit.transactions.tree import Generation
from perfkit.updates.planner import Plan
from perfkit.updates.report import SyncReport

__all__ = ["Status", "plan", "rollback", "status", "sync"]

_log = logging.getLogger(__name__)


def sync(
    name: str,
    *,
    retry_rejected: bool = False,
    wait_s: float = 0.0,
    config: Config | None = None,
    progress: Progress | None = None,
) -> SyncReport:
    """Update a tree from its source, and send `tree_updated` unless all receivers have processed the result already.

    Args:
        name: the name of the tree in `settings.PERFKIT["TREES"]`.
        retry_rejected: run the tree's `CHECK` again on a version that it refused before.
        wait_s: how long to wait for another change of the same tree.
        config: replaces the Config from the settings.
        progress: displays progress; none by default.

    Raises:
        ConfigError: there is no such tree, or the settings are invalid.
        ReceiverError: the tree is up to date, but a receiver failed.
        LockedError: another process or thread was still changing the tree after `wait_s`.
        as `Toolkit.sync`.
    """
    tree = tree_settings(name)
    os.makedirs(tree.dest, exist_ok=True)

    def update(kit: Toolkit) -> SyncReport:
        return kit.sync(
            tree.source,
            tree.dest,
            type=tree.type,
            selection=tree.selection,
            check=tree.check,
            retry_rejected=retry_rejected,
            public_keys=tree.public_keys,
            threshold=tree.threshold,
        )

    return _change(tree, wait_s, config, progress, update)


def rollback(
    name: str, *, to: int | None = None, hold: bool = True, wait_s: float = 0.0, config: Config | None = None
) -> SyncReport:
    """Return a tree to a kept generation, without the network, and send `tree_updated`.

    Args:
        to, hold: as for `Toolkit.rollback`.

    Raises:
        ConfigError, ReceiverError, LockedError: as `sync`.
        as `Toolkit.rollback`.
    """
    tree = tree_settings(name)
    if not os.path.isdir(tree.dest):
        raise UpdateError(f"{tree.dest} does not exist; sync the tree {name!r} first")
    return _change(tree, wait_s, config, None, lambda kit: kit.rollback(tree.dest, to=to, hold=hold))


def plan(name: str, *, config: Config | None = None) -> Plan:
    """What `sync` would do now; nothing is written, and no signal is sent.

    Raises:
        ConfigError: there is no such tree, or the settings are invalid.
        as `Toolkit.plan`.
    """
    tree = tree_settings(name)
    with Toolkit(config or tree.config) as kit:
        return kit.plan(
            tree.source,
            tree.dest,
            type=tree.type,
            selection=tree.selection,
            public_keys=tree.public_keys,
            threshold=tree.threshold,
        )


@dataclass(frozen=True, kw_only=True)
class Status:
    """The state of a tree, without contacting its source."""

    name: str
    source: str
    dest: str
    state: Literal["installed", "absent"]
    version: str | None = None
    generation: int | None = None
    changed_s: float | None = None  # when this generation was created, in seconds since 1970
    receivers_notified: bool = False  # whether all receivers of `tree_updated` have processed this generation
    generations: tuple[Generation, ...] = ()  # that `rollback` can restore, oldest first


def status(name: str) -> Status:
    """The state of a tree.

    Raises:
        ConfigError: there is no such tree, or the settings are invalid.
        RollbackError, OSError: as `Toolkit.history`.
    """
    tree = tree_settings(name)
    absent = Status(name=name, source=redacted(tree.source), dest=tree.dest, state="absent")
    if not os.path.isdir(os.path.join(tree.dest, PRIVATE_DIR)):
        return absent
    with Toolkit(tree.config) as kit:
        generations = kit.history(tree.dest)
    current = next(each for each in generations if each.current)
    if current.number == 0:
        return replace(absent, generations=tuple(generations))
    return replace(
        absent,
        state="installed",
        version=current.label.get("version"),
        generation=current.number,
        changed_s=current.created_s or None,
        receivers_notified=_notified(tree.dest) == current.number,
        generations=tuple(generations),
    )


def _change(
    tree: TreeSettings,
    wait_s: float,
    config: Config | None,
    progress: Progress | None,
    change: Callable[[Toolkit], SyncReport],
) -> SyncReport:
    deadline_s = time.monotonic() + wait_s
    with one_at_a_time(tree.dest, deadline_s):
        with Toolkit(config or tree.config, progress=progress) as kit:
            report = when_free(deadline_s, lambda: change(kit))
        if _notified(tree.dest) != report.generation:
            _notify_receivers(tree, report)
    return report


def _notify_receivers(tree: TreeSettings, report: SyncReport) -> None:
    """Send the signal. The note of the processed generation is removed first and written again after all receivers
    succeeded: if this ends early, the next change of the tree calls them again, even one to an older generation.
    """
    path = os.path.join(tree.dest, NOTIFIED)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    close_old_connections()  # the database may have closed them during a long download
    answers = tree_updated.send_robust(sender=TreeSettings, name=tree.name, dest=tree.dest, report=report)
    failures = [(receiver_name(receiver), answer) for receiver, answer in answers if isinstance(answer, Exception)]
    if failures:
        raise ReceiverError(tree.name, report, failures)
    if os.path.exists(path):
        return  # a receiver changed the tree again, and all receivers were called for that change
    try:
        with replace_own(path) as file:
            file.write(json.dumps({"generation": report.generation}).encode())
    except OSError as error:
        _log.warning("can't write %s, so the next sync calls the receivers again: %s", path, error)


def _notified(dest: str) -> int | None:
    """The generation that all receivers have processed; None if unknown."""
    try:
        with open(open_own(os.path.join(dest, NOTIFIED)), encoding="utf-8") as file:
            found = json.load(file)["generation"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return found if isinstance(found, int) else None
