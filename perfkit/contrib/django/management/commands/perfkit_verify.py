"""Hash every file of trees of the settings again."""

from __future__ import annotations

import dataclasses
from typing import Any

from django.core.management.base import CommandParser

from perfkit.contrib.django import conf, trees
from perfkit.contrib.django.management.command import Outcome, ToolkitCommand, TreesCommand, add_wait
from perfkit.progress.text import counted, printable


class Command(TreesCommand, ToolkitCommand):
    help = "Hash every file of trees again; fails unless all are as installed."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--repair", action="store_true", help="fetch missing and changed files again")
        add_wait(parser)

    def run_tree(self, name: str, options: dict[str, Any]) -> Outcome:
        report = trees.verify(
            name,
            repair=options["repair"],
            wait_s=options["wait"],
            config=self.config(conf.tree_settings(name).config, options),
            progress=self.progress(options),
        )
        listed = (("missing", report.missing), ("changed", report.changed), ("extra", report.extra))
        counts = f"{len(report.missing)} missing, {len(report.changed)} changed, {len(report.extra)} extra"
        summary = f"{name}: {counted(report.files, 'file')}; {counts}{'; repaired' if report.repaired else ''}"
        lines = [(1, f"  {what} {printable(each)}") for what, names in listed for each in names]
        record = {**dataclasses.asdict(report), "intact": report.intact}
        return Outcome(record, [(1, summary), *lines], problem="" if report.intact else summary)
