"""`perfkit get --input`: lists of downloads."""

from __future__ import annotations

import os
import re
import select
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from perfkit.cli.request_list import RequestList
from perfkit.downloads.request import Download, Request
from perfkit.errors import ConfigError
from perfkit.server.server import Server
from tests.support.command import (
    BODY,
    SHA256,
    Capture,
    get,
    interrupt,
    read_until,
    start,
    the_object,
)
from tests.support.fakes import Exchange, MisbehavingServer
from tests.support.warm import WarmPython

Start = Callable[..., MisbehavingServer]


def test_a_list_has_urls_names_and_checksums(file_server: Server, tmp_path: Path, capsys: Capture) -> None:
    """URL, name, checksum; comments and empty lines; any line ending; a byte order mark."""
    lines = [
        "\ufeff# what we need",
        f"{file_server.url}a.bin",
        "",
        f"{file_server.url}b.bin\tsub/b\t{SHA256}",
        f"  {file_server.url}c.bin\t\t{SHA256}  ",
    ]
    (tmp_path / "list").write_bytes("\r\n".join(lines).encode())  # and no end of line at its end
    code, value, errors = get(capsys, "-d", "out", "-i", "list")
    assert (code, errors) == (0, [])
    assert {os.path.relpath(record["path"], tmp_path / "out") for record in value["files"]} == {
        "a.bin",
        "sub/b",
        "c.bin",
    }
    assert sorted(record["checksum"] or "" for record in value["files"]) == ["", SHA256, SHA256]
    assert (tmp_path / "out/sub/b").read_bytes() == BODY


def test_bad_lines_in_a_list(file_server: Server, tmp_path: Path, capsys: Capture) -> None:
    """Each is reported with its line number, and the others are downloaded."""
    first, second, third = (f"{file_server.url}{name}.bin" for name in "abc")
    bad = ["ftp://host/f", f"{second}\t../outside", f"{second}\tb\tmd5:0", f"{second}\tb\t\tmore", "\xff\xfe"]
    lines = [first, *bad, third]
    (tmp_path / "list").write_text("\n".join(lines), encoding="latin-1")
    code, value, errors = get(capsys, "-d", "out", "-i", "list", f"{file_server.url}b.bin")
    assert code == 1
    assert len(errors) == 5
    assert {match[1] for each in errors if (match := re.search(r"list, line (\d+): ", each))} == {"2", "4", "5", "6"}
    assert any("../outside" in each for each in errors)
    assert len(value["files"]) == 8
    assert {each.name for each in (tmp_path / "out").iterdir()} == {"a.bin", "b.bin", "c.bin"}
    assert not (tmp_path / "outside").exists()


def test_a_line_without_end(tmp_path: Path, capsys: Capture) -> None:
    """A file that is not a list is refused early; the JSON object is still complete."""
    (tmp_path / "list").write_bytes(b"x" * 1_000_000)
    code, value, errors = get(capsys, "-i", "list")
    assert code == 2
    assert len(errors) == 1
    assert value["files"] == []
    assert value["error"]["type"] == "ConfigError"


def test_a_list_that_is_still_being_written(file_server: Server, warm_python: WarmPython) -> None:
    """Results come while the list has no end yet; the end of the list ends the run."""
    with start(warm_python, "get", "--json", "--quiet", "-d", "out", "-i", "-") as process:
        assert process.stdin is not None
        out = b""
        for name in ("a", "b"):
            process.stdin.write(f"{file_server.url}{name}.bin\n".encode())
            process.stdin.flush()
            out += read_until(process.stdout, f"{name}.bin".encode())
        rest, err = process.communicate(f"{file_server.url}c.bin".encode(), timeout=100)
    assert (process.returncode, err) == (0, b"")
    assert [record["bytes"] for record in the_object((out + rest).decode())["files"]] == [len(BODY)] * 3


def test_a_list_is_not_read_far_ahead(misbehaving: Start, warm_python: WarmPython) -> None:
    """The writer of the list has to wait while the downloads do."""
    server = misbehaving(Exchange.stall)
    with start(warm_python, "get", "--json", "-j", "1", "-d", "out", "-i", "-") as process:
        assert process.stdin is not None
        pipe, written = process.stdin.fileno(), 0
        os.write(pipe, f"{server.url}/first\n".encode())
        assert server.wait_for(1)
        os.set_blocking(pipe, False)
        while select.select([], [pipe], [], 0.5)[1]:
            written += os.write(pipe, f"{server.url}/{written}\n".encode() * 50)
            assert written < 300_000
        out, _ = interrupt(process)
    assert the_object(out.decode())["error"]["type"] == "KeyboardInterrupt"


