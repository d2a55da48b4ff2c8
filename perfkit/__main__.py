"""The `perfkit` process, `python -m perfkit` too: the command, and a Ctrl-C that ends it once."""

from __future__ import annotations

import gc
import os
import signal
from types import FrameType
from typing import NoReturn

__all__ = ["run"]

_IMPORTED = 40_000  # objects that are there when a command has all of its modules


def run() -> NoReturn:
    """Run the command line of this process, and end it with the command's exit code.

    The first SIGINT is a KeyboardInterrupt. Those that follow do nothing: what the first one set off takes less than a
    second, and would leave things half-made if it were interrupted in its turn.
    """
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else who started us wants none of it
            signal.signal(signal.SIGINT, _interrupt)
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's other threads would wait in a loop for work
        _collect_later()
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
    gc.freeze()  # the interpreter ends by collecting garbage: of so many objects that takes 15 ms
    raise SystemExit(code)


def _collect_later() -> None:
    """Have the garbage collector begin when the modules are there: none of that is garbage, and to look takes 6 ms."""
    usual = gc.get_threshold()

    def begun(phase: str, info: object) -> None:
        gc.set_threshold(*usual)
        gc.callbacks.remove(begun)

    gc.callbacks.append(begun)
    gc.set_threshold(_IMPORTED)


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
