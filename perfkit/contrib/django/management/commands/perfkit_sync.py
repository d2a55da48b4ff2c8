"""Update trees of the settings from their sources."""

from __future__ import annotations

import sys
from time import sleep
from typing import Any

from django.core.management.base import CommandParser

from perfkit.cli.output import CHANGED, Outcome
from perfkit.cli.sync import add_once, outcome_of_plan, outcome_of_sync
from perfkit.contrib.django import conf, trees
from perfkit.contrib.django.management.command import ToolkitCommand, TreesCommand, wait_s
from perfkit.progress.text import printable
from perfkit.updates.status import splay_s


class Command(TreesCommand, ToolkitCommand):
    _changed = False  # any tree
    help = 'Update trees of settings.PERFKIT["TREES"] from their sources, fetching only differences.'

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        add_once(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        super().handle(*args, **options)
        if options["exit_code"] and self._changed:
            sys.exit(CHANGED)

    def run_tree(self, name: str, options: dict[str, Any]) -> Outcome:
        tree = conf.tree_settings(name)
        config = self.config(tree.config, options)
        if options["dry_run"]:
            plan = trees.plan(name, release=options["release"], config=config)
            changes = (("+", plan.added), ("~", plan.changed), ("-", plan.remove)) if options["verbosity"] >= 2 else ()
            lines = (f"{sign} {printable(each)}\n" for sign, names in changes for each in names)
            return outcome_of_plan(plan)._replace(text="".join(lines))
        due_in_s = trees.due_in_s(name)
        if due_in_s > 0 and not options["now"]:
            return Outcome({"due_in_s": due_in_s}, f"the next sync is due in {due_in_s:.0f} s")
        sleep(splay_s(tree.dest, tree.splay_s))
        report = trees.sync(
            name,
            release=options["release"],
            retry_rejected=options["retry_rejected"],
            allow_older=options["allow_older"],
            wait_s=wait_s(options),
            config=config,
            progress=self.progress(options),
        )
        self._changed |= report.generation_is_new
        return outcome_of_sync(report)
