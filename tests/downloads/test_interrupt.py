"""Ctrl-C and `close()` end everything within a second, however stuck the peers are."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from perfkit import CancelledError, PerfkitError, Toolkit
from perfkit.cli import main
from perfkit.downloads.manager import DownloadManager
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.kits import SOON_S, MakeKit
from tests.support.sites import Origin
from tests.support.tools import first_everywhere
from tests.support.trees import ONE, tree_of
from tests.support.warm import WarmPython

PROGRAM = """
import sys, threading, time
from perfkit import Config, Toolkit
kit = Toolkit(Config(adaptive=False, connect_timeout_s=60, read_timeout_s=60, stall_window_s=60))
try:
    with kit:
        print("ready", flush=True)
        kit.download_many([(sys.argv[1], str(n)) for n in range(20)], sys.argv[2])
except KeyboardInterrupt:
    left = [each.name for each in threading.enumerate() if each is not threading.main_thread()]
    print("interrupted", left, flush=True)
"""


@contextmanager
def never_accepts() -> Iterator[tuple[str, Callable[[], bool]]]:
    """A full backlog: further connections hang in connect()."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/f", lambda: not time.sleep(0.4)
        finally:
            for filler in fillers:
                filler.close()


@contextmanager
def silent_tls() -> Iterator[tuple[str, Callable[[], bool]]]:
    """Accepts, and says nothing in the TLS handshake."""
    accepted = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            connections = []
            try:
                while True:
                    connections.append(listener.accept()[0])
                    accepted.set()
            except OSError:
                for connection in connections:
                    connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"https://127.0.0.1:{listener.getsockname()[1]}/f", lambda: accepted.wait(100)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def no_headers(x: Exchange) -> None:
    x.stall()


def drips(x: Exchange) -> None:
    x.head("200 OK", Content_Length="1000000", ETag='"v1"')
    x.drip(b"x" * 1_000_000, 0.02)


@contextmanager
def misbehaves(handler: Callable[[Exchange], None]) -> Iterator[tuple[str, Callable[[], bool]]]:
    with MisbehavingServer(handler) as server:
        yield f"{server.url}/f", lambda: server.wait_for(1)


PEERS = {
    "never accepts": never_accepts,
    "silent in the handshake": silent_tls,
    "no headers": lambda: misbehaves(no_headers),
    "drips": lambda: misbehaves(drips),
}


