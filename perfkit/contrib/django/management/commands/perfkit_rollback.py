"""Return a tree of the settings to an earlier generation."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from perfkit.cli.output import Outcome
from perfkit.cli.settings import add_wait
from perfkit.cli.tree_commands import outcome_of_rollback
from perfkit.contrib.django import trees
from perfkit.contrib.django.management.command import TreesCommand, wait_s


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
        return outcome_of_rollback(
            trees.rollback(name, to=options["to"], hold=not options["no_hold"], wait_s=wait_s(options))
        )
