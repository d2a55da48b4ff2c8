"""The command line: what it is told, what it prints where, and how it ends."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perfkit.__main__ import _defer_gc
from perfkit.cli import main
from perfkit.downloads.request import Download, Request
from perfkit.downloads.request_list import RequestList
from perfkit.errors import ConfigError
from perfkit.server.server import Server
from tests.support.fakes import Exchange, MisbehavingServer

Start = Callable[..., MisbehavingServer]
Capture = pytest.CaptureFixture[str]

BODY = random.Random(7).randbytes(300_000)
SHA256 = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
PERFKIT = [sys.executable, "-m", "perfkit"]
FIELDS = {"url", "path", "bytes", "bytes_received", "resumed_from", "segments", "retries", "checksum", "seconds"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Short waits, in a directory of the test's own."""
    monkeypatch.setenv("PERFKIT_BACKOFF_BASE_S", "0.01")
    monkeypatch.setenv("PERFKIT_MIN_SEGMENT_BYTES", "32K")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Server]:
    """Serves a.bin, b.bin, c.bin."""
    root = tmp_path / "site"
    root.mkdir()
    for name in "abc":
        (root / f"{name}.bin").write_bytes(BODY)
    with Server(root) as server:
        yield server


def complaints(err: str) -> list[str]:
    """The errors told of; each is a line, and none comes with a traceback."""
    assert "Traceback" not in err
    return [line for line in err.splitlines() if line.startswith("perfkit: error: ")]


def the_object(out: str) -> dict[str, Any]:
    """One JSON object, and nothing else."""
    assert out.endswith("}\n")
    assert out.count("\n") == 1
    value: dict[str, Any] = json.loads(out)
    return value


def get(capsys: Capture, *arguments: object) -> tuple[int, dict[str, Any], list[str]]:
    """`perfkit get --json` in this process: exit code, object, errors."""
    code = main(["get", "--json", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, the_object(out), complaints(err)


def start(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*PERFKIT, *map(str, arguments)], **{**pipes, **options})


def read_until(pipe: Any, text: bytes, timeout_s: float = 10.0) -> bytes:
    """What comes through a pipe, up to and with `text`."""
    deadline, seen = time.monotonic() + timeout_s, b""
    while text not in seen:
        assert select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0], f"{text!r} not in {seen!r}"
        data = os.read(pipe.fileno(), 65536)
        assert data, f"{text!r} not in {seen!r}"
        seen += data
    return seen


