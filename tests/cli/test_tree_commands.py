"""`perfkit status`, `pin` and `unhold`."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from perfkit.cli import main
from perfkit.progress.text import described
from tests.support.command import PERFKIT
from tests.support.sites import Origin
from tests.support.tools import ENVIRONMENT
from tests.support.trees import ONE, TWO

Capture = pytest.CaptureFixture[str]


def test_for_people_and_programs(cli_origin: Origin, capsys: Capture) -> None:
    assert main(["sync", cli_origin.url, "tree", "--quiet"]) == 0
    assert main(["status", "tree"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^version +1$", out, re.MULTILINE)
    assert re.search(r"^checked +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$", out, re.MULTILINE)
    assert "held" not in out
    assert main(["status", "tree", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.items() >= {"version": "1", "generation": 1, "files": len(ONE), "held": None}.items()


def test_max_age(cli_origin: Origin, tmp_path: Path, capsys: Capture) -> None:
    assert main(["sync", cli_origin.url, "tree", "--quiet"]) == 0
    assert main(["status", "tree", "--max-age", "1h"]) == 0
    path = tmp_path / "tree/.perfkit/last-sync"
    path.write_text(json.dumps({"checked_s": json.loads(path.read_text())["checked_s"] - 3601}))
    assert main(["status", "tree", "--max-age", "1h"]) == 1
    assert main(["status", "tree", "--max-age", "2h"]) == 0
    for wrong in ("soon", "-5", "1e300"):
        assert main(["status", "tree", f"--max-age={wrong}"]) == 2
        assert f"{wrong!r} is not a time" in capsys.readouterr().err


def test_metrics(cli_origin: Origin, tmp_path: Path) -> None:
    """Prometheus' text format: a TYPE line and a value for each."""
    assert main(["sync", cli_origin.url, "tree", "--quiet"]) == 0
    assert main(["status", "tree", "--metrics", "tree.prom", "--quiet"]) == 0
    lines = (tmp_path / "tree.prom").read_text().splitlines()
    values = {}
    for about, line in zip(lines[::2], lines[1::2], strict=True):
        match = re.fullmatch(r'(\w+)\{dest="([^"]+)"\} ([0-9.]+)', line)
        assert match is not None
        assert about == f"# TYPE {match[1]} gauge"
        assert match[2] == os.path.abspath("tree")
        values[match[1]] = float(match[3])
    assert values["perfkit_tree_files"] == len(ONE)
    assert values["perfkit_tree_failed"] == values["perfkit_tree_held"] == 0


