"""Commands that the user defines: one checks a tree before it changes, and one runs after a change."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

from perfkit.cli import check_process
from perfkit.cli.check_process import SHOWN_BYTES
from perfkit.errors import CommandFailedError, ConfigError
from perfkit.filesystem.own_files import write_record
from perfkit.filesystem.rootdir import RootDir
from perfkit.progress.text import printable
from perfkit.redact import redacted_text
from perfkit.transactions.layout import ANNOUNCED, PRIVATE_DIR

if TYPE_CHECKING:
    from perfkit.toolkit import Toolkit
    from perfkit.updates.check import Check, StagedTree

_VERSION_CHARACTERS = 1000


def check_command(command: str, timeout_s: float, *, null: bool) -> Check:
    """A check for `Toolkit.sync` that runs a command, in which `{}` stands for the tree as it will be.

    The command has the same path in `$PERFKIT_STAGED`, the versions in `$PERFKIT_VERSION` and
    `$PERFKIT_PREVIOUS_VERSION`, and the names that change on standard input: in lines, or with `null` ended by NULs.
    Processes that it leaves behind are killed. A command that root runs can't write to the tree.

    Raises:
        ConfigError: there is no such program.
    """
    words, end = _words("--check", command), "\0" if null else "\n"

    def check(staged: StagedTree) -> None:
        variables = {"PERFKIT_STAGED": staged.path, **_versions(staged.version, staged.previous_version)}
        lines = (name + end for name in sorted({*staged.added, *staged.changed, *staged.removed}))
        try:
            _run_check([word.replace("{}", staged.path) for word in words], variables, lines, staged.root, timeout_s)
        except OSError as error:  # which says nothing about the version
            raise ConfigError(f"--check: {words[0]} can't be run: {error.strerror}") from error

    return check


class OnChange:
    """Runs a command after a tree has changed, at least once for the current generation, across crashes and failures.

    The names that changed are on its standard input, as for `check_command`, and the versions in the environment.

    Raises:
        ConfigError: there is no such program.
        OSError: `dest` can't be created.
    """

    def __init__(self, command: str, dest: str, *, null: bool) -> None:
        self._words = _words("--on-change", command)
        self._dest = dest
        self._path = os.path.join(dest, ANNOUNCED)
        self._end = "\0" if null else "\n"
        self._announced = self._read()

    def _read(self) -> dict[str, object]:
        """The generation that the command was last run for; the current one if it has not run yet."""
        from perfkit.updates.status import read_json, status

        found = read_json(self._path)
        if [type(found.get(key)) for key in ("generation", "version")] == [int, str]:
            return found
        os.makedirs(self._dest, exist_ok=True)
        with contextlib.closing(RootDir(self._dest)) as rootdir:
            rootdir.mkdir(PRIVATE_DIR)
        here = status(self._dest)
        return self._write({"generation": here.generation, "version": here.version or ""})

    def _write(self, announced: dict[str, object]) -> dict[str, object]:
        write_record(self._path, announced, 0o644)  # `status` reads it
        return announced

    def run(self, kit: Toolkit) -> None:
        """Run the command if the tree has changed since it was last run.

        Raises:
            CommandFailedError: it failed; the next run tries again.
        """
        from perfkit.updates.installed import read_installed

        here = kit.status(self._dest)
        since = self._announced["generation"]
        if here.generation == since:
            return
        names: Iterable[str] | None = kit.changed_since(self._dest, int(str(since)))
        if names is None:  # that generation is not kept any more, so any file may have changed
            names = read_installed(os.path.abspath(self._dest)).manifest.names()
        variables = {
            "PERFKIT_DEST": os.path.abspath(self._dest),
            **_versions(here.version, str(self._announced["version"])),
        }
        try:
            _run(self._words, variables, (name + self._end for name in names))
        except (CommandFailedError, OSError) as error:
            why = f"{self._words[0]} can't be run: {error.strerror}" if isinstance(error, OSError) else str(error)
            with contextlib.suppress(OSError):
                self._write({**self._announced, "error": redacted_text(why)})
            raise CommandFailedError(why) from error
        self._announced = self._write({"generation": here.generation, "version": here.version or ""})


def _versions(version: str | None, previous: str | None) -> dict[str, str]:
    """The versions for the environment, without NULs and of limited length (execve(2)), even from damaged records."""
    found = {"PERFKIT_VERSION": version, "PERFKIT_PREVIOUS_VERSION": previous}
    return {name: printable(text or "")[:_VERSION_CHARACTERS] for name, text in found.items()}


def _words(option: str, command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"{option} {command!r} can't be parsed: {error}") from error
    if not words or shutil.which(words[0]) is None:
        raise ConfigError(f"{option}: there is no program {words[0] if words else command!r}")
    return words


def _run_check(
    words: list[str], variables: Mapping[str, str], lines: Iterable[str], root: str, timeout_s: float
) -> None:
    """Run a command to its end, without a shell, with these lines on standard input; then kill what it started and left
    running.

    Args:
        root: the tree, where the command can't write if this process is root's and may create mounts.

    Raises:
        CommandFailedError: it exited with another code than 0, was killed, or took too long.
        OSError: it can't be run.
    """
    python = sys.executable or ""  # where Python is embedded, another program
    python = python if os.path.basename(python).startswith("python") else "python3"
    command = [python, "-I", "-S", check_process.__file__, root, str(timeout_s), *words]
    with _file_of(lines) as given, _started(command, variables, stdin=given, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with process:
            try:
                first, _, output = process.stdout.read().partition(b"\n")
            finally:
                process.terminate()  # unless it has ended; this ends the command, too
    how = first.decode()
    if how.startswith("errno"):
        number = int(how.split()[1])
        raise OSError(number, os.strerror(number))
    if how == "timeout":
        raise CommandFailedError(f"{words[0]} took longer than {timeout_s:g} s{_quoted(output)}")
    _raise_for(words[0], int(how) if how else process.returncode, output)


@contextlib.contextmanager
def _started(words: list[str], variables: Mapping[str, str], **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A block at whose end the command is killed, if it still runs, with its process group."""
    environment = {**os.environ, **variables}
    started: list[subprocess.Popen[bytes]] = []
    try:
        with _deferred_signals():  # between the fork and the assignment, KeyboardInterrupt would leave it running
            started.append(subprocess.Popen(words, env=environment, start_new_session=True, **streams))
        yield started[0]
    finally:
        for process in started:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextlib.contextmanager
