"""The Django app, in this process: the commands through `call_command`, tasks, and the signal."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import django
import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.test import override_settings

from perfkit import ConfigError, LockedError, StagedTree, SyncReport, Toolkit, TransferError
from perfkit.contrib.django import tasks, trees
from perfkit.contrib.django.management import ToolkitCommand
from perfkit.contrib.django.signals import ReceiverError, tree_updated
from perfkit.server.server import Server
from tests.support.django_commands import FIRST, SECOND, Site, failure, run
from tests.support.signing import NEW, OLD, change_pointer
from tests.support.terminal import Terminal
from tests.support.trees import tree_of


@pytest.fixture
def receive() -> Iterator[Callable[[Callable[..., None]], None]]:
    """Connects receivers for the time of a test."""
    with contextlib.ExitStack() as stack:

        def connect(receiver: Callable[..., None]) -> None:
            tree_updated.connect(receiver, weak=False)
            stack.callback(tree_updated.disconnect, receiver)

        yield connect


@pytest.fixture
def told(receive: Callable[..., None]) -> list[tuple[str, str, int]]:
    """What a receiver was called with: name, version and generation."""
    found: list[tuple[str, str, int]] = []

    def note(name: str, dest: str, report: SyncReport, **_: Any) -> None:
        assert Path(dest).is_dir()
        found.append((name, report.version, report.generation))

    receive(note)
    return found


# -- sync, status, rollback --------------------------------------------------------------------------------------------


def test_a_tree_follows_its_source_and_goes_back(published: Site, told: list[Any]) -> None:
    """Dry run, first sync, nothing new, an update, status in between, rollback: each prints what it did."""
    out, _ = run("perfkit_sync", "rules", dry_run=True, verbosity=2)
    assert out.startswith("rules: 1: 20 added, 0 changed, 0 removed; 20 files to fetch")
    assert "  + 07.rules\n" in out
    assert not published.dest.exists()
    assert "version     nothing is installed" in run("perfkit_status")[0]
    assert told == []

    out, err = run("perfkit_sync", "rules")
    assert out.startswith("rules: 1, generation 1: 20 added, 0 changed, 0 removed; ")
    assert (err, tree_of(published.dest), told) == ("", FIRST, [("rules", "1", 1)])
    assert "; 20 unchanged; " in run("perfkit_sync", all=True)[0]
    assert "rules: 1: 0 added, 0 changed, 0 removed; " in run("perfkit_sync", "rules", dry_run=True)[0]

    published.publish("2", SECOND)
    (published.dest / "03.rules").write_bytes(b"mine\n")
    assert "03.rules had local edits, which are kept as 03.rules.perfkit-local" in run("perfkit_sync", "rules")[0]
    (record,) = json.loads(run("perfkit_status", "rules", json=True)[0])["trees"]
    assert (record["version"], record["generation"], record["state"]) == ("2", 2, "installed")
    assert record["receivers_notified"] is True
    assert record["changed"].endswith("+00:00")
    assert [each["number"] for each in record["generations"]] == [0, 1, 2]
    assert re.search(r"  \*    2  .*  2  \+1 ~1 -0", run("perfkit_status")[0])

    assert run("perfkit_rollback", "rules")[0].startswith("rules: 1, generation 1: ")
    assert told == [("rules", "1", 1), ("rules", "2", 2), ("rules", "1", 1)]
    assert run("perfkit_rollback", "rules", to=2, verbosity=0) == ("", "")
    assert (published.dest / "new.rules").exists()


def test_several_trees_of_which_one_fails(published: Site, told: list[Any]) -> None:
    """The others have their turn, and the command fails at the end."""
    entry = {"SOURCE": published.url, "DEST": published.dest}
    nothing = {"SOURCE": f"{published.url}nothing/", "DEST": published.root / "nothing"}
    with override_settings(PERFKIT={"TREES": {"nothing": nothing, "rules": entry}, "RETRIES": 0}):
        out, err = io.StringIO(), io.StringIO()
        with pytest.raises(CommandError, match="1 of 2 trees failed"):
            call_command("perfkit_sync", "--all", stdout=out, stderr=err)
        assert err.getvalue().startswith(f"nothing: {published.url}nothing/")
        assert told == [("rules", "1", 1)]
        assert failure("perfkit_sync", "nothing")[0] == 1
        assert json.loads(run("perfkit_status", json=True)[0])["trees"][0]["state"] == "absent"


def test_signed_releases(published: Site) -> None:
    """`PUBLIC_KEYS` and `THRESHOLD` say who has to sign the releases of a tree; also for a dry run."""
    entry = {"SOURCE": published.url, "DEST": published.dest, "PUBLIC_KEYS": [str(OLD.public), str(NEW.public)]}
    with override_settings(PERFKIT={"TREES": {"rules": {**entry, "THRESHOLD": 2}}, "RETRIES": 0}):
        assert "not signed by 2 of the keys" in failure("perfkit_sync", "rules")[1]
        assert "not signed by 2 of the keys" in failure("perfkit_sync", "rules", dry_run=True)[1]
        change_pointer(published.root / "site", [OLD, NEW])
        run("perfkit_sync", "rules")
    assert tree_of(published.dest) == FIRST


def test_invalid_usage(published: Site) -> None:
    """Return code 2 with the valid choices for invalid usage; 1 for a tree without an earlier release."""
    assert failure("perfkit_sync") == (2, "give names of trees or --all; the trees are rules")
    assert failure("perfkit_sync", "rules", "--all")[0] == 2
    assert "it has rules" in failure("perfkit_sync", "rule")[1]
    assert failure("perfkit_status", "rule")[0] == failure("perfkit_rollback", "rule")[0] == 2
    assert failure("perfkit_sync", "rules", "--limit-rate", "fast")[0] == 2
    assert failure("perfkit_sync", "rules", "--workers", "0")[0] == 2
    code, message = failure("perfkit_rollback", "rules")
    assert (code, "sync the tree 'rules' first" in message, published.dest.exists()) == (1, True, False)
    run("perfkit_sync", "rules")
    assert failure("perfkit_rollback", "rules", "--to", "9")[0] == 1


# -- the signal --------------------------------------------------------------------------------------------------------


def test_a_failed_receiver_is_reported_and_called_again(published: Site, receive: Callable[..., None]) -> None:
    """The change stays, the others are called, the command ends with 3, and the next sync makes up for it."""
    calls: list[str] = []

    def breaks(report: SyncReport, **_: Any) -> None:
        calls.append("breaks")
        if calls.count("breaks") == 1:
            raise ValueError("line 3 of 07.rules")

    receive(breaks)
    receive(lambda **_: calls.append("other"))
    code, message = failure("perfkit_sync", "rules")
    assert code == 3
    assert "breaks: ValueError: line 3 of 07.rules" in message
    assert "is at 1 (generation 1)" in message
    assert (tree_of(published.dest), calls) == (FIRST, ["breaks", "other"])
    assert "some receivers of tree_updated have not processed this generation" in run("perfkit_status")[0]
    assert "; 20 unchanged; " in run("perfkit_sync", "rules")[0]
    assert calls == ["breaks", "other"] * 2
    run("perfkit_sync", "rules")
    assert calls == ["breaks", "other"] * 2


def test_a_transaction_of_the_caller(published: Site, receive: Callable[..., None]) -> None:
    """It stays open, and what a receiver has written in it goes with it; then all receivers are called again."""

    def load(report: Any, **_: Any) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("INSERT INTO loaded VALUES (%s)", [report.version])

    receive(load)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE loaded (version TEXT)")
    with transaction.atomic():
        trees.sync("rules")
        transaction.set_rollback(True)
    assert not trees.status("rules").receivers_notified
    with transaction.atomic():
        trees.sync("rules")
        assert not trees.status("rules").receivers_notified
    assert trees.status("rules").receivers_notified
    trees.sync("rules")
    with connection.cursor() as cursor:
        cursor.execute("SELECT version FROM loaded")
        assert cursor.fetchall() == [("1",)]
    transaction.set_autocommit(False)  # the other way to begin one
    before = connection.connection
    trees.rollback("rules", to=0)
    assert connection.connection is before
    transaction.set_autocommit(True)
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE loaded")


def test_a_rollback_after_a_failed_receiver_is_announced(published: Site, receive: Callable[..., None]) -> None:
    """The receivers knew the first generation, and may have half of the second since."""
    versions: list[str] = []

    def load(report: SyncReport, **_: Any) -> None:
        versions.append(report.version)
        if report.version == "2":
            raise KeyboardInterrupt  # nothing catches that, as nothing would a kill

    receive(load)
    trees.sync("rules")
    published.publish("2", SECOND)
    with pytest.raises(KeyboardInterrupt):
        trees.sync("rules")
    trees.rollback("rules")
    assert versions == ["1", "2", "1"]


def test_a_tree_updated_by_another_process_is_announced(published: Site, told: list[Any]) -> None:
    """Such as the `perfkit` command, which sends no signal: the next sync does, with nothing new there."""
    published.kit.sync(published.url, published.dest)
    assert told == []
    assert trees.sync("rules").route == "none"
    assert told == [("rules", "1", 1)]


def test_a_receiver_may_take_its_tree_back(published: Site, receive: Callable[..., None], told: list[Any]) -> None:
    """A receiver can roll back a release that it can't use; all receivers are called for the rollback."""

    def refuse(report: SyncReport, **_: Any) -> None:
        if report.version == "2":
            trees.rollback("rules")

    receive(refuse)
    trees.sync("rules")
    published.publish("2", SECOND)
    trees.sync("rules")
    assert tree_of(published.dest) == FIRST
    assert ("rules", "1", 1) in told[1:]
    assert trees.status("rules").receivers_notified


