"""The `perfkit` process, `python -m perfkit` too: the command, and a Ctrl-C that ends it once."""

from __future__ import annotations

import signal
from types import FrameType
from typing import NoReturn

__all__ = ["run"]


def run() -> NoReturn:
    """Run the command line of this process, and end it with the command's exit code.

    The first SIGINT is a KeyboardInterrupt. Those that follow do nothing: what the first one set off takes less than a
    second, and would leave things half-made if it were interrupted in its turn.
    """
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else who started us wants none of it
            signal.signal(signal.SIGINT, _interrupt)
        from perfkit.cli import main

        try:
            code: object = main()
        except SystemExit as end:  # of --help, and of arguments that can't be parsed
            code = end.code
        signal.signal(signal.SIGINT, _ignore)
    except KeyboardInterrupt:  # before the command began, or when it had ended
        from perfkit.cli.output import interrupted

        code = interrupted()
    _deaf()
    raise SystemExit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, _ignore)
    raise KeyboardInterrupt


def _ignore(number: int, frame: FrameType | None) -> None:
    """What the interpreter calls, unlike SIG_IGN, of which it would complain for a signal that is on its way."""


def _deaf() -> None:
    """No SIGINT reaches this process any more: the interpreter resets handlers as it ends, and would die of one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # one on its way is handled by this
    signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    run()
