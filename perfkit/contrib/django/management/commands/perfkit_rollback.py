"""Return a tree of the settings to an earlier generation."""

from __future__ import annotations

import dataclasses
from typing import Any

from django.core.management.base import CommandParser

from perfkit.contrib.django import trees
from perfkit.contrib.django.management.command import Outcome, TreesCommand, add_wait
from perfkit.progress.text import printable


class Command(TreesCommand):
    help = "Return a tree to an earlier generation, without the network. Later syncs pass over the release that it had."
    names = "1"

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--to", type=int, metavar="N", help="the generation (default: the previous one)")
        what = "have the next sync install the newest release again"
        parser.add_argument("--no-hold", action="store_true", help=what)
        add_wait(parser)

    def run_tree(self, name: str, options: dict[str, Any]) -> Outcome:
        report = trees.rollback(name, to=options["to"], hold=not options["no_hold"], wait_s=options["wait"])
        version = printable(report.version or "") or "the tree before the first sync"
        lines = [
            (1, self.style.SUCCESS(f"{name}: {version} (generation {report.generation})")),
            (1, f"  {report.added} added, {report.changed} changed, {report.removed} removed"),
            *((1, self.style.WARNING(f"  {printable(line)}")) for line in report.edits()),
        ]
        return Outcome(dataclasses.asdict(report), lines)
