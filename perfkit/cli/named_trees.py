"""`perfkit.toml` from Python: its trees by name, with the code of the command line."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field

from perfkit.cli.parser import Parser
from perfkit.cli.settings import config_for
from perfkit.cli.settings_file import arguments_for, read_entries
from perfkit.cli.sync import add_sync, sync_tree
from perfkit.config import check_type
from perfkit.errors import CommandFailedError
from perfkit.progress.meter import Progress
from perfkit.toolkit import Toolkit
from perfkit.updates.report import SyncReport
from perfkit.updates.status import TreeStatus


@dataclass(frozen=True)
class NamedTree:
    """A tree that a settings file lists.

    Attributes:
        name: its name there.
        source: a URL, or the absolute path of a list.
        dest: an absolute path.
    """

    name: str
    source: str = field(repr=False)
    dest: str
    _options: argparse.Namespace = field(repr=False, compare=False)

    def toolkit(self, progress: Progress | None = None) -> Toolkit:
        """A Toolkit with the settings of the tree, for `kit.rollback(tree.dest)` and the like; close it.

        `PERFKIT_*` variables take precedence over the file.
        """
        return Toolkit(config_for(self._options), progress=progress)

    def sync(
        self,
        *,
        release: str | None = None,
        now: bool = False,
        retry_rejected: bool = False,
        progress: Progress | None = None,
    ) -> SyncReport:
        """Do what `perfkit sync NAME` does: nothing if no sync is due yet, else check, change and run `on_change`.

        Args:
            release, retry_rejected: as for `Toolkit.sync`.
            now: sync even if no sync is due yet.
            progress: displays progress; none by default.

        Returns:
            The report; with no requests if no sync was due.

        Raises:
            CommandFailedError: the tree is up to date, but `on_change` failed; the next sync runs it again.
            LockedError: another process is changing the tree, or was when `on_change` had to run.
            as `Toolkit.sync`.
        """
        given = {"release": release, "now": now, "retry_rejected": retry_rejected}
        chosen = argparse.Namespace(**{**vars(self._options), **{name: to for name, to in given.items() if to}})
        with self.toolkit(progress) as kit:
            synced = sync_tree(kit, chosen)
        if isinstance(synced.failure, CommandFailedError):
            synced.failure.report = synced.report
        if synced.failure is not None:
            raise synced.failure
        return synced.report

    def status(self) -> TreeStatus:
        """The status of the tree, as `Toolkit.status`."""
        with self.toolkit() as kit:
            return kit.status(self.dest)


def read_trees(path: str | os.PathLike[str] = "perfkit.toml") -> dict[str, NamedTree]:
    """The trees that a settings file lists, by name, in its order. Relative paths in it are relative to its directory.

    Raises:
        ConfigError: the file is not TOML, has an unknown key or an invalid value; two trees overlap.
        OSError: it can't be read.
    """
    check_type("path", path, "Path", secret=False)
    sync = Parser(prog="perfkit sync")
    sync.fill = add_sync
    entries = read_entries(os.fspath(path), sync.filled())
    return {name: NamedTree(name, tree.source, tree.dest, arguments_for(sync, tree)) for name, tree in entries.items()}