def wait_until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def interrupt(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Ctrl-C: it ends within a second, with 130."""
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert time.monotonic() - began < 1.0
    assert process.returncode == 130, err
    assert b"Traceback" not in err
    return out, err


# -- get: where to ----------------------------------------------------------------------------------------------------


def test_into_the_current_directory(site: Server, tmp_path: Path, capsys: Capture) -> None:
    """Named as in the URL; nothing on standard output, a summary on standard error."""
    assert main(["get", f"{site.url}a.bin", f"{site.url}b.bin"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"2 files, 585\.9 KiB in 0:0\d, .*/s", err.splitlines()[-1])
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes() == BODY


def test_the_object_and_its_fields(site: Server, tmp_path: Path, capsys: Capture) -> None:
    """`--json`: one object, a record a file."""
    code, value, errors = get(capsys, "-o", "x", "--checksum", SHA256, f"{site.url}a.bin")
    assert (code, errors) == (0, [])
    (record,) = value["files"]
    assert set(record) >= FIELDS
    assert set(value) >= {"files", "bytes_received", "seconds"}
    assert record["url"] == f"{site.url}a.bin"
    assert os.path.samefile(record["path"], tmp_path / "x")
    assert record["bytes"] == len(BODY) <= record["bytes_received"] == value["bytes_received"]
    assert (record["resumed_from"], record["retries"], record["checksum"]) == (0, 0, SHA256)
    assert 0 < record["seconds"] <= value["seconds"]
    assert "error" not in record
    assert "error" not in value


@pytest.mark.parametrize("form", [["-d", "new/deep"], ["--directory", "new/deep"], ["-o", "new/deep/a.bin"],
                                  ["--output", "new/deep/a.bin"]])  # fmt: skip
def test_where_to(form: list[str], site: Server, tmp_path: Path, capsys: Capture) -> None:
    """A file or a directory; directories are made."""
    code, value, _ = get(capsys, *form, f"{site.url}a.bin")
    assert code == 0
    assert (tmp_path / "new/deep/a.bin").read_bytes() == BODY
    assert os.path.samefile(value["files"][0]["path"], tmp_path / "new/deep/a.bin")


# -- get: how ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_workers(workers: int, misbehaving: Start, capsys: Capture) -> None:
    """`-j` is how many transfers there are at once."""
    lock, there, most = threading.Condition(), [], []

    def handler(x: Exchange) -> None:
        with lock:
            there.append(x)
            most.append(len(there))
            lock.notify_all()
            lock.wait_for(lambda: max(most) >= workers, 5)
            there.remove(x)
        x.serve(b"body")

    server = misbehaving(handler)
    code, _, _ = get(capsys, "-j", workers, *(f"{server.url}/{number}" for number in range(8)))
    assert code == 0
    assert max(most) == workers


@pytest.mark.parametrize("segments", [1, 2])
def test_segments(segments: int, misbehaving: Start, capsys: Capture) -> None:
    """`--segments` is how many connections a file has."""
    server = misbehaving(lambda x: x.serve(BODY, pause=lambda: server.wait_for(segments)))
    code, value, _ = get(capsys, "--segments", segments, f"{server.url}/f")
    assert code == 0
    assert value["files"][0]["segments"] == segments


def test_limit_rate(site: Server, capsys: Capture) -> None:
    """600 KB at 600 KiB a second take about a second, whatever the number of files."""
    began = time.monotonic()
    code, _, _ = get(capsys, "--limit-rate", "600K", f"{site.url}a.bin", f"{site.url}b.bin")
    assert code == 0
    assert time.monotonic() - began > 0.75


def test_mirror(site: Server, misbehaving: Start, tmp_path: Path, capsys: Capture) -> None:
    """Another URL of the same file, under the name that the first one gives."""
    broken = misbehaving(lambda x: x.respond("404 Not Found"))
    mirrors = ["--mirror", f"{broken.url}/also-gone", "--mirror", f"{site.url}b.bin"]
    code, value, errors = get(capsys, "--checksum", SHA256, *mirrors, f"{broken.url}/f.bin")
    assert (code, errors) == (0, [])
    assert value["files"][0]["url"] == f"{broken.url}/f.bin"
    assert (tmp_path / "f.bin").read_bytes() == BODY


def test_header(misbehaving: Start, tmp_path: Path, capsys: Capture) -> None:
    """Sent to the origins of the URLs, those of a list too, and to none that they redirect to."""
    other = misbehaving(lambda x: x.serve(b"body"))
    server = misbehaving(lambda x: x.respond("302 Found", Location=f"{other.url}/f"))
    (tmp_path / "list").write_text(f"{server.url}/second")
    code, _, _ = get(capsys, "--header", "X-Key:  secret ", "--header", "Authorization: Bearer t:1",
                     "-i", "list", f"{server.url}/first")  # fmt: skip
    assert code == 0
    assert len(server.requests) == len(other.requests) == 2
    for asked in server.requests:
        assert asked.headers["x-key"] == "secret"
        assert asked.headers["authorization"] == "Bearer t:1"
    for asked in other.requests:
        assert not {"x-key", "authorization"} & set(asked.headers)


@pytest.mark.parametrize("retries", [0, 2])
def test_retries(retries: int, misbehaving: Start, capsys: Capture) -> None:
    """`--retries` is how many failures in a row are forgiven."""
    server = misbehaving(lambda x: x.respond("500 Internal Server Error"))
    code, value, errors = get(capsys, "--retries", retries, f"{server.url}/f")
    assert code == 1
    assert len(server.requests) == retries + 1
    assert value["files"][0]["error"]["type"] == "HTTPStatusError"
    assert len(errors) == 1
    assert "500" in errors[0]


def test_no_resume(site: Server, capsys: Capture) -> None:
    """A file that is there and current is left alone, unless asked otherwise."""
    url = f"{site.url}a.bin"
    assert get(capsys, url)[1]["files"][0]["unchanged"] is False
    assert get(capsys, url)[1]["files"][0]["unchanged"] is True
    again = get(capsys, "--no-resume", url)[1]["files"][0]
    assert again["unchanged"] is False
    assert again["bytes_received"] >= len(BODY)


def test_quiet(site: Server, capsys: Capture) -> None:
    """No bars and no summary, with `--json` or without; an error is still an error."""
    assert main(["get", "--quiet", f"{site.url}a.bin"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["get", "--quiet", f"{site.url}b.bin", f"{site.url}missing"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == complaints(err)
    assert f"{site.url}missing: " in err


# -- get: what can be wrong -------------------------------------------------------------------------------------------

URL = "http://127.0.0.1:1/f"


@pytest.mark.parametrize(("arguments", "said"), [
    ([], "COMMAND"),
    (["fetch"], "fetch"),
    (["get"], "no URLs: give"),
    (["get", "--nonsense", URL], "--nonsense"),
    (["get", "-j", "many", URL], "many"),
    (["get", "-j", "0", URL], "workers"),
    (["get", "--segments", "0", URL], "segments"),
    (["get", "--retries", "-1", URL], "retries"),
    (["get", "--limit-rate", "0", URL], "'0' is not a size"),
    (["get", "--limit-rate", "fast", URL], "'fast' is not a size"),
    (["get", "--checksum", "sha256:12", URL], "sha256"),
    (["get", "--checksum", "crc32:12345678", URL], "crc32"),
    (["get", "--checksum", SHA256, URL, URL], "--checksum needs exactly one URL"),
    (["get", "-o", "x", URL, URL], "--output needs exactly one URL"),
    (["get", "-o", "x", "-i", "list", URL], "--output needs exactly one URL"),
    (["get", "-o", "x", "-d", "y", URL], "not allowed with"),
    (["get", "--mirror", "ftp://host/f", URL], "ftp://host/f"),
    (["get", "--mirror", URL, URL, URL], "--mirror needs exactly one URL"),
    (["get", "--header", "no colon", URL], "no colon"),
    (["get", "--header", "Range: bytes=0-", URL], "Range"),
    (["get", "--header", "X: a\r\nY: b", URL], "X"),
    (["get", "ftp://host/f"], "ftp://host/f"),
    (["get", "-o", "x", "not a url"], "not a url"),
    (["get", "http://host:99999999/f"], "99999999"),
    (["get", "-i", "missing-list"], "missing-list"),
    (["get", "-i", "."], ".: Is a directory"),
    (["serve"], "SITE"),
    (["serve", "missing-directory"], "missing-directory"),
    (["serve", ".", "--port", "ninety"], "ninety"),
    (["serve", ".", "--port", "99999"], "99999"),
])  # fmt: skip
def test_bad_usage(arguments: list[str], said: str, tmp_path: Path, capsys: Capture) -> None:
    """One line that names the culprit, exit code 2, and nothing was begun."""
    (tmp_path / "list").touch()
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = int(str(ended.code))
    out, err = capsys.readouterr()
    assert code == 2, err
    assert out == ""
    assert len(err.splitlines()) == 1
    assert complaints(err)
    assert said in err
    assert {each.name for each in tmp_path.iterdir()} == {"list"}


def test_bad_environment(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """A setting in the environment that can't be read is named."""
    monkeypatch.setenv("PERFKIT_WORKERS", "several")
    assert main(["get", URL]) == 2
    assert "PERFKIT_WORKERS" in complaints(capsys.readouterr().err)[0]


def test_wrong_checksum(site: Server, tmp_path: Path, capsys: Capture) -> None:
    """No file, and the error says what was expected."""
    wanted = f"sha256:{'0' * 64}"
    code, value, errors = get(capsys, "-o", "x", "--checksum", wanted, f"{site.url}a.bin")
    assert code == 1
    assert value["files"][0]["error"]["type"] == "IntegrityError"
    assert wanted in errors[0]
    assert SHA256 in errors[0]
    assert [each.name for each in tmp_path.iterdir()] == ["site"]


def test_connection_refused(capsys: Capture) -> None:
    """Nobody listens there, and that is what is said: it is no timeout."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        port = unheard.getsockname()[1]
        url = f"http://127.0.0.1:{port}/f"
        code, value, errors = get(capsys, "--retries", 0, url)
    assert code == 1
    assert value["files"][0]["error"]["type"] == "TransferError"
    assert errors == [f"perfkit: error: {url}: 127.0.0.1 port {port}: Connection refused"]


@pytest.mark.parametrize("form", [["-d", "file"], ["-o", "file/x"], ["-o", "directory/name-that-is-one"]])
def test_places_that_no_file_can_have(form: list[str], site: Server, tmp_path: Path, capsys: Capture) -> None:
    """The disk's own error, with the path; what was there stays."""
    (tmp_path / "file").write_text("kept")
    (tmp_path / "directory/name-that-is-one/a.bin").mkdir(parents=True)
    code, value, errors = get(capsys, *form, f"{site.url}a.bin")
    assert code == 1
    assert len(errors) == 1
    assert "Error" in value["files"][0]["error"]["type"]
    assert form[1].partition("/")[0] in errors[0]
    assert (tmp_path / "file").read_text() == "kept"
    assert not list(tmp_path.rglob("*.part*"))


def test_one_failure_among_others(site: Server, tmp_path: Path, capsys: Capture) -> None:
    """The others are done; the object has them all."""
    code, value, errors = get(capsys, *(f"{site.url}{name}.bin" for name in ("a", "missing", "c")))
    assert code == 1
    assert len(errors) == 1
    failed = {record["url"].rpartition("/")[2]: "error" in record for record in value["files"]}
    assert failed == {"a.bin": False, "missing.bin": True, "c.bin": False}
    assert (tmp_path / "c.bin").read_bytes() == BODY


def test_an_error_is_a_line_whatever_the_server_says(misbehaving: Start, capsys: Capture) -> None:
    """Control characters from outside reach neither the terminal nor a second line."""
    server = misbehaving(lambda x: x.send(b"HTTP/1.1 404 No\x1b[2J\rsuch\x07file\r\nContent-Length: 0\r\n\r\n"))
    code, _, errors = get(capsys, "--quiet", "--retries", 0, f"{server.url}/f%0A%1b")
    assert code == 1
    assert len(errors) == 1
    assert errors[0].isprintable()


# -- get: lists -------------------------------------------------------------------------------------------------------


def test_a_list(site: Server, tmp_path: Path, capsys: Capture) -> None:
    """URL, name, checksum; comments and empty lines; any line ending; a byte order mark."""
    lines = ["\ufeff# what we need", f"{site.url}a.bin", "", f"{site.url}b.bin\tsub/b\t{SHA256}",
             f"  {site.url}c.bin\t\t{SHA256}  "]  # fmt: skip
    (tmp_path / "list").write_bytes("\r\n".join(lines).encode())  # and no end of line at its end
    code, value, errors = get(capsys, "-d", "out", "-i", "list")
    assert (code, errors) == (0, [])
    assert {os.path.relpath(record["path"], tmp_path / "out") for record in value["files"]} == {
        "a.bin", "sub/b", "c.bin"}  # fmt: skip
    assert sorted(record["checksum"] or "" for record in value["files"]) == ["", SHA256, SHA256]
    assert (tmp_path / "out/sub/b").read_bytes() == BODY


def test_bad_lines_in_a_list(site: Server, tmp_path: Path, capsys: Capture) -> None:
    """Each is told of with its number, and is not the end of the others."""
    lines = [f"{site.url}a.bin", "ftp://host/f", f"{site.url}b.bin\t../outside", f"{site.url}b.bin\tb\tmd5:0",
             f"{site.url}b.bin\tb\t\tmore", b"\xff\xfe".decode("latin-1"), f"{site.url}c.bin"]  # fmt: skip
    (tmp_path / "list").write_text("\n".join(lines), encoding="latin-1")
    code, value, errors = get(capsys, "-d", "out", "-i", "list", f"{site.url}b.bin")
    assert code == 1
    assert len(errors) == 5
    assert {match[1] for each in errors if (match := re.search(r"list, line (\d+): ", each))} == {"2", "4", "5", "6"}
    assert any("../outside" in each for each in errors)
    assert len(value["files"]) == 8
    assert {each.name for each in (tmp_path / "out").iterdir()} == {"a.bin", "b.bin", "c.bin"}
    assert not (tmp_path / "outside").exists()


def test_a_line_without_end(tmp_path: Path, capsys: Capture) -> None:
    """Something that is no list is given up on early; the object is still whole."""
    (tmp_path / "list").write_bytes(b"x" * 1_000_000)
    code, value, errors = get(capsys, "-i", "list")
    assert code == 2
    assert len(errors) == 1
    assert value["files"] == []
    assert value["error"]["type"] == "ConfigError"


def test_a_list_that_is_still_being_written(site: Server) -> None:
    """Results come while the list has no end yet; the end of the list ends the run."""
    with start("get", "--json", "--quiet", "-d", "out", "-i", "-") as process:
        assert process.stdin is not None
        out = b""
        for name in ("a", "b"):
            process.stdin.write(f"{site.url}{name}.bin\n".encode())
            process.stdin.flush()
            out += read_until(process.stdout, f"{name}.bin".encode())
        rest, err = process.communicate(f"{site.url}c.bin".encode(), timeout=10)
    assert (process.returncode, err) == (0, b"")
    assert [record["bytes"] for record in the_object((out + rest).decode())["files"]] == [len(BODY)] * 3


def test_a_list_is_not_read_far_ahead(misbehaving: Start) -> None:
    """Whoever writes the list has to wait while the downloads do."""
    server = misbehaving(Exchange.stall)
    with start("get", "--json", "-j", "1", "-d", "out", "-i", "-") as process:
        assert process.stdin is not None
        pipe, written = process.stdin.fileno(), 0
        os.write(pipe, f"{server.url}/first\n".encode())
        assert server.wait_for(1, 10)
        os.set_blocking(pipe, False)
        while select.select([], [pipe], [], 0.5)[1]:
            written += os.write(pipe, f"{server.url}/{written}\n".encode() * 50)
            assert written < 300_000
        out, _ = interrupt(process)
    assert the_object(out.decode())["error"]["type"] == "KeyboardInterrupt"


def test_waiting_for_a_list_does_not_spin() -> None:
    """A list that has nothing to give says so a few times a second, not as fast as it can."""
    reader, writer = os.pipe()
    closing = threading.Timer(0.5, os.close, [writer])
    with RequestList(f"/dev/fd/{reader}", headers={}) as listed:
        os.close(reader)
        os.write(writer, b"http://h/1\nhttp://h/2\nnonsense\nhttp://h/3")
        closing.start()
        items = list(listed)
    closing.join()
    given = [item for item in items if item is not None]
    assert [item.url for item in given] == ["http://h/1", "http://h/2", "nonsense", "http://h/3"]
    assert [type(item) for item in given] == [Request, Request, Download, Request]
    assert 1 <= items.count(None) <= 6
    assert items.index(None) == 3  # at once, so that what was read is begun


def test_a_list_that_is_no_file(tmp_path: Path) -> None:
    """Found out before anything is begun, and nothing is left open."""
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigError, match=re.escape(str(path))), RequestList(str(path), headers={}):
            pass
    if before:
        assert set(os.listdir("/proc/self/fd")) == before


