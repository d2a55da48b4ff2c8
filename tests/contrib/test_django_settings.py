"""The settings of the Django app, and the checks that find their mistakes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from django.core import checks
from django.core.management import CommandError, call_command
from django.test import override_settings

from perfkit import Config
from perfkit.archives.members import Selection
from perfkit.contrib.django import conf
from tests.support.django_commands import failure, run
from tests.support.signing import OLD


def test_settings_become_configs(tmp_path: Path) -> None:
    """Fields of Config in capitals; a tree has PERFKIT's own, and what it says itself; sizes and paths may be text."""
    found = conf.read({
        "WORKERS": 3, "RATE_LIMIT": "5M", "CA_BUNDLE": tmp_path / "ca.pem", "HEADERS": {"X-Of": "us"}, "VERIFY": True,
        "TREES": {
            "rules": {"SOURCE": "https://example.org/rules/", "DEST": tmp_path / "rules", "WORKERS": 1},
            "geo": {"SOURCE": "https://example.org/geo/", "DEST": f"{tmp_path}/geo", "AUTH": ["user", "word"],
                    "TYPE": "zip", "STRIP_COMPONENTS": 1, "INCLUDE": ["*.mmdb"]},
            "list": {"SOURCE": tmp_path / "list.txt", "DEST": tmp_path / "list"},
        },
    })  # fmt: skip
    assert found.problems == ()
    base = Config(workers=3, rate_limit=5 << 20, ca_bundle=f"{tmp_path}/ca.pem", headers={"X-Of": "us"})
    assert found.config == base
    rules, geo, listed = found.trees.values()
    assert (rules.name, rules.source, rules.dest) == ("rules", "https://example.org/rules/", f"{tmp_path}/rules")
    assert rules.config == Config(workers=1, rate_limit=5 << 20, ca_bundle=f"{tmp_path}/ca.pem", headers={"X-Of": "us"})
    assert (geo.config.auth, geo.type) == (("user", "word"), "zip")
    assert geo.selection == Selection(strip_components=1, include=("*.mmdb",))
    assert (listed.source, listed.type, listed.selection) == (f"{tmp_path}/list.txt", None, None)


GOOD = {"SOURCE": "https://example.org/", "DEST": "/srv/rules"}
WRONG = [
    ("E001", [], 'PERFKIT = {"TREES": {}}'),
    ("E001", {"TREES": ["rules"]}, '"TREES": {"NAME"'),
    ("E001", {"TREES": {"rules": "https://example.org/"}}, '"SOURCE"'),
    ("E002", {"TREE": {}}, "'TREES'"),
    ("E002", {"WORKRES": 4}, "'WORKERS'"),
    ("E002", {"TREES": {"rules": {**GOOD, "DST": "x"}}}, "'DEST'"),
    ("E002", {7: 4}, "Known keys: "),
    ("E003", {"WORKERS": "4"}, "default is None"),
    ("E003", {"WORKERS": True}, "default is None"),
    ("E003", {"VERIFY": 1}, "default is True"),
    ("E003", {"RATE_LIMIT": "fast"}, "default is None"),
    ("E003", {"HEADERS": {"X": 1}}, "default is {}"),
    ("E003", {"AUTH": ["user"]}, "default is None"),
    ("E003", {"CONNECT_TIMEOUT_S": None}, "default is 10.0"),
    ("E003", {"WORKERS": 0}, "perfkit.Config"),
    ("E003", {"TREES": {"rules": {**GOOD, "LOCAL_CHANGES": "merge"}}}, "perfkit.Config"),
    ("E004", {"TREES": {"--all": GOOD}}, "letters"),
    ("E004", {"TREES": {1: GOOD}}, "letters"),
    ("E005", {"TREES": {"rules": {"SOURCE": "https://example.org/"}}}, "BASE_DIR"),
    ("E005", {"TREES": {"rules": {"DEST": "/srv/rules"}}}, "URL"),
    ("E006", {"TREES": {"rules": {**GOOD, "SOURCE": "example.org/rules"}}}, "https://"),
    ("E006", {"TREES": {"rules": {**GOOD, "SOURCE": "http://[/"}}}, "https://"),
    ("E007", {"TREES": {"rules": {**GOOD, "DEST": "rules"}}}, "BASE_DIR"),
    ("E007", {"TREES": {"rules": {**GOOD, "DEST": 7}}}, "BASE_DIR"),
    ("E009", {"TREES": {"rules": {**GOOD, "TYPE": "rar"}}}, "detected"),
    ("E009", {"TREES": {"rules": {**GOOD, "STRIP_COMPONENTS": -1}}}, "directories"),
    ("E009", {"TREES": {"rules": {**GOOD, "CHECK": "no.such.function"}}}, "dotted path"),
    ("E009", {"TREES": {"rules": {**GOOD, "CHECK": "os.sep"}}}, "dotted path"),
    ("E009", {"TREES": {"rules": {**GOOD, "INCLUDE": "*.rules"}}}, '["*.rules"]'),
    ("E008", {"TREES": {"rules": GOOD, "geo": {**GOOD, "DEST": "/srv/rules/geo"}}}, "of its own"),
    ("E009", {"TREES": {"rules": {**GOOD, "LINKS": "keep"}}}, "Leave it out"),
    ("E009", {"TREES": {"rules": {**GOOD, "INCLUDE": ["!"]}}}, ".gitignore"),
    ("E009", {"TREES": {"rules": {**GOOD, "DECOMPRESS": "gz"}}}, "Leave it out"),
    ("E006", {"TREES": {"rules": {**GOOD, "MIRRORS": "https://example.org/"}}}, '["https://'),
    ("E006", {"TREES": {"rules": {**GOOD, "MIRRORS": ["example.org"]}}}, "https://"),
    ("E006", {"TREES": {"rules": {**GOOD, "CHECKSUMS": "SHA256SUMS"}}}, "https://"),
    ("E009", {"TREES": {"rules": {**GOOD, "PUBLIC_KEYS": ["RW"]}}}, "perfkit keygen"),
    ("E009", {"TREES": {"rules": {**GOOD, "PUBLIC_KEYS": str(OLD.public)}}}, '["RW…"]'),
    ("E009", {"TREES": {"rules": {**GOOD, "PUBLIC_KEYS": [str(OLD.public)], "THRESHOLD": 2}}}, "perfkit keygen"),
    ("E008", {"TREES": {"rules": GOOD, "geo": {**GOOD, "DEST": "/srv/../srv/rules/"}}}, "of its own"),
]


