"""The planner: values in, a plan out; applied to a model of a tree, it gives the tree that is wanted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfkit.errors import UpdateError
from perfkit.releases.format.manifest import Entry, EntrySubset, Manifest
from perfkit.updates.planner import ExistingFiles, Plan, decide
from perfkit.updates.routes import Offer, choose_routes

pytestmark = pytest.mark.once

Tree = dict[str, Entry]


def digest(text: str) -> bytes:
    return text.encode().ljust(32, b".")


def tree(**files: str) -> Tree:
    """Names to contents; an `!` after the content makes it executable."""
    return {name: Entry(name, len(text), digest(text.rstrip("!")), text.endswith("!")) for name, text in files.items()}


def subset(files: Tree, without: Iterable[str] = ()) -> EntrySubset:
    found = EntrySubset(Manifest.of(files.values()))
    for at, entry in enumerate(Manifest.of(files.values())):
        if entry.name not in without:
            found.add(at)
    return found


def plan(before: Tree, wanted: Tree, installed: Tree | None = None, **more: object) -> Plan:
    existing = ExistingFiles(subset({}), before if installed is None else installed)
    return decide(subset(wanted), existing, subset(before), **more)  # type: ignore[arg-type]


def apply(plan: Plan, installed: Tree, wanted: Tree, stored: frozenset[bytes]) -> Tree:
    """Do what a plan says, as the updater does: all sources are read before any name changes."""
    made = {name: wanted[name] for name in plan.fetch}
    for name in plan.stored:
        assert wanted[name].sha256 in stored
        made[name] = wanted[name]
    for each in plan.local:
        assert installed[each.source].sha256 == wanted[each.name].sha256
        made[each.name] = wanted[each.name]
    after = {name: held for name, held in installed.items() if name not in plan.remove and name not in plan.saved_as}
    for each in plan.local:
        if each.move:
            assert each.source not in plan.remove
            assert each.source in after
            del after[each.source]
    for name, fresh in plan.saved_as.items():
        assert fresh not in after
        assert fresh not in made
        after[fresh] = installed[name]
    for name in plan.modes:
        after[name] = wanted[name]
    return {**after, **made}


def test_nothing_to_do() -> None:
    """A tree that is as wanted: an empty plan, with every name kept."""
    same = tree(a="1", b="2!")
    found = plan(same, same)
    assert found.empty
    assert found.route == "none"
    assert found.keep == ("a", "b")


def test_changed_added_and_removed() -> None:
    """What differs is fetched; what the release no longer has goes."""
    found = plan(tree(a="1", b="2", c="3"), tree(a="1", b="new", d="4"))
    assert found.fetch == ("b", "d")
    assert found.remove == ("c",)
    assert (found.added, found.changed) == (("d",), ("b",))


def test_a_moved_file_costs_no_bytes() -> None:
    """Its content is here under another name, which is free to go."""
    found = plan(tree(a="1", b="2"), tree(new="1", b="2"))
    assert found.fetch == ()
    assert [(each.name, each.source, each.move) for each in found.local] == [("new", "a", True)]
    assert found.remove == ()
    assert found.route == "local"


def test_a_copied_file_costs_no_bytes() -> None:
    """Two names for the content of one file that stays: copies, no moves."""
    found = plan(tree(a="1"), tree(a="1", b="1", c="1"))
    assert {(each.name, each.source, each.move) for each in found.local} == {("b", "a", False), ("c", "a", False)}


def test_files_that_change_places() -> None:
    """Neither name goes, so both are copies of what the other had."""
    found = plan(tree(a="1", b="2"), tree(a="2", b="1"))
    assert {(each.name, each.source, each.move) for each in found.local} == {("a", "b", False), ("b", "a", False)}


def test_content_in_the_history_costs_no_bytes() -> None:
    """Going forward again after a rollback takes what the history still has."""
    found = plan(tree(a="1"), tree(a="2"), stored=digest("2").__eq__)
    assert found.stored == ("a",)


def test_an_executable_bit_costs_no_bytes() -> None:
    """Where only the mode differs, only the mode is set, and no local edit is recorded."""
    found = plan(tree(a="1"), tree(a="1!"), local_changes="refuse")
    assert found.modes == ("a",)
    assert found.fetch == ()
    assert found.changed == ("a",)


def test_a_moved_file_with_another_mode_is_copied() -> None:
    """A move keeps the inode, and with it the mode."""
    found = plan(tree(a="1"), tree(b="1!"))
    assert [(each.name, each.move) for each in found.local] == [("b", False)]
    assert found.remove == ("a",)


def test_a_local_edit_is_kept_aside() -> None:
    """The default: what was edited is moved beside its place, and the release's file installed."""
    found = plan(tree(a="1"), tree(a="2"), tree(a="mine"))
    assert found.saved_as == {"a": "a.perfkit-local"}
    assert found.fetch == ("a",)
    assert found.overwritten == ()