def test_sources_of_other_kinds(published: Site, tmp_path: Path) -> None:
    """A part of a release from a mirror; a file that is decompressed, and checked by its checksum."""
    packed = gzip.compress(b"id\n1\n")
    (tmp_path / "site/feed.csv.gz").write_bytes(packed)
    (tmp_path / "sums").write_text(f"{hashlib.sha256(packed).hexdigest()}  feed.csv.gz\n")
    part = {"SOURCE": "http://127.0.0.1:1/", "DEST": tmp_path / "part", "MIRRORS": [published.url], "INCLUDE": ["0*"]}
    feed = {
        "SOURCE": f"{published.url}feed.csv.gz",
        "DEST": tmp_path / "feed",
        "CHECKSUMS": tmp_path / "sums",
        "DECOMPRESS": True,
    }
    with override_settings(PERFKIT={"TREES": {"part": part, "feed": feed}, "RETRIES": 0}):
        assert trees.plan("part").added == tuple(name for name in FIRST if name.startswith("0"))
        assert (trees.sync("part").added, trees.sync("feed").added) == (10, 1)
    assert tree_of(tmp_path / "feed") == {"feed.csv": b"id\n1\n"}


def refuse_two(staged: StagedTree) -> None:
    if staged.version == "2":
        raise ValueError("two is bad")


