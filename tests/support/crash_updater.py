"""A crash server whose cases are whole updates and ways back; the URL of the site is its argument.

All that is imported when first needed is imported before the first case. Then it says so on standard output, and strace
may be attached to it: its children, and their threads, begin with no calls counted.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
from collections.abc import Callable

from perfkit import Config, Toolkit
from tests.support import crash_server

_PR_SET_PTRACER, _ANY = 0x59616D61, ctypes.c_ulong(-1)  # prctl(2), for where only ancestors may trace


def actions(url: str) -> dict[str, Callable[[str], object]]:
    def sync(root: str) -> None:
        with Toolkit(Config(workers=1, adaptive=False)) as kit:
            kit.sync(url, root)

    def rollback(root: str) -> None:
        with Toolkit() as kit:
            kit.rollback(root, to=1, hold=False)

    return {"sync": sync, "sync-threads": sync, "rollback": rollback}


def main(url: str) -> None:
    every = actions(url)
    with tempfile.TemporaryDirectory() as warm:
        every["sync"](warm)
        every["rollback"](warm)
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANY, 0, 0, 0)
    print("ready", flush=True)
    crash_server.main("", 0, every)


if __name__ == "__main__":
    main(sys.argv[1])
