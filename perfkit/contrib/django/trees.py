"""The trees of the settings, from code: what the commands do, for views, Celery tasks, cron scripts and tests.

Each call makes its own Toolkit and closes it, so nothing is shared over a fork, between threads, or between greenlets.
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
from perfkit.errors import LockedError, UpdateError
from perfkit.progress.meter import Progress
from perfkit.toolkit import Toolkit
from perfkit.transactions.tree import Generation
from perfkit.updates.planner import Plan
from perfkit.updates.report import SyncReport

__all__ = ["Status", "plan", "rollback", "status", "sync"]

_log = logging.getLogger(__name__)

_TOLD = ".perfkit/django"  # which generation the receivers have been told of


def sync(
    name: str, *, wait_s: float = 0.0, config: Config | None = None, progress: Progress | None = None
) -> SyncReport:
    """Bring a tree to what its source offers, and send `tree_updated` if its receivers don't know that yet.

    Args:
        name: of the tree, in `settings.PERFKIT["TREES"]`.
        wait_s: how long to wait for another that is changing the same tree.
        config: instead of the settings'.
        progress: where progress is shown; by default nowhere.

    Raises:
        ConfigError: no such tree, or wrong settings.
        ReceiverError: the tree is in step, and a receiver failed.
        LockedError: another process or thread is changing the tree, and went on for longer than `wait_s`.
        as `Toolkit.sync`.
    """
    tree = tree_settings(name)
    os.makedirs(tree.dest, exist_ok=True)

    def bring(kit: Toolkit) -> SyncReport:
        return kit.sync(tree.source, tree.dest, type=tree.type, selection=tree.selection)

    return _change(tree, wait_s, config, progress, bring)


def rollback(name: str, *, to: int | None = None, wait_s: float = 0.0, config: Config | None = None) -> SyncReport:
    """Take a tree back to a kept generation, without the network, and send `tree_updated`.

    The next sync goes forward again: stop scheduled ones until the source offers something better.

    Args:
        to: the generation, as `status` tells; by default the one before the current one.

    Raises:
        ConfigError, ReceiverError, LockedError: as `sync`.
        as `Toolkit.rollback`.
    """
    tree = tree_settings(name)
    if not os.path.isdir(tree.dest):
        raise UpdateError(f"{tree.dest} is not there; sync the tree {name!r} first")
    return _change(tree, wait_s, config, None, lambda kit: kit.rollback(tree.dest, to=to))


def plan(name: str, *, config: Config | None = None) -> Plan:
    """What `sync` would do now; nothing is written, and no signal is sent.

    Raises:
        ConfigError: no such tree, or wrong settings.
        as `Toolkit.plan`.
    """
    tree = tree_settings(name)
    with Toolkit(config or tree.config) as kit:
        return kit.plan(tree.source, tree.dest, type=tree.type, selection=tree.selection)


@dataclass(frozen=True, kw_only=True)
class Status:
    """What is known of a tree without asking its source."""

    name: str
    source: str
    dest: str
    state: Literal["installed", "absent", "busy"]  # busy: being changed right now, and nothing else is known
    version: str | None = None
    generation: int | None = None
    changed_s: float | None = None  # when this generation was made, in seconds since 1970
    told: bool = False  # whether all receivers of `tree_updated` have dealt with this generation
    generations: tuple[Generation, ...] = ()  # that `rollback` can reach, oldest first


def status(name: str) -> Status:
    """What state a tree is in.

    Raises:
        ConfigError: no such tree, or wrong settings.
        RollbackError, OSError: as `Toolkit.history`.
    """
    tree = tree_settings(name)
    absent = Status(name=name, source=tree.source, dest=tree.dest, state="absent")
    if not os.path.isdir(os.path.join(tree.dest, ".perfkit")):
        return absent
    try:
        with Toolkit(tree.config) as kit:
            generations = kit.history(tree.dest)
    except LockedError:
        return replace(absent, state="busy")
    current = next(each for each in generations if each.current)
    if current.number == 0:
        return replace(absent, generations=tuple(generations))
    return replace(
        absent,
        state="installed",
        version=current.label.get("version"),
        generation=current.number,
        changed_s=current.created_s or None,
        told=_told(tree.dest) == current.number,
        generations=tuple(generations),
    )


def _change(
    tree: TreeSettings, wait_s: float, config: Config | None, progress: Progress | None,
    change: Callable[[Toolkit], SyncReport],
) -> SyncReport:  # fmt: skip
    deadline_s = time.monotonic() + wait_s
    with one_at_a_time(tree.dest, deadline_s):
        with Toolkit(config or tree.config, progress=progress) as kit:
            report = when_free(deadline_s, lambda: change(kit))
        if _told(tree.dest) != report.generation:
            _tell_receivers(tree, report)
    return report


def _tell_receivers(tree: TreeSettings, report: SyncReport) -> None:
    """Send the signal. The note of what receivers know is gone meanwhile, and back when all of them are done: whatever
    ends this early, the next change of the tree, to an older generation too, calls them again.
    """
    path = os.path.join(tree.dest, _TOLD)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    close_old_connections()  # the database may have hung up during a long download
    answers = tree_updated.send_robust(sender=TreeSettings, name=tree.name, dest=tree.dest, report=report)
    failures = [(receiver_name(receiver), answer) for receiver, answer in answers if isinstance(answer, Exception)]
    if failures:
        raise ReceiverError(tree.name, report, failures)
    if os.path.exists(path):
        return  # a receiver changed the tree again, and all of them have been told of that
    try:
        with open(f"{path}~", "w", encoding="utf-8") as file:
            json.dump({"generation": report.generation}, file)
        os.replace(f"{path}~", path)
    except OSError as error:
        _log.warning("%s can't be written, so the next sync calls the receivers again: %s", path, error)


def _told(dest: str) -> int | None:
    """The generation that the receivers know; None if nobody knows."""
    try:
        with open(os.path.join(dest, _TOLD), encoding="utf-8") as file:
            found = json.load(file)["generation"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if isinstance(found, int) else None
