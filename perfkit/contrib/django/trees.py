"""The commands as functions, for views, Celery tasks, cron scripts and tests.

Each call creates its own Toolkit and closes it, so nothing is shared across forks, threads or greenlets. `name` is the
name of a tree in `settings.PERFKIT["TREES"]`; each function raises ConfigError if there is no such tree, or the
settings are invalid, and whatever the method of `Toolkit` with its name raises.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from django.core.signals import setting_changed
from django.db import connections

from perfkit.config import Config
from perfkit.contrib.django.conf import TreeSettings, tree_settings
from perfkit.contrib.django.locking import one_at_a_time
from perfkit.contrib.django.signals import ReceiverError, receiver_name, tree_updated
from perfkit.errors import PerfkitError, UpdateError
from perfkit.filesystem.own_files import write_record
from perfkit.filesystem.rootdir import RootDir
from perfkit.progress.meter import Progress
from perfkit.redact import redacted
from perfkit.toolkit import Toolkit
from perfkit.transactions.history import Generation, read_current
from perfkit.transactions.layout import NOTIFIED, PRIVATE_DIR, STATE
from perfkit.updates.hold import Hold
from perfkit.updates.planner import Plan
from perfkit.updates.report import SyncReport, VerifyReport
from perfkit.updates.status import TreeStatus, read_json

_log = logging.getLogger(__name__)


def sync(
    name: str,
    *,
    release: str | None = None,
    retry_rejected: bool = False,
    allow_older: bool = False,
    wait_s: float = 0.0,
    config: Config | None = None,
    progress: Progress | None = None,
) -> SyncReport:
    """Update a tree from its source, and send `tree_updated` unless all receivers have processed the result already.

    Args:
        release: the version to install from a site, as for `Toolkit.sync`.
        retry_rejected: run the tree's `CHECK` again on a version that it refused before.
        allow_older: install a release although a later one was installed before.
        wait_s: how long to wait for another change of the same tree.
        config: replaces the Config from the settings.
        progress: displays progress; none by default.

    Raises:
        ReceiverError: the tree is up to date, but a receiver failed.
        LockedError: another process or thread was still changing the tree after `wait_s`.
    """
    tree = tree_settings(name)
    os.makedirs(tree.dest, exist_ok=True)

    def update(kit: Toolkit, left_s: float) -> SyncReport:
        return kit.sync(
            tree.source,
            tree.dest,
            release=release,
            check=tree.check,
            retry_rejected=retry_rejected,
            allow_older=allow_older,
            wait_s=left_s,
            **_options(tree),
        )

    return _change(tree, wait_s, update, config, progress)


def rollback(name: str, *, to: int | None = None, hold: bool = True, wait_s: float = 0.0) -> SyncReport:
    """Return a tree to a kept generation, without the network, and send `tree_updated`.

    Args:
        to, hold: as for `Toolkit.rollback`.

    Raises:
        ReceiverError, LockedError: as `sync`.
    """
    tree = tree_settings(name)
    if not os.path.isdir(tree.dest):
        raise UpdateError(f"{tree.dest} does not exist; sync the tree {name!r} first")
    return _change(tree, wait_s, lambda kit, left_s: kit.rollback(tree.dest, to=to, hold=hold, wait_s=left_s))


def plan(name: str, *, release: str | None = None, config: Config | None = None) -> Plan:
    """What `sync` would do now; nothing is written, and no signal is sent."""
    tree = tree_settings(name)
    with Toolkit(config or tree.config) as kit:
        return kit.plan(tree.source, tree.dest, release=release, **_options(tree))


def _options(tree: TreeSettings) -> dict[str, Any]:
    """What the settings say about the source, for `Toolkit.sync` and `Toolkit.plan`."""
    names = ("type", "selection", "decompress", "checksums", "mirrors", "public_keys", "threshold")
    return {name: getattr(tree, name) for name in names}


def due_in_s(name: str) -> float:
    """Seconds until the next sync is due by `MIN_INTERVAL` and by what the source has asked for; 0 if it is due now.
    `sync` itself ignores this. Raises what `Toolkit.status` raises.
    """
    tree = tree_settings(name)
    if not _is_tree(tree):
        return 0.0
    with Toolkit(tree.config) as kit:
        return kit.status(tree.dest).due_in_s(tree.min_interval_s)


def verify(
    name: str,
    *,
    repair: bool = False,
    wait_s: float = 0.0,
    config: Config | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Hash every file of a tree again, as `Toolkit.verify`. A repair sends no signal: the release is the same."""
    tree = tree_settings(name)
    with Toolkit(config or tree.config, progress=progress) as kit:
        return kit.verify(tree.dest, repair=repair, mirrors=tree.mirrors, wait_s=wait_s)


def hold(name: str, version: str | None = None, *, wait_s: float = 0.0) -> Hold:
    """Make `sync` pass over a version of a tree, as `Toolkit.hold`; or keep the installed one, as `Toolkit.pin`."""
    tree = tree_settings(name)
    with Toolkit(tree.config) as kit:
        if version is None:
            kit.pin(tree.dest, wait_s=wait_s)
        else:
            kit.hold(tree.dest, version, wait_s=wait_s)
        held = kit.status(tree.dest).held
    assert held is not None
    return held


