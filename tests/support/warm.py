"""Python programs that start within milliseconds: forked from a process that has imported what they need.

This is for tests of what a program does, not of how an interpreter starts or is killed. A program has a process of its
own, with its own directory, environment and standard streams, and ends as Python ends. The command that starts it waits
for it, and passes signals on (`warm_client.py`); if that is killed, the program is killed a moment later.

The file is also the process that is forked.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

USED_BY_COMMANDS = [
    *("cryptography.hazmat.primitives.asymmetric.ed25519", "hdiffpatch", "ctypes", "netrc"),
    *(f"perfkit.cli.{name}" for name in ("get", "keys", "publishing", "serve", "sync", "tree_commands")),
    *(f"perfkit.{name}" for name in ("toolkit", "server.server", "progress.bars", "releases.publish.publisher")),
    *(f"perfkit.downloads.{name}" for name in ("manager", "scheduler", "transfer")),
    *(f"perfkit.downloads.http.{name}" for name in ("session", "callers_session", "failures")),
    *(f"perfkit.updates.{name}" for name in ("updater", "restore", "verify", "sources.open", "sources.release_source")),
    *(f"perfkit.updates.sources.{name}" for name in ("detect", "pack_route")),
    *("perfkit.archives.tar", "perfkit.archives.zip"),
]
# Apps are loaded in each process: they need its settings.
DJANGO = [
    "django.contrib.sessions.backends.signed_cookies",
    "django.core.management.commands.migrate",
    "django.db.backends.sqlite3.base",
    "django.db.models",
    "django.test.client",
]
_MOST_BYTES = 200_000  # of a request
_CLIENT = str(Path(__file__).with_name("warm_client.py"))
_PID_FD = "WARM_PYTHON_PID_FD"  # a variable for the client: where the program's PID goes


class WarmPython:
    """A process that others are forked from, until the end of a `with` block, which ends them, too.

    Args:
        place: an empty directory of its own.
        modules: what it imports beforehand; none may start a thread.
    """

    def __init__(self, place: Path, *modules: str) -> None:
        self._socket = place / "socket"
        self.bin = place / "bin"
        self.bin.mkdir()
        command = [sys.executable, "-P", __file__, self._socket, *modules]
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),  # the same perfkit as in the tests
            "OPENBLAS_NUM_THREADS": "1",  # numpy would start more threads
        }
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == b"ready\n"

    def __enter__(self) -> WarmPython:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate(timeout=100)  # it ends with its standard input

    def python(self, *arguments: object) -> list[str]:
        """The command for `python ARGUMENTS`, which begin with `-c CODE`, `-m MODULE` or a file."""
        return [sys.executable, "-IS", _CLIENT, str(self._socket), *map(str, arguments)]

    def start(self, *arguments: object, **options: Any) -> Program:
        """Start `python ARGUMENTS`, with options of subprocess.Popen."""
        return Program(self.python(*arguments), **options)

    def install(self, name: str, *arguments: str) -> None:
        """Make `bin/NAME`, which is `python ARGUMENTS`, with more arguments."""
        script = self.bin / name
        script.write_text(f'#!/bin/sh\nexec {" ".join(self.python(*arguments))} "$@"\n')
        script.chmod(0o755)


class Program(subprocess.Popen[Any]):
    """A program that signals are sent to directly, so that it has ended when `wait` returns."""

    def __init__(self, command: list[str], **options: Any) -> None:
        here, there = os.pipe()
        try:
            environment = {**(options.pop("env", None) or os.environ), _PID_FD: str(there)}
            super().__init__(command, env=environment, pass_fds=[there], **options)
        finally:
            os.close(there)
        with open(here) as answer:
            self.program = int(answer.read())

    def send_signal(self, sig: int) -> None:
        with suppress(ProcessLookupError):  # it has just ended
            if self.poll() is None:
                os.kill(self.program, sig)


def serve(path: str, *modules: str) -> None:
    """Fork a process for each program, until standard input ends. In that process, it returns when the program ends."""
    import ast  # noqa: F401  # for the programs
    import gc
    import importlib
    import select

    for module in modules:
        importlib.import_module(module)
    gc.freeze()
    ended, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the tests, which end it
    running: dict[socket.socket, int] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([0, ended, listener, *running], [], [])
            if 0 in ready:
                for pid in running.values():
                    os.kill(pid, signal.SIGKILL)
                return
            for client in set(running).intersection(ready):  # it was killed
                os.kill(running[client], signal.SIGKILL)
            if ended in ready:
                ended.recv(1000)
            for client, pid in list(running.items()):
                if (status := os.waitpid(pid, os.WNOHANG))[0]:
                    with suppress(OSError), client:
                        client.send(b"%d" % os.waitstatus_to_exitcode(status[1]))
                    del running[client]
            if listener in ready:
                client, _ = listener.accept()
                wanted, streams, _, _ = socket.recv_fds(client, _MOST_BYTES, 3)
                if not wanted:  # it was killed at once
                    client.close()
                    continue
                if (pid := os.fork()) == 0:
                    for each in (client, ended, wake, *running):
                        each.close()
                    break
                for fd in streams:
                    os.close(fd)
                with suppress(OSError):
                    client.send(b"%d" % pid)
                running[client] = pid
    _become(wanted, streams)


def _become(wanted: bytes, streams: list[int]) -> None:
    """Be the program."""
    import ast
    import runpy
    import types

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for fd, given in enumerate(streams):
        os.dup2(given, fd)
        os.close(given)
    words, directory, environment = ast.literal_eval(wanted.decode())
    arguments = list(words)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", 1, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    sys.path[0:0] = filter(None, environment.get("PYTHONPATH", "").split(":"))
    if arguments[0] in ("-c", "-m"):
        sys.path.insert(0, "")
        kind, program = arguments[0], arguments.pop(1)
    else:
        kind = program = arguments[0]
        sys.path.insert(0, os.path.dirname(os.path.abspath(program)))
    sys.argv = arguments
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        exec(compile(program, "<string>", "exec"), main.__dict__)
    else:
        main.__file__ = program
        exec(compile(Path(program).read_text(encoding="utf-8"), program, "exec"), main.__dict__)


if __name__ == "__main__":
    serve(*sys.argv[1:])
