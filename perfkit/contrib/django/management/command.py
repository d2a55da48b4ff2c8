"""What perfkit's commands have in common, and what a project's own commands may share with them."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from django.core.management.base import BaseCommand, CommandError, CommandParser

from perfkit.config import Config
from perfkit.contrib.django import conf
from perfkit.contrib.django.signals import ReceiverError
from perfkit.errors import BatchError, ConfigError, PerfkitError
from perfkit.progress.lines import terminal_size
from perfkit.progress.meter import Progress
from perfkit.toolkit import Toolkit

__all__ = ["ToolkitCommand", "command_error", "failures_told", "returncode_of"]

_FAILED, _BAD_USAGE, _RECEIVER_FAILED, _INTERRUPTED = 1, 2, 3, 130


class ToolkitCommand(BaseCommand):
    """A command that is given a `Toolkit`, and has the options `--workers`, `--limit-rate` and `--no-progress`.

        class Command(ToolkitCommand):
            def run(self, kit, **options):
                kit.download_many(URLS, settings.MEDIA_ROOT)

    The Toolkit has the settings of `PERFKIT`, which the options override, and is closed afterwards. Bars are shown on
    standard error if that is a terminal; elsewhere there is silence, and plain lines with `--verbosity 2`. Errors of
    perfkit and of the disk become `CommandError`, with the return code 1; what can't be asked for has 2, failed
    receivers of `tree_updated` have 3, and Ctrl-C ends the process with 130.
    """

    def run(self, kit: Toolkit, **options: Any) -> str | None:
        """The work. What it returns is printed, as with Django's `handle`."""
        raise NotImplementedError("subclasses of ToolkitCommand must have a run() method")

    def handle(self, *args: Any, **options: Any) -> str | None:
        with failures_told():
            config = self.config(conf.load().config, options)
            with Toolkit(config, progress=self.progress(options)) as kit:
                return self.run(kit, **options)

    def config(self, config: Config, options: dict[str, Any]) -> Config:
        """These settings, with what the options say instead.

        Raises:
            ConfigError: an option that can't be.
        """
        changes: dict[str, Any] = {}
        for option, fields in _FIELDS.items():
            if options.get(option) is not None:
                try:
                    changes |= {name: conf.convert(name, options[option]) for name in fields}
                except ConfigError as error:
                    raise ConfigError(f"--{option.replace('_', '-')}: {error}") from error
        return dataclasses.replace(config, **changes)

    def progress(self, options: dict[str, Any]) -> Progress | None:
        """Where progress is to be shown, by the options and by what standard error is."""
        stream = cast(TextIO, self.stderr._out)  # the wrapper would end each write with a newline
        lines = options["verbosity"] >= 2
        if options["no_progress"] or options["verbosity"] < 1 or not (lines or terminal_size(stream)):
            return None
        from perfkit.progress.bars import for_stream

        return for_stream(stream)

    def note(self, text: str, options: dict[str, Any], *, verbosity: int = 1) -> None:
        """A line on standard output, from this verbosity on."""
        if options["verbosity"] >= verbosity:
            self.stdout.write(text)

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """Adds the options here, so that `add_arguments` is all the subclass's own."""
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        group = parser.add_argument_group("transfers")
        group.add_argument("--workers", type=int, metavar="N", help="transfers at once")
        group.add_argument("--limit-rate", metavar="RATE", help="bytes per second for all together, such as 500K or 5M")
        group.add_argument("--no-progress", action="store_true", help="no bars, on a terminal either")
        return parser

    def run_from_argv(self, argv: list[str]) -> None:
        """As Django does; and Ctrl-C ends with a line instead of a traceback."""
        try:
            super().run_from_argv(argv)
        except KeyboardInterrupt:
            self.stderr.write("interrupted; the same command again goes on from here")
            sys.exit(_INTERRUPTED)


_FIELDS = {"workers": ("workers", "connections_per_host"), "limit_rate": ("rate_limit",)}


@contextlib.contextmanager
def failures_told() -> Iterator[None]:
    """Errors of perfkit and of the disk become `CommandError`, which Django prints as a line.

    Raises:
        CommandError: instead.
    """
    try:
        yield
    except (PerfkitError, OSError) as error:
        raise command_error(error) from error


def command_error(error: Exception) -> CommandError:
    """What Django prints, in one line, or one for each failure of a batch; with its return code."""
    told = str(error)
    if isinstance(error, BatchError):
        lines = [f"  {each.error}" for each in error.results if each.error is not None]
        told = "\n".join([f"{len(lines)} of {len(error.results)} failed:", *lines])
    return CommandError(told, returncode=returncode_of(error))


def returncode_of(error: Exception) -> int:
    """What the command ends with: 2 for what can't be asked for, 3 for failed receivers, else 1."""
    if isinstance(error, ReceiverError):
        return _RECEIVER_FAILED
    return _BAD_USAGE if isinstance(error, ConfigError) else _FAILED