@pytest.mark.parametrize(("number", "wrong", "hint"), WRONG)
def test_wrong_settings_are_found_at_start(number: str, wrong: object, hint: str) -> None:
    """Each has its id, says where, and what to do; commands that skip checks refuse to work with them too."""
    with override_settings(PERFKIT=wrong):
        (found,) = checks.run_checks(tags=["perfkit"])
        assert (found.id, found.level) == (f"perfkit.{number}", checks.ERROR)
        assert found.msg.startswith("PERFKIT")
        assert hint in (found.hint or "")
        code, message = failure("perfkit_status")
        assert code == 2
        assert found.msg.rstrip(".") in message


SECRET = [
    "s3cret",
    ["s3cret"],
    {"TREES": {}, "AUTH": "s3cret"},
    {"AUTH": ["s3cret"]},
    {"HEADERS": "X: s3cret"},
    {"HEADERS": {"Authorization s3cret": "x"}},
    {"HEADERS": {"X": ["s3cret"]}},
    {"PROXIES": "http://me:s3cret@proxy"},
    {"WORKERS": {"AUTH": "s3cret"}},
    {"CA_BUNDLE": ["s3cret", "s3cret"]},
    {"TREES": ["https://me:s3cret@example.org/"]},
    {"TREES": {"rules": "https://me:s3cret@example.org/"}},
    {"TREES": {"rules": ["s3cret"]}},
    {"TREES": {"rules": {**GOOD, "AUTH": "me:s3cret"}}},
    {"TREES": {"rules": {**GOOD, "SOURCE": "me:s3cret@example.org/"}}},
    {"TREES": {"rules": {**GOOD, "SOURCE": "https://me:s3/s3cret@example.org/?token=s3cret"}}},
    {"TREES": {"rules": {**GOOD, "SOURCE": ["s3cret"]}}},
    {"TREES": {"rules": {**GOOD, "DEST": "https://me:s3cret@example.org/"}}},
    {"TREES": {"rules": {**GOOD, "TYPE": {"AUTH": "s3cret"}}}},
    {"TREES": {"rules": {**GOOD, "INCLUDE": {"AUTH": "s3cret"}}}},
    {"TREES": {"rules": {**GOOD, "STRIP_COMPONENTS": "https://me:s3cret@example.org/"}}},
    {"TREES": {"rules": {**GOOD, "LINKS": ["s3cret"]}}},
    {"TREES": {"rules": {**GOOD, "SPLAY": ["s3cret"]}}},
    {"TREES": {"rules": {**GOOD, "PUBLIC_KEYS": ["https://me:s3cret@example.org/"]}}},
    {"TREES": {"rules": {**GOOD, "PUBLIC_KEYS": [["s3cret"]]}}},
    {"TREES": {"rules": {**GOOD, "THRESHOLD": "https://me:s3cret@example.org/"}}},
]