def test_names_of_kept_files_are_free_and_fit() -> None:
    """Numbers where the name is taken, by the release or by anything else; long names are cut, not broken."""
    wanted = tree(a="2", **{"a.perfkit-local": "3"})
    found = plan(tree(a="1"), wanted, tree(a="mine"), taken=lambda name: name == "a.perfkit-local-2")
    assert found.saved_as == {"a": "a.perfkit-local-3"}
    long = "d/" + "é" * 127
    found = plan(tree(**{long: "1"}), tree(**{long: "2"}), tree(**{long: "mine"}))
    assert len(found.saved_as[long].rpartition("/")[2].encode()) <= 255


def test_a_local_edit_is_overwritten_or_refused_as_asked() -> None:
    """The plan names what is overwritten, and the error names what blocks the update."""
    assert plan(tree(a="1"), tree(a="2"), tree(a="mine"), local_changes="overwrite").overwritten == ("a",)
    with pytest.raises(UpdateError, match="1 file with local edits: a;"):
        plan(tree(a="1"), tree(a="2"), tree(a="mine"), local_changes="refuse")


def test_an_edit_of_a_file_that_the_release_drops_is_kept_too() -> None:
    """No edited file is lost under the default."""
    found = plan(tree(a="1"), {}, tree(a="mine"))
    assert found.saved_as == {"a": "a.perfkit-local"}
    assert found.remove == ()


def test_an_edit_to_the_wanted_content_is_not_an_edit() -> None:
    """A half-updated tree: files that already are as the new release has them stay, whatever the policy."""
    found = plan(tree(a="1", b="3"), tree(a="2", b="4"), tree(a="2", b="3"), local_changes="refuse")
    assert found.keep == ("a",)
    assert found.fetch == ("b",)
    assert found.already_applied == ("a",)
    assert plan(tree(a="1", b="2"), tree(b="3"), tree(b="mine")).already_applied == ("a",)
    assert plan(tree(a="1", b="1"), tree(a="1!", b="1"), tree(a="1!", b="1")).already_applied == ("a",)


def test_files_as_the_updater_has_them() -> None:
    """Those that are as the manifest has them, and the others: as one mapping."""
    wanted = tree(a="1", b="2", c="3", d="4")
    others = tree(b="mine", z="4")
    files = ExistingFiles(subset(wanted, without="bd"), others)
    assert dict(files) == {"a": wanted["a"], "c": wanted["c"], **others}
    assert [*files.names] == ["a", "c", "b", "z"]
    assert [*files.entries] == [wanted["a"], wanted["c"], *others.values()]
    assert (len(files), "b" in files, "d" in files) == (4, True, False)
    found, same = decide(subset(wanted), files, subset(wanted)), plan(wanted, wanted, dict(files))
    assert (found, found.fetch, found.saved_as) == (same, same.fetch, same.saved_as)
    assert [(each.name, each.source) for each in found.local] == [("d", "z")]


def test_an_unmanaged_file_in_the_way() -> None:
    """The same content is adopted; another is a local change."""
    assert plan({}, tree(a="1"), tree(a="1"), local_changes="refuse").keep == ("a",)
    assert plan({}, tree(a="1"), tree(a="mine")).saved_as == {"a": "a.perfkit-local"}


