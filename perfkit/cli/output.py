"""What the commands say, and where: results on standard output, all else on standard error."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from perfkit.progress.lines import say

if TYPE_CHECKING:
    from perfkit.progress.meter import Progress

__all__ = [
    "INTERRUPTED",
    "complain",
    "error_as_json",
    "error_told",
    "interrupted",
    "print_text",
    "progress_for",
    "tell",
]

INTERRUPTED = 130  # the exit code of what Ctrl-C ended, as shells have it


def complain(message: str) -> None:
    """An error, a line of standard error."""
    say(f"perfkit: error: {message}")


def interrupted() -> int:
    """Say so, and give the exit code."""
    say("perfkit: interrupted; the same command again goes on from here")
    return INTERRUPTED


def print_text(text: str) -> None:
    """Write to standard output and flush, so that a failure is an error of the command, told of in a line.

    Raises:
        OSError: it is closed, or full.
    """
    if sys.stdout is None:
        raise OSError(errno.EBADF, "standard output is closed")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):  # what is left in the buffer would fail again when the interpreter ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, f"standard output: {error.strerror}") from error


def tell(arguments: argparse.Namespace, record: dict[str, object], note: str) -> None:
    """The result of a command: the record as JSON if asked for, else a note for people unless they want none."""
    if arguments.json:
        print_text(json.dumps(record) + "\n")
    elif not arguments.quiet:
        say(f"perfkit: {note}")


@contextlib.contextmanager
def error_told(arguments: argparse.Namespace) -> Iterator[None]:
    """For a command that prints one object: what ends it early is an object too, if JSON is asked for."""
    try:
        yield
    except BaseException as error:
        if arguments.json:
            with contextlib.suppress(OSError):  # where standard output is what failed
                print_text(json.dumps({"error": error_as_json(error)}) + "\n")
        raise


def error_as_json(error: BaseException) -> dict[str, str]:
    """An error as all JSON of the commands has it."""
    return {"type": type(error).__name__, "message": str(error)}


def progress_for(arguments: argparse.Namespace) -> Progress | None:
    """Bars or lines, as standard error is; none if they are not wanted."""
    if arguments.quiet:
        return None
    from perfkit.progress.bars import for_stream

    return for_stream()
