"""Take a tree of the settings back to an earlier generation."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from perfkit.contrib.django import trees
from perfkit.contrib.django.management.command import failures_told


class Command(BaseCommand):
    help = "Take a tree back to an earlier generation, without the network. The next sync goes forward again."
    requires_system_checks = ("perfkit",)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", metavar="NAME", help="a tree in the settings")
        parser.add_argument("--to", type=int, metavar="N", help="the generation (default: the one before)")
        parser.add_argument("--wait", type=float, default=0.0, metavar="SECONDS",
                            help="how long to wait for another that is changing the tree (default 0)")  # fmt: skip

    def handle(self, *args: Any, **options: Any) -> None:
        with failures_told():
            report = trees.rollback(options["name"], to=options["to"], wait_s=options["wait"])
        if options["verbosity"] >= 1:
            version = report.version or "the tree before the first sync"
            self.stdout.write(self.style.SUCCESS(f"{options['name']}: {version} (generation {report.generation})"))
            self.stdout.write(f"  {report.added} added, {report.changed} changed, {report.removed} removed")
            for name in report.restored_with_edits:
                told = f"  {name} is back as it had been edited; what the release had there is not kept"
                self.stdout.write(self.style.WARNING(told))