def test_a_check_refuses_a_release(published: Site, told: list[Any]) -> None:
    """Nothing changes, and later syncs pass over it; a rollback holds the release that it leaves."""
    rules = settings.PERFKIT["TREES"]["rules"]
    trees.sync("rules")
    published.publish("2", SECOND)
    checked = {"TREES": {"rules": {**rules, "CHECK": f"{__name__}.refuse_two"}}, "RETRIES": 0}
    with override_settings(PERFKIT=checked):
        code, message = failure("perfkit_sync", "rules")
        assert (code, "two is bad" in message) == (1, True)
        assert trees.sync("rules").held == "2"
    assert tree_of(published.dest) == FIRST
    assert told == [("rules", "1", 1)]
    assert trees.sync("rules", retry_rejected=True).version == "2"
    trees.rollback("rules")
    assert trees.sync("rules").held == "2"
    trees.rollback("rules", to=2)
    trees.rollback("rules", hold=False)
    assert trees.sync("rules").version == "2"


def test_two_at_once(published: Site, receive: Callable[..., None]) -> None:
    """The second says that it won't, or waits until the receivers of the first have ended too."""
    begun, go_on, calls = threading.Event(), threading.Event(), []

    def slow(report: SyncReport, **_: Any) -> None:
        calls.append(report.version)
        begun.set()
        assert go_on.wait(100)

    receive(slow)
    first = threading.Thread(target=trees.sync, args=["rules"])
    first.start()
    assert begun.wait(100)
    code, message = failure("perfkit_sync", "rules", wait=0.2)
    assert (code, "is being changed" in message) == (1, True)
    with pytest.raises(LockedError):
        trees.rollback("rules")
    reports: list[SyncReport] = []
    second = threading.Thread(target=lambda: reports.append(trees.sync("rules", wait_s=60)))
    second.start()
    go_on.set()
    first.join(100)
    second.join(100)
    assert ([report.route for report in reports], calls) == (["none"], ["1"])


def test_a_writer_without_django_is_waited_for(published: Site) -> None:
    """The tree's own lock counts as well; `perfkit_status` needs none."""
    run("perfkit_sync", "rules")
    with published.kit.transaction(published.dest):
        assert failure("perfkit_sync", "rules")[0] == 1
        assert "generation  1, since " in run("perfkit_status")[0]
        thread = threading.Thread(target=trees.sync, args=["rules"], kwargs={"wait_s": 100})
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
    thread.join(100)
    assert not thread.is_alive()