def test_waiting_for_a_list_does_not_spin() -> None:
    """A list that has nothing to give says so a few times a second, not as fast as it can."""
    reader, writer = os.pipe()
    items: list[Request | Download | None] = []
    with RequestList(f"/dev/fd/{reader}", headers={}) as listed:
        os.close(reader)
        os.write(writer, b"http://h/1\nhttp://h/2\nnonsense\nhttp://h/3")
        began = time.monotonic()
        for item in listed:
            items.append(item)
            if item is None and items.count(None) == 5:
                took_s = time.monotonic() - began
                os.close(writer)
    given = [item for item in items if item is not None]
    assert [item.url for item in given] == ["http://h/1", "http://h/2", "nonsense", "http://h/3"]
    assert [type(item) for item in given] == [Request, Request, Download, Request]
    assert took_s > 0.35
    assert items.index(None) == 3  # at once, so that what was read is begun


def test_a_list_that_is_not_a_file(tmp_path: Path) -> None:
    """Found out before anything is begun, and nothing is left open."""
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigError, match=re.escape(str(path))), RequestList(str(path), headers={}):
            pass
    if before:
        assert set(os.listdir("/proc/self/fd")) == before


def test_a_file_of_checksums_as_a_list(file_server: Server, tmp_path: Path, capsys: Capture) -> None:
    """Names are relative to --base; without it the line says what is missing."""
    digest = SHA256.removeprefix("sha256:")
    (tmp_path / "SHA256SUMS").write_text(f"# sums\n{digest}  a.bin\n{digest} *./b.bin\r\nSHA256 (c.bin) = {digest}\n")
    code, value, errors = get(capsys, "-d", "out", "-i", "SHA256SUMS", "--base", file_server.url)
    assert (code, errors, [record["checksum"] for record in value["files"]]) == (0, [], [SHA256] * 3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.bin", "b.bin", "c.bin"]
    (tmp_path / "SHA256SUMS").write_text(f"{digest}  ../a.bin\n{digest}  //host/a.bin\n{digest}  a.bin\n")
    code, value, errors = get(capsys, "-d", "out", "-i", "SHA256SUMS", "--base", file_server.url)
    assert (code, len(errors), sum("error" in record for record in value["files"])) == (1, 2, 2)
    code, _, errors = get(capsys, "-d", "out", "-i", "SHA256SUMS")
    assert (code, "give --base URL" in errors[0]) == (1, True)
    (tmp_path / "list").write_text("a.bin\nsub/../b.bin\tb\n")
    assert get(capsys, "-d", "out", "-i", "list", "--base", file_server.url)[0] == 0


def test_checksums_of_all_files(file_server: Server, tmp_path: Path, capsys: Capture) -> None:
    """From a file or a URL, for URLs on the command line and in lists; the line's own goes first."""
    digest = SHA256.removeprefix("sha256:")
    sums = f"{digest}  a.bin\n{'0' * 64}  b.bin\n"
    (tmp_path / "SHA256SUMS").write_text(sums)
    (tmp_path / "site/SHA256SUMS").write_text(sums)
    (tmp_path / "list").write_text(f"{file_server.url}b.bin\t\t{SHA256}\n{file_server.url}c.bin\n")
    for where in ("SHA256SUMS", f"{file_server.url}SHA256SUMS"):
        code, value, errors = get(capsys, "-d", "out", "--checksums", where, f"{file_server.url}a.bin", "-i", "list")
        assert (code, len(errors), "no checksum for 'c.bin'" in errors[0]) == (1, 1, True)
        assert sorted(record["checksum"] or "" for record in value["files"]) == ["", SHA256, SHA256]
        code, _, errors = get(capsys, "-o", "x.bin", "--checksums", where, f"{file_server.url}b.bin")
        assert (code, "checksum mismatch" in errors[0], (tmp_path / "x.bin").exists()) == (1, True, False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--checksums", "none", "https://h/a"), "No such file"),
        (("--checksums", "https://[/", "https://h/a"), "not an http"),
        (("--checksums", "x", "--checksum", SHA256, "https://h/a"), "not both"),
        (("--base", "https://h/", "https://h/a"), "needs -i"),
        (("--base", "host", "-i", "-"), "not an http"),
        (("--key", "k", "https://h/a", "https://h/b"), "--key needs exactly one URL"),
    ],
)
def test_wrong_options_are_found_first(arguments: tuple[str, ...], words: str, capsys: Capture) -> None:
    """Nothing is requested or written."""
    code, _, errors = get(capsys, *arguments)
    assert (code, words in errors[0]) == (2, True), errors
