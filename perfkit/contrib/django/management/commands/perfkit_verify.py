"""Hash every file of trees of the settings again."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from perfkit.cli.output import Outcome
from perfkit.cli.settings import add_wait
from perfkit.cli.tree_commands import outcome_of_verify
from perfkit.contrib.django import conf, trees
from perfkit.contrib.django.management.command import ToolkitCommand, TreesCommand, wait_s


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
            wait_s=wait_s(options),
            config=self.config(conf.tree_settings(name).config, options),
            progress=self.progress(options),
        )
        return outcome_of_verify(report)