# -- how it ends ------------------------------------------------------------------------------------------------------


def half_then_stall(x: Exchange) -> None:
    x.head("200 OK", Content_Length=str(len(BODY)), ETag='"v1"')
    x.send(BODY[:200_000])
    x.stall()


@pytest.mark.parametrize("handler", [half_then_stall, Exchange.stall])
@pytest.mark.parametrize("where", [[], ["-o", "x"]])
def test_ctrl_c(handler: Callable[[Exchange], None], where: list[str], misbehaving: Start) -> None:
    """However stuck the peer is: 130, at once, with a whole object and a line that says how to go on."""
    server = misbehaving(handler)
    with start("get", "--json", "--quiet", *where, f"{server.url}/f") as process:
        assert server.wait_for(1, 10)
        out, err = interrupt(process)
    value = the_object(out.decode())
    assert value["error"]["type"] == "KeyboardInterrupt"
    assert err == b"perfkit: interrupted; run the same command again to resume\n"


def test_ctrl_c_keeps_what_is_done(misbehaving: Start, tmp_path: Path, capsys: Capture) -> None:
    """What ended is in the object; what did not goes on from there in the next run."""
    came = threading.Event()

    def handler(x: Exchange) -> None:
        if x.asked.path == "/stuck" and not came.is_set():
            x.serve(BODY, pause=lambda: (came.wait(10), x.stall()))
        else:
            x.serve(BODY)

    server = misbehaving(handler)
    urls = [f"{server.url}/done", f"{server.url}/stuck"]
    with start("get", "--json", "--quiet", "--segments", "1", *urls) as process:
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