def _deferred_signals() -> Iterator[None]:
    """A short block that signals with handlers don't interrupt; they are delivered at its end."""
    received: list[int] = []
    usual: dict[int, Any] = {}
    in_main_thread = threading.current_thread() is threading.main_thread()  # where handlers run, and can be set
    try:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if in_main_thread else ():
            if callable(signal.getsignal(each)):
                usual[each] = signal.signal(each, lambda number, frame: received.append(number))
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        for number in received:
            signal.raise_signal(number)


def _raise_for(program: str, code: int, output: bytes) -> None:
    how = f"was ended by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with exit code {code}"
    if code != 0:
        raise CommandFailedError(f"{program} {how}{_quoted(output)}")


def _quoted(output: bytes) -> str:
    text = " ".join(output.decode(errors="replace").split())
    return f": {text}" if text else ""


@contextlib.contextmanager
def _file_of(lines: Iterable[str]) -> Iterator[IO[bytes]]:
    """A file for standard input: unlike a pipe, it blocks nobody if the command does not read it."""
    with tempfile.TemporaryFile() as file:
        file.writelines(line.encode("utf-8", "surrogateescape") for line in lines)
        file.seek(0)
        yield file


def _run(words: list[str], variables: Mapping[str, str], lines: Iterable[str]) -> None:
    """Run a command to its end, without a shell, with these lines on standard input."""
    with _file_of(lines) as given, tempfile.TemporaryFile() as output:
        with _started(words, variables, stdin=given, stdout=output, stderr=output) as process:
            process.wait()
        output.seek(max(0, output.seek(0, os.SEEK_END) - SHOWN_BYTES))
        _raise_for(words[0], process.returncode, output.read())
