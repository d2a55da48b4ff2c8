"""The publisher that is killed: a process with one thread that forks a child per case.

pytest itself does not fork: a lock that another of its threads holds at that moment would stay locked in the child.

Lines on standard input: `STEP SRC SITE`. Answers on standard output: how a child ended that published version 2 and was
to be killed at its STEP-th change of the disk.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable

from perfkit.releases.publish.publisher import publish

MUTATING = ("replace", "fsync", "unlink", "fchmod")


def die_at(step: int) -> None:
    """Kill this process when it changes the disk for the `step`-th time, before the change."""
    left = step

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return run

    for name in MUTATING:
        setattr(os, name, counted(getattr(os, name)))


def main() -> None:
    for line in sys.stdin:
        step, src, site = line.split()
        pid = os.fork()
        if pid == 0:
            try:
                die_at(int(step))
                publish(src, site, version="2")
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
