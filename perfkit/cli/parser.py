"""argparse as the command line wants it: complaints of one line, and commands that cost nothing until asked for."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from perfkit.cli.output import complain, print_text

__all__ = ["Parser", "add_output"]


class Parser(argparse.ArgumentParser):
    """Shows the examples as they are written, and complains in one line.

    Attributes:
        fill: adds what it parses, once it turns out to be the parser of the command that is asked for.
    """

    fill: Callable[[Parser], None] | None = None
    _width: int | None = 80  # None: as the terminal's, which is dear, and argparse makes a formatter for each option

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=self._formatter, **options)

    def _formatter(self, prog: str) -> argparse.HelpFormatter:
        return argparse.RawDescriptionHelpFormatter(prog, width=self._width)

    def format_help(self) -> str:
        self._width = None
        return super().format_help()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.filled()
        return super().parse_known_args(args, namespace)

    def filled(self) -> Parser:
        """The same, with all its options."""
        if self.fill is not None:
            fill, self.fill = self.fill, None
            fill(self)
        return self

    def filled_commands(self) -> list[Parser]:
        """The parsers of all commands, with all their options."""
        (commands,) = (action for action in self._actions if isinstance(action, argparse._SubParsersAction))
        return [command.filled() for command in commands.choices.values()]

    def _print_message(self, message: str, file: object = None) -> None:
        print_text(message)  # of --help and --version

    def error(self, message: str) -> NoReturn:
        complain(f"{message} ({self.prog} --help tells more)")
        raise SystemExit(2)


def add_output(command: Parser, json: str, *, quiet: str = "no bars and notes; errors are still shown") -> None:
    """The two options that every command has."""
    command.add_argument("--quiet", action="store_true", help=quiet)
    command.add_argument("--json", action="store_true", help=json)
