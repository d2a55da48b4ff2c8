"""`perfkit publish`, `sync`, `rollback`, `history` and `verify`: what they print where, and how they end."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perfkit.cli import main
from tests.support.kits import SOON_S
from tests.support.sites import Origin
from tests.support.trees import ONE, TWO, edit, tree_of, write_tree
from tests.support.warm import WarmPython

Capture = pytest.CaptureFixture[str]
Run = Callable[..., dict[str, Any]]

SYNC_KEYS = {
    "version",
    "generation",
    "route",
    "requests",
    "bytes_received",
    "bytes_written",
    "added",
    "changed",
    "removed",
    "unchanged",
    "seconds",
}


@pytest.fixture
def run(capsys: Capture) -> Run:
    """Run a command with `--json`: one object on standard output and nothing else, and this exit code."""

    def run(*arguments: str, code: int = 0) -> dict[str, Any]:
        assert main([*arguments, "--json"]) == code
        out = capsys.readouterr().out
        assert out.endswith("\n")
        assert out.count("\n") == 1
        found: dict[str, Any] = json.loads(out)
        return found

    return run


def test_a_tree_s_life_in_json(cli_origin: Origin, run: Run, tmp_path: Path) -> None:
    """Publish, dry run, sync, edit, verify, repair, roll back, history: the keys that scripts rely on."""
    write_tree(tmp_path / "src", TWO)
    assert run("sync", cli_origin.url, "tree").items() >= {"version": "1", "generation": 1, "added": len(ONE)}.items()
    release = run("publish", "src", "site", "--version", "2")
    assert release.items() >= {"version": "2", "number": 2, "files": len(TWO), "unchanged": False}.items()
    assert run("publish", "src", "site", "--version", "2")["unchanged"] is True
    planned = run("sync", cli_origin.url, "tree", "--dry-run")
    assert (planned["version"], planned["installed_version"]) == ("2", "1")
    assert sorted(planned["added"]) == ["moved/b.py", "pkg/new.py"]
    assert tree_of(tmp_path / "tree") == ONE
    done = run("sync", cli_origin.url, "tree")
    assert done.keys() >= SYNC_KEYS | {"previous_version", "saved_as", "overwritten"}
    assert (
        done.items()
        >= {
            "version": "2",
            "generation": 2,
            "route": planned["route"],
            "added": 2,
            "changed": 2,
            "removed": 2,
            "unchanged": 3,
        }.items()
    )
    assert done["bytes_received"] > 0
    assert run("sync", cli_origin.url, "tree").items() >= {"route": "none", "requests": 1, "bytes_received": 0}.items()
    edit(tmp_path / "tree/README", b"mine\n")
    report = run("verify", "tree", code=1)
    assert (report["changed"], report["missing"], report["extra"], report["intact"]) == (["README"], [], [], False)
    report = run("verify", "tree", "--repair")
    assert report["repaired"].keys() >= SYNC_KEYS
    assert report["repaired"]["saved_as"] == {"README": "README.perfkit-local"}
    assert report["intact"] is True
    assert run("verify", "tree")["extra"] == ["README.perfkit-local"]
    back = run("rollback", "tree")
    assert back.keys() >= SYNC_KEYS
    assert back.items() >= {"version": "1", "generation": 1, "route": "rollback", "requests": 0}.items()
    assert tree_of(tmp_path / "tree") == {**ONE, "README.perfkit-local": b"mine\n"}
    assert run("rollback", "tree", "--to", "2")["version"] == "2"
    generations = run("history", "tree")["generations"]
    assert [each["number"] for each in generations] == [0, 1, 2]
    assert generations[2].keys() >= {"number", "label", "created_s", "current", "added", "changed", "removed"}
    assert generations[2]["label"]["version"] == "2"
    assert generations[2]["current"] is True


def test_for_people(cli_origin: Origin, capsys: Capture, tmp_path: Path) -> None:
    """Results of history and verify on standard output, all notes on standard error; `--quiet` silences these."""
    assert main(["sync", cli_origin.url, "tree"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"1, generation 1: {len(ONE)} added" in shown.err
    cli_origin.publish(TWO, "2")
    edit(tmp_path / "tree/pkg/a.py", b"mine\n")
    assert main(["sync", cli_origin.url, "tree"]) == 0
    assert "pkg/a.py had local edits, which are kept as pkg/a.py.perfkit-local" in capsys.readouterr().err
    assert main(["history", "tree"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert [line[:6].split() for line in shown.out.splitlines()] == [["0"], ["1"], ["*", "2"]]
    assert "2  +2 ~" in shown.out
    edit(tmp_path / "tree/README", b"mine\n")
    (tmp_path / "tree/pkg/new.py").unlink()
    assert main(["verify", "tree"]) == 1
    assert capsys.readouterr().out == "missing pkg/new.py\nchanged README\nextra pkg/a.py.perfkit-local\n"
    for command in (["verify", "tree", "--repair"], ["rollback", "tree"], ["sync", cli_origin.url, "tree"]):
        assert main([*command, "--quiet"]) == 0
        shown = capsys.readouterr()
        assert (shown.out, shown.err) == ("", "")


@pytest.mark.parametrize(
    ("command", "told"),
    [(["rollback", "nothing"], "nothing is not managed by perfkit"),
     (["history", "nothing"], "nothing is not managed by perfkit"),
     (["verify", "nothing"], "nothing is not managed by perfkit"),
     (["rollback", "tree", "--to", "7"], "generation 7 is not kept; choose one of 0, 1"),
     (["sync", "URL/elsewhere", "tree"], "404: there is no site of releases at URL/elsewhere/"),
     (["sync", "URL", "tree", "--channel", "nightly"], "404: there is no site with a channel 'nightly' at URL/")],
)  # fmt: skip
def test_what_fails(cli_origin: Origin, capsys: Capture, command: list[str], told: str) -> None:
    """Exit code 1, and one line that says what and where, also with `--quiet`; the tree is as it was."""
    assert main(["sync", cli_origin.url, "tree", "--quiet"]) == 0
    capsys.readouterr()
    command = [word.replace("URL", cli_origin.url) for word in command]
    assert main([*command, "--quiet"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert shown.err.startswith("perfkit: error: ")
    assert told.replace("URL", cli_origin.url) in shown.err
    assert tree_of(cli_origin.root / "tree") == ONE


@pytest.mark.parametrize(
    ("command", "code", "kind"),
    [(["rollback", "nothing"], 1, "UpdateError"),
     (["rollback", "tree", "--to", "7"], 1, "RollbackError"),
     (["history", "nothing"], 1, "UpdateError"),
     (["verify", "nothing"], 1, "UpdateError"),
     (["sync", "URL/elsewhere", "tree"], 1, "HTTPStatusError"),
     (["sync", "URL/elsewhere", "tree", "--dry-run"], 1, "HTTPStatusError"),
     (["sync", "URL", "tree", "--limit-rate", "fast"], 2, "ConfigError"),
     (["sync", "URL", "tree", "--strip-components", "-1"], 2, "ConfigError"),
     (["publish", "src", "src/site", "--version", "1"], 2, "ConfigError"),
     (["publish", "src", "README", "--version", "1", "--watch"], 1, "NotADirectoryError"),
     (["serve", "nothing"], 2, "ConfigError"),
     (["keygen", "README"], 2, "ConfigError"),
     (["get"], 2, "ConfigError"),
     (["get", "-i", "nothing"], 2, "ConfigError")],
)  # fmt: skip
def test_what_fails_in_json(cli_origin: Origin, capsys: Capture, command: list[str], code: int, kind: str) -> None:
    """One object on standard output, of one shape for all commands, that has what standard error says."""
    assert main(["sync", cli_origin.url, "tree", "--quiet"]) == 0
    (cli_origin.root / "README").touch()
    capsys.readouterr()
    assert main([*(word.replace("URL", cli_origin.url) for word in command), "--json", "--quiet"]) == code
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert error.keys() == {"type", "message"}
    assert error["type"] == kind
    assert err == f"perfkit: error: {error['message']}\n"
    if command[0] != "get":  # it also prints the files that were complete
        assert json.loads(out).keys() == {"error"}


@pytest.mark.parametrize(
    "command", [["sync"], ["sync", "URL"], ["rollback", "tree", "--to", "x"], ["history"], ["publish", "src", "site"],
                ["sync", "URL", "tree", "--limit-rate", "fast"], ["publish", "src", "src/site", "--version", "1"],
                ["publish", "nothing", "site", "--version", "1"]],
)  # fmt: skip
def test_bad_usage(cli_origin: Origin, capsys: Capture, command: list[str]) -> None:
    """Exit code 2, and one line."""
    try:
        code = main([word.replace("URL", cli_origin.url) for word in command])
    except SystemExit as error:
        code = int(str(error.code))
    assert code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_edit_can_be_refused(cli_origin: Origin, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the environment, as the help says."""
    main(["sync", cli_origin.url, "tree", "--quiet"])
    edit(cli_origin.root / "tree/README", b"mine\n")
    monkeypatch.setenv("PERFKIT_LOCAL_CHANGES", "refuse")
    for command in (["sync", cli_origin.url, "tree"], ["rollback", "tree", "--to", "0"]):
        capsys.readouterr()
        assert main([*command, "--quiet"]) == 1
        assert "README" in capsys.readouterr().err
    assert tree_of(cli_origin.root / "tree") == {**ONE, "README": b"mine\n"}


def test_ctrl_c(cli_origin: Origin, warm_python: WarmPython) -> None:
    """Exit code 130 soon; the tree is as it was, and the same command goes on."""
    cli_origin.publish(TWO, "2")
    cli_origin.stall_at = 5000
    command = ["sync", cli_origin.url, "tree", "--quiet"]
    process = warm_python.start("-m", "perfkit", *command, stderr=subprocess.PIPE, text=True)
    assert cli_origin.stalled.wait(100)
    began_s = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130
    assert time.monotonic() - began_s < SOON_S
    assert "Traceback" not in err
    assert tree_of(cli_origin.root / "tree") == {}
    cli_origin.stall_at = None
    assert main(command) == 0
    assert tree_of(cli_origin.root / "tree") == TWO
