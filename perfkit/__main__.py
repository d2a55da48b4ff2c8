"""The `perfkit` process, also as `python -m perfkit`: runs the command line, and handles Ctrl-C, SIGTERM and SIGHUP."""

from __future__ import annotations

import gc
import os
import signal
import sys
import warnings
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TextIO

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_REDELIVER_S = 0.001
_GC_THRESHOLD = 60_000  # more objects than exist when a download has imported its modules
_ENDING = (signal.SIGTERM, signal.SIGHUP)  # sent by supervisors; by the kernel when the terminal is closed
_received: list[int] = []  # the signals that end this process


def run() -> NoReturn:
    """Run the command line of this process, and exit with its exit code.

    The first SIGINT, SIGTERM or SIGHUP raises KeyboardInterrupt. Later ones wait for the cleanup: it takes less than a
    second, and must not be interrupted itself; timeout(1) sends SIGTERM twice. After SIGTERM or SIGHUP the process ends
    by that signal, as a supervisor expects.

    The process exits without finalising the interpreter: that would do nothing useful, takes 9 ms, and a SIGINT during
    it would print a traceback. To use a profiler that prints at exit, call `perfkit.cli.main` instead.
    """
    try:
        for number in (signal.SIGINT, *_ENDING):
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            if signal.getsignal(number) is usual:  # else the parent made it ignore the signal, as nohup(1) does
                signal.signal(number, _interrupt)
        signal.signal(signal.SIGALRM, _interrupt_again)
        sys.unraisablehook = _redeliver_interrupt
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's other threads would busy-wait for work
        _defer_gc()
        _skip_charset_detection()
        from perfkit.cli import main
        from perfkit.libc import allow_process_settings

        allow_process_settings()
        try:
            code = main()
        except SystemExit as end:  # raised for --help and for invalid arguments
            code = int(end.code or 0)
        _raise_no_more()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:  # before the command started, or after it ended
        from perfkit.cli.output import interrupted

        code = interrupted()
    if not (_flush(sys.stdout) and _flush(sys.stderr)):
        code = code or 1  # output was lost
    for number in _ENDING:
        if number in _received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            code = 128 + number  # the first process of a container survives that
    os._exit(code)


def _flush(stream: TextIO | None) -> bool:
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):  # a full disk, a broken pipe, or a closed stream
        return False
    return True


def _defer_gc() -> None:
    """Keep the garbage collector from running during imports, which create no garbage; that saves 12 ms."""
    if not hasattr(gc, "get_threshold"):  # PyPy's does not count objects
        return
    usual = gc.get_threshold()

    def restore(phase: str, info: object) -> None:
        gc.set_threshold(*usual)
        gc.callbacks.remove(restore)

    gc.callbacks.append(restore)
    gc.set_threshold(_GC_THRESHOLD)


def _skip_charset_detection() -> None:
    """Keep requests from importing what guesses the encoding of a response's text, which no command needs: 2 MB.

    requests does without since 2.32, with a warning.
    """
    warnings.filterwarnings("ignore", "Unable to find acceptable character detection")
    for name in ("chardet", "charset_normalizer"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # an import of None fails


def _interrupt(number: int, frame: FrameType | None) -> None:
    _note(number, frame)
    _raise_no_more()
    raise KeyboardInterrupt


def _raise_no_more() -> None:
    for number in (signal.SIGINT, *_ENDING):
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, _note)


def _redeliver_interrupt(lost: UnraisableHookArgs) -> None:
    """Raise a KeyboardInterrupt again if it was raised where exceptions are discarded, such as in a finaliser."""
    if lost.exc_type is KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, _REDELIVER_S)
    else:
        sys.__unraisablehook__(lost)


def _interrupt_again(number: int, frame: FrameType | None) -> None:
    """Raise the KeyboardInterrupt, unless the report of its loss has not returned yet: it would be lost for good."""
    while frame is not None:
        if frame.f_code is _redeliver_interrupt.__code__:
            signal.setitimer(signal.ITIMER_REAL, _REDELIVER_S)
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def _note(number: int, frame: FrameType | None) -> None:
    """Remember the signal. With SIG_IGN or SIG_DFL, the interpreter would complain about one that is pending."""
    _received.append(number)


if __name__ == "__main__":
    run()
