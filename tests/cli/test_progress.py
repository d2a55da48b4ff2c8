"""What the commands show while they work, what they say at the end, and the options for it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perfkit.cli import main
from perfkit.server.server import Server
from tests.support.command import BODY, Capture, complaints, get, interrupt, read_until, start
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.sites import Origin
from tests.support.terminal import Terminal
from tests.support.waiting import wait_until
from tests.support.warm import WarmPython

pytestmark = pytest.mark.once

Start = Callable[..., MisbehavingServer]


@contextlib.contextmanager
def running(warm_python: WarmPython, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """The command; it ends with the block, whatever happens there."""
    with start(warm_python, *arguments) as process:
        try:
            yield process
        finally:
            process.kill()


# -- the options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "expected"), [
    ((), r"1 file, 293\.0 KiB in 0:\d\d, .*/s"), (("--progress", "lines"), r"1 file, 293\.0 KiB in 0:\d\d, .*/s"),
    (("--progress", "bars"), r"1 file, 293\.0 KiB in 0:\d\d, .*/s"),  # no terminal
    (("--progress", "none"), r"1 file, 293\.0 KiB in 0:\d\d, .*/s"), (("-q",), ""), (("--quiet",), ""),
])  # fmt: skip
def test_how_progress_is_shown(how: tuple[str, ...], expected: str, file_server: Server, capsys: Capture) -> None:
    """A summary at the end, in every form; with `-q` nothing."""
    assert main(["get", *how, f"{file_server.url}a.bin"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(expected, (err.splitlines() or [""])[-1])


def test_progress_as_json(file_server: Server, capsys: Capture) -> None:
    """An object a line on standard error, with the numbers that bars show."""
    assert main(["get", "--progress", "json", f"{file_server.url}a.bin", f"{file_server.url}b.bin"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    last = records[-1]
    assert (last["event"], last["files_done"], last["received_bytes"]) == ("finish", 2, 2 * len(BODY))
    assert (last["total_bytes"], last["total_estimated"], last["share"]) == (2 * len(BODY), False, 1.0)
    names = [file["name"] for record in records for file in record["finished"]]
    assert sorted(names) == ["a.bin", "b.bin"]


@pytest.mark.parametrize("command", ["get", "sync", "verify", "publish"])
def test_a_mode_that_does_not_exist(command: str, capsys: Capture) -> None:
    """One line, which lists those that do."""
    with pytest.raises(SystemExit) as caught:
        main([command, "--progress", "smoke", "x", "y"])
    assert caught.value.code == 2
    assert "auto" in capsys.readouterr().err


def test_verbose(misbehaving: Start, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests and retries, as they happen; not without the option, and not with the next command."""
    monkeypatch.setenv("PERFKIT_RETRIES", "3")
    server = misbehaving(lambda x: x.respond("503 Busy") if x.number == 1 else x.serve(b"body"))
    assert main(["get", "-v", f"{server.url}/f"]) == 0
    told = capsys.readouterr().err
    assert re.search(rf"^perfkit: GET {server.url}/f, all: status 503$", told, re.MULTILINE)
    assert re.search(r"^perfkit: again in \d\.\d\d s, .*503", told, re.MULTILINE)
    assert main(["get", f"{server.url}/f"]) == 0
    assert "GET" not in capsys.readouterr().err