# -- custom commands, and what all commands share ----------------------------------------------------------------------


class Mirror(ToolkitCommand):
    def run(self, kit: Toolkit, **options: Any) -> str | None:
        self.kit = kit
        kit.download_many(options["urls"], options["where"])
        return "mirrored"

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("urls", nargs="*")
        parser.add_argument("--where")


def test_a_custom_command(published: Site) -> None:
    """It has the options without asking, a Toolkit with settings and options in it, and its errors become failures."""
    command = Mirror()
    (published.root / "site/file").write_bytes(b"x" * 1000)
    options = {"where": published.root / "out", "stdout": io.StringIO(), "limit_rate": 5_000_000}
    call_command(command, f"{published.url}file", "--workers", "2", **options)
    assert options["stdout"].getvalue() == "mirrored\n"
    assert (published.root / "out/file").read_bytes() == b"x" * 1000
    config = command.kit.config
    assert (config.workers, config.connections_per_host, config.rate_limit, config.retries) == (2, 2, 5_000_000, 0)
    with pytest.raises(ConfigError, match="closed"):
        command.kit.download(published.url, published.root / "late")
    for wrong in ({"workers": "2"}, {"limit_rate": "-1"}, {"limit_rate": 0}):
        with pytest.raises(CommandError) as caught:
            call_command(command, **wrong)
        assert caught.value.returncode == 2
    with pytest.raises(CommandError, match=r"1 of 1 failed:\n  .*404") as caught:
        call_command(command, f"{published.url}missing", where=published.root)
    assert caught.value.returncode == 1
    assert type(caught.value.__cause__).__name__ == "BatchError"
    with pytest.raises(CommandError, match="Not a directory") as caught:
        call_command(command, f"{published.url}file", where=published.root / "out/file/below")