def test_nobody_reads_the_results(misbehaving: Start) -> None:
    """Standard output is a pipe whose reader has gone: an error of one line, and the work ends."""
    server = misbehaving(lambda x: x.serve(b"body", pause=lambda: gone.wait(10)))
    gone = threading.Event()
    with start("get", "--json", "--quiet", f"{server.url}/f") as process:
        assert process.stdout is not None
        read_until(process.stdout, b"[")
        process.stdout.close()
        process.stdout = None
        gone.set()
        _, err = process.communicate(timeout=10)
    assert process.returncode == 1
    assert err.decode().splitlines() == complaints(err.decode())
    assert b"standard output: Broken pipe" in err


@pytest.mark.parametrize("arguments", [["get", "--json", "--quiet", URL], ["--help"], ["--version"]])
@pytest.mark.parametrize("out", ["/dev/full", "closed"])
def test_standard_output_that_takes_nothing(arguments: list[str], out: str) -> None:
    """A full disk, or no standard output at all."""
    command = 'exec "$@" >&-' if out == "closed" else f'exec "$@" > {out}'
    ended = subprocess.run(["sh", "-c", command, "sh", *PERFKIT, *arguments], stderr=subprocess.PIPE, timeout=10,
                           check=False)  # fmt: skip
    assert ended.returncode == 1
    lines = ended.stderr.decode().splitlines()
    assert len(lines) == 1
    assert complaints(lines[0])
    assert "standard output" in lines[0]


