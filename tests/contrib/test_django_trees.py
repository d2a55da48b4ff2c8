"""Verify, hold, the current release, when a sync is due, JSON, and the view for health checks."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.test import RequestFactory, override_settings

from perfkit import ConfigError
from perfkit.contrib.django import trees
from perfkit.contrib.django.views import health
from tests.support.django_commands import FIRST, SECOND, Site, failure, run
from tests.support.trees import tree_of


def answer(command: str, *args: str) -> list[dict[str, Any]]:
    """What a command prints with --json; nothing else is on standard output."""
    out, _ = run(command, *args, "--json")
    found: list[dict[str, Any]] = json.loads(out)["trees"]
    return found


def with_tree(**entry: object) -> override_settings:
    """The settings, with more keys for the tree."""
    rules = {**settings.PERFKIT["TREES"]["rules"], **entry}
    return override_settings(PERFKIT={"TREES": {"rules": rules}, "RETRIES": 0})


def test_the_verify_command_repairs(published: Site) -> None:
    run("perfkit_sync", "rules")
    assert run("perfkit_verify", "--all")[0].startswith("rules: 20 files: 0 missing, 0 changed, 0 extra; ")
    (published.dest / "03.rules").unlink()
    (published.dest / "own").touch()
    code, message = failure("perfkit_verify", "rules")
    assert (code, message.partition(";")[0]) == (1, "20 files: 1 missing, 0 changed, 1 extra")
    (record,) = answer("perfkit_verify", "rules", "--repair")
    assert (record["name"], record["missing"], record["intact"]) == ("rules", ["03.rules"], True)
    assert set(tree_of(published.dest)) == {*FIRST, "own"}


def test_nothing_stays(published: Site) -> None:
    """After a rollback to before the first install."""
    run("perfkit_sync", "rules")
    assert run("perfkit_rollback", "rules", "--to", "0")[0].startswith("rules: the tree before the first change")
    for options in ((), ("--dry-run",)):
        assert run("perfkit_sync", "rules", *options)[0].endswith("; 1 is on hold\n")


def test_the_hold_command_pins_and_skips(published: Site) -> None:
    run("perfkit_sync", "rules")
    assert run("perfkit_hold", "rules")[0] == "rules: stays at 1\n"
    published.publish("2", SECOND)
    assert run("perfkit_sync", "rules")[0].endswith("; the tree is pinned\n")
    (record,) = answer("perfkit_status")
    assert (record["held"]["version"], record["held"]["reason"]) == ("1", "pin")
    assert "  held        1, pin, since " in run("perfkit_status")[0]
    assert answer("perfkit_hold", "rules", "--off") == [{"name": "rules", "released": "1"}]
    assert run("perfkit_hold", "rules", "--off")[0] == "rules: nothing was on hold\n"
    assert answer("perfkit_hold", "rules", "--skip", "2")[0] == {"name": "rules", "held": "2", "reason": "hand"}
    assert answer("perfkit_sync", "rules")[0].items() >= {"version": "1", "held": "2"}.items()
    run("perfkit_hold", "rules", "--off")
    assert answer("perfkit_sync", "rules")[0]["version"] == "2"


def test_a_release_by_its_version(published: Site) -> None:
    published.publish("2", SECOND)
    assert answer("perfkit_sync", "rules", "--release", "1")[0]["version"] == "1"
    assert answer("perfkit_sync", "rules", "--dry-run")[0].items() >= {"version": "2", "remove": []}.items()
    assert answer("perfkit_rollback", "rules", "--to", "0")[0]["removed"] == len(FIRST)


def test_least_interval(published: Site) -> None:
    with with_tree(MIN_INTERVAL="1h"):
        assert answer("perfkit_sync", "rules")[0]["version"] == "1"
        published.publish("2", SECOND)
        assert 3500 < answer("perfkit_sync", "rules")[0]["due_in_s"] <= 3600
        assert "rules: the next sync is due in 3" in run("perfkit_sync", "rules")[0]
        assert answer("perfkit_sync", "rules", "--now")[0]["version"] == "2"
    for wrong in ("soon", -1, True, [1]):
        with with_tree(MIN_INTERVAL=wrong), pytest.raises(ConfigError, match=r"MIN_INTERVAL.*must be a time"):
            trees.due_in_s("rules")


def test_splay_is_the_same_each_time(published: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("perfkit.contrib.django.management.commands.perfkit_sync.sleep", waits.append)
    with with_tree(SPLAY="10m"):
        run("perfkit_sync", "rules")
        run("perfkit_sync", "rules")
    assert 0 < waits[0] == waits[1] < 600


def test_exit_code(published: Site) -> None:
    with pytest.raises(SystemExit) as caught:
        run("perfkit_sync", "rules", "--exit-code")
    assert caught.value.code == 10
    assert "; 20 unchanged; " in run("perfkit_sync", "rules", "--exit-code")[0]


def test_a_source_that_is_behind(published: Site) -> None:
    """Exit code 4, as `perfkit sync` has; and nothing, if that is allowed."""
    pointer = (published.root / "site/perfkit.json").read_bytes()
    published.publish("2", SECOND)
    run("perfkit_sync", "rules")
    (published.root / "site/perfkit.json").write_bytes(pointer)
    assert failure("perfkit_sync", "rules")[0] == 4
    assert answer("perfkit_sync", "rules", "--allow-older")[0]["version"] == "1"


def test_age_and_pauses_in_the_status(published: Site) -> None:
    run("perfkit_sync", "rules")
    run("perfkit_status", "rules", "--max-age", "2d")
    record = published.dest / ".perfkit/last-sync"
    now = time.time()
    failed = {"failed_s": now, "error": "HTTP status 503", "failures": 1, "not_before_s": now + 900}
    record.write_text(json.dumps({"checked_s": now - 3 * 86_400, **failed}))
    assert failure("perfkit_status", "rules", "--max-age", "2d") == (1, "no sync has succeeded for 2d")
    assert failure("perfkit_status", "rules", "--max-age", "soon")[0] == 2
    (published.dest / ".perfkit/journal").touch()
    (status,) = answer("perfkit_status")
    assert (status["interrupted"], status["error"]) == (True, "HTTP status 503")
    assert status["not_before"] > status["failed"] > status["checked"]
    out = run("perfkit_status")[0]
    assert "as the source asks" in out
    assert "interrupted a change; " in out


def test_json_of_failures(published: Site) -> None:
    """Each tree has its record, and the command fails."""
    out = io.StringIO()
    with with_tree(SOURCE=f"{published.url}nothing/"), pytest.raises(CommandError) as caught:
        call_command("perfkit_sync", "rules", "--json", stdout=out)
    (record,) = json.loads(out.getvalue())["trees"]
    assert "404" in record["error"]
    assert caught.value.returncode == 1


def test_json_of_downloads(published: Site) -> None:
    out, _ = run("perfkit_download", f"{published.url}perfkit.json", "-d", str(published.root), "--json")
    (record,) = json.loads(out)["files"]
    assert record["bytes"] == (published.root / "perfkit.json").stat().st_size


# -- the current release ----------------------------------------------------------------------------------------------


def test_current_follows_each_change(published: Site) -> None:
    """Follows every change of the tree; other settings are noticed."""
    assert trees.current("rules") == (0, None)
    seen = []
    for change in (
        lambda: trees.sync("rules"),
        lambda: published.publish("2", SECOND),
        lambda: trees.sync("rules"),
        lambda: trees.rollback("rules"),
        lambda: trees.rollback("rules", to=2),
    ):
        change()
        seen.append(tuple(trees.current("rules")))
    assert seen == [(1, "1"), (1, "1"), (2, "2"), (1, "1"), (2, "2")]
    with with_tree(DEST=published.root / "elsewhere"):
        assert trees.current("rules") == (0, None)
    with pytest.raises(ConfigError, match="no tree 'other'"):
        trees.current("other")


def test_current_is_one_stat(published: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing changes, nothing is read."""
    trees.sync("rules")
    trees.current("rules")
    monkeypatch.setattr(trees, "read_current", lambda root: pytest.fail("it was read"))
    assert trees.current("rules").version == "1"


# -- health -----------------------------------------------------------------------------------------------------------


def ask(**options: Any) -> tuple[int, dict[str, Any]]:
    response = health(RequestFactory().get("/health/"), **options)
    assert "no-cache" in response["Cache-Control"]
    return response.status_code, json.loads(response.content)


def test_health_is_200_or_503_with_a_reason(published: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 while all is well, else 503, with a reason."""
    assert ask() == (503, {"ok": False, "trees": {"rules": {
        "ok": False, "version": None, "generation": None, "age_s": None, "reason": "not installed"}}})  # fmt: skip
    trees.sync("rules")
    status, found = ask(names=("rules",), max_age_s=60)
    assert (status, found["ok"], found["trees"]["rules"]["version"]) == (200, True, "1")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    status, found = ask(max_age_s=60)
    assert (status, found["trees"]["rules"]["reason"]) == (503, "no sync has succeeded for 60 s")
    assert ask()[0] == 200
    (published.dest / ".perfkit/hold").write_text("damaged")
    assert ask() == (503, {"ok": False, "trees": {"rules": {"ok": False, "reason": "its records can't be read"}}})
    assert health(RequestFactory().post("/health/")).status_code == 405
