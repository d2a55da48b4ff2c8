"""The base class of the commands for trees of the settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from django.core.management.base import BaseCommand, CommandError, CommandParser

from perfkit.contrib.django import conf
from perfkit.contrib.django.management.command import as_command_errors, command_error
from perfkit.errors import ConfigError, PerfkitError
from perfkit.progress.text import described


class Outcome(NamedTuple):
    """The outcome of a command for a tree."""

    record: Mapping[str, Any]  # printed with `--json`, with the tree's name
    lines: list[tuple[int, str]]  # printed otherwise, each from a verbosity on
    problem: str = ""  # why the command fails, although nothing was raised; empty if it does not


class TreesCommand(BaseCommand):
    """A command for trees, one after the other: the failure of one does not stop the others.

    Attributes:
        names: how many trees a command line may name: `1`, `+` (any number, or `--all`), or `*` (all by default).
    """

    requires_system_checks = ("perfkit",)  # a broken URLconf must not stop an update
    names = "+"

    def run_tree(self, name: str, options: dict[str, Any]) -> Outcome:
        """Do the work for one tree."""
        raise NotImplementedError("subclasses of TreesCommand must have a run_tree() method")

    def add_arguments(self, parser: CommandParser) -> None:
        about = "the name of a tree in the settings" + (" (default: all)" if self.names == "*" else "")
        parser.add_argument("names", nargs=1 if self.names == "1" else "*", metavar="NAME", help=about)
        if self.names == "+":
            parser.add_argument("--all", action="store_true", help="all trees in the settings")
        parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")

    def handle(self, *args: Any, **options: Any) -> None:
        with as_command_errors():
            names = self._chosen(options)
        records: list[dict[str, Any]] = []
        failed: list[tuple[str, CommandError]] = []
        for name in names:
            try:
                outcome = self.run_tree(name, options)
            except (PerfkitError, OSError) as error:
                outcome = Outcome({"error": described(error)}, [])
                failed.append((name, command_error(error)))
            if outcome.problem:
                failed.append((name, CommandError(outcome.problem, returncode=1)))
            records.append({"name": name, **outcome.record})
            for verbosity, line in outcome.lines:
                if options["verbosity"] >= verbosity and not options["json"]:
                    self.stdout.write(line)
        if options["json"]:
            self.stdout.write(json.dumps({"trees": records}))
        if failed and len(names) == 1:
            raise failed[0][1]
        for name, problem in failed:
            self.stderr.write(f"{name}: {problem}")
        if failed:
            worst = min(problem.returncode for _, problem in failed)
            raise CommandError(f"{len(failed)} of {len(names)} trees failed", returncode=worst)

    def _chosen(self, options: Mapping[str, Any]) -> list[str]:
        """The trees, without duplicates."""
        known, names = conf.load().trees, options["names"]
        if self.names == "+" and bool(names) == options["all"]:
            names_there = ", ".join(known) or 'none yet; add them to settings.PERFKIT["TREES"]'
            raise ConfigError(f"give names of trees or --all; the trees are {names_there}")
        for name in names:
            conf.tree_settings(name)
        return list(dict.fromkeys(names)) or list(known)


def add_wait(parser: CommandParser) -> None:
    """Add the option of commands that lock a tree."""
    about = "how long to wait while another command is at work (default 0)"
    parser.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help=about)
