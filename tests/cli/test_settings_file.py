"""`perfkit.toml`: trees by name."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path

import pytest

from perfkit import CheckFailedError, CommandFailedError, ConfigError, SyncReport, read_trees
from perfkit.cli import command_parser, main
from perfkit.cli.settings_file import read_entries
from tests.support.command import the_object
from tests.support.signing import NEW, OLD, change_pointer
from tests.support.sites import Origin
from tests.support.tools import need_root
from tests.support.trees import ONE, TWO, tree_of

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def trees(cli_origin: Origin, tmp_path: Path) -> Path:
    """A file with two trees of one site, beside which the tests run; a directory below it is the current one."""
    path = tmp_path / "perfkit.toml"
    path.write_text(f"""
        workers = 2
        [trees.one]
        source = "{cli_origin.url}"
        dest = "first"
        check = "test -f {{}}/{next(iter(ONE))}"
        on_change = "cp /dev/stdin changed"
        [trees.two]
        source = "{cli_origin.url}"
        dest = "second"
        min_interval = "1h"
        """)
    return path


def changed_to(path: Path, text: str) -> None:
    path.write_text(f"{path.read_text()}\n{text}\n")


def test_a_named_tree_is_synced_with_its_options(trees: Path, tmp_path: Path, capsys: Capture) -> None:
    """One name is as SOURCE and DEST, with the options of the file; those of the command line come before them."""
    assert main(["sync", "one", "--json"]) == 0
    assert the_object(capsys.readouterr().out).items() >= {"version": "1", "added": len(ONE)}.items()
    assert (tmp_path / "changed").read_text().splitlines() == sorted(ONE)
    assert main(["sync", "one", "--check", "false", "--retry-rejected"]) == 0  # nothing is new, so nothing is checked
    assert main(["status", "one", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == "1"
    assert main(["rollback", "one", "--to", "0", "--quiet"]) == 0
    assert main(["history", "first", "--json"]) == 0


def test_the_command_line_comes_first(trees: Path, tmp_path: Path, cli_origin: Origin) -> None:
    assert main(["sync", "two", "--quiet"]) == 0
    cli_origin.publish(TWO, "2")
    assert main(["sync", "two", "--quiet", "--exit-code"]) == 0
    assert main(["sync", "two", "--quiet", "--exit-code", "--min-interval", "0"]) == 10


def test_all_reports_each_tree(trees: Path, cli_origin: Origin, capsys: Capture) -> None:
    """One object with the report of each; without JSON, each line has the name."""
    assert main(["sync", "--all", "--exit-code", "--json"]) == 10
    found = the_object(capsys.readouterr().out)
    assert {name: each["added"] for name, each in found["trees"].items()} == {"one": len(ONE), "two": len(ONE)}
    assert main(["sync", "one", "two", "--exit-code"]) == 0
    err = capsys.readouterr().err
    assert "perfkit: one: 1, generation 1: 0 added" in err
    assert "perfkit: two: 1: the last sync succeeded" in err
    assert main(["status", "--all", "--metrics", "trees.prom"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("one\n  version     1\n")
    assert "\ntwo\n  version     1\n" in out
    lines = Path("trees.prom").read_text().splitlines()
    assert lines[:3] == [
        "# TYPE perfkit_tree_checked_timestamp_seconds gauge",
        *(line for line in lines if line.startswith("perfkit_tree_checked")),
    ]
    assert main(["verify", "--all", "--quiet"]) == 0


def test_a_failure_stops_no_other(trees: Path, cli_origin: Origin, capsys: Capture) -> None:
    """And the exit code is that of the first that failed."""
    changed_to(trees, f'[trees.aside]\nsource = "{cli_origin.url}"\ndest = "third"\ncheck = "false"')
    text = trees.read_text()
    trees.write_text(text.replace("[trees.one]", '[trees.none]\nsource = "missing.txt"\ndest = "none"\n[trees.one]'))
    assert main(["sync", "--all", "--json"]) == 2
    out, err = capsys.readouterr()
    found = the_object(out)["trees"]
    assert found["none"]["error"]["type"] == "ConfigError"
    assert found["aside"]["error"]["type"] == "CheckFailedError"
    assert found["one"]["version"] == found["two"]["version"] == "1"
    assert "perfkit: error: none: " in err
    assert main(["sync", "aside", "two", "--quiet"]) == 0  # what the check refused is on hold now


def test_paths_are_relative_to_the_config_file(
    trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """From anywhere with --config; paths in the file are relative to it."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["sync", "--all"]) == 2
    assert "no perfkit.toml in the current directory; give it with --config FILE" in capsys.readouterr().err
    assert main(["sync", "two", "--config", "../perfkit.toml", "--quiet"]) == 0
    assert sorted(os.listdir(tmp_path / "second"))[1:] == sorted({name.split("/")[0] for name in ONE})
    assert main(["status", "three", "--config", "../perfkit.toml"]) == 2
    assert "there is no tree 'three'; ../perfkit.toml lists one, two" in capsys.readouterr().err


