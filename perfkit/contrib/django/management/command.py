"""The base classes of perfkit's commands; `ToolkitCommand` is also for a project's own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TextIO, cast

from django.core.management.base import BaseCommand, CommandError, CommandParser

from perfkit.config import Config, convert
from perfkit.contrib.django import conf
from perfkit.contrib.django.signals import ReceiverError
from perfkit.errors import BatchError, ConfigError, ExpiredError, PerfkitError, StaleSourceError
from perfkit.progress.lines import terminal_size
from perfkit.progress.meter import Progress
from perfkit.progress.text import described, printable
from perfkit.toolkit import Toolkit

_FAILED, _BAD_USAGE, _RECEIVER_FAILED, _STALE, _INTERRUPTED = 1, 2, 3, 4, 130


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
        changes: dict[str, Any] = {}
        for option, fields in _FIELDS.items():
            if options.get(option) is not None:
                try:
                    changes |= {name: convert(Config, name, options[option]) for name in fields}
                except ConfigError as error:
                    raise ConfigError(f"--{option.replace('_', '-')}: {error}") from error
        return dataclasses.replace(config, **changes)

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
        group.add_argument("--workers", type=int, metavar="N", help="concurrent transfers")
        what = "bytes per second for all transfers, such as 500K or 5M"
        group.add_argument("--limit-rate", metavar="RATE", help=what)
        group.add_argument("--no-progress", action="store_true", help="show no bars, even on a terminal")
        return parser

    def run_from_argv(self, argv: list[str]) -> None:
        """As in Django, but Ctrl-C prints a line instead of a traceback."""
        try:
            super().run_from_argv(argv)
        except KeyboardInterrupt:
            self.stderr.write("interrupted; run the same command again to resume")
            sys.exit(_INTERRUPTED)


_FIELDS = {"workers": ("workers", "connections_per_host"), "limit_rate": ("rate_limit",)}


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
    return CommandError(message, returncode=returncode_of(error))


def returncode_of(error: Exception) -> int:
    """The exit code of a command: 2 invalid usage, 3 failed receivers, 4 a source that is behind, else 1."""
    if isinstance(error, ReceiverError):
        return _RECEIVER_FAILED
    if isinstance(error, StaleSourceError | ExpiredError):
        return _STALE
    return _BAD_USAGE if isinstance(error, ConfigError) else _FAILED


class Outcome(NamedTuple):
    """The outcome of a command for a tree."""

    record: Mapping[str, Any]  # printed with `--json`, with the tree's name
    lines: list[tuple[int, str]]  # printed otherwise, each from a verbosity on
    problem: str = ""  # why the command fails, although nothing was raised; empty if it does not


class TreesCommand(BaseCommand):
    """A command for trees, one after the other: the failure of one does not stop the others."""

    requires_system_checks = ("perfkit",)  # a broken URLconf must not stop an update
    names = "+"  # how many trees a command line may name: `1`, `+` (any number, or `--all`), or `*` (all by default)

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
