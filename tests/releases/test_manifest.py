"""The canonical list of a release's files: what it refuses, and its views."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import pytest

from perfkit import ManifestError, UnsafePathError
from perfkit.releases.format.manifest import Entry, EntrySubset, Manifest

pytestmark = pytest.mark.once

ENTRIES = [Entry(name, number, bytes(32)) for number, name in enumerate("abcd")]


@pytest.mark.parametrize("wrong", [Entry("wrong", -1, bytes(32)), Entry("wrong", 1, bytes(31))])
def test_entries_of_no_file(wrong: Entry) -> None:
    with pytest.raises(ManifestError, match="wrong: a file of"):
        Manifest.of([*ENTRIES, wrong])


def test_unsafe_names_are_named() -> None:
    with pytest.raises(UnsafePathError, match=r"\.\./x"):
        Manifest.of([*ENTRIES, Entry("../x", 1, bytes(32))])


def test_names_are_checked_unless_the_digest_is_known() -> None:
    """That they were parsed before is worth nothing for other bytes."""
    raw = bytearray(Manifest.of(ENTRIES).raw)
    raw[-2:-1] = b"a"  # two files of one name
    for known in (False, True):
        with pytest.raises(ManifestError, match="out of order"):
            Manifest.parse(bytes(raw), known=known)


def test_a_subset_is_sliced_and_compared() -> None:
    """Its names and entries are decoded on access, and otherwise behave as lists."""
    subset = EntrySubset(Manifest.of(ENTRIES))
    for number in (0, 2, 3):
        subset.add(number)
    assert (list(subset.names), list(subset.names[1:])) == (["a", "c", "d"], ["c", "d"])
    assert subset.entries[:2] == [ENTRIES[0], ENTRIES[2]]
    assert subset.names != ["a", "c", "e"]
    assert subset.names != ["a", "c"]


def test_a_part_of_a_manifest_is_a_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a manifest is a mapping of its entries, in any order that it is asked in."""
    tree = Manifest.of(Entry(f"n{number:03}", 1, bytes([number % 7]) * 32) for number in range(100))
    part = EntrySubset(tree)
    for at in range(0, 100, 3):
        part.add(at)
    assert list(part) == [f"n{number:03}" for number in range(0, 100, 3)]
    assert list(part.places()) == [(at, f"n{at:03}") for at in range(0, 100, 3)]
    assert part.names[1:3] == ["n003", "n006"]
    searches: list[object] = []

    def counted(names: Any, name: Any, **options: Any) -> int:
        searches.append(name)
        return bisect_left(names, name, **options)

    monkeypatch.setattr("perfkit.releases.format.manifest.bisect_left", counted)
    for _ in range(3):  # in order, only the first is searched for
        assert [part[name] for name in part] == list(part.entries)
    assert searches == ["n000", "n000"]
    assert [tree.find(name) for name in tree.names() for _ in range(2)] == [at for at in range(100) for _ in range(2)]
    assert len(searches) == 2
    for at in (99, 0, 3, 3, 60, 57):
        assert part[f"n{at:03}"] == tree[at]
    for name in ("n001", "", "z", "n055", "n058"):
        assert name not in part
        with pytest.raises(KeyError):
            part[name]