def test_precedence_of_tree_file_and_environment(trees: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Those of a tree come before those of the file, and the environment before both."""
    changed_to(trees, 'local_changes = "refuse"')
    assert main(["sync", "two", "--quiet"]) == 0
    Path("second", next(iter(ONE))).write_text("edited")
    assert main(["sync", "two", "--min-interval", "0"]) == 1
    assert "1 file with local edits" in capsys.readouterr().err
    monkeypatch.setenv("PERFKIT_LOCAL_CHANGES", "overwrite")
    assert main(["sync", "two", "--min-interval", "0"]) == 0


@pytest.mark.parametrize(("text", "reason"), [
    ("chekc = 'true'", "perfkit.toml: trees.two.chekc: there is no such key; did you mean check?"),
    ("workres = 1", "trees.two.workres: there is no such key; did you mean workers?"),
    ("qqq = 1", "there is no such key; known are "),
    ("json = true", "trees.two.json: there is no such key"),
    ("check = true", "trees.two.check must be text"),
    ("check = ''", "trees.two.check must be text, and not empty"),
    ("null = 'yes'", "trees.two.null must be true or false"),
    ("strip_components = '1'", "trees.two.strip_components must be a whole number"),
    ("links = 'maybe'", "trees.two.links must be one of refuse, skip, follow"),
    ("include = [1]", "trees.two.include must be text"),
    ("workers = 'many'", "trees.two.workers: must be a whole number or None; got 'many'"),
    ("workers = 0", "trees.two: Config.workers must be at least 1"),
    ("rate_limit = 'fast'", "trees.two.rate_limit: 'fast' is not a size"),
    ("[trees.three]\ndest = 'x'", "trees.three: source is missing"),
    ("[trees.three]\nsource = 'x'\ndest = 'second/x'", "trees.three.dest is, or lies in, the directory of trees.two"),
    ("[trees.'a b']\nsource = 'x'\ndest = 'y'", "a tree's name has letters"),
    ("[tree.three]\nsource = 'x'", "perfkit.toml: tree: there is no such key; did you mean trees?"),
    ("= 3", "perfkit.toml is not TOML: "),
])  # fmt: skip
def test_mistakes_are_named_with_their_place(text: str, reason: str, trees: Path, capsys: Capture) -> None:
    """Each is named with its place, before anything is done."""
    changed_to(trees, text)
    assert main(["sync", "--all"]) == 2
    assert reason in capsys.readouterr().err
    assert not Path("first").exists()


@pytest.mark.parametrize(("words", "reason"), [
    (["sync"], "names of trees"), (["sync", "one", "--all"], "names of trees"),
    (["status"], "give either trees, or --all"),
    (["sync", "https://h"], "give a SOURCE and a DEST, or names of trees"),
    (["sync", "one", "x"], "there is no tree 'x'; perfkit.toml lists one, two"),
])  # fmt: skip
def test_which_trees(words: list[str], reason: str, trees: Path, capsys: Capture) -> None:
    assert main(words) == 2
    assert reason in capsys.readouterr().err


def test_sources_of_other_kinds(trees: Path, tmp_path: Path, cli_origin: Origin, capsys: Capture) -> None:
    """Mirrors, a part of a release, a file with its checksums beside this one: under the names of Django's settings."""
    (tmp_path / "site/feed.gz").write_bytes(packed := gzip.compress(b"1"))
    (tmp_path / "sums").write_text(f"{hashlib.sha256(packed).hexdigest()}  feed.gz\n")
    changed_to(trees, f"""
        [trees.part]
        source = "http://127.0.0.1:1/"
        dest = "part"
        mirrors = ["{cli_origin.url}"]
        include = ["*.py"]
        [trees.feed]
        source = "{cli_origin.url}/feed.gz"
        dest = "feed"
        type = "file"
        checksums = "sums"
        decompress = true
        """)  # fmt: skip
    assert main(["sync", "part", "feed", "--quiet", "--config", str(trees)]) == 0
    assert tree_of(tmp_path / "part") == {name: data for name, data in ONE.items() if name.endswith(".py")}
    assert tree_of(tmp_path / "feed") == {"feed": b"1"}
    capsys.readouterr()
    assert main(["sync", cli_origin.url, "./part", "--include", "*"]) == 0
    assert main(["sync", cli_origin.url, "./part", "--exclude", "*.py"]) == 0
    assert "selected as before" not in capsys.readouterr().err
    assert main(["sync", cli_origin.url, "./part"]) == 0
    assert "selected as before: -*.py (--include '*' selects all)" in capsys.readouterr().err


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the file's directory, wherever the command runs, or from the user's home."""
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "perfkit.toml").write_text("""
        ca_bundle = "ca.pem"
        [trees.one]
        source = "~/list"
        dest = "~/one"
        client_cert = ["c.pem", "~/k.pem"]
        [trees.two]
        source = "HTTP://h/"
        dest = "/two"
        ca_bundle = "system"
        """)
    one, two = read_entries(str(tmp_path / "perfkit.toml"), command_parser().commands()["sync"].filled()).values()
    assert (one.source, one.dest, two.source, two.dest) == ("/home/me/list", "/home/me/one", "HTTP://h/", "/two")
    assert one.settings["client_cert"] == (str(tmp_path / "c.pem"), "/home/me/k.pem")
    assert [tree.settings["ca_bundle"] for tree in (one, two)] == [str(tmp_path / "ca.pem"), "system"]


def test_public_keys(trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Each as its line, or as the path of a file, from the file's directory; so many of them have to sign."""
    (tmp_path / "new.pub").write_bytes(NEW.public.encode())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    changed_to(trees, f'public_keys = ["{OLD.public}", "new.pub"]\nthreshold = 2')
    change_pointer(tmp_path / "site", [NEW])
    assert main(["sync", "two", "--config", "../perfkit.toml"]) == 1
    assert f"not signed by 2 of the keys {OLD.public.name}, {NEW.public.name}" in capsys.readouterr().err
    change_pointer(tmp_path / "site", [OLD, NEW], expires_s=1_700_000_000)
    assert main(["sync", "two", "--config", "../perfkit.toml", "--now"]) == 4
    changed_to(trees, "allow_expired = true")
    assert main(["sync", "two", "--config", "../perfkit.toml", "--now"]) == 0
    assert tree_of(tmp_path / "second") == ONE


def test_of_another_owner(trees: Path, capsys: Capture) -> None:
    """Who may write to the current directory could have commands run: only a file that is named is trusted."""
    need_root("to give a file to another user")
    os.lchown(trees, 12345, 12345)
    for words in (["--all"], ["one"]):
        assert main(["sync", *words]) == 2
        assert "perfkit.toml belongs to another user, and may name commands" in capsys.readouterr().err
    assert tree_of(trees.parent / "first") == {}
    assert main(["status", "first"]) == 1  # which it does not name
    assert "is not managed by perfkit" in capsys.readouterr().err
    assert main(["sync", "one", "--config", "perfkit.toml", "--quiet"]) == 0
    assert tree_of(trees.parent / "first") == ONE


def test_no_trees(trees: Path, capsys: Capture) -> None:
    trees.write_text("workers = 2\n")
    assert main(["status", "--all"]) == 2
    assert "perfkit.toml lists no trees" in capsys.readouterr().err


def test_a_broken_file_that_nothing_needs(trees: Path, cli_origin: Origin, capsys: Capture) -> None:
    """With a URL or a path, it is not even read."""
    trees.write_text("= 3")
    assert main(["sync", cli_origin.url, "tree", "--quiet"]) == 0
    assert main(["status", "./tree", "--quiet"]) == 0
    assert main(["status", "tree", "--quiet"]) == 2


def test_named_trees_from_python(trees: Path, cli_origin: Origin, tmp_path: Path) -> None:
    """The same file does the same: settings, check, the least interval, and on_change until it succeeds."""
    (tmp_path / "code").write_text("1")
    changed_to(trees, f'[trees.three]\nsource = "{cli_origin.url}/"\ndest = "third"\nlocal_changes = "refuse"\n'
        """check = "test -f {}/README"\non_change = "sh -c 'exit $(cat code)'"\nmin_interval = "1h"\n""")  # fmt: skip
    tree = read_trees(trees)["three"]
    assert cli_origin.url not in repr(tree)
    with pytest.raises(CommandFailedError, match="exit code 1") as caught:
        tree.sync()
    assert isinstance(caught.value.report, SyncReport)
    assert (caught.value.report.version, tree.status().version) == ("1", "1")
    (tmp_path / "code").write_text("0")
    asked = len(cli_origin.sent)
    assert (tree.sync().requests, len(cli_origin.sent)) == (0, asked)
    assert tree.sync(now=True).requests == 1
    cli_origin.publish({"other": b"x"}, "2")
    with pytest.raises(CheckFailedError):
        tree.sync(now=True)
    assert tree.sync(now=True).held == "2"
    with tree.toolkit() as kit:
        assert kit.config.local_changes == "refuse"
    changed_to(trees, '[trees.four]\nchekc = "true"')
    with pytest.raises(ConfigError, match="did you mean check"):
        read_trees()
