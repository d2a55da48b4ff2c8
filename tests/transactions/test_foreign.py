"""A `.perfkit` that somebody else wrote: an archive that was unpacked, a clone, another user's tree.

Its journals, states and records are written as perfkit writes them, with valid checksums, but name what is outside.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perfkit import Config, Toolkit
from perfkit.errors import PerfkitError, RecoveryError, RollbackError, UpdateError
from perfkit.transactions.records import with_checksum
from perfkit.transactions.tree import Tree
from tests.support.signing import OLD, change_pointer, public
from tests.support.sites import Origin
from tests.support.trees import tree_of

pytestmark = pytest.mark.once

SHA = "ab" * 32
CONTENT = [SHA, 3, 0o644]
PREVIOUS = ["", 9, 1, 0o644, 1]
STAGED = ".perfkit/stage-1/new"
OUTSIDE = ["../victim", "a/../../victim", ".perfkit/../../victim", "/victim", "", ".", "..", "a\0b", "a//b"]
NOT_NAMES = [None, 3, [], {}, True]
OWN = [
    ".perfkit",
    ".perfkit/state",
    ".perfkit/journal",
    ".perfkit/history/1",
    ".perfkit/objects/x",
    STAGED,
    ".PERFKIT/a",
]

Command = Callable[[Toolkit], object]


@pytest.fixture(scope="module")
def managed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with two generations, and beside it a file that is not of it."""
    foreign = tmp_path_factory.mktemp("foreign") / "foreign"
    for data in (b"one", b"two"):
        with Tree(foreign) as tree, tree.transaction() as tx:
            tx.write("a", data)
    (foreign.parent / "victim").write_bytes(b"untouched")
    return foreign


