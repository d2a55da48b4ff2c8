"""argparse with one-line errors, and with subcommands whose options are added only when they are needed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, NoReturn

from perfkit.cli.output import print_error, print_text

_MODES = ("auto", "bars", "lines", "json", "none")


class Parser(argparse.ArgumentParser):
    """Shows the examples as written, and reports errors in one line.

    Attributes:
        fill: adds the options; called when this turns out to be the parser of the selected command.
    """

    fill: Callable[[Parser], None] | None = None
    _filled = False
    _words: tuple[str, ...] = ()  # the parsed arguments
    _width: int | None = 80  # None: the terminal's width, which is slow to query for each option that is added

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=self._formatter, **options)

    def _formatter(self, prog: str) -> argparse.HelpFormatter:
        return argparse.RawDescriptionHelpFormatter(prog, width=self._width)

    def format_help(self) -> str:
        self._width = None
        return super().format_help()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.filled()
        self._words = tuple(args or ())
        for before, word in pairwise(("", *self._words)) if self.fill else ():
            if word == "" or (word.startswith("--") and word.find("=") == len(word) - 1):
                action = self._option_string_actions.get(before)
                empty = word or (before if action is not None and action.nargs != 0 else "an argument")
                self.error(f"{empty} is empty (is a variable of your shell not set?)")
        return super().parse_known_args(args, namespace)

    def parse_again(self, defaults: Mapping[str, object]) -> argparse.Namespace:
        """Parse the same arguments with other defaults."""
        again = Parser(prog=self.prog)
        again.fill = self.fill
        again.filled().set_defaults(**defaults)
        return again.parse_args(self._words)

    def describe(self, about: str, examples: str, run: Callable[[argparse.Namespace], int]) -> None:
        """Give a command its description, its examples, in indented lines, and the function that does its work."""
        self.description, self.epilog = about, f"examples:\n{examples}"
        self.set_defaults(run=run)

    def filled(self) -> Parser:
        """This parser, with all its options."""
        if self.fill is not None and not self._filled:
            self._filled = True
            self.fill(self)
        return self

    def options(self) -> list[argparse.Action]:
        """All options and arguments."""
        return self._actions

    def commands(self) -> dict[str, Parser]:
        """The parsers of all commands, by name; `filled` adds the options of one."""
        (commands,) = (action for action in self._actions if isinstance(action, argparse._SubParsersAction))
        return dict(commands.choices)

    def _print_message(self, message: str, file: object = None) -> None:
        print_text(message)  # for --help and --version

    def error(self, message: str) -> NoReturn:
        print_error(f"{message}; see {self.prog} --help")
        raise SystemExit(2)


def add_output(command: Parser, json: str, *, quiet: str = "show only warnings and errors") -> None:
    """Add the two options that every command has."""
    command.add_argument("-q", "--quiet", action="store_true", help=quiet)
    command.add_argument("--json", action="store_true", help=json)


def add_progress(command: Parser) -> None:
    """Add the options of commands that take long."""
    what = "how progress is shown on standard error: auto (bars on a terminal, else lines), bars, lines, json or none"
    command.add_argument("--progress", choices=_MODES, default="auto", metavar="HOW", help=what)
    command.add_argument("-v", "--verbose", action="store_true", help="also print each request, retry and route")