def test_warnings(cli_origin: Origin, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are shown with --quiet, too."""
    monkeypatch.setenv("PERFKIT_WORKER", "3")
    assert main(["sync", cli_origin.url, "tree", "--quiet"]) == 0
    assert capsys.readouterr().err.startswith("perfkit: warning: PERFKIT_WORKER is set, ")


def test_verbose_sync_names_the_route(cli_origin: Origin, capsys: Capture) -> None:
    """How the files came."""
    assert main(["sync", "-v", cli_origin.url, "tree"]) == 0
    assert "route: blocks" in capsys.readouterr().err


# -- while it works ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("get", "-d", "out"), ("sync", "--type", "release"), ("sync", "--type", "zip")])
def test_a_host_that_does_not_answer(
    command: tuple[str, ...], misbehaving: Start, tmp_path: Path, warm_python: WarmPython
) -> None:
    """It is named before anything has come; `perfkit` needs no answer for that."""
    server = misbehaving(Exchange.stall)
    rest = [f"{server.url}/f"] if command[0] == "get" else [f"{server.url}/f", tmp_path / "tree"]
    with running(warm_python, *command, *rest) as process:
        read_until(process.stderr, b"waiting for 127.0.0.1:")
        interrupt(process)


def test_a_list_in_a_file_is_counted_and_one_in_a_pipe_is_not(
    misbehaving: Start, tmp_path: Path, warm_python: WarmPython
) -> None:
    """The first frame of `-i FILE` has the number of files, comments and empty lines left out."""
    gate = misbehaving(Exchange.stall)
    urls = "# comment\n\n" + "".join(f"{gate.url}/{number}\n" for number in range(500))
    (tmp_path / "list").write_text(urls)
    for source, expected in ((tmp_path / "list", b'"files_total": 500'), ("-", b'"files_total": null')):
        with running(warm_python, "get", "-i", source, "-d", "out", "--progress", "json") as process:
            process.stdin.write(urls.encode())
            process.stdin.flush()
            first = read_until(process.stderr, b"\n")
            assert expected in first
            interrupt(process)


def test_a_list_with_lines_that_are_no_requests(file_server: Server, tmp_path: Path, capsys: Capture) -> None:
    """They fail, and the total is what is left."""
    (tmp_path / "list").write_text(f"{file_server.url}a.bin\nftp://x/y\n{file_server.url}b.bin\n")
    assert main(["get", "-i", str(tmp_path / "list"), "-d", "out", "--progress", "json"]) == 1
    lines = capsys.readouterr().err.splitlines()
    last = [json.loads(line) for line in lines if line.startswith("{")][-1]
    assert (last["files_total"], last["files_done"], last["share"]) == (2, 2, 1.0)


# -- at the end -------------------------------------------------------------------------------------------------------


def test_unchanged_resumed_and_failed(file_server: Server, tmp_path: Path, capsys: Capture) -> None:
    """The summary counts each, and says why something failed."""
    urls = [f"{file_server.url}{name}" for name in ("a.bin", "b.bin", "missing")]
    assert main(["get", "-q", urls[0]]) == 0
    assert main(["get", *urls]) == 1
    err = capsys.readouterr().err
    assert len(complaints(err)) == 1
    assert re.fullmatch(
        r"2 of 3 files, 293\.0 KiB in 0:\d\d, .*/s; 1 unchanged; 1 failed \(HTTP status 404\)", err.splitlines()[-1]
    )


def test_what_had_come_before_a_failure(misbehaving: Start, tmp_path: Path, capsys: Capture) -> None:
    """`--json` with `-o`: the bytes, the attempts and the time of a file that failed, as without `-o`."""

    def cut(x: Exchange) -> None:
        if x.number == 1:
            x.head("200 OK", Content_Length=str(len(BODY)), ETag='"v1"')
            x.send(BODY[: len(BODY) // 2])
        x.hang_up()

    for where in (("-o", "f"), ("-d", "out")):
        server = misbehaving(cut)
        code, value, errors = get(capsys, "--retries", 1, *where, f"{server.url}/f")
        (record,) = value["files"]
        assert (code, len(errors)) == (1, 1)
        assert record["bytes_received"] == value["bytes_received"] == len(BODY) // 2
        assert record["retries"] >= 1
        assert record["seconds"] > 0
        assert record["error"]["type"] == "TransferError"


def test_what_is_kept_after_an_interrupt(misbehaving: Start, tmp_path: Path, warm_python: WarmPython) -> None:
    """How much, and how to go on; and then it does."""
    body = os.urandom(1 << 20)
    server = misbehaving(lambda x: x.serve(body, pause=x.server.stopped.wait if x.number == 1 else None))
    with running(warm_python, "get", "-d", "out", "--segments", "1", f"{server.url}/f") as process:
        wait_until(lambda: any(path.stat().st_blocks > 600 for path in (tmp_path / "out").glob("*part")))
        _, err = interrupt(process)
    lines = err.decode().splitlines()
    assert re.search(r"0 of 1 file in 0:\d\d; 1 not finished; \d+\.\d KiB kept in partial files$", lines[-2])
    assert lines[-1] == "perfkit: interrupted; run the same command again to resume"
    with running(warm_python, "get", "-d", "out", f"{server.url}/f") as process:
        _, err = process.communicate(timeout=100)
    assert re.search(rb"1 file, 1\.0 MiB in .*; 1 resumed from \d+\.\d KiB", err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_bars(
    number: int, misbehaving: Start, warm_python: WarmPython, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is done and kept, and how to go on; the process ends as its parent expects."""
    monkeypatch.setenv("TERM", "xterm-256color")
    server = misbehaving(lambda x: x.serve(BODY, pause=x.stall))
    with Terminal(100, 24) as terminal:
        with start(warm_python, "get", "--progress", "bars", f"{server.url}/f", stderr=terminal.slave) as process:
            terminal.wait_for("▕█")
            process.send_signal(number)
            process.wait(100)
        lines = terminal.read()
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert len(lines) == 2
    assert lines[0].startswith("0 of 1 file in ")
    assert lines[1].startswith("perfkit: interrupted")


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_sigterm_again_does_not_keep_it_from_cleaning_up(
    first: int, misbehaving: Start, tmp_path: Path, warm_python: WarmPython
) -> None:
    """As timeout(1) sends it: at once, and to the process group too. A supervisor sees that SIGTERM ended it."""
    server = misbehaving(lambda x: x.serve(BODY, pause=x.stall))
    with running(warm_python, "get", "-d", "out", f"{server.url}/f") as process:
        wait_until(lambda: any((tmp_path / "out").glob("*part")))
        for number in (signal.SIGSTOP, first, signal.SIGTERM, signal.SIGCONT):
            process.send_signal(number)
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=100)
    assert process.returncode == -signal.SIGTERM
    assert b"ignored" not in err
    assert err.decode().splitlines()[-1].startswith("perfkit: interrupted")


def test_a_sync_says_what_came(cli_origin: Origin, capsys: Capture) -> None:
    """One line, with the sizes in the units that bars have."""
    assert main(["sync", cli_origin.url, "tree"]) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        r"perfkit: 1, generation 1: \d+ added, 0 changed, 0 removed; 0 unchanged; "
        r"[\d.]+ \wi?B received in \d+\.\d s, by \w+",
        last,
    )
    assert main(["verify", "tree"]) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"perfkit: \d+ files?: 0 missing, 0 changed, 0 extra; .*B read in \d+\.\d s", last)