def unhold(name: str, *, wait_s: float = 0.0) -> Hold | None:
    """End all holds of a tree, as `Toolkit.unhold`."""
    tree = tree_settings(name)
    with Toolkit(tree.config) as kit:
        return kit.unhold(tree.dest, wait_s=wait_s)


class Current(NamedTuple):
    """Which release a tree has now."""

    generation: int = 0  # changes with each change, and back with a rollback; 0 if nothing is installed
    version: str | None = None  # None if nothing is installed, or the tree was not changed by a sync


_Signature = tuple[int, int, int]
_seen: dict[str, tuple[_Signature, Current]] = {}  # by the path of the tree's state


def current(name: str) -> Current:
    """Which release a tree has now, in microseconds: one stat, and a small read after a change.

    For a process that caches what it has built from a tree's files: build it again when this differs.

    Raises:
        RecoveryError, OSError: the record of generations is damaged, or can't be read.
    """
    path = _state_path(name)
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return Current()
    signature = found.st_ino, found.st_size, found.st_ctime_ns
    seen = _seen.get(path)
    if seen is None or seen[0] != signature:
        with contextlib.closing(RootDir(path.removesuffix(STATE))) as rootdir:
            generation = read_current(rootdir)
        seen = _seen[path] = signature, Current(generation.number, generation.label.get("version"))
    return seen[1]


@functools.cache
def _state_path(name: str) -> str:
    return os.path.join(tree_settings(name).dest, STATE)


setting_changed.connect(lambda **_: _state_path.cache_clear(), weak=False)  # sent by override_settings


@dataclass(frozen=True, kw_only=True)
class Status(TreeStatus):
    """The state of a tree of the settings, without a request to its source.

    Attributes:
        name: in the settings.
        source: in the settings, without passwords.
        receivers_notified: whether all receivers of `tree_updated` have processed this generation.
        generations: those that `rollback` can restore, oldest first.
    """

    name: str
    dest: str
    state: Literal["installed", "absent"]
    receivers_notified: bool = False
    generations: tuple[Generation, ...] = ()


def status(name: str) -> Status:
    """The state of a tree.

    Raises:
        RollbackError, OSError: as `Toolkit.history`.
        as `Toolkit.status`.
    """
    tree = tree_settings(name)
    source = redacted(tree.source)
    if not _is_tree(tree):
        return Status(name=name, source=source, dest=tree.dest, state="absent")
    with Toolkit(tree.config) as kit:
        generations, found = kit.history(tree.dest), kit.status(tree.dest)
    return Status(
        **{**vars(found), "source": source},
        name=name,
        dest=tree.dest,
        state="installed" if found.generation else "absent",
        receivers_notified=found.generation > 0 and _notified(tree.dest) == found.generation,
        generations=tuple(generations),
    )


def _is_tree(tree: TreeSettings) -> bool:
    return os.path.isdir(os.path.join(tree.dest, PRIVATE_DIR))


def _change(
    tree: TreeSettings,
    wait_s: float,
    change: Callable[[Toolkit, float], SyncReport],
    config: Config | None = None,
    progress: Progress | None = None,
) -> SyncReport:
    with one_at_a_time(tree.dest, wait_s) as left_s:
        with Toolkit(config or tree.config, progress=progress) as kit:
            report = change(kit, left_s)
        if _notified(tree.dest) != report.generation:
            _notify_receivers(tree, report)
    return report


def _notify_receivers(tree: TreeSettings, report: SyncReport) -> None:
    """Send the signal. The record of the processed generation is removed first and written again after all receivers
    succeeded: if this ends early, the next change of the tree calls them again, even one to an older generation.
    """
    path = os.path.join(tree.dest, NOTIFIED)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    for each in connections.all(initialized_only=True):
        if each.connection is not None and each.get_autocommit():  # else the caller has begun a transaction
            each.close_if_unusable_or_obsolete()  # the database may have closed it during a long download
    answers = tree_updated.send_robust(sender=TreeSettings, name=tree.name, dest=tree.dest, report=report)
    failures = [(receiver_name(receiver), answer) for receiver, answer in answers if isinstance(answer, Exception)]
    if failures:
        raise ReceiverError(tree.name, report, failures)
    record = functools.partial(_record_notified, tree.name, path, report.generation)
    for each in connections.all(initialized_only=True):
        if each.in_atomic_block:  # what the receivers wrote counts only once that is committed
            record = functools.partial(each.on_commit, record)
    record()


def _record_notified(name: str, path: str, generation: int) -> None:
    try:
        if os.path.exists(path) or current(name).generation != generation:
            return  # a receiver or another process changed the tree again, and all receivers are called for that change
        write_record(path, {"generation": generation}, 0o644)  # a web server may read it as another user
    except (PerfkitError, OSError) as error:
        _log.warning("can't write %s, so the next sync calls the receivers again: %s", path, error)


def _notified(dest: str) -> int | None:
    """The generation that all receivers have processed; None if unknown."""
    return read_json(os.path.join(dest, NOTIFIED)).get("generation")
