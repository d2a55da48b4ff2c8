"""A crash server whose cases are whole updates and ways back; the URL of the site is its argument."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable

from perfkit import Config, Toolkit
from perfkit.downloads import partial_file
from tests.support import crash_server


def actions(url: str) -> dict[str, Callable[[str], object]]:
    def sync(root: str) -> None:
        with Toolkit(Config(workers=1, adaptive=False)) as kit:
            kit.sync(url, root)

    def rollback(root: str) -> None:
        with Toolkit() as kit:
            kit.rollback(root, to=1, hold=False)

    return {"sync": sync, "sync-threads": sync, "rollback": rollback}


def main(url: str) -> None:
    partial_file._SAVE_EVERY_S = 3600.0  # else a slow run makes more calls than the one in which they are counted
    every = actions(url)
    with tempfile.TemporaryDirectory() as warm:
        every["sync"](warm)
        every["rollback"](warm)
    crash_server.serve(every)


if __name__ == "__main__":
    main(sys.argv[1])
