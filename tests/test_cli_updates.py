"""`perfkit sync`, `rollback`, `history` and `verify` as people and scripts see them, in one story."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perfkit import Toolkit
from perfkit.cli import main
from perfkit.serve import Server
from tests.test_publish import FIRST, edited
from tests.test_updater import publish, tree_of

SECOND = edited(FIRST, 1)
REPORT = {"version", "generation", "route", "requests", "bytes_received", "bytes_written", "added", "changed",
          "removed", "unchanged", "seconds"}  # fmt: skip


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A command line: its exit code, what it wrote to standard output, and to standard error."""

    def command(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        written = capsys.readouterr()
        return code, written.out, written.err

    return command


def test_the_life_of_a_tree_in_words(kit: Toolkit, tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    """Install, look, damage, verify, repair, update past an edit, go back: each tells what it did."""
    tree = tmp_path / "tree"
    with Server(publish(kit, tmp_path, FIRST, "one")) as server:
        code, out, err = run("sync", server.url, tree)
        assert (code, out) == (0, "")
        assert err.startswith(f"perfkit: one, generation 1: {len(FIRST)} added, 0 changed, 0 removed; ")
        (tree / "README").unlink()
        (tree / "pkg/a.py").write_bytes(b"mine\n")
        (tree / "extra").write_bytes(b"")
        assert run("verify", tree)[:2] == (1, "missing README\nchanged pkg/a.py\nextra extra\n")
        code, _, err = run("verify", tree, "--repair")
        assert (code, err) == (0, f"perfkit: {len(FIRST)} files: 1 missing, 1 changed, 1 extra; repaired\n")
        (tree / "pkg/a.py").write_bytes(b"mine again\n")
        publish(kit, tmp_path, SECOND, "two")
        code, _, err = run("sync", server.url, tree)
        assert "; pkg/a.py had been edited, and is kept as pkg/a.py.perfkit-local-2\n" in err
    code, out, _ = run("history", tree)
    lines = out.splitlines()
    assert lines[0] == "     0  before the first change"
    assert [line.split()[0] for line in lines[-1:]] == ["*"]
    assert "two" in lines[-1]
    assert lines[-1].endswith("kept")
    code, _, err = run("rollback", tree)
    assert (code, err.split(",")[0]) == (0, "perfkit: one")
    assert "; pkg/a.py is as it had been edited, since the release's own is not kept\n" in err
    assert tree_of(tree).items() >= {**FIRST, "pkg/a.py": b"mine again\n"}.items()
    assert run("rollback", tree, "--to", 0)[2].startswith("perfkit: as it was before the first one, generation 0: ")


def test_the_same_as_json(kit: Toolkit, tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    """One object on standard output and nothing else anywhere; the fields that scripts rely on."""
    tree = tmp_path / "tree"

    def told(*arguments: object) -> Any:
        code, out, err = run(*arguments, "--json", "--quiet")
        assert (code, err) == (0, "")
        return json.loads(out)

    with Server(publish(kit, tmp_path, FIRST, "one")) as server:
        report = told("sync", server.url, tree)
        assert report.keys() >= REPORT
        assert (report["version"], report["route"], report["added"]) == ("one", "blocks", len(FIRST))
        publish(kit, tmp_path, SECOND, "two")
        assert told("sync", server.url, tree)["route"] == "delta"
    report = told("rollback", tree)
    assert report.keys() >= REPORT
    assert (report["version"], report["generation"], report["requests"]) == ("one", 1, 0)
    generations = told("history", tree)["generations"]
    assert [(each["number"], each["current"]) for each in generations] == [(0, False), (1, True), (2, False)]
    assert generations[2].keys() >= {"label", "created_s", "added", "changed", "removed", "bytes_kept"}
    assert told("verify", tree)["intact"] is True


def test_what_can_not_be_done_is_an_error_in_a_line(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    """Exit code 1 for the work, 2 for the usage."""
    (tmp_path / "plain").mkdir()
    for command in ("rollback", "history", "verify"):
        code, out, err = run(command, tmp_path / "plain")
        assert (code, out) == (1, "")
        assert err.startswith("perfkit: error: ")
        assert err.count("\n") == 1
    code, _, err = run("sync", "http://127.0.0.1:1/", tmp_path / "tree", "--type", "nonsense")
    assert (code, err.count("\n")) == (2, 1)
