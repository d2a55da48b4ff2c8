"""`perfkit get`: invalid usage and failed downloads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit.cli import main
from perfkit.server.server import Server
from tests.support.command import (
    BODY,
    SHA256,
    Capture,
    complaints,
    get,
)
from tests.support.fakes import MisbehavingServer
from tests.support.network import unheard

Start = Callable[..., MisbehavingServer]
URL = "http://127.0.0.1:1/f"


@pytest.mark.parametrize(("arguments", "said"), [
    ([], "COMMAND"),
    (["fetch"], "fetch"),
    (["get"], "no URLs: give"),
    (["get", "--nonsense", URL], "--nonsense"),
    (["get", "-j", "many", URL], "many"),
    (["get", "-j", "0", URL], "error: --workers: it must be at least 1"),
    (["get", "--segments", "0", URL], "error: --segments: it must"),
    (["get", "--retries", "-1", URL], "error: --retries: it must"),
    (["get", "--limit-rate", "0", URL], "'0' is not a size"),
    (["get", "--limit-rate", "fast", URL], "--limit-rate: 'fast' is not a size"),
    (["get", "--checksum", "sha256:12", URL], "sha256"),
    (["get", "--checksum", "crc32:12345678", URL], "crc32"),
    (["get", "--checksum", SHA256, URL, URL], "--checksum needs exactly one URL"),
    (["get", "-o", "x", URL, URL], "--output needs exactly one URL"),
    (["get", "-o", "x", "-i", "list", URL], "--output needs exactly one URL"),
    (["get", "-o", "x", "-d", "y", URL], "not allowed with"),
    (["get", "-o", "-", URL], "not standard output"),
    (["get", "--mirror", "ftp://host/f", URL], "ftp://host/f"),
    (["get", "--mirror", URL, URL, URL], "--mirror needs exactly one URL"),
    (["get", "--header", "no colon", URL], "--header must have the form"),
    (["get", "--header", "Range: bytes=0-", URL], "Range"),
    (["get", "--header", "X: a\r\nY: b", URL], "X"),
    (["get", "ftp://host/f"], "ftp://host/f"),
    (["get", "-o", "x", "not a url"], "not a url"),
    (["get", "http://host:99999999/f"], "99999999"),
    (["get", "-i", "missing-list"], "missing-list"),
    (["get", "-i", "."], ".: Is a directory"),
    (["get", "--key=", URL], "--key= is empty"),
    (["get", "-o", "", URL], "-o is empty"),
    (["get", "-j", "99999999999999999999", URL], "--workers: must be less than 2**63"),
    (["status", "tree", "--metrics="], "--metrics= is empty"),
    (["sync", URL, "tree", "--release="], "--release= is empty"),
    (["sync", URL, "tree", "--check", ""], "--check is empty"),
    (["get", ""], "an argument is empty"),
    (["get", "-q", ""], "an argument is empty"),
    (["get", "-o", "x", ""], "an argument is empty"),
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


def test_wrong_checksum(file_server: Server, tmp_path: Path, capsys: Capture) -> None:
    """No file, and the error says what was expected."""
    wanted = f"sha256:{'0' * 64}"
    code, value, errors = get(capsys, "-o", "x", "--checksum", wanted, f"{file_server.url}a.bin")
    assert code == 1
    assert value["files"][0]["error"]["type"] == "IntegrityError"
    assert wanted in errors[0]
    assert SHA256 in errors[0]
    assert [each.name for each in tmp_path.iterdir()] == ["site"]


def test_connection_refused(capsys: Capture) -> None:
    """Nothing listens there, and the error says so; it is not reported as a timeout."""
    with unheard() as (_, port):
        url = f"http://127.0.0.1:{port}/f"
        code, value, errors = get(capsys, "--retries", 0, url)
    assert code == 1
    assert value["files"][0]["error"]["type"] == "TransferError"
    assert errors == [f"perfkit: error: {url}: 127.0.0.1 port {port}: Connection refused"]


@pytest.mark.parametrize("form", [["-d", "file"], ["-o", "file/x"], ["-o", "directory/name-that-is-one"]])
def test_places_that_no_file_can_have(form: list[str], file_server: Server, tmp_path: Path, capsys: Capture) -> None:
    """The disk's own error, with the path; what was there stays."""
    (tmp_path / "file").write_text("kept")
    (tmp_path / "directory/name-that-is-one/a.bin").mkdir(parents=True)
    code, value, errors = get(capsys, *form, f"{file_server.url}a.bin")
    assert code == 1
    assert len(errors) == 1
    assert "Error" in value["files"][0]["error"]["type"]
    assert form[1].partition("/")[0] in errors[0]
    assert (tmp_path / "file").read_text() == "kept"
    assert not list(tmp_path.rglob("*.part*"))


def test_one_failure_among_others(file_server: Server, tmp_path: Path, capsys: Capture) -> None:
    """The others are done; the object has them all."""
    code, value, errors = get(capsys, *(f"{file_server.url}{name}.bin" for name in ("a", "missing", "c")))
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
