"""Update trees of the settings from their sources."""

from __future__ import annotations

import dataclasses
import sys
from time import sleep
from typing import Any

from django.core.management.base import CommandParser

from perfkit.contrib.django import conf, trees
from perfkit.contrib.django.management.command import Outcome, ToolkitCommand, TreesCommand, add_wait
from perfkit.progress.text import printable
from perfkit.updates.planner import Plan
from perfkit.updates.report import SyncReport
from perfkit.updates.status import splay_s

_CHANGED = 10  # exit code


class Command(TreesCommand, ToolkitCommand):
    _changed = False  # any tree
    help = 'Update trees of settings.PERFKIT["TREES"] from their sources, fetching only differences.'

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--dry-run", action="store_true", help="print what would be done, and change nothing")
        parser.add_argument("--release", metavar="V", help="install this version, even if it is older or on hold")
        what = "check again releases that the tree's CHECK refused"
        parser.add_argument("--retry-rejected", action="store_true", help=what)
        what = "ignore MIN_INTERVAL, and a pause that a server asked for"
        parser.add_argument("--now", action="store_true", help=what)
        what = "accept an older release than was installed before"
        parser.add_argument("--allow-older", action="store_true", help=what)
        parser.add_argument("--exit-code", action="store_true", help="exit with 10 if something changed")
        add_wait(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        super().handle(*args, **options)
        if options["exit_code"] and self._changed:
            sys.exit(_CHANGED)

    def run_tree(self, name: str, options: dict[str, Any]) -> Outcome:
        tree = conf.tree_settings(name)
        config = self.config(tree.config, options)
        if options["dry_run"]:
            return self._planned(name, trees.plan(name, release=options["release"], config=config))
        due_in_s = trees.due_in_s(name)
        if due_in_s > 0 and not options["now"]:
            return Outcome({"due_in_s": due_in_s}, [(1, f"{name}: the next sync is due in {due_in_s:.0f} s")])
        sleep(splay_s(tree.dest, tree.splay_s))
        report = trees.sync(
            name,
            release=options["release"],
            retry_rejected=options["retry_rejected"],
            allow_older=options["allow_older"],
            wait_s=options["wait"],
            config=config,
            progress=self.progress(options),
        )
        self._changed |= report.generation_is_new
        return Outcome(dataclasses.asdict(report), self._lines(name, report))

    def _planned(self, name: str, plan: Plan) -> Outcome:
        record = {each: getattr(plan, each) for each in ("version", "held", "installed_version", "missing_bytes")}
        record |= {each: list(getattr(plan, each)) for each in ("added", "changed", "remove")}
        if plan.held is not None:
            return Outcome(record, [(1, self._stays(name, plan.version, plan.held))])
        if plan.empty:
            return Outcome(record, [(1, f"{name}: {printable(plan.version)} is installed already; nothing to do")])
        installed = printable(plan.installed_version or "nothing")
        version = self.style.MIGRATE_LABEL(printable(plan.version))
        counts = f"{len(plan.added)} added, {len(plan.changed)} changed, {len(plan.remove)} removed"
        what = f"{name}: {installed} would become {version}: {counts}; {plan.missing_bytes} bytes to fetch"
        changes = (("+", plan.added), ("~", plan.changed), ("-", plan.remove))
        return Outcome(
            record, [(1, what), *((2, f"  {sign} {printable(each)}") for sign, names in changes for each in names)]
        )

    def _stays(self, name: str, version: str, held: str) -> str:
        what = f"{printable(version)} stays" if version else "nothing is installed"
        why = "it is pinned" if held == version else f"{printable(held)} is on hold"
        return str(self.style.WARNING(f"{name}: {what}: {why}"))

    def _lines(self, name: str, report: SyncReport) -> list[tuple[int, str]]:
        version = printable(report.version)
        if report.held is not None:
            return [(1, self._stays(name, report.version, report.held))]
        if report.route == "none":
            return [(1, f"{name}: {version} is installed already (generation {report.generation})")]
        counts = f"{report.added} added, {report.changed} changed, {report.removed} removed"
        return [
            (1, self.style.SUCCESS(f"{name}: {version} (generation {report.generation})")),
            (1, f"  {counts}; {report.bytes_received} bytes received in {report.seconds:.1f} s"),
            *((1, self.style.WARNING(f"  {printable(line)}")) for line in report.edits()),
        ]
