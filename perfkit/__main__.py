"""The `perfkit` process, `python -m perfkit` too: the command, and a Ctrl-C that ends it once."""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TextIO

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

__all__ = ["run"]

_SOON_S = 0.001
_IMPORTED = 40_000  # objects that are there when a command has all of its modules


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
            signal.signal(signal.SIGALRM, _interrupt)
            sys.unraisablehook = _again
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's other threads would wait in a loop for work
        _collect_later()
        from perfkit.cli import main
        from perfkit.libc import own_process

        own_process()
        try:
            code = main()
        except SystemExit as end:  # of --help, and of arguments that can't be parsed
            code = int(end.code or 0)
        signal.signal(signal.SIGINT, _ignore)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:  # before the command began, or when it had ended
        from perfkit.cli.output import interrupted

        code = interrupted()
    if not (_flush(sys.stdout) and _flush(sys.stderr)):
        code = code or 1  # what was to be told is lost
    os._exit(code)


def _flush(stream: TextIO | None) -> bool:
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):  # a full disk, a reader that is gone; or closed
        return False
    return True


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


def _again(lost: UnraisableHookArgs) -> None:
    """A KeyboardInterrupt that came where nothing can be raised, as while a generator is collected, comes once more."""
    if lost.exc_type is KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, _SOON_S)
    else:
        sys.__unraisablehook__(lost)


def _ignore(number: int, frame: FrameType | None) -> None:
    """What the interpreter calls, unlike SIG_IGN, of which it would complain for a signal that is on its way."""


if __name__ == "__main__":
    run()
