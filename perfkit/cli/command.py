"""The frame of a command: a Toolkit with its settings, and its outcome as text or as JSON."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from perfkit.cli.output import errors_as_json, print_result, print_text, progress_for
from perfkit.cli.parser import Parser, add_output
from perfkit.cli.settings import config_for

if TYPE_CHECKING:
    from perfkit.toolkit import Toolkit

__all__ = ["Outcome", "define", "toolkit_for"]


class Outcome(NamedTuple):
    """What a command has to say.

    Attributes:
        record: printed with `--json`.
        note: printed on standard error otherwise, unless `--quiet` is given; empty: nothing.
        text: printed before it, on standard output.
        code: the exit code.
    """

    record: Mapping[str, object]
    note: str
    text: str = ""
    code: int = 0


Work = Callable[["Toolkit", argparse.Namespace], Outcome]


def define(command: Parser, work: Work, about: str, examples: str) -> None:
    """Give a command its description, the options that all commands have, and what it does."""
    command.description, command.epilog = about, examples
    add_output(command, "print one JSON object on standard output")
    command.set_defaults(run=partial(_run, work))


@contextlib.contextmanager
def toolkit_for(arguments: argparse.Namespace) -> Iterator[Toolkit]:
    """A Toolkit for a command line. With `--json`, an exception in the block is printed as JSON."""
    from perfkit.toolkit import Toolkit

    with errors_as_json(arguments), Toolkit(config_for(arguments), progress=progress_for(arguments)) as kit:
        yield kit


def _run(work: Work, arguments: argparse.Namespace) -> int:
    with toolkit_for(arguments) as kit:
        outcome = work(kit, arguments)
    if outcome.text and not (arguments.json or arguments.quiet):
        print_text(outcome.text)
    print_result(arguments, outcome.record, outcome.note)
    return outcome.code