@pytest.mark.parametrize("wrong", SECRET)
def test_wrong_settings_are_not_shown_with_their_secrets(wrong: object) -> None:
    with override_settings(PERFKIT=wrong):
        found = checks.run_checks(tags=["perfkit"])
        assert found
        _, message = failure("perfkit_status")
        assert "s3cret" not in f"{found} {message} {[each.msg for each in found]}"


def test_right_settings_are_not_shown_with_their_secrets() -> None:
    """In the check of a deployment, in the status, and in `repr`."""
    source = "http://me:s3cret@example.org/?token=s3cret"
    entry = {
        "SOURCE": source,
        "DEST": "/srv/perfkit-absent/rules",
        "AUTH": ["me", "s3cret"],
        "HEADERS": {"X": "s3cret"},
    }
    with override_settings(PERFKIT={"TREES": {"rules": entry}}):
        (warning,) = (each for each in checks.run_checks(include_deployment_checks=True) if each.id == "perfkit.W002")
        assert "http://***@example.org/?token=***" in warning.msg
        shown = [run("perfkit_status")[0], run("perfkit_status", "--json")[0], repr(conf.load()), warning.msg]
        assert "example.org" in shown[0]
        assert not [each for each in shown if "s3cret" in each]


def test_all_mistakes_are_reported_at_once() -> None:
    """In one run of `check`, and neighbours that only begin alike don't overlap."""
    wrong = {"WORKERS": "4", "TREES": {"a": {"DEST": "x"}, "b": GOOD, "c": {**GOOD, "DEST": "/srv/rules2"}}, "X": 1}
    with override_settings(PERFKIT=wrong):
        found = checks.run_checks(tags=["perfkit"])
        assert [each.id for each in found] == [f"perfkit.E00{number}" for number in (3, 2, 5, 7)]
        with pytest.raises(CommandError, match=r"perfkit\.E005"):
            call_command("check", "--tag", "perfkit")
    with override_settings(PERFKIT={}):
        assert not checks.run_checks(tags=["perfkit"])


def test_a_tree_that_this_user_cannot_write_is_a_warning(open_path: Path) -> None:
    """Of the directory, or of the one that it would be made in; and a file in its place."""
    closed = open_path / "closed"
    closed.mkdir(mode=0o555)
    (open_path / "file").write_bytes(b"")
    entries = {"new": closed / "a/b", "file": open_path / "file/below", "good": open_path / "good/er"}
    trees = {name: {**GOOD, "DEST": dest} for name, dest in entries.items()}
    me = os.geteuid()
    try:
        if me == 0:
            open_path.chmod(0o777)
            os.seteuid(65534)
        with override_settings(PERFKIT={"TREES": trees}):
            found = checks.run_checks(tags=["perfkit"])
    finally:
        os.seteuid(me)
    assert [(each.id, each.level) for each in found] == [("perfkit.W001", checks.WARNING)] * 2
    assert f"{closed} is not writable" in found[0].msg
    assert "is not a directory" in found[1].msg


def test_plain_http_is_a_deployment_warning() -> None:
    """Not on loopback, and not without --deploy."""
    sources = {"a": "http://example.org/", "b": "http://127.0.0.1:8000/", "c": "https://example.org/"}
    entries = {name: {"SOURCE": source, "DEST": f"/srv/{name}"} for name, source in sources.items()}
    with override_settings(PERFKIT={"TREES": entries}):
        assert not checks.run_checks(tags=["perfkit"])
        found = checks.run_checks(tags=["perfkit"], include_deployment_checks=True)
    assert [each.id for each in found] == ["perfkit.W002"]
    assert "http://example.org/" in found[0].msg


def test_the_page_about_django_has_every_check_and_setting() -> None:
    """docs/django.md and the program agree."""
    page = (Path(__file__).parents[2] / "docs/django.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `perfkit\.(\w+)` \|", page, re.MULTILINE))
    assert listed == {number for number, _, _ in WRONG} | {"W001", "W002"}
    tree = page.partition("Each tree is")[2].partition("###")[0]
    keys = set(re.findall(r"`([A-Z_]+)`", tree.replace("PERFKIT", "")))
    known = {name.upper() for name in Config.__dataclass_fields__}
    assert keys - known == set(conf.OF_A_TREE)
    for word in re.findall(r"`([A-Z][A-Z_]+)`", page.partition("Each tree is")[0]):
        assert word in known | {"PERFKIT", "TREES"}, word