def test_the_download_command_fetches_once(published: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into the current directory or the given one; a second time nothing is fetched."""
    (published.root / "site/file").write_bytes(b"x" * 1000)
    monkeypatch.chdir(published.root)
    assert "file  1000 bytes" in run("perfkit_download", f"{published.url}file")[0]
    assert run("perfkit_download", f"{published.url}file", "-d", "sub", verbosity=0) == ("", "")
    assert (published.root / "file").read_bytes() == (published.root / "sub/file").read_bytes() == b"x" * 1000
    assert "file  unchanged" in run("perfkit_download", f"{published.url}file")[0]


def test_one_download_of_two_fails(published: Site, tmp_path: Path) -> None:
    """The other one is reported, in JSON as in text."""
    (published.root / "site/file").write_bytes(b"x" * 1000)
    urls = [f"{published.url}missing", f"{published.url}file"]
    for option in ("--json", "--no-color"):
        shown = io.StringIO()
        with pytest.raises(CommandError, match=r"1 of 2 failed:\n.*missing: HTTP status 404"):
            call_command("perfkit_download", *urls, "-d", str(tmp_path / option), option, stdout=shown)
        if option == "--json":
            files = json.loads(shown.getvalue())["files"]
            assert [("error" in each, each["bytes"]) for each in files] == [(True, 0), (False, 1000)]
        else:
            assert shown.getvalue().endswith("file  1000 bytes\n")


def test_download_with_checksums(published: Site, tmp_path: Path) -> None:
    """One on the command line, or those of a file or a URL, as with `perfkit get`."""
    body = b"x" * 1000
    (published.root / "site/file").write_bytes(body)
    right, wrong = hashlib.sha256(body).hexdigest(), "0" * 64
    (published.root / "site/SHA256SUMS").write_text(f"{right}  file\n")
    (tmp_path / "WRONG").write_text(f"{wrong}  file\n")
    url, to = f"{published.url}file", ["-d", str(tmp_path / "out")]
    for bad in (["--checksum", f"sha256:{wrong}"], ["--checksums", str(tmp_path / "WRONG")]):
        with pytest.raises(CommandError, match="sha256"):
            run("perfkit_download", url, *to, *bad)
    assert not (tmp_path / "out/file").exists()
    assert "1000 bytes" in run("perfkit_download", url, *to, "--checksums", f"{published.url}SHA256SUMS")[0]
    assert "unchanged" in run("perfkit_download", url, *to, "--checksum", f"sha256:{right}")[0]
    with pytest.raises(CommandError, match="for a single URL") as caught:
        run("perfkit_download", url, url, *to, "--checksum", f"sha256:{right}")
    assert caught.value.returncode == 2


def test_bars_are_for_terminals(published: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """None in a file unless lines are requested, none with --no-progress or --verbosity 0."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    (published.root / "site/file").write_bytes(b"x" * 300_000)
    args = ["perfkit_download", f"{published.url}file"]
    assert run(*args, directory=published.root / "a")[1] == ""
    assert "1 file, 293.0 KiB in " in run(*args, directory=published.root / "b", verbosity=2)[1]
    with Terminal() as terminal:
        streams = {"stdout": io.StringIO(), "stderr": terminal.stream}
        call_command(*args, directory=published.root / "c", verbosity=0, **streams)
        call_command(*args, directory=published.root / "d", no_progress=True, **streams)
        assert terminal.read() == []
        call_command(*args, directory=published.root / "e", **streams)
        terminal.wait_for("1 file, 293.0 KiB in ")


def test_colours_follow_djangos_options(published: Site) -> None:
    """By Django's own options."""
    run("perfkit_sync", "rules")
    assert "\x1b[" not in run("perfkit_sync", "rules", "--no-color")[0] + run("perfkit_status", "--no-color")[0]
    assert "\x1b[" in run("perfkit_status", "--force-color")[0]


# -- tasks -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(django.VERSION < (6, 0), reason="Django 5.2 has no tasks")
def test_a_sync_is_enqueued(published: Site, told: list[Any]) -> None:
    """With Django's ImmediateBackend: results hold reports, or what went wrong."""
    result = tasks.sync_tree.enqueue("rules")
    assert result.status == "SUCCESSFUL"
    assert result.return_value["version"] == "1"
    published.publish("2", SECOND)
    tasks.sync_tree.enqueue("rules", wait_s=5)
    assert tasks.rollback_tree.enqueue("rules").return_value["version"] == "1"
    assert [version for _, version, _ in told] == ["1", "2", "1"]
    failed = tasks.sync_tree.enqueue("rule")
    assert failed.status == "FAILED"
    assert failed.errors[0].exception_class is ConfigError


@pytest.mark.skipif(django.VERSION >= (6, 0), reason="Django has tasks from 6.0 on")
def test_without_tasks_they_are_functions(published: Site) -> None:
    """For Celery's `shared_task`, or a thread."""
    report = tasks.sync_tree("rules")
    assert json.loads(json.dumps(report)) == report
    assert tasks.rollback_tree("rules", to=0)["generation"] == 0


def test_errors_cross_processes(published: Site) -> None:
    """A ReceiverError survives pickling, as a result backend does it."""
    import pickle

    error = ReceiverError("rules", SyncReport(version="1", generation=1), [("app.load", ValueError("x"))])
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.report) == (str(error), error.report)


def test_no_control_bytes_of_a_server_reach_the_terminal(
    published: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In versions, names, paths and errors."""
    odd = "odd\x1b[2J\x07\x9b1m\u202e"
    (tmp_path / "files").mkdir()
    (tmp_path / "files/a\x9b1m\u202eb").write_bytes(b"x")
    with Server(tmp_path / "files") as server:
        said = [
            run("perfkit_download", f"{server.url}a%C2%9B1m%E2%80%AEb", "-d", str(tmp_path / "down"), "--no-color")[0]
        ]
    installed, status = trees.sync("rules"), trees.status("rules")
    made = dataclasses.replace(installed, version=odd, route="blocks", saved_as={odd: odd}, overwritten=(odd,))
    monkeypatch.setattr(trees, "sync", lambda *args, **options: made)
    monkeypatch.setattr(trees, "rollback", lambda *args, **options: made)
    monkeypatch.setattr(trees, "status", lambda name: dataclasses.replace(status, version=odd))
    said += [
        "".join(run(*each, "--no-color"))
        for each in (
            ("perfkit_sync", "rules"),
            ("perfkit_rollback", "rules"),
            ("perfkit_status",),
            ("perfkit_status", "--json"),
        )
    ]

    def fails(*args: Any, **options: Any) -> None:
        raise TransferError("https://example.org/", odd)

    monkeypatch.setattr(trees, "sync", fails)
    monkeypatch.setattr(trees, "status", fails)
    said.append(failure("perfkit_sync", "rules")[1])
    said.append(failure("perfkit_status", "rules")[1])
    assert sum("odd" in each for each in said) == 6
    assert [line for each in said for line in each.splitlines() if not line.isprintable()] == []