def test_a_deleted_file_comes_back() -> None:
    """Nothing can be lost by that, so no policy refuses it."""
    found = plan(tree(a="1", b="2"), tree(a="1", b="2"), tree(b="2"), local_changes="refuse")
    assert found.fetch == ("a",)
    assert found.added == ("a",)


contents = st.sampled_from(["1", "22", "333", "1!", "22!", "333!"])
trees = st.dictionaries(st.sampled_from(list("abcdef")), contents, max_size=6).map(lambda files: tree(**files))


@given(
    before=trees,
    edits=trees,
    deleted=st.sets(st.sampled_from(list("abcdef"))),
    wanted=trees,
    stored=st.frozensets(st.sampled_from([digest("1"), digest("22")])),
    policy=st.sampled_from(["keep", "overwrite"]),
)
def test_a_plan_applied_gives_the_wanted_tree(
    before: Tree, edits: Tree, deleted: set[str], wanted: Tree, stored: frozenset[bytes], policy: str
) -> None:
    """For any tree, whatever was done to it: all that is wanted is there, nothing else is left, no edit is lost."""
    installed = {name: held for name, held in {**before, **edits}.items() if name not in deleted}
    installed = {name: held for name, held in installed.items() if name in wanted or name in before}
    found = plan(before, wanted, installed, stored=stored.__contains__, local_changes=policy)
    after = apply(found, installed, wanted, stored)
    kept = {fresh: installed[name] for name, fresh in found.saved_as.items()}
    assert after == {**wanted, **kept}
    known = {wanted[name].sha256 for name in wanted} | {entry.sha256 for entry in before.values()}
    lost = [
        name
        for name, held in installed.items()
        if held.sha256 not in known and held.sha256 not in {each.sha256 for each in after.values()}
    ]
    assert policy == "overwrite" or not lost
    here = {held.sha256 for held in installed.values()} | stored
    assert not [name for name in found.fetch if wanted[name].sha256 in here]
    assert found.empty == (installed == wanted)


AB = {b"a", b"b"}
LATENCY_S = 0.1


@pytest.mark.parametrize(
    ("table", "route"),
    [
        ([Offer("delta", frozenset(AB), 1000, 1), Offer("blocks", frozenset(AB), 9000, 1)], "delta"),
        ([Offer("delta", frozenset(AB), 9000, 1), Offer("blocks", frozenset(AB), 1000, 1)], "blocks"),
        ([Offer("blocks", frozenset(AB), 1000, 40), Offer("packs", frozenset(AB), 200_000, 2)], "packs"),
        ([Offer("delta", frozenset(AB), 1000, 1, 500_000_000), Offer("blocks", frozenset(AB), 9000, 1)], "blocks"),
        ([Offer("delta", frozenset({b"a"}), 1000, 1), Offer("blocks", frozenset(AB), 2_000_000, 1)], "blocks"),
    ],
    ids=["fewest bytes", "the other way", "fewest round trips", "the processor counts", "the rest counts"],
)
def test_the_cheapest_route(table: list[Offer], route: str) -> None:
    """Priced in seconds: bytes, round trips and decoding, and whatever the route leaves to the others."""
    found = choose_routes(AB, lambda missing: table, LATENCY_S)
    assert [offer.route for offer in found] == [route]


def test_routes_that_complete_each_other() -> None:
    """A cheap route for most, another for the rest; what the second asks is for the rest only."""

    def table(missing: frozenset[bytes]) -> Sequence[Offer]:
        return [Offer("delta", frozenset({*AB, b"c"}), 1000, 1), Offer("blocks", missing, 500_000 * len(missing), 1)]

    found = choose_routes({*AB, b"c", b"d"}, table, LATENCY_S)
    assert [(offer.route, offer.bytes) for offer in found] == [("delta", 1000), ("blocks", 500_000)]


def test_nothing_offers_what_is_missing() -> None:
    """A release with a hole in it is refused before anything is fetched."""
    with pytest.raises(UpdateError, match="2 missing file contents"):
        choose_routes(AB, lambda missing: [Offer("delta", frozenset({b"a"}), 1, 1)], LATENCY_S)
