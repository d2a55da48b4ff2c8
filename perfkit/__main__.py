"""The `perfkit` process, `python -m perfkit` too: the command, and a Ctrl-C that ends it once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

__all__ = ["run"]


def run() -> NoReturn:
    """Run the command line of this process, and end it with the command's exit code.

    The first SIGINT is a KeyboardInterrupt. Those that follow do nothing: what the first one set off takes less than a
    second, and would leave things half-made if it were interrupted in its turn.

    The process ends here, without the interpreter's own end: nothing is left for it to do, it takes 9 ms, and a SIGINT
    in it would be told of with a traceback. Profilers that print at exit want `perfkit.cli.main` instead.
    """
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else who started us wants none of it
            signal.signal(signal.SIGINT, _interrupt)
        from perfkit.cli import main

        try:
            code = main()
        except SystemExit as end:  # of --help, and of arguments that can't be parsed
            code = int(end.code or 0)
        signal.signal(signal.SIGINT, _ignore)
    except KeyboardInterrupt:  # before the command began, or when it had ended
        from perfkit.cli.output import interrupted

        code = interrupted()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # there is none, it is gone, or closed
            stream.flush()
    os._exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, _ignore)
    raise KeyboardInterrupt


def _ignore(number: int, frame: FrameType | None) -> None:
    """What the interpreter calls, unlike SIG_IGN, of which it would complain for a signal that is on its way."""


if __name__ == "__main__":
    run()