def test_no_standard_streams(site: Server, tmp_path: Path) -> None:
    """A daemon's child without any of them still does its work."""
    command = 'exec "$@" <&- >&- 2>&-'
    ended = subprocess.run(["sh", "-c", command, "sh", *PERFKIT, "get", f"{site.url}a.bin"], timeout=10, check=False)
    assert ended.returncode == 0
    assert (tmp_path / "a.bin").read_bytes() == BODY


# -- serve ------------------------------------------------------------------------------------------------------------


def test_serve_and_get(tmp_path: Path, capsys: Capture) -> None:
    """Two commands, one at each end; Ctrl-C ends the server, with a client still connected."""
    (tmp_path / "f").write_bytes(BODY)
    with start("serve", tmp_path, "--port", "0", "--json") as server:
        url = json.loads(read_until(server.stdout, b"\n"))["url"]
        assert get(capsys, "-o", "copy", f"{url}f")[0] == 0
        port = int(url.rstrip("/").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)):
            assert interrupt(server) == (b"", b"")
    assert (tmp_path / "copy").read_bytes() == BODY


def test_serve_tells_its_address(tmp_path: Path) -> None:
    """On standard error, for people; and the port is free again afterwards."""
    with start("serve", tmp_path, "--port", "0") as server:
        said = read_until(server.stderr, b"\n").decode()
        found = re.fullmatch(r"perfkit: serving .* at http://127\.0\.0\.1:(\d+)/; press Ctrl-C to stop\n", said)
        assert found
        taken = subprocess.run([*PERFKIT, "serve", ".", "--port", found[1]], capture_output=True, timeout=10,
                               check=False)  # fmt: skip
        assert (taken.returncode, taken.stdout) == (2, b"")
        assert "--port 0" in complaints(taken.stderr.decode())[0]
        interrupt(server)
    with start("serve", tmp_path, "--port", found[1], "--quiet") as server, socket.socket() as client:
        wait_until(lambda: client.connect_ex(("127.0.0.1", int(found[1]))) == 0)
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"
        assert interrupt(server) == (b"", b"")


def test_the_garbage_collector_is_as_usual_after_its_first_run() -> None:
    """It begins late, for the sake of short commands, and then works as it does elsewhere."""
    usual = gc.get_threshold()
    _defer_gc()
    try:
        assert gc.get_threshold() > usual
        gc.collect()
        assert gc.get_threshold() == usual
    finally:
        gc.set_threshold(*usual)