@pytest.mark.parametrize("peer", PEERS)
def test_ctrl_c(tmp_path: Path, peer: str, warm_python: WarmPython) -> None:
    """A real SIGINT to a real process, whose main thread is blocked in a download."""
    with PEERS[peer]() as (url, stuck):
        process = warm_python.start("-c", PROGRAM, url, tmp_path / "out", stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        with closing(process.stdout):
            assert process.stdout.readline() == "ready\n"
            assert stuck()
            process.send_signal(signal.SIGINT)
            began = time.monotonic()
            line = process.stdout.readline()
            took = time.monotonic() - began
            assert process.wait(100) == 0
    assert line == "interrupted []\n"
    assert took < SOON_S
    assert list((tmp_path / "out").glob("*")) == []


@pytest.mark.parametrize("peer", PEERS)
def test_close_from_another_thread(make_kit: Callable[..., Toolkit], tmp_path: Path, peer: str) -> None:
    """The caller that is blocked gets an error, and every thread ends."""
    kit = make_kit(connect_timeout_s=60.0, read_timeout_s=60.0, stall_window_s=60.0)
    raised: list[BaseException] = []

    def caller() -> None:
        try:
            kit.download_many([(url, f"{n}") for n in range(20)], tmp_path / "out")
        except PerfkitError as error:
            raised.append(error)

    with PEERS[peer]() as (url, stuck):
        thread = threading.Thread(target=caller)
        thread.start()
        assert stuck()
        began = time.monotonic()
        kit.close()
        thread.join()
        assert time.monotonic() - began < SOON_S
    assert len(raised) == 1
    assert list((tmp_path / "out").glob("*")) == []
    assert not [each for each in threading.enumerate() if each.name.startswith("perfkit")]


def test_close_while_a_name_is_resolved(
    make_kit: Callable[..., Toolkit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that does not answer holds nobody up; the thread that asks it is a daemon."""
    asked, answer = threading.Event(), threading.Event()
    resolve = socket.getaddrinfo

    def stuck(host: str, *args: Any, **options: Any) -> Any:
        if host != "name.invalid" or "flags" in options:
            return resolve(host, *args, **options)
        asked.set()
        answer.wait(100)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", stuck)
    kit, errors = make_kit(), []

    def download() -> None:
        try:
            kit.download("http://name.invalid/f", tmp_path / "f")
        except PerfkitError as error:
            errors.append(error)

    caller = threading.Thread(target=download)
    caller.start()
    assert asked.wait(100)
    began = time.monotonic()
    kit.close()
    caller.join(100)
    assert time.monotonic() - began < SOON_S
    assert [type(error) for error in errors] == [CancelledError]
    answer.set()


# -- a Ctrl-C that is followed by others ------------------------------------------------------------------------------

BODY = bytes(range(256)) * 4096
BETWEEN_S = (0.0, 0.006, 0.06)
SAID = "perfkit: interrupted; run the same command again to resume\n"


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERFKIT_ADAPTIVE", "no")


def interrupted(
    warm: WarmPython,
    command: list[str],
    under_way: Callable[[], object],
    *,
    after_s: float,
    between_s: float,
    count: int,
) -> tuple[int, str]:
    """Run perfkit, and send it so many SIGINTs; returns its exit code and standard error."""
    process = warm.start("-m", "perfkit", *command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert under_way(), "nothing was asked for"
        time.sleep(after_s)
        began_s = time.monotonic()
        for _ in range(count):
            process.send_signal(signal.SIGINT)
            time.sleep(between_s)
        _, said = process.communicate(timeout=100)
        assert time.monotonic() - began_s < SOON_S + count * between_s
        return process.returncode, said
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("count", first_everywhere(2, 5))
def test_get_and_more_than_one_ctrl_c(
    alone: None, capsys: pytest.CaptureFixture[str], count: int, warm_python: WarmPython
) -> None:
    """Whenever they come: one line, and what was fetched is kept with its journal, from which the next run goes on."""
    stalls = threading.Event()

    def half(x: Exchange) -> None:
        x.serve(BODY, pause=x.stall if stalls.is_set() else None)

    with MisbehavingServer(half) as server:
        for number, between_s in enumerate(BETWEEN_S):
            out, seen = Path(f"out{number}"), len(server.requests)
            command = ["get", "-j", "4", "-d", str(out), *(f"{server.url}/{name}" for name in "abcd")]
            stalls.set()
            code, said = interrupted(
                warm_python,
                [*command, "--quiet"],
                lambda seen=seen: server.wait_for(seen + 4),
                after_s=between_s / 2,
                between_s=between_s,
                count=count,
            )
            assert (code, said) == (130, SAID), between_s
            left = {each.name for each in out.iterdir()}
            parts = {name for name in left if name.endswith(".perfkit-part")}
            assert left == parts | {f"{name}.json" for name in parts}, between_s
            for name in parts:
                journal = json.loads((out / f"{name}.json").read_text())
                assert journal["done"], between_s
                assert all((out / name).read_bytes()[a:b] == BODY[a:b] for a, b in journal["done"]), between_s
            stalls.clear()
            assert main([*command, "--json", "--quiet"]) == 0
            files = json.loads(capsys.readouterr().out)["files"]
            assert all((out / name).read_bytes() == BODY for name in "abcd")
            assert sum(each["resumed_from"] > 0 for each in files) == len(parts)


@pytest.mark.parametrize("count", first_everywhere(2, 5))
def test_sync_and_more_than_one_ctrl_c(alone: None, origin: Origin, count: int, warm_python: WarmPython) -> None:
    """Whenever they come: one line, the tree is as it was, and the next sync makes it new."""
    origin.publish(ONE, "1")
    for number, between_s in enumerate(BETWEEN_S):
        command = ["sync", origin.url, f"tree{number}", "--quiet"]
        origin.stall_at = 100
        origin.stalled.clear()
        code, said = interrupted(
            warm_python,
            command,
            lambda: origin.stalled.wait(100),
            after_s=between_s / 2,
            between_s=between_s,
            count=count,
        )
        assert (code, said) == (130, SAID), between_s
        assert tree_of(Path(command[2])) == {}
        origin.stall_at = None
        assert main(command) == 0
        assert tree_of(Path(command[2])) == ONE


@pytest.mark.parametrize("name", first_everywhere("get", "sync"))
def test_ctrl_c_as_it_ends(alone: None, origin: Origin, name: str, warm_python: WarmPython) -> None:
    """It was in time, or all is done; no traceback while the interpreter exits."""
    origin.publish(ONE, "1")
    pointer = (origin.site / "perfkit.json").read_bytes()
    for number, after_s in enumerate(BETWEEN_S):
        asked = threading.Event()
        origin.before = lambda path, asked=asked: asked.set()
        dest = f"dest{number}"
        command = ["get", "-o", dest, f"{origin.url}/perfkit.json"] if name == "get" else ["sync", origin.url, dest]
        code, said = interrupted(
            warm_python,
            [*command, "--quiet"],
            lambda asked=asked: asked.wait(100),
            after_s=after_s,
            between_s=0.002,
            count=30,
        )
        assert (code, said) in [(0, ""), (130, SAID)], after_s
        there = Path(dest).read_bytes() if os.path.isfile(dest) else tree_of(Path(dest)) if os.path.isdir(dest) else {}
        whole = pointer if name == "get" else ONE
        assert there == whole if code == 0 else there in ({}, whole), after_s


def test_an_interrupt_between_any_two_lines_leaves_nothing_locked(
    make_kit: MakeKit, origin: Origin, tmp_path: Path
) -> None:
    """Of what the calling thread does while it waits; the next download works, too."""
    origin.publish(ONE, "1")
    kit, ended = make_kit(), 0
    waiting = threading.Event()
    origin.before = lambda path: waiting.wait(100)

    def interrupted(line: int) -> bool:
        left, seen = line, set[int]()
        waiting.clear()

        def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
            nonlocal left
            if frame.f_code is not DownloadManager._tick.__code__:
                return None
            if event == "call":
                waiting.set()
                seen.clear()
            if event == "line" and frame.f_lineno not in seen:  # signals don't come before a `with` calls `__exit__`
                seen.add(frame.f_lineno)
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            kit.download(f"{origin.url}/perfkit.json", tmp_path / f"dest{line}")
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False

    def all_lines() -> None:
        nonlocal ended
        while interrupted(ended + 1):
            ended += 1

    thread = threading.Thread(target=all_lines, daemon=True)
    thread.start()
    thread.join(100)
    assert not thread.is_alive(), ended
    assert ended > 10


LOST = """
import signal, sys, time
import perfkit.__main__ as process, perfkit.cli

class Grave:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0)

def command():
    try:
        Grave()  # an exception in __del__ is only reported
        time.sleep(20)
        return 0
    except KeyboardInterrupt:
        return perfkit.cli.interrupted()

perfkit.cli.main = command
process.run()
"""


BUSY = """
import signal, time

def setitimer(*arguments, real=signal.setitimer):
    signal.setitimer = real
    real(*arguments)
    time.sleep(0.1)

signal.setitimer = setitimer
"""


@pytest.mark.parametrize("machine", ["", BUSY], ids=["idle", "busy"])
def test_ctrl_c_where_nothing_can_be_raised(machine: str) -> None:
    """In a finaliser, such as a generator's, an exception is lost; a Ctrl-C is not, however long its report takes."""
    command = [sys.executable, "-c", machine + LOST]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", SAID)
