"""The `perfkit` process, also `python -m perfkit`: runs the command line and handles Ctrl-C."""

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
_IMPORTED = 40_000  # about as many objects as a command has after all imports


def run() -> NoReturn:
    """Run the command line of this process, and exit with the command's exit code.

    The first SIGINT raises KeyboardInterrupt. Later ones are ignored: the clean-up after the first takes less than a
    second, and must not be interrupted in turn.

    The process exits here, without the interpreter's finalization: that has nothing left to do, takes 9 ms, and would
    print a traceback for a SIGINT. Use `perfkit.cli.main` with profilers that print at exit.
    """
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the parent process has SIGINT ignored
            signal.signal(signal.SIGINT, _interrupt)
            signal.signal(signal.SIGALRM, _interrupt)
            sys.unraisablehook = _again
        os.environ.setdefault(
            "OPENBLAS_NUM_THREADS", "1"
        )  # the other threads of numpy would spin while they wait for work
        _collect_later()
        from perfkit.cli import main
        from perfkit.libc import own_process

        own_process()
        try:
            code = main()
        except SystemExit as end:  # from --help, or arguments that can't be parsed
            code = int(end.code or 0)
        signal.signal(signal.SIGINT, _ignore)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:  # before the command began, or after it ended
        from perfkit.cli.output import interrupted

        code = interrupted()
    if not (_flush(sys.stdout) and _flush(sys.stderr)):
        code = code or 1  # some output is lost
    os._exit(code)


def _flush(stream: TextIO | None) -> bool:
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):  # a full disk, a closed pipe, a closed stream
        return False
    return True


def _collect_later() -> None:
    """Delay garbage collection until all modules are imported: nothing before is garbage, and scanning takes 6 ms."""
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
    """Repeat a KeyboardInterrupt that was lost where nothing can be raised, such as while a generator is collected."""
    if lost.exc_type is KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, _SOON_S)
    else:
        sys.__unraisablehook__(lost)


def _ignore(number: int, frame: FrameType | None) -> None:
    """A handler that does nothing; with SIG_IGN the interpreter would print an error for a pending signal."""


if __name__ == "__main__":
    run()
