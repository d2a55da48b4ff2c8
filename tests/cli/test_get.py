"""`perfkit get`: where files go, what it prints, and how it ends."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit.cli import main
from perfkit.server.server import Server
from tests.support.command import (
    BODY,
    PERFKIT,
    SHA256,
    Capture,
    complaints,
    get,
    interrupt,
    read_until,
    start,
    the_object,
)
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.sites import Origin
from tests.support.tools import ENVIRONMENT
from tests.support.waiting import wait_until
from tests.support.warm import WarmPython

Start = Callable[..., MisbehavingServer]
FIELDS = {"url", "path", "bytes", "bytes_received", "resumed_from", "segments", "retries", "checksum", "seconds"}


# -- get: where to -----------------------------------------------------------------------------------------------------


def test_into_the_current_directory(file_server: Server, tmp_path: Path, capsys: Capture) -> None:
    """Named as in the URL; nothing on standard output, a summary on standard error."""
    assert main(["get", f"{file_server.url}a.bin", f"{file_server.url}b.bin"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"2 files, 585\.9 KiB in 0:0\d, .*/s", err.splitlines()[-1])
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes() == BODY


def test_the_object_and_its_fields(file_server: Server, tmp_path: Path, capsys: Capture) -> None:
    """`--json`: one object, a record a file."""
    code, value, errors = get(capsys, "-o", "x", "--checksum", SHA256, f"{file_server.url}a.bin")
    assert (code, errors) == (0, [])
    (record,) = value["files"]
    assert set(record) >= FIELDS
    assert set(value) >= {"files", "bytes_received", "seconds"}
    assert record["url"] == f"{file_server.url}a.bin"
    assert os.path.samefile(record["path"], tmp_path / "x")
    assert record["bytes"] == len(BODY) <= record["bytes_received"] == value["bytes_received"]
    assert (record["resumed_from"], record["retries"], record["checksum"]) == (0, 0, SHA256)
    assert 0 < record["seconds"] <= value["seconds"]
    assert "error" not in record
    assert "error" not in value


@pytest.mark.parametrize(
    "form", [["-d", "new/deep"], ["--directory", "new/deep"], ["-o", "new/deep/a.bin"], ["--output", "new/deep/a.bin"]]
)
def test_output_file_and_directory(form: list[str], file_server: Server, tmp_path: Path, capsys: Capture) -> None:
    """A file or a directory; directories are made."""
    code, value, _ = get(capsys, *form, f"{file_server.url}a.bin")
    assert code == 0
    assert (tmp_path / "new/deep/a.bin").read_bytes() == BODY
    assert os.path.samefile(value["files"][0]["path"], tmp_path / "new/deep/a.bin")


# -- get: how ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_limit_transfers_at_once(workers: int, misbehaving: Start, capsys: Capture) -> None:
    """`-j` is how many transfers there are at once."""
    lock, there, most = threading.Condition(), [], []

    def handler(x: Exchange) -> None:
        with lock:
            there.append(x)
            most.append(len(there))
            lock.notify_all()
            lock.wait_for(lambda: max(most) >= workers, 60)
            there.remove(x)
        x.serve(b"body")

    server = misbehaving(handler)
    code, _, _ = get(capsys, "-j", workers, *(f"{server.url}/{number}" for number in range(8)))
    assert code == 0
    assert max(most) == workers


@pytest.mark.parametrize("segments", [1, 2])
def test_segments_limit_connections_of_a_file(segments: int, misbehaving: Start, capsys: Capture) -> None:
    """`--segments` is how many connections a file has."""
    server = misbehaving(lambda x: x.serve(BODY, pause=lambda: server.wait_for(segments)))
    code, value, _ = get(capsys, "--segments", segments, f"{server.url}/f")
    assert code == 0
    assert value["files"][0]["segments"] == segments


def test_limit_rate_holds_for_all_files_together(file_server: Server, capsys: Capture) -> None:
    """600 KB at 600 KiB a second take about a second, whatever the number of files."""
    began = time.monotonic()
    code, _, _ = get(capsys, "--limit-rate", "600K", f"{file_server.url}a.bin", f"{file_server.url}b.bin")
    assert code == 0
    assert time.monotonic() - began > 0.75


def test_a_mirror_serves_the_file_under_the_first_name(
    file_server: Server, misbehaving: Start, tmp_path: Path, capsys: Capture
) -> None:
    """Another URL of the same file, under the name that the first one gives."""
    broken = misbehaving(lambda x: x.respond("404 Not Found"))
    mirrors = ["--mirror", f"{broken.url}/also-gone", "--mirror", f"{file_server.url}b.bin"]
    code, value, errors = get(capsys, "--checksum", SHA256, *mirrors, f"{broken.url}/f.bin")
    assert (code, errors) == (0, [])
    assert value["files"][0]["url"] == f"{broken.url}/f.bin"
    assert (tmp_path / "f.bin").read_bytes() == BODY


def test_headers_go_to_the_origins_of_the_urls_only(misbehaving: Start, tmp_path: Path, capsys: Capture) -> None:
    """Sent to the origins of the URLs, those of a list too, and to none that they redirect to."""
    other = misbehaving(lambda x: x.serve(b"body"))
    server = misbehaving(lambda x: x.respond("302 Found", Location=f"{other.url}/f"))
    (tmp_path / "list").write_text(f"{server.url}/second")
    code, _, _ = get(
        capsys,
        "--header",
        "X-Key:  secret ",
        "--header",
        "Authorization: Bearer t:1",
        "-i",
        "list",
        f"{server.url}/first",
    )
    assert code == 0
    assert len(server.requests) == len(other.requests) == 2
    for asked in server.requests:
        assert asked.headers["x-key"] == "secret"
        assert asked.headers["authorization"] == "Bearer t:1"
    for asked in other.requests:
        assert not {"x-key", "authorization"} & set(asked.headers)


@pytest.mark.parametrize("retries", [0, 2])
def test_retries_are_failures_in_a_row(retries: int, misbehaving: Start, capsys: Capture) -> None:
    """`--retries` is how many failures in a row are forgiven."""
    server = misbehaving(lambda x: x.respond("500 Internal Server Error"))
    code, value, errors = get(capsys, "--retries", retries, f"{server.url}/f")
    assert code == 1
    assert len(server.requests) == retries + 1
    assert value["files"][0]["error"]["type"] == "HTTPStatusError"
    assert len(errors) == 1
    assert "500" in errors[0]


def test_no_resume_fetches_a_current_file_again(file_server: Server, capsys: Capture) -> None:
    """A file that is there and current is left alone, unless asked otherwise."""
    url = f"{file_server.url}a.bin"
    assert get(capsys, url)[1]["files"][0]["unchanged"] is False
    assert get(capsys, url)[1]["files"][0]["unchanged"] is True
    again = get(capsys, "--no-resume", url)[1]["files"][0]
    assert again["unchanged"] is False
    assert again["bytes_received"] >= len(BODY)


def test_quiet_shows_only_errors(file_server: Server, capsys: Capture) -> None:
    """No bars and no summary, with `--json` or without; an error is still an error."""
    assert main(["get", "--quiet", f"{file_server.url}a.bin"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["get", "--quiet", f"{file_server.url}b.bin", f"{file_server.url}missing"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == complaints(err)
    assert f"{file_server.url}missing: " in err


# -- how it ends -------------------------------------------------------------------------------------------------------


def half_then_stall(x: Exchange) -> None:
    x.head("200 OK", Content_Length=str(len(BODY)), ETag='"v1"')
    x.send(BODY[:200_000])
    x.stall()


@pytest.mark.parametrize("handler", [half_then_stall, Exchange.stall])
@pytest.mark.parametrize("where", [[], ["-o", "x"]])
def test_ctrl_c(
    handler: Callable[[Exchange], None], where: list[str], misbehaving: Start, warm_python: WarmPython
) -> None:
    """However stuck the peer is: 130, at once, with a whole object and a line that says how to go on."""
    server = misbehaving(handler)
    with start(warm_python, "get", "--json", "--quiet", *where, f"{server.url}/f") as process:
        assert server.wait_for(1)
        out, err = interrupt(process)
    value = the_object(out.decode())
    assert value["error"]["type"] == "KeyboardInterrupt"
    assert err == b"perfkit: interrupted; run the same command again to resume\n"


def test_ctrl_c_keeps_what_is_done(
    misbehaving: Start, tmp_path: Path, capsys: Capture, warm_python: WarmPython
) -> None:
    """What ended is in the object; what did not goes on from there in the next run."""
    came = threading.Event()

    def handler(x: Exchange) -> None:
        if x.asked.path == "/stuck" and not came.is_set():
            x.serve(BODY, pause=lambda: (came.wait(100), x.stall()))
        else:
            x.serve(BODY)

    server = misbehaving(handler)
    urls = [f"{server.url}/done", f"{server.url}/stuck"]
    with start(warm_python, "get", "--json", "--quiet", "--segments", "1", *urls) as process:
        out = read_until(process.stdout, b"/done")
        wait_until(lambda: (part := tmp_path / "stuck.perfkit-part").exists() and part.stat().st_size == len(BODY) // 2)
        came.set()
        rest, _ = interrupt(process)
    assert [record["url"] for record in the_object((out + rest).decode())["files"]] == [urls[0]]
    assert (tmp_path / "done").read_bytes() == BODY
    assert not (tmp_path / "stuck").exists()
    code, value, _ = get(capsys, urls[1])
    assert code == 0
    assert value["files"][0]["resumed_from"] > 0
    assert (tmp_path / "stuck").read_bytes() == BODY


def test_nobody_reads_the_results(misbehaving: Start, warm_python: WarmPython) -> None:
    """Standard output is a pipe whose reader has gone: the work ends, without a message, as SIGPIPE ends others."""
    server = misbehaving(lambda x: x.serve(b"body", pause=lambda: gone.wait(100)))
    gone = threading.Event()
    with start(warm_python, "get", "--json", "--quiet", f"{server.url}/f") as process:
        assert process.stdout is not None
        read_until(process.stdout, b"[")
        process.stdout.close()
        process.stdout = None
        gone.set()
        _, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (141, b"")


@pytest.mark.once
def test_nobody_reads_standard_output(cli_origin: Origin) -> None:
    """As after `| head -1`: no message, and the exit code of a program that SIGPIPE ends; unless the work fails."""
    assert main(["sync", cli_origin.url, "tree", "--quiet"]) == 0
    for arguments in (
        ["--help"], ["get", "--help"], ["--version"], ["completion", "bash"], ["history", "tree"],
        ["status", "tree", "--json"], ["history", "no-tree", "--json"],
    ):  # fmt: skip
        reading, writing = os.pipe()
        os.close(reading)
        with open(writing, "wb") as pipe:
            options = {"stdout": pipe, "stderr": subprocess.PIPE, "env": ENVIRONMENT}
            ended = subprocess.run([*PERFKIT, *arguments], **options, timeout=100, check=False)
        fails = "no-tree" in arguments
        assert ended.returncode == (1 if fails else 141), arguments
        assert ended.stderr.count(b"\n") == len(complaints(ended.stderr.decode())) == fails, arguments


@pytest.mark.once
@pytest.mark.parametrize("arguments", [["get", "--json", "--quiet", "http://127.0.0.1:1/f"], ["--help"], ["--version"]])
@pytest.mark.parametrize("out", ["/dev/full", "closed"])
def test_standard_output_that_takes_nothing(arguments: list[str], out: str) -> None:
    """A full disk, or no standard output at all."""
    command = 'exec "$@" >&-' if out == "closed" else f'exec "$@" > {out}'
    ended = subprocess.run(
        ["sh", "-c", command, "sh", *PERFKIT, *arguments], stderr=subprocess.PIPE, timeout=100, check=False
    )
    assert ended.returncode == 1
    lines = ended.stderr.decode().splitlines()
    assert len(lines) == 1
    assert complaints(lines[0])
    assert "standard output" in lines[0]


def test_no_standard_streams(file_server: Server, tmp_path: Path) -> None:
    """A daemon's child without any of them still does its work."""
    command = 'exec "$@" <&- >&- 2>&-'
    ended = subprocess.run(
        ["sh", "-c", command, "sh", *PERFKIT, "get", f"{file_server.url}a.bin"], timeout=100, check=False
    )
    assert ended.returncode == 0
    assert (tmp_path / "a.bin").read_bytes() == BODY
