"""A Dask cluster of real processes, which tests can kill; and programs that use it, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any
from unittest import mock

from tests.support.waiting import wait_until
from tests.support.warm import USED_BY_COMMANDS, WarmPython

_DASK = ["dask.__main__", "distributed.cli.dask_scheduler", "distributed.cli.dask_worker", "perfkit.contrib.dask"]

# What Dask does at other times than when it is asked to takes a tenth of a core: it samples its threads and its memory.
CALM = {
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "10s",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s",
    "DASK_DISTRIBUTED__WORKER__MEMORY__MONITOR_INTERVAL": "1s",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
}

_PROGRAM = """
import json, os, sys
import dask
from distributed import Client
from perfkit import BatchError, Config, ConfigError, Request
from perfkit.contrib.dask import *

if __name__ == "__main__":
    dest, url, *rest = sys.argv[2:]
    with Client(scheduler_file=sys.argv[1], timeout=100) as client:
        %s
"""


def start_warm(place: Path) -> WarmPython:
    """A process from which those of clusters are forked. It has imported Dask, which reads its settings then."""
    settings = {
        **CALM,
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s",
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "10",
        "DASK_TEMPORARY_DIRECTORY": str(place),
    }
    with mock.patch.dict(os.environ, settings):
        return WarmPython(place, *_DASK, *USED_BY_COMMANDS)


class Cluster:
    """A scheduler and workers, killed at the end of a `with` block.

    Args:
        place: a directory for the processes' files.
        warm: starts the processes.
    """

    def __init__(self, place: Path, warm: WarmPython) -> None:
        self._place = place
        self._warm = warm
        self._file = place / "scheduler.json"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        self._start("scheduler", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        wait_until(self._file.exists, timeout_s=100)
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._processes):
            self.kill(name)

    def _start(self, name: str, role: str, *options: str) -> None:
        command = ["-m", "dask", role, "--scheduler-file", self._file, *options]
        with open(self._place / f"{name}.log", "wb") as log:
            self._processes[name] = self._warm.start(*command, stdout=log, stderr=log, cwd=self._place)

    def add_worker(self, name: str, *options: str) -> None:
        """A worker with one thread and without a nanny, which would start another if it is killed."""
        self._start(
            name, "worker", "--name", name, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1",
            *options,
        )  # fmt: skip

    def log(self, name: str) -> str:
        """What the scheduler or a worker has logged."""
        return (self._place / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the scheduler or a worker."""
        process = self._processes[name]
        process.send_signal(number)
        if number == signal.SIGKILL:
            process.wait()
            del self._processes[name]

    def start(self, body: str, dest: Path, url: str, *arguments: str) -> subprocess.Popen[str]:
        """A program with a `client`, `dest`, `url` and the `rest` of the arguments."""
        program = _PROGRAM % body.strip().replace("\n", "\n        ")
        command = ["-c", program, self._file, dest, url, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return self._warm.start(*command, **pipes, text=True)

    def run(self, body: str, dest: Path, url: str = "", *arguments: str) -> Any:
        """What such a program printed, as JSON."""
        with self.start(body, dest, url, *arguments) as process:
            output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        return json.loads(output)