@pytest.fixture
def foreign(managed: Path, tmp_path: Path) -> Path:
    """A copy of it, for each test."""
    shutil.copytree(managed.parent, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy/foreign"


def commands(foreign: Path) -> dict[str, Command]:
    return {
        "history": lambda kit: kit.history(foreign),
        "rollback": lambda kit: kit.rollback(foreign),
        "transaction": lambda kit: kit.transaction(foreign).__enter__(),
    }


def check_refused(foreign: Path, *names: str) -> None:
    """These commands fail with an error of ours, and nothing was written, inside the tree or outside."""
    with Toolkit() as kit:
        for name in names:
            with pytest.raises((RecoveryError, RollbackError, UpdateError)):
                commands(foreign)[name](kit)
            assert (foreign.parent / "victim").read_bytes() == b"untouched"
            assert {path.name for path in foreign.parent.iterdir()} == {"victim", "foreign"}
            assert tree_of(foreign) == {"a": b"two"}


def plant(foreign: Path, name: str, *rows: Any) -> None:
    (foreign / ".perfkit" / name).write_bytes(b"".join(with_checksum(rows)))


def plant_journal(foreign: Path, *op: Any) -> None:
    (foreign / STAGED).parent.mkdir(exist_ok=True)
    (foreign / STAGED).write_bytes(b"planted")
    plant(foreign, "journal", ["perfkit-journal", 3], op)


def test_journals_change_files_of_their_tree_only(foreign: Path) -> None:
    """A journal changes files of its tree only, and takes them from the stage, the fetched files and the objects."""
    ops: list[list[Any]] = []
    for name in OUTSIDE + NOT_NAMES:
        ops += [["put", name, STAGED, None], ["drop", name, "", PREVIOUS], ["mkdir", name, "", None]]
    ops += [["rmdir", name, "", PREVIOUS] for name in NOT_NAMES + OUTSIDE]
    for source in (
        "a",
        "../victim",
        ".perfkit/state",
        ".perfkit/stage-1/../../../victim",
        "/victim",
        ".perfkit/fetch",
        ".perfkit/fetch/../../../victim",
        3,
    ):
        ops += [["put", "b", source, None], ["drop", "a", source, PREVIOUS]]
    ops += [["put", "b", "", None], ["put", "b", None, None], ["kill", "b", "", None], ["mkdir", "b", STAGED, None]]
    previous = [
        ["../victim", 9, 1, 0o644, 1],
        ["a", 9, 1, 0o644, 1],
        [".perfkit/objects/x", 9, 1, 0, 1],
        [],
        {},
        3,
        ["", -1, 1, 0o644, 1],
        ["", 9, "x", 0o644, 1],
        ["", 9, 1, 1 << 40, 1],
        ["", 9, 1, 0o644, 1.5],
        "x",
    ]
    ops += [["put", "b", STAGED, each] for each in previous]
    ops += [[], ["put"], ["put", "b", STAGED, None, 1]]
    for op in ops:
        plant_journal(foreign, *op)
        check_refused(foreign, "transaction")
    check_refused(foreign, "rollback")
    for rows in ((), ([],), (3,), ({},), (["perfkit-journal", 4],), (["perfkit-journal", 3], 3)):
        plant(foreign, "journal", *rows)
        check_refused(foreign, "transaction")


def test_journal_that_removes_directories_outside(foreign: Path) -> None:
    (foreign.parent / "empty").mkdir()
    for name in ("../empty", "a/../../empty", "/empty"):
        plant_journal(foreign, "rmdir", name, "", PREVIOUS)
        with pytest.raises(RecoveryError), Tree(foreign):
            pass
    assert (foreign.parent / "empty").is_dir()


def test_journal_that_removes_a_directory_with_a_name_that_no_file_may_have(foreign: Path) -> None:
    """It was there before the tree was managed, and a commit emptied it."""
    (foreign / "a.").mkdir()
    plant_journal(foreign, "rmdir", "a.", "", None)
    with Tree(foreign):
        pass
    assert not (foreign / "a.").exists()


def test_generations_are_ascending_numbers(foreign: Path) -> None:
    """Generations are ascending whole numbers: they become names of files."""
    for state in (
        (["../../victim", 1], 1, 2),
        ([0, 1, 2], 2, "../../victim"),
        ([0, 1, 2], "2", 3),
        ([], 0, 1),
        ([0, 2, 1], 1, 3),
        ([0, 1], 1, 1),
        ([0, 0], 0, 1),
        ([-1, 0], 0, 1),
        ([0.0, 1], 1, 2),
        ([0, True], 1, 2),
        ([[0]], [0], 1),
        ({"0": 1}, "0", 1),
        (None, None, None),
        ([0, 10**60], 0, 10**61),
        ("012", "1", "2"),
    ):
        plant(foreign, "state", ["perfkit-state", 1, *state])
        check_refused(foreign, "history")
    check_refused(foreign, "rollback", "transaction")


def head(**changes: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "generation": 2,
        "label": {},
        "created_s": 1.0,
        "added": 0,
        "changed": 1,
        "removed": 0,
        "bytes_before": 3,
        "as_found": [],
        **changes,
    }


def test_records_restore_files_of_their_tree_only(foreign: Path) -> None:
    """A rollback restores files of the tree and perfkit's own that belong to a generation, from its own objects."""
    for name in OUTSIDE + OWN + NOT_NAMES:
        for before, after in ((CONTENT, None), (None, CONTENT)):
            plant(foreign, "history/2", head(), [SHA], [name, before, after])
            check_refused(foreign, "rollback")
    for content in (
        ["../../../victim", 9, 0o644],
        [SHA.upper(), 9, 0o644],
        [SHA, -1, 0o644],
        [SHA, 9, -1],
        [SHA],
        3,
        "abc",
        [SHA, 9, 1 << 20],
        [SHA, "9", 0o644],
        [SHA, 1 << 70, 0o644],
        [None, 9, 0o644],
    ):
        plant(foreign, "history/2", head(), [SHA], ["a", content, None])
        check_refused(foreign, "rollback")
    for changes in (
        {"format": 2},
        {"label": None},
        {"label": {"x": 1}},
        {"created_s": 1e300},
        {"created_s": float("nan")},
        {"created_s": "x"},
        {"added": -1},
        {"changed": "x"},
        {"bytes_before": None},
        {"as_found": "x"},
        {"as_found": [3]},
    ):
        plant(foreign, "history/2", head(**changes), [SHA])
        check_refused(foreign, "history", "rollback")


@pytest.mark.parametrize("name", ["journal", "state", "history/2"])
def test_files_that_are_no_json(foreign: Path, name: str) -> None:
    for raw in (b"", b"\n", b"\0", b"[" * 100_000 + b"\n", b'"' + b"\xff" * 9, b"9" * 5000 + b"\n"):
        (foreign / ".perfkit" / name).write_bytes(raw)
        check_refused(foreign, "rollback", *(["history"] if name != "journal" else []))


def test_tree_of_another_owner(foreign: Path, make_kit: Callable[..., Toolkit]) -> None:
    """Who owns `.perfkit` decides what happens to the tree, so another user's is used only if that is asked for."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    for path in (foreign, *foreign.rglob("*")):
        os.lchown(path, 12345, 12345)
    before = sorted(os.listdir(foreign / ".perfkit"))
    for command in (commands(foreign)[name] for name in ("rollback", "transaction")):
        with (
            Toolkit() as kit,
            pytest.raises(UpdateError, match=r"belongs to the user with ID 12345.*trust_other_owners"),
        ):
            command(kit)
    assert sorted(os.listdir(foreign / ".perfkit")) == before
    kit = make_kit(trust_other_owners=True)
    assert [generation.number for generation in kit.history(foreign)] == [0, 1, 2]
    kit.rollback(foreign)
    assert tree_of(foreign) == {"a": b"one"}
    assert Config.from_env({"PERFKIT_TRUST_OTHER_OWNERS": "1"}).trust_other_owners


def test_own_journal_is_still_completed(foreign: Path) -> None:
    """The same form, with names that a commit writes."""
    plant_journal(foreign, "put", "b", STAGED, None)
    with Tree(foreign) as tree:
        assert tree.generation == 2
    assert tree_of(foreign) == {"a": b"two", "b": b"planted"}


PLANTED = [
    "journal",
    "state",
    "history/2",
    "release",
    "serials",
    "serials~",
    "trust",
    "trust~",
    "manifest",
    "statcache",
    "statcache~",
    "hold",
    "hold~",
    "last-sync",
    "last-sync~",
    "check",
    "clock",
    "lock",
    "owner",
    "owner~",
    "fetch",
    "objects",
]


@pytest.mark.parametrize("kind", ["link", "hard link", "fifo", "directory"])
@pytest.mark.parametrize("name", PLANTED)
def test_planted_files(foreign: Path, origin: Origin, make_kit: Callable[..., Toolkit], name: str, kind: str) -> None:
    """What has a name that perfkit uses is neither followed, written through nor waited for."""
    origin.publish({"a": b"three", "b/c": b"new"}, "1")
    keys = [OLD] if name.startswith("trust") else []
    change_pointer(origin.site, keys)
    victim, path = foreign.parent / "victim", foreign / ".perfkit" / name
    before = victim.stat().st_mode
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "hard link":
        os.link(victim, path)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    kit = make_kit()
    for command in (
        lambda: kit.sync(origin.url, foreign, public_keys=public(*keys)),
        lambda: kit.verify(foreign),
        lambda: kit.rollback(foreign),
        lambda: kit.status(foreign),
    ):
        with contextlib.suppress(PerfkitError, OSError):
            command()
    assert victim.read_bytes() == b"untouched"
    assert victim.stat().st_mode == before
    assert {each.name for each in foreign.parent.iterdir()} == {"victim", "foreign"}


def test_planted_fetched_contents(foreign: Path, origin: Origin, make_kit: Callable[..., Toolkit]) -> None:
    """Links under the names of contents to be fetched: the sync succeeds, and nothing is written through them."""
    contents = {"a": b"three", "b": b"x" * 100_000, "c": os.urandom(100_000)}
    origin.publish(contents, "1")
    victim = foreign.parent / "victim"
    fetch = foreign / ".perfkit/fetch"
    fetch.mkdir(exist_ok=True)
    for number, data in enumerate(contents.values()):
        name = f"content-{hashlib.sha256(data).hexdigest()}"
        (fetch / f"{name}~").symlink_to(victim) if number % 2 else os.link(victim, fetch / f"{name}~")
        (fetch / name).symlink_to(victim) if number else os.link(victim, fetch / name)
    (fetch / "content~").symlink_to(victim)
    make_kit().sync(origin.url, foreign)
    assert tree_of(foreign) == {**contents, "a.perfkit-local": b"two"}
    assert victim.read_bytes() == b"untouched"
