"""Return a tree of the settings to an earlier generation."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from perfkit.contrib.django import trees
from perfkit.contrib.django.management.command import as_command_errors
from perfkit.progress.text import printable


class Command(BaseCommand):
    help = "Return a tree to an earlier generation, without the network. Syncs then pass over the release that it left."
    requires_system_checks = ("perfkit",)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", metavar="NAME", help="the name of a tree in the settings")
        parser.add_argument("--to", type=int, metavar="N", help="the generation (default: the previous one)")
        parser.add_argument(
            "--no-hold", action="store_true", help="have the next sync install the newest release again"
        )
        parser.add_argument(
            "--wait",
            type=float,
            default=0.0,
            metavar="SECONDS",
            help="how long to wait for another change of the tree (default 0)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        with as_command_errors():
            hold = not options["no_hold"]
            report = trees.rollback(options["name"], to=options["to"], hold=hold, wait_s=options["wait"])
        if options["verbosity"] >= 1:
            version = printable(report.version or "") or "the tree before the first sync"
            self.stdout.write(self.style.SUCCESS(f"{options['name']}: {version} (generation {report.generation})"))
            self.stdout.write(f"  {report.added} added, {report.changed} changed, {report.removed} removed")
            for name in report.restored_with_edits:
                warning = f"  {printable(name)} was restored with local edits; the released content is not kept"
                self.stdout.write(self.style.WARNING(warning))
