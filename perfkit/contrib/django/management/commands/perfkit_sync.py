"""Bring trees of the settings to what their sources offer."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from perfkit.contrib.django import conf, trees
from perfkit.contrib.django.management.command import ToolkitCommand, command_error, failures_told, returncode_of
from perfkit.errors import ConfigError, PerfkitError
from perfkit.updates.planner import Plan
from perfkit.updates.report import SyncReport


class Command(ToolkitCommand):
    help = 'Bring trees of settings.PERFKIT["TREES"] to what their sources offer, fetching only what differs.'
    requires_system_checks = ("perfkit",)  # a broken URLconf is no reason not to fetch new rules

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("names", nargs="*", metavar="NAME", help="a tree in the settings")
        parser.add_argument("--all", action="store_true", help="all trees in the settings")
        parser.add_argument("--dry-run", action="store_true", help="tell what would be done, and do nothing")
        parser.add_argument("--wait", type=float, default=0.0, metavar="SECONDS",
                            help="how long to wait for another that is changing the same tree (default 0)")  # fmt: skip

    def handle(self, *args: Any, **options: Any) -> None:
        with failures_told():
            names = _chosen(options["names"], everything=options["all"])
        failed: list[Exception] = []
        for name in names:
            try:
                self._sync(name, options)
            except (PerfkitError, OSError) as error:
                if len(names) == 1:
                    raise command_error(error) from error
                self.stderr.write(f"{name}: {error}")  # and the others have their turn
                failed.append(error)
        if failed:
            worst = min(returncode_of(error) for error in failed)
            raise CommandError(f"{len(failed)} of {len(names)} trees failed", returncode=worst)

    def _sync(self, name: str, options: dict[str, Any]) -> None:
        config = self.config(conf.tree_settings(name).config, options)
        if options["dry_run"]:
            self._tell_plan(name, trees.plan(name, config=config), options)
            return
        report = trees.sync(name, wait_s=options["wait"], config=config, progress=self.progress(options))
        self._tell_report(name, report, options)

    def _tell_plan(self, name: str, plan: Plan, options: dict[str, Any]) -> None:
        if plan.empty:
            self.note(f"{name}: {plan.version} is there already; nothing to do", options)
            return
        installed, version = plan.installed_version or "nothing", self.style.MIGRATE_LABEL(plan.version)
        counts = f"{len(plan.added)} added, {len(plan.changed)} changed, {len(plan.remove)} removed"
        self.note(f"{name}: {installed} would become {version}: {counts}; {plan.missing_bytes} bytes to fetch", options)
        for sign, names in (("+", plan.added), ("~", plan.changed), ("-", plan.remove)):
            for each in names:
                self.note(f"  {sign} {each}", options, verbosity=2)

    def _tell_report(self, name: str, report: SyncReport, options: dict[str, Any]) -> None:
        if report.route == "none":
            self.note(f"{name}: {report.version} is there already (generation {report.generation})", options)
            return
        self.note(self.style.SUCCESS(f"{name}: {report.version} (generation {report.generation})"), options)
        self.note(f"  {report.added} added, {report.changed} changed, {report.removed} removed; "
                  f"{report.bytes_received} bytes received in {report.seconds:.1f} s", options)  # fmt: skip
        for edited, kept in report.saved_as.items():
            self.note(self.style.WARNING(f"  {edited} was edited here; that is kept as {kept}"), options)
        for edited in report.overwritten:
            self.note(self.style.WARNING(f"  {edited} was edited here, and has been overwritten"), options)


def _chosen(names: list[str], *, everything: bool) -> list[str]:
    """The trees to sync, each once.

    Raises:
        ConfigError: none, or both names and all; a name that is not in the settings.
    """
    known = conf.load().trees
    if bool(names) == everything:
        there = ", ".join(known) or 'none; add some to settings.PERFKIT["TREES"]'
        raise ConfigError(f"give names of trees, or --all; there are: {there}")
    for name in names:
        conf.tree_settings(name)
    return list(dict.fromkeys(names)) or list(known)
