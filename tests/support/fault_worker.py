"""A process that does perfkit's work in children, whose calls of the kernel fail, or which are killed.

`Worker` is what tests use. The process itself is started once, with `faults.c` preloaded; it has one thread, and forks
a child for each job. So a case costs no start of Python, and no tracer.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from perfkit import Config, PerfkitError, RecoveryError, Toolkit
from perfkit.transactions.tree import Tree
from tests.support.kits import QUICK
from tests.support.tools import ENVIRONMENT, need

DONE, FAILED, UNFINISHED = 0, 3, 4
KINDS = ("open", "create", "read", "write", "sync", "rename", "link", "unlink", "rmdir", "mkdir", "size", "attributes",
         "copy", "thread")  # fmt: skip
CHANGES = frozenset(KINDS) - {"open", "read", "thread"}
_KILL = -1
_HUNG = 124  # the exit code of a job that was ended because it took far too long
_HANGS_S = 100.0


@dataclass(frozen=True)
class Fault:
    """What happens to a process.

    Attributes:
        kinds: of the calls that are counted, with the error of each; None: the process is killed before the call.
        at: the number of the call, counted from 1; 0: none.
        onwards: all later ones fail too.
        clock_step_s: by so much the system's time is stepped at reading number `at`.
    """

    kinds: Mapping[str, int | None] = field(default_factory=dict)
    at: int = 0
    onwards: bool = False
    clock_step_s: int = 0


KILL = dict.fromkeys(CHANGES)  # before any change


@dataclass(frozen=True)
class End:
    """How a job ended: its exit code, the negative signal, or 124 if it hung; the counted calls; those that failed."""

    code: int
    calls: int
    failed: int


class Worker:
    """Runs jobs one after the other, in a `with` block.

    Args:
        below: only calls on files below this directory are counted.
    """

    def __init__(self, below: Path) -> None:
        need("cc")
        self._below = below
        with tempfile.TemporaryDirectory() as directory:
            library = f"{directory}/faults.so"
            command = ["cc", "-shared", "-fPIC", "-O1", "-o", library, Path(__file__).with_name("faults.c")]
            subprocess.run(command, check=True)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.fault_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**ENVIRONMENT, "LD_PRELOAD": library},
            )
            self._answer()  # the library is loaded, and can go

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate(timeout=100)

    def run(
        self,
        *job: object,
        fault: Fault = Fault(),
        killed_after_s: float | None = None,
        here: bool = False,
    ) -> End:
        """Do a job: the name of an action, and its arguments.

        Args:
            killed_after_s: the child gets a SIGKILL after this time, whatever it does.
            here: not in a child.
        """
        assert self._process.stdin is not None
        codes = [_KILL if fault.kinds.get(kind) is None else fault.kinds[kind] for kind in KINDS]
        mask = sum(1 << number for number, kind in enumerate(KINDS) if kind in fault.kinds)
        fields = [str(self._below), mask, fault.at, fault.onwards, codes, fault.clock_step_s]
        line = json.dumps([[*map(str, job)], fields, killed_after_s, here])
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return End(*self._answer())

    def _answer(self) -> list[int]:
        assert self._process.stdout is not None
        found: list[int] = json.loads(self._process.stdout.readline())
        return found


# -- the process ------------------------------------------------------------------------------------------------------


def _kit(**changes: Any) -> Toolkit:
    return Toolkit(Config(**{**QUICK, "workers": 2, "retries": 1, "local_changes": "overwrite", **changes}))


def _sync(source: str, dest: str, kind: str) -> None:
    with _kit() as kit:
        kit.sync(source, dest, type=kind)


def _rollback(dest: str) -> None:
    with _kit() as kit:
        kit.rollback(dest, hold=False)


def _repair(dest: str) -> None:
    with _kit() as kit:
        kit.verify(dest, repair=True)


def _prune(dest: str) -> None:
    with Tree(dest) as tree:
        tree.prune(0)


def _pin(dest: str) -> None:
    with _kit() as kit:
        kit.pin(dest)
        kit.unhold(dest)


def _publish(src: str, site: str, version: str) -> None:
    with _kit() as kit:
        kit.publish(src, site, version=version)


def _download(url: str, dest: str, checksum: str) -> None:
    with _kit() as kit:
        kit.download(url, dest, checksum=checksum or None)


ACTIONS: dict[str, Callable[..., None]] = {
    "sync": _sync, "rollback": _rollback, "repair": _repair, "prune": _prune, "pin": _pin, "publish": _publish,
    "download": _download,
}  # fmt: skip


def _work(job: list[str]) -> int:
    try:
        ACTIONS[job[0]](*job[1:])
    except RecoveryError:
        return UNFINISHED
    except (OSError, PerfkitError) as error:
        print(f"{job[0]}: {type(error).__name__}: {error}", file=sys.stderr)
        return FAILED
    except BaseException:
        traceback.print_exc()
        return 1
    return DONE


def _arm(library: ctypes.CDLL, fields: list[Any]) -> None:
    below, mask, at, onwards, codes, step_s = fields
    library.arm(below.encode(), mask, at, onwards, (ctypes.c_int * len(codes))(*codes))
    if step_s:
        library.step_clock(at, ctypes.c_long(step_s))


def main() -> None:
    library = ctypes.CDLL(None)
    print([], flush=True)
    for line in sys.stdin:
        job, fields, killed_after_s, here = json.loads(line)
        if here:
            print(json.dumps([_work(job), 0, 0]), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                _arm(library, fields)
                code = _work(job)
            os._exit(code)
        killer = threading.Timer(_HANGS_S if killed_after_s is None else killed_after_s, os.kill, (pid, signal.SIGKILL))
        killer.start()
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # its number is nobody else's until the killer has ended
        hung = killed_after_s is None and killer.finished.is_set()
        killer.cancel()
        killer.join()
        _, status = os.waitpid(pid, 0)
        code = _HUNG if hung else os.waitstatus_to_exitcode(status)
        print(json.dumps([code, library.calls(), library.struck()]), flush=True)


if __name__ == "__main__":
    main()
