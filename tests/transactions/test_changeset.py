"""The changes of a transaction, by name: the same as a dictionary of them, in little memory."""

from __future__ import annotations

import hashlib
import tempfile

import hypothesis.strategies as st
import pytest
from hypothesis import given

from perfkit.filesystem.own_files import create_unnamed
from perfkit.transactions.changeset import ChangeSet, StagedFile
from perfkit.transactions.records import Change, Content
from tests.support.leaks import freed_at_once

pytestmark = pytest.mark.once

KINDS = ["staged", "fetched", "drop", "forget"]


def change_set() -> ChangeSet:
    return ChangeSet("stage/", "fetch/content-", lambda: create_unnamed(tempfile.gettempdir()))


def content(text: str, mode: int = 0o644) -> Content:
    return Content(hashlib.sha256(text.encode()).hexdigest(), len(text), mode)


def test_changes_that_follow_each_other() -> None:
    """The first previous content of a name stays, and the last new one counts, as in an undo of several generations."""
    changes = change_set()
    for change in (
        Change("a", content("1"), content("2")),
        Change("b", None, content("3")),
        Change("a", content("2"), content("4")),
        Change("b", content("3"), None),
        Change("c", content("5"), None),
    ):
        changes.follow(change)
    found = {changes.name(row): (changes.recorded(row), changes.after(row)) for row in changes.rows()}
    assert found == {"a": (content("1"), content("4")), "b": (None, None), "c": (content("5"), None)}
    changes.set_source(changes.row("a"), "stage/7")
    assert changes["a"] == StagedFile("stage/7", content("4"))
    del changes["b"]
    assert sorted(changes) == ["a", "c"]


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(KINDS))))
def test_change_set(calls: list[tuple[str, str]]) -> None:
    """It maps each name to what was last set for it, in whatever order."""
    changes = change_set()
    model: dict[str, StagedFile | None] = {}
    for number, (name, kind) in enumerate(calls, 1):
        new = content(f"{number}")
        if kind == "forget":
            if name in model:
                del changes[name], model[name]
            continue
        source = {"staged": f"stage/{number}", "fetched": f"fetch/content-{new.sha256}"}
        model[name] = changes[name] = None if kind == "drop" else StagedFile(source[kind], new)
    assert dict(changes) == model
    assert len(changes) == len(model)
    found = {changes.name(row): (StagedFile(*put), changes.is_fetched(row)) for row, *put in changes.written()}
    written = {name: (put, put.source.startswith("fetch")) for name, put in model.items() if put}
    assert found == written
    assert [changes.name(row) for row in changes.rows()] == sorted(model)


def test_rows_of_many_names_are_in_order() -> None:
    """More than are sorted at once."""
    changes = change_set()
    names = [hashlib.sha256(b"%d" % number).hexdigest()[:9] for number in range(10_000)]
    for number, name in enumerate(names, 1):
        changes[name] = StagedFile(f"stage/{number}", content(name))
    assert [changes.name(row) for row in changes.rows()] == sorted(names)
    assert changes[names[7777]] == StagedFile("stage/7778", content(names[7777]))


def test_changes_and_their_summary() -> None:
    """What is done to the disk, and what the record says, where others edited a file or had made the change."""
    changes = change_set()
    changes["new"], changes["same"], changes["edited"] = (
        StagedFile("stage/1", content(text)) for text in ("n", "s", "w")
    )
    changes["gone"] = None
    changes["kept"] = StagedFile("stage/2", content("mine"))
    changes.omit_from_record("kept")
    changes.record("noted")
    changes.set_before(changes.row("new"), None, None)
    changes.set_before(changes.row("same"), content("s"), content("s"))
    changes.set_before(changes.row("edited"), content("theirs"), content("meant"))
    changes.set_before(changes.row("gone"), content("g"), content("g"))
    changes.set_before(changes.row("kept"), None, None)
    changes.set_before(changes.row("noted"), content("n2"), content("n1"))
    assert list(changes.disk_changes()) == [
        Change("edited", content("theirs"), content("w")), Change("gone", content("g"), None),
        Change("kept", None, content("mine")), Change("new", None, content("n")),
    ]  # fmt: skip
    assert list(changes.recorded_changes()) == [
        Change("edited", content("meant"), content("w")), Change("gone", content("g"), None),
        Change("new", None, content("n")), Change("noted", content("n1"), content("n2")),
    ]  # fmt: skip
    changes.record_found("edited")
    assert Change("edited", content("theirs"), content("w")) in changes.recorded_changes()


def test_a_change_set_is_freed_at_once() -> None:
    assert freed_at_once(change_set)
