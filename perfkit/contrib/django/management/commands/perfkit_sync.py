"""Update trees of the settings from their sources."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from perfkit.contrib.django import conf, trees
from perfkit.contrib.django.management.command import ToolkitCommand, as_command_errors, command_error, returncode_of
from perfkit.errors import ConfigError, PerfkitError
from perfkit.progress.text import printable
from perfkit.updates.planner import Plan
from perfkit.updates.report import SyncReport


class Command(ToolkitCommand):
    help = 'Update trees of settings.PERFKIT["TREES"] from their sources, fetching only differences.'
    requires_system_checks = ("perfkit",)  # a broken URLconf must not stop an update

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("names", nargs="*", metavar="NAME", help="the name of a tree in the settings")
        parser.add_argument("--all", action="store_true", help="all trees in the settings")
        parser.add_argument("--dry-run", action="store_true", help="print what would be done, and change nothing")
        parser.add_argument(
            "--retry-rejected", action="store_true", help="check releases again that the tree's CHECK refused before"
        )
        parser.add_argument(
            "--wait",
            type=float,
            default=0.0,
            metavar="SECONDS",
            help="how long to wait for another change of the same tree (default 0)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        with as_command_errors():
            names = _chosen(options["names"], everything=options["all"])
        failed: list[Exception] = []
        for name in names:
            try:
                self._sync(name, options)
            except (PerfkitError, OSError) as error:
                if len(names) == 1:
                    raise command_error(error) from error
                self.stderr.write(f"{name}: {printable(str(error))}")
                failed.append(error)
        if failed:
            worst = min(returncode_of(error) for error in failed)
            raise CommandError(f"{len(failed)} of {len(names)} trees failed", returncode=worst)

    def _sync(self, name: str, options: dict[str, Any]) -> None:
        config = self.config(conf.tree_settings(name).config, options)
        if options["dry_run"]:
            self._print_plan(name, trees.plan(name, config=config), options)
            return
        report = trees.sync(
            name,
            retry_rejected=options["retry_rejected"],
            wait_s=options["wait"],
            config=config,
            progress=self.progress(options),
        )
        self._print_report(name, report, options)

    def _print_plan(self, name: str, plan: Plan, options: dict[str, Any]) -> None:
        if plan.empty:
            self.note(f"{name}: {printable(plan.version)} is installed already; nothing to do", options)
            return
        installed = printable(plan.installed_version or "nothing")
        version = self.style.MIGRATE_LABEL(printable(plan.version))
        counts = f"{len(plan.added)} added, {len(plan.changed)} changed, {len(plan.remove)} removed"
        self.note(f"{name}: {installed} would become {version}: {counts}; {plan.missing_bytes} bytes to fetch", options)
        for sign, names in (("+", plan.added), ("~", plan.changed), ("-", plan.remove)):
            for each in names:
                self.note(f"  {sign} {printable(each)}", options, verbosity=2)

    def _print_report(self, name: str, report: SyncReport, options: dict[str, Any]) -> None:
        version = printable(report.version)
        if report.held is not None:
            self.note(self.style.WARNING(f"{name}: {version} stays: {printable(report.held)} is on hold"), options)
            return
        if report.route == "none":
            self.note(f"{name}: {version} is installed already (generation {report.generation})", options)
            return
        self.note(self.style.SUCCESS(f"{name}: {version} (generation {report.generation})"), options)
        self.note(
            f"  {report.added} added, {report.changed} changed, {report.removed} removed; "
            f"{report.bytes_received} bytes received in {report.seconds:.1f} s",
            options,
        )
        for edited, kept in report.saved_as.items():
            self.note(
                self.style.WARNING(f"  {printable(edited)} had local edits, which are kept as {printable(kept)}"),
                options,
            )
        for edited in report.overwritten:
            self.note(self.style.WARNING(f"  {printable(edited)} had local edits, which were overwritten"), options)


def _chosen(names: list[str], *, everything: bool) -> list[str]:
    """The trees to sync, without duplicates.

    Raises:
        ConfigError: no names and no `--all`, or both; a name is not in the settings.
    """
    known = conf.load().trees
    if bool(names) == everything:
        names_there = ", ".join(known) or 'none yet; add them to settings.PERFKIT["TREES"]'
        raise ConfigError(f"give names of trees or --all; the trees are {names_there}")
    for name in names:
        conf.tree_settings(name)
    return list(dict.fromkeys(names)) or list(known)