@pytest.mark.parametrize("which", ["tree", "--all"])
def test_metrics_that_cannot_be_written_are_one_json_object(
    cli_origin: Origin, tmp_path: Path, capsys: Capture, which: str
) -> None:
    """The error alone: programs parse standard output as a whole."""
    assert main(["sync", cli_origin.url, "tree", "--quiet"]) == 0
    (tmp_path / "perfkit.toml").write_text(f'[trees.tree]\nsource = "{cli_origin.url}"\ndest = "tree"\n')
    assert main(["status", which, "--json", "--metrics", "absent/tree.prom"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "FileNotFoundError"


def test_metrics_that_cannot_be_written_name_the_whole_path(cli_origin: Origin, capsys: Capture) -> None:
    assert main(["sync", cli_origin.url, "tree", "--quiet"]) == 0
    assert main(["status", "tree", "--quiet", "--metrics", "/proc/tree.prom"]) == 1
    assert capsys.readouterr().err == "perfkit: error: /proc/tree.prom~: No such file or directory\n"


def test_metrics_where_others_can_write(cli_origin: Origin, tmp_path: Path) -> None:
    """A link that they planted is not followed."""
    assert main(["sync", cli_origin.url, "tree", "--quiet"]) == 0
    (tmp_path / "other").write_text("kept")
    for name in ("tree.prom", "tree.prom~"):
        (tmp_path / name).symlink_to(tmp_path / "other")
    assert main(["status", "tree", "--metrics", "tree.prom", "--quiet"]) == 0
    assert (tmp_path / "other").read_text() == "kept"
    assert not (tmp_path / "tree.prom").is_symlink()
    assert stat.S_IMODE((tmp_path / "tree.prom").stat().st_mode) == 0o644


def test_pin_and_unhold(cli_origin: Origin, capsys: Capture) -> None:
    assert main(["sync", cli_origin.url, "tree", "--quiet"]) == 0
    assert main(["pin", "tree", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"pinned": "1"}
    cli_origin.publish(TWO, "2")
    assert main(["sync", cli_origin.url, "tree", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == "1"
    assert main(["sync", cli_origin.url, "tree"]) == 0
    assert capsys.readouterr().err.endswith("; the tree is pinned\n")
    assert main(["status", "tree"]) == 0
    assert "1, pin, since" in capsys.readouterr().out
    assert main(["unhold", "tree"]) == 0
    assert capsys.readouterr().err == "perfkit: tree is no longer pinned\n"
    assert main(["unhold", "tree"]) == 0
    assert "nothing was on hold" in capsys.readouterr().err
    assert main(["sync", cli_origin.url, "tree", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == "2"


def test_hold_names_the_version_passed_over(cli_origin: Origin, capsys: Capture) -> None:
    assert main(["sync", cli_origin.url, "tree", "--quiet"]) == 0
    assert main(["hold", "tree", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"held": "2"}
    assert main(["status", "tree"]) == 0
    assert "2, hand, since" in capsys.readouterr().out
    cli_origin.publish(TWO, "2")
    assert main(["sync", cli_origin.url, "tree", "--dry-run"]) == 0
    assert "; 2 is on hold" in capsys.readouterr().err


def test_rollback_without_hold(cli_origin: Origin, capsys: Capture) -> None:
    assert main(["sync", cli_origin.url, "tree", "--quiet"]) == 0
    cli_origin.publish(TWO, "2")
    assert main(["sync", cli_origin.url, "tree", "--quiet"]) == 0
    assert main(["rollback", "tree", "--no-hold", "--quiet"]) == 0
    assert main(["sync", cli_origin.url, "tree", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == "2"


@pytest.mark.parametrize("command", ["status", "pin", "unhold"])
def test_no_tree(command: str, tmp_path: Path, capsys: Capture) -> None:
    assert main([command, "nothing"]) == 1
    assert "nothing is not managed by perfkit" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["rollback", "verify --repair", "prune", "hold 7", "pin", "unhold", "sync"])
def test_system_errors_name_the_tree(cli_origin: Origin, tmp_path: Path, capsys: Capture, command: str) -> None:
    """And what is in the way; in JSON, too."""
    assert main(["sync", cli_origin.url, "tree", "--quiet"]) == 0
    (tmp_path / "tree/.perfkit/lock").unlink()
    (tmp_path / "tree/.perfkit/lock").mkdir()
    name, *options = command.split()
    source = [cli_origin.url] if command == "sync" else []
    assert main([name, *source, "tree", *options, "--json"]) == 1
    printed = capsys.readouterr()
    assert printed.err == f"perfkit: error: {tmp_path}/tree/.perfkit/lock: Is a directory\n"
    message = f"{tmp_path}/tree/.perfkit/lock: Is a directory"
    assert json.loads(printed.out) == {"error": {"type": "IsADirectoryError", "message": message}}


def test_a_directory_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["get", "http://127.0.0.1:1/x"]) == main(["verify", "tree"]) == 1
    message = "perfkit: error: the current directory was removed; change to another one\n"
    assert capsys.readouterr().err == 2 * message


@pytest.mark.parametrize(("code", "remedy"), [
    (errno.EACCES, "run it as the owner"), (errno.EROFS, "mount it writable"), (errno.ENOSPC, "free some space"),
    (errno.EFBIG, "its file system, or a limit"),
    (errno.EEXIST, "remove or rename what is there"), (errno.ELOOP, "remove the symbolic link"),
])  # fmt: skip
def test_what_to_do_about_a_system_error(code: int, remedy: str) -> None:
    assert described(OSError(code, os.strerror(code), "tree/a")).startswith(f"tree/a: {os.strerror(code)}; {remedy}")
    assert described(OSError("said otherwise")) == "said otherwise"
    assert described(OSError(code, "a device; choose a file", "tree/a")) == "tree/a: a device; choose a file"


def test_names_that_the_locale_cannot_encode(cli_origin: Origin, tmp_path: Path) -> None:
    """They are refused before anything changes, and elsewhere shown as escapes."""
    locale = {**ENVIRONMENT, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    locale["PYTHONIOENCODING"] = ""  # tox sets it
    cli_origin.publish({"a": b"1", "d/\xe9": b"2"}, "2")

    def run(*arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [*PERFKIT, *arguments], env=locale, capture_output=True, text=True, timeout=100, check=False
        )
        return done.returncode, done.stdout, done.stderr

    code, _, error = run("sync", cli_origin.url, "tree", "--quiet")
    assert (code, error.count("\n")) == (1, 1)
    assert error.endswith("the locale's encoding, ascii, lacks '\\xe9'; set PYTHONUTF8=1\n")
    assert main(["sync", cli_origin.url, "tree", "--quiet"]) == 0
    (tmp_path / "tree/d/\xe9").unlink()
    assert run("verify", "tree", "--progress", "none")[:2] == (1, "missing d/\\xe9\n")
