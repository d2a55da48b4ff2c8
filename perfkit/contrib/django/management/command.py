"""The base classes of perfkit's commands; `ToolkitCommand` is also for a project's own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO, cast

from django.core.management.base import BaseCommand, CommandError, CommandParser

from perfkit.cli.output import INTERRUPTED, Outcome, exit_code_of
from perfkit.cli.settings import add_rates, fields_for
from perfkit.config import Config, parse_seconds
from perfkit.contrib.django import conf
from perfkit.contrib.django.signals import ReceiverError
from perfkit.errors import BatchError, ConfigError, PerfkitError
from perfkit.progress.meter import Progress
from perfkit.progress.stream import terminal_size
from perfkit.progress.text import described, printable
from perfkit.toolkit import Toolkit

_RECEIVER_FAILED = 3  # exit code


class ToolkitCommand(BaseCommand):
    """A command whose `run` gets a `Toolkit`; it has the options `--workers`, `--limit-rate` and `--no-progress`.

        class Command(ToolkitCommand):
            def run(self, kit, **options):
                kit.download_many(URLS, settings.MEDIA_ROOT)

    The Toolkit has the settings of `PERFKIT`, overridden by the options, and is closed afterwards. Bars are shown on
    standard error if it is a terminal; otherwise plain lines from `--verbosity 2` on. Errors of perfkit and of the disk
    become `CommandError` with return code 1, invalid usage with 2, failed receivers of `tree_updated` with 3; Ctrl-C
    exits with 130.
    """

    def run(self, kit: Toolkit, **options: Any) -> str | None:
        """Do the work. The returned text is printed, as with Django's `handle`."""
        raise NotImplementedError("subclasses of ToolkitCommand must have a run() method")

    def handle(self, *args: Any, **options: Any) -> str | None:
        with as_command_errors():
            config = self.config(conf.load().config, options)
            with Toolkit(config, progress=self.progress(options)) as kit:
                return self.run(kit, **options)

    def config(self, config: Config, options: dict[str, Any]) -> Config:
        """The settings, overridden by the options.

        Raises:
            ConfigError: an option is invalid.
        """
        chosen: dict[str, Any] = fields_for({name: options.get(name) for name in ("workers", "limit_rate")})
        return dataclasses.replace(config, **chosen)

    def progress(self, options: dict[str, Any]) -> Progress | None:
        """The progress display, chosen by the options and by whether standard error is a terminal."""
        stream = cast(TextIO, self.stderr._out)  # the wrapper would end each write with a newline
        lines = options["verbosity"] >= 2
        if options["no_progress"] or options["verbosity"] < 1 or not (lines or terminal_size(stream)):
            return None
        from perfkit.progress.bars import for_stream

        return for_stream(stream)

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """Add the options here, so that subclasses need not call `super().add_arguments`."""
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        group = parser.add_argument_group("transfers")
        add_rates(group)
        group.add_argument("--no-progress", action="store_true", help="show no bars, even on a terminal")
        return parser

    def run_from_argv(self, argv: list[str]) -> None:
        """As in Django, but Ctrl-C prints a line instead of a traceback."""
        try:
            super().run_from_argv(argv)
        except KeyboardInterrupt:
            self.stderr.write("interrupted; run the same command again to resume")
            sys.exit(INTERRUPTED)


@contextlib.contextmanager
def as_command_errors() -> Iterator[None]:
    """Turn errors of perfkit and of the disk into `CommandError`, which Django prints as a line."""
    try:
        yield
    except (PerfkitError, OSError) as error:
        raise command_error(error) from error


def command_error(error: Exception) -> CommandError:
    """The CommandError for an error: one line, or one for each failure of a batch; with its return code."""
    message = described(error)
    if isinstance(error, BatchError):
        lines = [f"  {each.error}" for each in error.results if each.error is not None]
        message = "\n".join([f"{len(lines)} of {len(error.results)} failed:", *lines])
    message = "\n".join(map(printable, message.split("\n")))  # names and reasons come from servers
    code = _RECEIVER_FAILED if isinstance(error, ReceiverError) else exit_code_of(error)
    return CommandError(message, returncode=code)


class TreesCommand(BaseCommand):
    """A command for trees, one after the other: the failure of one does not stop the others."""

    requires_system_checks = ("perfkit",)  # a broken URLconf must not stop an update
    names = "+"  # how many trees a command line may name: `1`, `+` (any number, or `--all`), or `*` (all by default)

    def run_tree(self, name: str, options: dict[str, Any]) -> Outcome:
        """Do the work for one tree. If the outcome has an exit code, its note says why the command fails."""
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
                outcome = Outcome({"error": described(error)}, "")
                failed.append((name, command_error(error)))
            if outcome.code:
                failed.append((name, CommandError(outcome.note, returncode=outcome.code)))
            records.append({"name": name, **outcome.record})
            if options["verbosity"] >= 1 and not options["json"]:
                self._print(name, outcome)
        if options["json"]:
            self.stdout.write(json.dumps({"trees": records}, default=list))
        if failed and len(names) == 1:
            raise failed[0][1]
        for name, problem in failed:
            self.stderr.write(f"{name}: {problem}")
        if failed:
            worst = min(problem.returncode for _, problem in failed)
            raise CommandError(f"{len(failed)} of {len(names)} trees failed", returncode=worst)

    def _print(self, name: str, outcome: Outcome) -> None:
        label = self.style.MIGRATE_LABEL(name)
        if outcome.note or outcome.text:
            self.stdout.write(f"{label}: {printable(outcome.note)}" if outcome.note else label)
        for line in outcome.text.splitlines():
            self.stdout.write(f"  {line}")

    def _chosen(self, options: Mapping[str, Any]) -> list[str]:
        """The trees, without duplicates."""
        known, names = conf.load().trees, options["names"]
        if self.names == "+" and bool(names) == options["all"]:
            names_there = ", ".join(known) or 'none yet; add them to settings.PERFKIT["TREES"]'
            raise ConfigError(f"give names of trees or --all; the trees are {names_there}")
        for name in names:
            conf.tree_settings(name)
        return list(dict.fromkeys(names)) or list(known)


def wait_s(options: Mapping[str, Any]) -> float:
    """The value of `--wait`, which `call_command` may give as a number."""
    return parse_seconds(str(options["wait"]))
