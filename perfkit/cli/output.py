"""The output of the commands: results on standard output, everything else on standard error."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from perfkit.errors import ConfigError, ExpiredError, StaleSourceError
from perfkit.progress.stream import print_line
from perfkit.progress.text import described

if TYPE_CHECKING:
    from perfkit.progress.meter import Progress

CHANGED = 10  # the exit code of `sync --exit-code` after a change
INTERRUPTED = 130  # the exit code after Ctrl-C, as in shells
_BROKEN_PIPE = 141  # that of a program that SIGPIPE ends, as in shells


class Outcome(NamedTuple):
    """The outcome of a command."""

    record: Mapping[str, object]  # printed with `--json`
    note: str  # printed on standard error otherwise, if not empty, unless `--quiet` is given
    text: str = ""  # printed before the note, on standard output
    code: int = 0  # the exit code


def exit_code_of(error: Exception) -> int:
    """The exit code after an error: 2 for invalid usage, 4 for a source that is behind, else 1."""
    if isinstance(error, ConfigError):
        return 2
    return 4 if isinstance(error, StaleSourceError | ExpiredError) else 1


def print_error(message: str) -> None:
    """Print an error as one line on standard error."""
    print_line(f"perfkit: error: {message}")


def interrupted() -> int:
    """Report the interruption; returns the exit code."""
    print_line("perfkit: interrupted; run the same command again to resume")
    return INTERRUPTED


def print_text(text: str) -> None:
    """Write to standard output and flush, so that a failure is reported as an error of the command.

    Raises:
        SystemExit: nobody reads it any more, as after `| head -1`; the command ends without a message.
        OSError: it can't be written.
    """
    if sys.stdout is None:
        raise OSError(errno.EBADF, "standard output is closed")
    encoding = sys.stdout.encoding or "utf-8"  # that of a locale may lack characters
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):  # the rest of the buffer would fail again at interpreter exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(_BROKEN_PIPE) from error
        raise OSError(error.errno, f"standard output: {error.strerror}") from error


def print_outcome(arguments: argparse.Namespace, outcome: Outcome) -> None:
    """Print the outcome of a command as its options say."""
    if arguments.json:
        print_text(json.dumps(outcome.record, default=list) + "\n")  # a long list is made only now
    elif not arguments.quiet:
        if outcome.text:
            print_text(outcome.text)
        if outcome.note:
            print_line(f"perfkit: {outcome.note}")


@contextlib.contextmanager
def errors_as_json(arguments: argparse.Namespace) -> Iterator[None]:
    """With `--json`, an exception that ends the command is printed as its JSON object."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if getattr(arguments, "json", False):
            with contextlib.suppress(OSError, SystemExit):  # standard output may be what failed
                print_text(json.dumps({"error": error_as_json(error)}) + "\n")
        raise


def error_as_json(error: BaseException) -> dict[str, str]:
    """An error as it appears in the JSON of every command."""
    return {"type": type(error).__name__, "message": described(error)}


def progress_for(arguments: argparse.Namespace) -> Progress | None:
    """The display that `--progress` names; None with `--quiet`, and for commands without that option.

    Bars do not leave failed files on the screen, since commands report them.
    """
    if arguments.quiet or "progress" not in arguments:
        return None
    from perfkit.progress.lines import JsonLines, PlainLines

    if arguments.progress == "json":
        return JsonLines()
    if arguments.progress in ("lines", "none"):
        return PlainLines(updates=arguments.progress == "lines")
    from perfkit.progress.bars import Bars, for_stream

    return Bars(failures=False) if arguments.progress == "bars" else for_stream(failures=False)


@contextlib.contextmanager
def log_shown(arguments: argparse.Namespace) -> Iterator[None]:
    """Print what perfkit logs: warnings; with `--verbose`, also requests, retries and routes."""
    import logging

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kind = "warning: " if record.levelno >= logging.WARNING else ""
            print_line(f"perfkit: {kind}{record.getMessage()}")

    log, handler = logging.getLogger("perfkit"), Lines()
    before = log.level
    log.setLevel(logging.DEBUG if getattr(arguments, "verbose", False) else logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
